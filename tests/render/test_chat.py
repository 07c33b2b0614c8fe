"""Templates by hand: what each does to a conversation, and that the words are found all the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instdiff.core import Prompted
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError
from instdiff.rendering.chat import Piece, align
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import ChatTemplate, template
from render.families import KINDS, TOOLS, tokenizer_with

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
MARKS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
HF = {kind: tokenizer_with(kind, MARKS, **NAMED) for kind in KINDS}

Turn = dict[str, Any]
EACH = "{% for m in messages %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK


def ask(text: str) -> Turn:
    return {"role": "user", "content": text}


def say(text: str, **more: Any) -> Turn:
    return {"role": "assistant", "content": text, **more}


TALK = [ask("One?"), say("Two."), ask("And?"), say("Three.")]


class Shown:
    def __init__(self, jinja: str, *rows: list[Turn] | dict[str, Any], kind: str = "byte_bpe", **how: Any) -> None:
        self.hf = HF[kind]
        samples = [row if isinstance(row, dict) else {"messages": row} for row in rows]
        tokenizer = HFTokenizer(self.hf, None, **{k: how.pop(k) for k in ("stops",) if k in how})
        self.renderer, layout = Renderer(load(samples, **how), tokenizer), ChatTemplate("own", jinja)
        self.rows, self.trained = (
            self.renderer.rows(Prompted(), layout, 9000),
            self.renderer.training_rows(layout, 9000),
        )
        self.log = self.renderer.report()

    def targets(self, learnt: bool = False, row: int = 0) -> list[str]:
        rows = self.trained if learnt else self.rows
        marks = rows.target[rows.ids.offsets[row] : rows.ids.offsets[row + 1]].tolist()
        runs: list[list[int]] = []
        for at, (token, mark) in enumerate(zip(rows.ids[row].tolist(), marks, strict=True)):
            if mark:
                runs.append([]) if not at or not marks[at - 1] else None
                runs[-1].append(token)
        return [self.hf.decode(run) for run in runs]

    def text(self, row: int = 0) -> str:
        return str(self.hf.decode(self.trained.ids[row].tolist()))


def test_an_end_only_where_nothing_is_asked() -> None:
    jinja = (
        EACH
        + "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% else %}</s>{% endif %}"
    )
    shown = Shown(jinja, TALK)
    assert shown.targets() == ["Two.", "Three."] and shown.targets(learnt=True) == ["Two.", "Three.</s>"]
    assert shown.trained.ended is not None and shown.trained.ended.tolist() == [True]


def test_a_template_without_any_end() -> None:
    shown = Shown(EACH + "[{{ m.role }}]{{ m.content }}{% endfor %}", TALK)
    assert shown.targets(learnt=True) == ["Two.", "Three."]
    assert shown.trained.ended is not None and shown.trained.ended.tolist() == [False]


def test_a_header_without_a_prompt_for_answers() -> None:
    shown = Shown(EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}", TALK)
    assert shown.targets(learnt=True) == ["Two.<|im_end|>", "Three.<|im_end|>"]


def test_a_thought_in_an_answer_that_no_prompt_asks_for() -> None:
    jinja = EACH + "[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    shown = Shown(jinja, [ask("One?"), say("<think>\nHm.\n</think>\n\nTwo.")])
    assert [said.strip() for said in shown.targets()] == ["<think>\nHm.\n</think>\n\nTwo."]


def test_marks_around_the_header() -> None:
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    marked = f"{{% generation %}}{turn}{{% endgeneration %}}"
    jinja = f"{EACH}{{% if m.role == 'assistant' %}}{marked}{{% else %}}{turn}{{% endif %}}{{% endfor %}}"
    shown = Shown(jinja + ASK, [ask("First letter?"), say("a")])
    assert shown.targets() == ["a"] and shown.targets(learnt=True) == ["a<|im_end|>"]


def test_content_is_trimmed() -> None:
    shown = Shown(CHATML.replace("m.content", "m.content | trim"), [ask("  One? "), say("\n Two. \n")])
    assert shown.targets() == ["Two."] and "\nOne?<|im_end|>" in shown.text()


def test_white_space_that_stays_is_a_part_of_the_answer() -> None:
    assert Shown(CHATML, [ask("One?"), say(" Two.\n\n")]).targets() == [" Two.\n\n"]


def test_line_ends_are_replaced() -> None:
    jinja = CHATML.replace("m.content", "m.content | replace('\n', ' / ')")
    assert Shown(jinja, [ask("One\nmore?"), say("Two\nof them.")]).targets() == ["Two / of them."]


def test_text_is_escaped() -> None:
    jinja = CHATML.replace("m.content", "m.content | tojson")
    assert Shown(jinja, [ask('Say "x"'), say('He said "x"\nö')]).targets() == [r"He said \"x\"\nö"]


def test_contents_as_parts() -> None:
    jinja = CHATML.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")
    shown = Shown(jinja, TALK)
    assert shown.targets(learnt=True) == ["Two.<|im_end|>", "Three.<|im_end|>"]
    assert "user\nOne?<|im_end|>" in shown.text()


def test_the_system_text_stands_in_the_last_user_turn() -> None:
    jinja = (
        "{% if messages[0].role == 'system' %}{% set system, messages = messages[0].content, messages[1:] %}{% endif %}"
        + EACH
        + "{% set left = messages | length - loop.index0 %}[{{ m.role }}]{% if left == 2 %}{{ system }}\n{% endif %}"
        "{{ m.content }}</s>{% endfor %}"
    )
    shown = Shown(jinja, [{"role": "system", "content": "Be brief."}, *TALK])
    assert shown.targets() == ["Two.", "Three."] and "[user]Be brief.\nAnd?</s>" in shown.text() and not shown.log


def test_words_that_a_template_changes_are_found_within_its_marks() -> None:
    # Bars in the text as between the turns: only the marks tell where an answer begins.
    said = "{{ m.content | replace('-', '=') }}"
    marked = f"{{% generation %}}{said}{{% endgeneration %}}"
    turn = f"{{% if m.role == 'assistant' %}}{marked}{{% else %}}{said}{{% endif %}}|"
    talk = [ask("q"), say("c|q|-d"), ask("q"), say("g|-h")]
    assert Shown(f"{EACH}{turn}{{% endfor %}}", talk).targets() == ["c|q|=d", "g|=h"]
    assert Shown(f"{EACH}{said}|{{% endfor %}}", talk).rows.reason.tolist() == ["rewritten"]


def test_one_rendering_whatever_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = HFTokenizer.render

    def render(self: HFTokenizer, *args: Any, **more: Any) -> str:
        calls.append(1)
        return plain(self, *args, **more)

    monkeypatch.setattr(HFTokenizer, "render", render)
    shown = Shown(CHATML, TALK * 100, TALK)
    traits = len(calls) - 4
    assert shown.rows.n_targets()[0] == 100 * shown.rows.n_targets()[1]
    assert traits <= 9  # once for a template, not for a row


# ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

CALLING = (
    EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}<call>{{ c.function.name }}"
    "({{ c.function.arguments | tojson }})</call>{% endfor %}<|im_end|>\n{% endfor %}" + ASK
)


def calling(*calls: dict[str, Any], text: str = "") -> Turn:
    return say(text, tool_calls=[{"type": "function", "function": call} for call in calls])


def test_several_calls_and_values_of_all_kinds() -> None:
    arguments = {"city": 'L"ima', "days": 2, "ok": True, "none": None, "list": ["a", 1], "deep": {"x": "ü"}}
    row = [
        ask("?"),
        calling({"name": "f", "arguments": arguments}, {"name": "g", "arguments": {}}),
        ask("!"),
        say("Ok."),
    ]
    shown = Shown(CALLING, row, targets="all+calls")
    first, second = shown.targets()
    assert first.startswith("<call>f({") and first.endswith("<call>g({})</call>") and second == "Ok."
    assert shown.targets(learnt=True)[0] == first + "<|im_end|>"
    assert Shown(CALLING, row).targets() == ["Ok."]


def test_calls_as_text_where_objects_fail() -> None:
    jinja = CALLING.replace("c.function.arguments | tojson", "'' + c.function.arguments")
    row = [ask("?"), calling({"name": "f", "arguments": {"a": "b"}}, text="So.")]
    assert Shown(jinja, row, targets="all+calls").targets() == ['So.<call>f({"a": "b"})</call>']


def test_an_answer_before_a_call_that_is_context() -> None:
    shown = Shown(CALLING, [ask("?"), calling({"name": "f", "arguments": {"a": "b"}}, text="So.")])
    assert shown.targets() == ["So."] and shown.targets(learnt=True) == ["So.", "<|im_end|>"]
    assert shown.trained.ended is not None and shown.trained.ended.all()


def test_a_set_of_templates() -> None:
    plain = EACH + "[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    hf = tokenizer_with("byte_bpe", MARKS, **NAMED)
    hf.chat_template = {"default": plain, "tool_use": "tools: {{ tools | length }}" + plain}
    rows = Renderer(load([{"messages": TALK, "tools": TOOLS}, {"messages": TALK}]), HFTokenizer(hf, None)).rows(
        Prompted(), template("chat"), 999
    )
    first, second = (hf.decode(rows.ids[at].tolist()) for at in (0, 1))
    assert first == f"tools: 1{second}"
    hf.chat_template = {"rag": plain}
    with pytest.raises(ConfigError, match="has chat templates rag and none named 'default'"):
        Renderer(load([{"messages": TALK}]), HFTokenizer(hf, None)).rows(Prompted(), template("chat"), 999)


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_end_that_is_no_token() -> None:
    jinja = EACH + "[{{ m.role }}]{{ m.content }}(end)\n{% endfor %}"
    shown = Shown(jinja, TALK)
    assert shown.targets(learnt=True) == ["Two.(end)\n", "Three.(end)\n"]
    assert shown.log == ["2 turns: the tokenizer has no token for the template's end of a turn; its text is learnt"]


def test_the_models_own_stop_goes_before_other_special_tokens() -> None:
    jinja = EACH + "[{{ m.role }}]{{ m.content }}<|im_end|></s>{% endfor %}"
    assert Shown(jinja, TALK).targets(learnt=True) == ["Two.<|im_end|></s>", "Three.<|im_end|></s>"]
    stop = HF["byte_bpe"].convert_tokens_to_ids("<|im_end|>")
    assert Shown(jinja, TALK, stops=[stop]).targets(learnt=True) == ["Two.<|im_end|>", "Three.<|im_end|>"]


def test_a_response_that_ends_with_the_end() -> None:
    shown = Shown(CHATML, [ask("One?"), say("Two.<|im_end|>")])
    assert shown.targets(learnt=True) == ["Two.<|im_end|><|im_end|>"]
    assert shown.log == ["1 responses end with the text that closes a turn; the template writes it once more"]


# ── reasons ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("row", "how", "reason"),
    [
        ([ask("?"), say("")], {}, "empty_response"),
        ([ask("?"), say("  \n")], {}, "empty_response"),
        ([ask("?"), say("", reasoning_content="Hm.")], {"reasoning": "drop"}, "empty_response"),
        ([ask("?"), say("", reasoning_content="Hm.")], {"reasoning": "context"}, "no_target"),
        ([ask("?"), say("No.", weight=0)], {}, "no_target"),
        ([ask("?"), calling({"name": "f", "arguments": {}})], {}, "no_target"),
        ([ask("?"), calling({"name": "f", "arguments": {}})], {"targets": "all+calls"}, "rewritten"),
        ([ask("?"), say("", reasoning_content="Hm.")], {}, "rewritten"),
        ([ask("?"), say("Yes."), ask("?"), say("")], {}, "empty_response"),
    ],
)
def test_reasons(row: list[Turn], how: dict[str, str], reason: str) -> None:
    shown = Shown(CHATML, row, TALK, **how)
    assert shown.rows.reason.tolist() == [reason, None]


def test_learn_true_adds_nothing() -> None:
    talk = [ask("One?"), say("Two.", weight=1), ask("And?"), say("Three.")]
    assert Shown(CHATML, talk, targets="last").targets() == ["Three."]


def test_a_prompt_that_cannot_fit_is_not_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    plain = HFTokenizer.encode_placed

    def encode(self: HFTokenizer, texts: Any) -> Any:
        seen.extend(texts)
        return plain(self, texts)

    monkeypatch.setattr(HFTokenizer, "encode_placed", encode)
    shown = Shown(CHATML, [ask("x" * 1_000_000), say("Yes.")], TALK)
    assert shown.rows.reason.tolist() == ["too_long", None] and max(map(len, seen)) < 1000


# ── invariants ────────────────────────────────────────────────────────────────────────────────────────────────────────

_TEXT = st.text(alphabet=st.sampled_from(list("ab zZ<>|/\n\t.?9é中😀")), min_size=1, max_size=12).filter(str.strip)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=3), st.sampled_from(KINDS))
def test_any_words_are_found_where_they_stand(pairs: list[tuple[str, str]], kind: str) -> None:
    talk = [turn for question, answer in pairs for turn in (ask(question), say(answer))]
    shown = Shown(CHATML, talk, kind=kind)
    hf = shown.hf
    text = hf.apply_chat_template(talk, chat_template=CHATML, tokenize=False)
    ids = hf(text, add_special_tokens=False).input_ids
    assert shown.rows.reason.tolist() == [None]
    assert shown.trained.ids[0].tolist() == ids[: len(shown.trained.ids[0])]
    learnt = shown.targets(learnt=True)
    assert len(learnt) == len(pairs) and all(said.rstrip().endswith("<|im_end|>") for said in learnt)
    if kind == "byte_bpe":
        assert [said.strip() for said in shown.targets()] == [answer.strip() for _, answer in pairs]


@given(st.lists(st.text("ab|", max_size=4), max_size=4), st.text("ab|", max_size=9))
def test_places_are_told_only_where_there_is_one_way(fixed: list[str], text: str) -> None:
    """Against all ways, written out."""
    fixed = ["", *fixed, ""] if len(fixed) < 2 else fixed
    ways: list[list[str]] = []

    def walk(at: int, left: list[str], found: list[str]) -> None:
        if not left:
            ways.append(found) if at == len(text) else None
            return
        for end in range(at, len(text) + 1):
            if text.startswith(left[0], end):
                walk(end + len(left[0]), left[1:], [*found, text[at:end]])

    if text.startswith(fixed[0]):
        walk(len(fixed[0]), fixed[1:], [])
    pieces = [Piece(0, "answer", f"<{number}>") for number in range(len(fixed) - 1)]
    found = align(text, (fixed, pieces))
    if found is not None:
        assert [text[place.start : place.end] for place in found] == ways[0] and len(ways) == 1
