"""Rows are exactly what a model sees: ids, targets, truncation, reasons."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import CHAT_PLAIN, make_tokenizer
from instdiff.core import Joint, Prompted, ResponseOnly, View, WholeText
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError, PlanError
from instdiff.rendering.renderer import Rows, render, text_lengths, training_rows
from instdiff.rendering.templates import ChatTemplate, template

BOS, EOS = 1, 2
PROMPTED = Prompted()


def rows_of(
    data: list[dict[str, Any]],
    tokenizer: HFTokenizer,
    view: View = PROMPTED,
    layout: str = "plain",
    limit: int = 500,
    targets: str = "all",
) -> Rows:
    return render(view, load(data, targets=targets), tokenizer, template(layout), limit)


def text_of(rows: Rows, row: int, hf: Any) -> tuple[str, str]:
    """The whole text of a row, and that of its targets."""
    a, b = rows.ids.offsets[row : row + 2]
    ids, hit = rows.ids[row], rows.target[a:b]
    return hf.decode(ids.tolist()), hf.decode(ids[hit].tolist())


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


ONE = [{"instruction": "Add.", "input": "1, 2", "output": "3 it is"}]


# ── BOS and where a context comes from ────────────────────────────────────────────────────────────────────────────────


def test_with_bos(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    rows = rows_of(ONE, tokenizers["bos"])
    assert rows.ids[0][0] == BOS and (rows.ids[0] == BOS).sum() == 1
    assert text_of(rows, 0, hf["bos"]) == ("<s>Add.\n1, 2\n3 it is", "3 it is")
    assert rows.reason.tolist() == [None] and rows.truncated.tolist() == [False]
    assert rows.n_targets().tolist() == [len(hf["bos"]("3 it is", add_special_tokens=False).input_ids)]


def chatting(*, apart: bool, opens: bool) -> HFTokenizer:
    """A tokenizer that adds no start token, and whose BOS by name is what opens turns, or stands once."""
    hf = make_tokenizer(bos=False, chat=CHAT_PLAIN if opens else "<s>" + CHAT_PLAIN.replace("<|im_start|>", "# "))
    hf.add_special_tokens({"bos_token": "<|im_start|>" if opens else "<s>"})
    if apart:
        hf.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]}, replace_extra_special_tokens=False)
    return HFTokenizer(hf, 500)


def test_a_response_alone_never_starts_after_a_token_that_opens_turns() -> None:
    found = {(a, o): chatting(apart=a, opens=o) for a in (True, False) for o in (True, False)}
    texts = {key: tokenizer.start_text for key, tokenizer in found.items()}
    assert texts == {
        (True, True): "<|endoftext|>",
        (True, False): "<|endoftext|>",
        (False, True): "</s>",
        (False, False): "<s>",
    }
    rows = rows_of(ONE, found[True, True], ResponseOnly())
    assert rows.ids[0][0] == found[True, True].hf.convert_tokens_to_ids("<|endoftext|>")
    prints = {tokenizer.fingerprint for tokenizer in found.values()}
    assert len(prints) == 4  # columns of another start token have another key


def test_without_bos(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    rows = rows_of(ONE, tokenizers["no_bos"])
    assert text_of(rows, 0, hf["no_bos"]) == ("Add.\n1, 2\n3 it is", "3 it is")


def test_the_response_alone_has_a_start_token(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    assert text_of(rows_of(ONE, tokenizers["bos"], ResponseOnly()), 0, hf["bos"]) == ("<s>3 it is", "3 it is")
    no_bos = rows_of(ONE, tokenizers["no_bos"], ResponseOnly())
    assert text_of(no_bos, 0, hf["no_bos"]) == ("</s>3 it is", "3 it is")  # the end token, where there is no BOS
    official = rows_of(ONE, tokenizers["no_bos"], ResponseOnly(context=False))
    assert text_of(official, 0, hf["no_bos"]) == ("3 it is", " it is")  # T - 1 terms
    assert text_of(rows_of(ONE, tokenizers["bos"], ResponseOnly(context=False)), 0, hf["bos"])[1] == "3 it is"
    short = rows_of([{"instruction": "a", "output": "b"}], tokenizers["no_bos"], ResponseOnly(context=False))
    assert short.reason.tolist() == ["too_short"]


def test_an_empty_prompt_gets_a_start_token(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    empty = [{"instruction": "", "output": "hello"}]
    for name, start in (("bos", "<s>"), ("no_bos", "</s>")):
        rows = rows_of(empty, tokenizers[name], layout="direct")
        assert text_of(rows, 0, hf[name]) == (f"{start}hello", "hello")


def test_no_start_token_at_all(hf: dict[str, Any]) -> None:
    tokenizer = HFTokenizer(hf["no_bos"], None)
    tokenizer.start = None
    assert rows_of([{"instruction": "", "output": "hello"}], tokenizer, layout="direct").reason.tolist() == [
        "no_context"
    ]


def test_whole_text(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    rows = rows_of(ONE, tokenizers["bos"], WholeText())
    assert text_of(rows, 0, hf["bos"]) == ("<s>Add.\n1, 2\n3 it is", "Add.\n1, 2\n3 it is")
    assert rows.ids[0].tolist() == rows_of(ONE, tokenizers["bos"]).ids[0].tolist()
    ended = rows_of(ONE, tokenizers["bos"], WholeText(end=True))
    assert ended.ids[0].tolist() == [*rows.ids[0].tolist(), EOS] and ended.n_targets()[0] == rows.n_targets()[0] + 1


# ── the end token ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_is_learnt_and_scored_on_request(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    tokenizer = tokenizers["bos"]
    trained = training_rows(load(ONE), tokenizer, template("plain"), 500)
    assert text_of(trained, 0, hf["bos"]) == ("<s>Add.\n1, 2\n3 it is</s>", "3 it is</s>")
    scored = rows_of(ONE, tokenizer, Prompted(score_eos=True))
    assert scored.ids[0].tolist() == trained.ids[0].tolist() and scored.target.tolist() == trained.target.tolist()


def test_a_cut_row_has_no_end(tokenizers: dict[str, HFTokenizer]) -> None:
    full = training_rows(load(ONE), tokenizers["bos"], template("plain"), 500)
    size = len(full.ids[0])
    exact = training_rows(load(ONE), tokenizers["bos"], template("plain"), size)
    assert exact.ids[0].tolist() == full.ids[0].tolist() and exact.truncated.tolist() == [False]
    cut = training_rows(load(ONE), tokenizers["bos"], template("plain"), size - 1)
    assert cut.ids[0].tolist() == full.ids[0].tolist()[:-1] and cut.truncated.tolist() == [True]
    assert EOS not in cut.ids[0]
    whole = rows_of(ONE, tokenizers["bos"], limit=size - 1)  # scoring needs no end token, so this fits
    assert whole.truncated.tolist() == [False]


# ── truncation and reasons ────────────────────────────────────────────────────────────────────────────────────────────


def test_reasons_per_row(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    data = [
        {"instruction": "a", "output": "fits"},
        {"instruction": "b", "output": ""},
        {"instruction": "c", "output": "x" * 40},
        {"instruction": "d" * 40, "output": "lost"},
        {"instruction": "e", "output": " "},
    ]
    tokenizer = tokenizers["bos"]
    rows = rows_of(data, tokenizer, limit=20)
    assert len(rows) == 5
    assert rows.reason.tolist() == [None, "empty_response", None, "too_long", None]
    assert rows.truncated.tolist() == [False, False, True, True, False]
    assert rows.ids.lengths().tolist()[1:4] == [0, 20, 0]
    assert rows.n_targets().tolist()[1:4] == [0, 17, 0]  # BOS, "c" and the line's end are the prompt
    assert text_of(rows, 2, hf["bos"]) == ("<s>c\n" + "x" * 17, "x" * 17)
    alone = rows_of(data, tokenizer, ResponseOnly(), limit=20)
    assert alone.reason.tolist() == rows.reason.tolist() and alone.truncated.tolist() == rows.truncated.tolist()
    assert alone.n_targets().tolist() == rows.n_targets().tolist()


def test_the_models_context_is_never_exceeded(hf: dict[str, Any]) -> None:
    tokenizer = HFTokenizer(hf["bos"], 12)
    data = [{"instruction": "c", "output": "x" * 40}]
    for view in (Prompted(), ResponseOnly(), WholeText(), Prompted(score_eos=True), Joint("plain")):
        rows = rows_of(data, tokenizer, view, limit=500)
        assert 0 < len(rows.ids[0]) <= 12 and rows.truncated.tolist() == [True]
    assert len(training_rows(load(data), tokenizer, template("plain"), 500).ids[0]) == 12


def test_one_row_out_for_each_row_in(tokenizers: dict[str, HFTokenizer]) -> None:
    data = [{"instruction": f"{i}", "output": "" if i % 3 == 0 else "yes"} for i in range(5000)]  # several chunks
    rows = rows_of(data, tokenizers["bos"])
    assert len(rows) == len(rows.reason) == len(rows.keys()) == 5000
    assert [reason is None for reason in rows.reason] == [i % 3 != 0 for i in range(5000)]
    assert rows.take([4999, 1]).ids[0].tolist() == rows.ids[4999].tolist()  # type: ignore[arg-type]


def test_a_view_that_nobody_renders(tokenizers: dict[str, HFTokenizer]) -> None:
    with pytest.raises(PlanError, match=r"no renderer for view View\(\)"):
        rows_of(ONE, tokenizers["bos"], View())


# ── conversations under text templates ────────────────────────────────────────────────────────────────────────────────

TALK = chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "See you"))


def test_turns_and_system(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    rows = rows_of([TALK], tokenizers["bos"])
    assert text_of(rows, 0, hf["bos"]) == ("<s>Be brief.\n\nHi\nHello.</s>\nBye\nSee you", "Hello.See you")
    last = rows_of([TALK], tokenizers["bos"], targets="last")
    assert text_of(last, 0, hf["bos"]) == ("<s>Be brief.\n\nHi\nHello.</s>\nBye\nSee you", "See you")
    alpaca = rows_of([TALK], tokenizers["bos"], layout="alpaca")
    whole, _ = text_of(alpaca, 0, hf["bos"])
    assert whole.startswith("<s>Be brief.\n\nBelow is an instruction") and whole.count("Below is") == 1
    assert whole.endswith("### Response:Hello.</s>\n\n### Instruction:\nBye\n\n### Response:See you")


def test_what_follows_the_last_target_is_dropped(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    rows = rows_of([chat(("user", "Hi"), ("assistant", "Hello."), ("user", "and a question"))], tokenizers["bos"])
    assert text_of(rows, 0, hf["bos"]) == ("<s>Hi\nHello.", "Hello.")


TOOLS = {
    "conversations": [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
}


def test_tool_turns_are_context_unless_asked(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    look = '{"name": "look", "arguments": {}}'
    whole = f"<s>Weather?\n{look}</s>\nrain\nIt rains."
    assert text_of(rows_of([TOOLS], tokenizers["bos"]), 0, hf["bos"]) == (whole, "It rains.")
    calls = rows_of([TOOLS], tokenizers["bos"], targets="all+calls")
    assert text_of(calls, 0, hf["bos"]) == (whole, f"{look}It rains.")
    trained = training_rows(load([TOOLS]), tokenizers["bos"], template("plain"), 500)
    assert text_of(trained, 0, hf["bos"])[1] == "It rains.</s>"


# ── chat templates ────────────────────────────────────────────────────────────────────────────────────────────────────

SEEN = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSee you"
)


@pytest.mark.parametrize("name", ["bos", "no_bos"])  # without and with generation marks
def test_chat(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any], name: str) -> None:
    rows = rows_of([TALK], tokenizers[name], layout="chat")
    assert text_of(rows, 0, hf[name]) == (SEEN, "Hello.See you")
    last = rows_of([TALK], tokenizers[name], layout="chat", targets="last")
    assert text_of(last, 0, hf[name]) == (SEEN, "See you")
    trained = training_rows(load([TALK]), tokenizers[name], template("chat"), 500)
    assert text_of(trained, 0, hf[name]) == (SEEN + "<|im_end|>", "Hello.<|im_end|>See you<|im_end|>")
    # This template shows no calls.
    assert rows_of([TOOLS], tokenizers[name], layout="chat", targets="all+calls").reason.tolist() == ["rewritten"]
    assert text_of(rows_of([TOOLS], tokenizers[name], layout="chat"), 0, hf[name])[1] == "It rains."


def test_an_input_follows_its_instruction_in_chat(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    rows = rows_of(ONE, tokenizers["bos"], layout="chat")
    assert text_of(rows, 0, hf["bos"]) == (
        "<|im_start|>user\nAdd.\n1, 2<|im_end|>\n<|im_start|>assistant\n3 it is",
        "3 it is",
    )


def test_no_chat_template(tokenizers: dict[str, HFTokenizer]) -> None:
    with pytest.raises(ConfigError, match=r"has no chat template; give --template alpaca, plain, direct or a \.jinja"):
        rows_of(ONE, tokenizers["no_chat"], layout="chat")


def test_a_jinja_file_stands_in(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    jinja = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    rows = render(Prompted(), load(ONE), tokenizers["no_chat"], ChatTemplate("mine", jinja), 500)
    assert text_of(rows, 0, hf["no_chat"]) == ("[user]Add.\n1, 2[assistant]3 it is", "3 it is")


def test_a_turn_that_the_template_does_not_show_is_said_so(tokenizers: dict[str, HFTokenizer]) -> None:
    jinja = (
        "{% for m in messages %}{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}|{% endif %}"
        "{% endfor %}"
    )
    pool = load([TALK, chat(("user", "a"), ("assistant", "b"))])
    rows = render(Prompted(), pool, tokenizers["bos"], ChatTemplate("x", jinja), 99)
    assert rows.reason.tolist() == ["rewritten", None]


def test_a_template_that_fails_on_a_row_names_that_row_only(tokenizers: dict[str, HFTokenizer]) -> None:
    jinja = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "{{ m['content'] }}|{% endfor %}"
    )
    pool = load([TALK, chat(("user", "a"), ("assistant", "b"))])
    rows = render(Prompted(), pool, tokenizers["bos"], ChatTemplate("x", jinja), 99)
    assert rows.reason.tolist() == ["unrenderable", None]


# ── the published joint tokenisation ──────────────────────────────────────────────────────────────────────────────────


def test_joint_scores_the_joining_newline(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    rows = rows_of(ONE, tokenizers["bos"], Joint("alpaca_no_input", join="\n", limit=4096))
    whole, target = text_of(rows, 0, hf["bos"])
    assert target == "\n3 it is" and whole.endswith("### Instruction:\nAdd.\n\n### Response:\n3 it is")


def test_joint_limits(tokenizers: dict[str, HFTokenizer]) -> None:
    data = [
        {"instruction": "a", "output": "x" * 30},
        {"instruction": "a" * 30, "output": "x"},
        {"instruction": "a", "output": "x" * 10},
        {"instruction": "a", "output": ""},
    ]
    rows = rows_of(data, tokenizers["bos"], Joint("plain", limit=20))
    assert rows.reason.tolist() == ["too_long", "too_long", None, "empty_response"]
    cut = rows_of(data, tokenizers["bos"], Joint("plain"), limit=20)
    assert cut.reason.tolist() == [None, "too_long", None, "empty_response"]
    assert cut.truncated.tolist() == [True, True, False, False]
    alone = rows_of(data, tokenizers["bos"], Joint("plain", alone="", slack=1), limit=20)
    assert cut.n_targets().tolist()[0] == alone.n_targets().tolist()[0] == 17


def test_joint_is_for_single_turns(tokenizers: dict[str, HFTokenizer]) -> None:
    rows = rows_of([TALK], tokenizers["bos"], Joint("plain"))
    assert rows.reason.tolist() == ["multi_turn"]


# ── lengths ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lengths_in_tokens_are_the_targets(tokenizers: dict[str, HFTokenizer]) -> None:
    for targets in ("all", "last", "all+calls"):
        pool = load([TALK], targets=targets)
        rows = render(Prompted(), pool, tokenizers["bos"], template("plain"), 500)
        assert text_lengths(pool, "response", "tokens", tokenizers["bos"]).tolist() == rows.n_targets().tolist()
    pool = load([TOOLS], targets="all+calls")
    assert text_lengths(pool, "response", "chars", None).tolist() == [len('{"name": "look", "arguments": {}}It rains.')]
