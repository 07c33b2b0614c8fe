"""Views beyond a sample's own prompt and response: what stands where, what is marked, what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import Asked, Joint, Noisy, Prompted, PromptOnly, ResponseOnly, View, Words
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import EngineError
from instdiff.rendering.questions import questions
from instdiff.rendering.renderer import Renderer, Rows, render, text_lengths
from instdiff.rendering.templates import template
from instdiff.rendering.texts import texts
from instdiff.rendering.views import anchors_of, cut_anchors, put_before_anchors, put_demonstrations

ROWS: list[dict[str, Any]] = [
    {"instruction": "why is the sky blue", "input": "", "output": "it is not"},
    {"instruction": "list three things", "input": "that are green", "output": "grass 1984"},
    {"instruction": "explain {x} this", "input": "", "output": "no"},
    {"instruction": "and then?", "input": "", "output": ""},
    {"instruction": "  ", "input": "", "output": "said without being asked"},
]


def made(view: View, tokenizer: HFTokenizer, layout: str = "alpaca", limit: int = 500, rows: Any = None) -> Rows:
    return render(view, load(ROWS if rows is None else rows), tokenizer, template(layout), limit)


def marks(rows: Rows, row: int) -> np.ndarray:
    return Ragged(rows.target, rows.ids.offsets)[row]


def text(hf: Any, ids: Any) -> str:
    return str(hf.decode(ids, skip_special_tokens=False))


# ── the prompt alone ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layout", ["alpaca", "plain", "direct", "chat"])
@pytest.mark.parametrize("name", ["bos", "no_bos"])
def test_the_prompt_is_what_stands_before_the_response(
    tokenizers: dict[str, HFTokenizer], hf: dict[str, Any], name: str, layout: str
) -> None:
    prompts, whole = (made(view, tokenizers[name], layout) for view in (PromptOnly(), Prompted()))
    for row in range(3):
        first = int(np.argmax(marks(whole, row)))
        assert prompts.ids[row].tolist() == whole.ids[row][:first].tolist()
        assert not marks(prompts, row)[0]
        marked = text(hf[name], prompts.ids[row][marks(prompts, row)])
        asked = [ROWS[row]["instruction"], ROWS[row]["input"]]
        assert all(part.split()[-1] in marked for part in asked if part)
        for boilerplate in ("### Response", "Below is", "assistant", "<|im_start|>"):
            assert boilerplate not in marked
    assert prompts.reason.tolist()[3:] == [None, "empty_instruction"]  # a response is not needed
    assert not prompts.truncated.any()


def test_only_what_was_asked_is_marked(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    for name in ("bos", "no_bos"):
        prompts = made(PromptOnly(), tokenizers[name])
        for row in (0, 2):
            assert text(hf[name], prompts.ids[row][marks(prompts, row)]) == ROWS[row]["instruction"]


def test_a_long_prompt_loses_its_end(tokenizers: dict[str, HFTokenizer]) -> None:
    whole, cut = (made(PromptOnly(), tokenizers["bos"], "plain", limit) for limit in (500, 5))
    assert cut.ids[0].tolist() == whole.ids[0][:5].tolist()
    assert cut.truncated[:3].all() and marks(cut, 0).tolist() == [False, True, True, True, True]
    long = made(PromptOnly(), tokenizers["bos"], "alpaca", 6)
    assert long.reason.tolist()[:3] == ["too_long"] * 3 and long.truncated[:3].all()


def test_the_prompt_of_a_conversation(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    turns = [("system", "be brief"), ("human", "the sky?"), ("gpt", "blue"), ("human", "and grass?"), ("gpt", "green")]
    talks = [{"conversations": [{"from": who, "value": said} for who, said in turns]}]
    for layout in ("alpaca", "chat"):
        first = render(PromptOnly(), load(talks), tokenizers["bos"], template(layout), 500)
        assert "sky" in text(hf["bos"], first.ids[0]) and "blue" not in text(hf["bos"], first.ids[0])
        last = render(PromptOnly(), load(talks, targets="last"), tokenizers["bos"], template(layout), 500)
        assert "grass" in text(hf["bos"], last.ids[0]) and "green" not in text(hf["bos"], last.ids[0])
        assert "grass" in text(hf["bos"], last.ids[0][marks(last, 0)])


@pytest.mark.parametrize("layout", ["alpaca", "chat"])
@pytest.mark.parametrize("targets", ["all", "last"])
def test_a_question_that_nobody_has_answered(
    tokenizers: dict[str, HFTokenizer], hf: dict[str, Any], layout: str, targets: str
) -> None:
    turns = [("human", "the sky?"), ("gpt", "blue"), ("human", "and grass?"), ("gpt", "")]
    talks = [{"conversations": [{"from": who, "value": said} for who, said in turns]}]
    rows, first, last = (
        render(PromptOnly(), load(some, targets=targets), tokenizers["bos"], template(layout), 500)
        for some in (
            talks,
            [{"instruction": "the sky?", "input": "", "output": "blue"}],
            [{"conversations": [*talks[0]["conversations"][:3], {"from": "gpt", "value": "green"}]}],
        )
    )
    assert rows.reason.tolist() == [None]
    assert rows.ids[0].tolist() == (last if targets == "last" else first).ids[0].tolist()


# ── questions about a row ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    said = ["Q0 {{ instruction }}|{{ input }}|{{ response }}\\n", "Q1 {{ response }}\\nThe answer is:\\n"]
    path.write_text("prompts:\n" + "".join(f'  - "{one}"\n' for one in said), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["bos", "no_bos"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_question_as_plain_text(
    tokenizers: dict[str, HFTokenizer], hf: dict[str, Any], prompts: str, name: str, number: int
) -> None:
    tokenizer = tokenizers[name]
    rows = made(Asked(prompts, number), tokenizer)
    lead = [] if tokenizer.bos is None else [tokenizer.bos]
    for row, sample in enumerate(load(ROWS).samples()):
        if not sample.response:
            assert (rows.reason[row], len(rows.ids[row])) == ("empty_response", 0)
            continue
        question = questions(prompts).ask(number, sample)
        plain = hf[name](question, add_special_tokens=False).input_ids
        assert rows.ids[row].tolist() == [*lead, *plain, tokenizer.start]
        assert np.flatnonzero(marks(rows, row)).tolist() == [len(lead) + len(plain)]
    # Whatever the role's template is, as long as it is text, the question is the same.
    assert made(Asked(prompts, number), tokenizer, "plain").keys().tolist() == rows.keys().tolist()


@pytest.mark.parametrize("name", ["bos", "no_bos"])
def test_a_question_as_a_users_turn(
    tokenizers: dict[str, HFTokenizer], hf: dict[str, Any], prompts: str, name: str
) -> None:
    rows = made(Asked(prompts, 1), tokenizers[name], "chat")
    question = questions(prompts).ask(1, next(iter(load(ROWS).samples())))
    chat = hf[name].apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    assert rows.ids[0].tolist()[:-1] == hf[name](chat, add_special_tokens=False).input_ids
    assert rows.n_targets().tolist() == [1, 1, 1, 0, 1]


def test_a_question_is_never_cut(tokenizers: dict[str, HFTokenizer], prompts: str) -> None:
    rows = made(Asked(prompts, 0), tokenizers["bos"])
    sizes = rows.ids.lengths()
    short = made(Asked(prompts, 0), tokenizers["bos"], limit=int(sizes[0]))
    assert short.reason.tolist() == [
        None if 0 < size <= sizes[0] else "too_long" if size else "empty_response" for size in sizes
    ]
    assert short.ids[0].tolist() == rows.ids[0].tolist() and not short.truncated.any()
    assert made(Asked(prompts, 0), tokenizers["bos"], limit=int(sizes[0]) - 1).reason[0] == "too_long"


def test_a_question_about_one_turn(tokenizers: dict[str, HFTokenizer], prompts: str) -> None:
    said = [("system", "be brief"), ("user", "the sky?"), ("assistant", "blue"), ("user", "and"), ("user", "grass?")]
    talk = load([{"messages": [{"role": role, "content": text} for role, text in [*said, ("assistant", "green")]]}])
    asked = [Asked(prompts, 0, turn) for turn in (0, 1, 2)]
    assert [texts(view, talk)[0] for view in asked] == ["Q0 the sky?||blue\n", "Q0 and||green\n", ""]
    assert [texts(view, talk).reason[0] for view in asked] == [None, None, "empty_response"]
    for view in asked[:2]:
        rows = render(view, talk, tokenizers["bos"], template("plain"), 500)
        plain = tokenizers["bos"].encode([texts(view, talk)[0]])[0]
        assert rows.ids[0].tolist()[1:-1] == plain
    assert render(asked[2], talk, tokenizers["bos"], template("plain"), 500).reason.tolist() == ["empty_response"]
    assert text_lengths(talk, "row", "turns").tolist() == [2]
    assert [texts(Words(part), talk)[0] for part in ("first", "instruction")] == ["the sky?", "the sky?\nand\ngrass?"]


def test_the_questions_that_come_with_the_package(tokenizers: dict[str, HFTokenizer]) -> None:
    seen = {made(Asked("selectit", number), tokenizers["bos"], limit=5000).keys()[0] for number in range(5)}
    assert len(seen) == 5


# ── which token an option is ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_tokens_of_options(tokenizers: dict[str, HFTokenizer], hf: dict[str, Any]) -> None:
    for name in ("bos", "no_bos"):
        ids = tokenizers[name].option_ids(("1", "2", "3", "4", "5"))
        assert ids == tuple(hf[name].convert_tokens_to_ids(list("12345")))
    with pytest.raises(EngineError) as error:
        tokenizers["bos"].option_ids(("1", "10"))
    assert "does not make one token of its own of each option 1, 10" in str(error.value)
    assert "rate with another model" in str(error.value)
    with pytest.raises(EngineError, match="does not make one token"):
        tokenizers["bos"].option_ids(("1", "1"))


def test_options_that_are_one_token_after_a_space() -> None:
    class Spaced(HFTokenizer):
        def __init__(self) -> None:
            pass

        def encode(self, texts: Any, *, special: bool = False) -> list[list[int]]:
            digit = {"1": 11, "2": 12}
            return [
                [1, digit[t[-1]]] if t[-2:-1] == " " else [1, 8, digit[t[-1]]] if t[-1] in digit else [1] for t in texts
            ]

    assert Spaced().option_ids(("1", "2")) == (11, 12)


# ── noise ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["bos", "no_bos"])
def test_noise_leaves_the_tokens_alone(tokenizers: dict[str, HFTokenizer], name: str) -> None:
    has = name == "bos"
    for view, sized, first in (
        (Prompted(), Prompted(), "prompted"),
        (ResponseOnly(), Prompted(), None),
        (ResponseOnly(context=False), Prompted(), None if has else 0),
        (Joint("plain"), Joint("plain"), "prompted"),
        (Joint("plain", alone="", slack=None), Joint("plain"), None if has else 0),
        (Joint("alpaca", alone="### Response:", slack=4), Joint("alpaca"), "prompted"),
    ):
        plain, noisy, prompted = (made(v, tokenizers[name], "plain") for v in (view, Noisy(view, 0), sized))
        assert noisy.noise is not None and noisy.noise.first == first
        assert noisy.ids.values.tolist() == plain.ids.values.tolist()
        assert noisy.target.tolist() == plain.target.tolist() and noisy.reason.tolist() == plain.reason.tolist()
        some = np.flatnonzero(plain.reason == None)  # noqa: E711 - elementwise
        assert noisy.noise.tokens[some].tolist() == prompted.ids.lengths()[some].tolist()
        assert len(set(noisy.noise.row.tolist())) == len(ROWS)


@pytest.mark.parametrize("name", ["bos", "no_bos"])
def test_both_published_views_score_the_same_tokens_where_they_are_cut(
    tokenizers: dict[str, HFTokenizer], name: str
) -> None:
    long = [{"instruction": "why", "input": "", "output": "the sky is blue and 1 2 3 4 5 6 7 8 9 " * 4}]
    given_, alone_ = (
        made(view, tokenizers[name], "plain", 30, long)
        for view in (Joint("plain"), Joint("plain", alone="", slack=None))
    )
    said, same = given_.ids[0][marks(given_, 0)].tolist(), alone_.ids[0][marks(alone_, 0)].tolist()
    assert len(given_.ids[0]) == 30 and given_.truncated[0] and alone_.truncated[0]
    assert same == (said if name == "bos" else said[1:])


# ── demonstrations ────────────────────────────────────────────────────────────────────────────────────────────────────

JOIN = [90, 91]


def both(tokenizer: HFTokenizer, layout: str = "plain", limit: int = 500) -> tuple[Rows, Rows]:
    maker = Renderer(load(ROWS), tokenizer)
    rows, whole = (maker.rows(Prompted(score_eos=eos), template(layout), limit) for eos in (False, True))
    return rows, whole


@pytest.mark.parametrize("name", ["bos", "no_bos"])
def test_demonstrations_stand_before_the_row(tokenizers: dict[str, HFTokenizer], name: str) -> None:
    bos = tokenizers[name].bos
    rows, whole = both(tokenizers[name])
    near = np.array([[1, 2], [4, -1], [3, 0], [0, 1], [-1, 3]])
    shown = put_demonstrations(rows, near, whole, JOIN, 500, prefix_token=bos)
    start = [] if bos is None else [bos]

    def bare(ids: Any) -> list[int]:
        return ids.tolist()[len(start) :]

    expected = [
        start + bare(whole.ids[2]) + JOIN + bare(whole.ids[1]) + JOIN + bare(rows.ids[0]),  # the nearest stands last
        start + bare(whole.ids[4]) + JOIN + bare(rows.ids[1]),
        start + bare(whole.ids[0]) + JOIN + bare(rows.ids[2]),  # row 3 has no response to show
        [],
        [],
    ]
    assert [shown.ids[row].tolist() for row in range(5)] == expected
    assert shown.reason.tolist() == [None, None, None, "empty_response", "no_neighbour"]
    assert not shown.truncated.any()
    for row in range(3):
        said = shown.ids[row][marks(shown, row)].tolist()
        assert said == rows.ids[row][marks(rows, row)].tolist() == shown.ids[row][-len(said) :].tolist()


@given(limit=st.integers(1, 60))
def test_the_context_loses_its_beginning_and_the_row_nothing(tokenizers: dict[str, HFTokenizer], limit: int) -> None:
    bos = tokenizers["bos"].bos
    rows, whole = both(tokenizers["bos"], limit=40)
    near = np.array([[1], [2], [0], [0], [0]])
    free, tight = (put_demonstrations(rows, near, whole, JOIN, most, prefix_token=bos) for most in (500, limit))
    for row in (0, 1, 2, 4):
        size, own = len(free.ids[row]), len(rows.ids[row])
        if own >= limit:
            assert (tight.reason[row], len(tight.ids[row]), tight.truncated[row]) == ("too_long", 0, True)
            continue
        keep = min(size, limit)
        assert tight.ids[row].tolist() == [bos, *free.ids[row][size - keep + 1 :].tolist()]
        assert tight.truncated[row] == (size > limit) and len(tight.ids[row]) <= limit
        assert tight.ids[row][marks(tight, row)].tolist() == rows.ids[row][marks(rows, row)].tolist()


# ── anchors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_row_before_every_anchor(tokenizers: dict[str, HFTokenizer]) -> None:
    bos = tokenizers["bos"].bos
    rows, whole = both(tokenizers["bos"])
    anchors = np.array([2, 0])
    plain = cut_anchors(rows, anchors, 30)
    every = put_before_anchors(rows, whole, anchors, 30, most=500, join_ids=JOIN, prefix_token=bos)
    assert len(plain) == 2 and len(every) == 10
    assert every.reason.tolist() == [None] * 6 + ["empty_response"] * 2 + [None] * 2
    for row in (0, 1, 2, 4):
        for at in range(2):
            place = 2 * row + at
            assert every.ids[place].tolist() == [
                *whole.ids[row].tolist(), *JOIN, *plain.ids[at].tolist()[1:],
            ]  # fmt: skip
            assert every.ids[place][marks(every, place)].tolist() == plain.ids[at][marks(plain, at)].tolist()


def test_anchors_are_cut_alike_with_and_without_a_row(tokenizers: dict[str, HFTokenizer]) -> None:
    bos = tokenizers["bos"].bos
    rows, whole = both(tokenizers["bos"])
    size = len(rows.ids[0])
    plain = cut_anchors(rows, np.array([0]), size - 2)
    assert plain.truncated.tolist() == [True] and plain.ids[0].tolist() == rows.ids[0][:-2].tolist()
    every = put_before_anchors(rows, whole, np.array([0]), size - 2, most=size + 3, prefix_token=bos)
    assert every.truncated[[0, 1, 2, 4]].all()
    for row in (0, 1, 2, 4):
        assert len(every.ids[row]) == size + 3 and every.ids[row][0] == bos
        assert every.ids[row][marks(every, row)].tolist() == plain.ids[0][marks(plain, 0)].tolist()
    none = put_before_anchors(rows, whole, np.array([0]), size - 2, most=size - 2, prefix_token=bos)
    assert none.reason.tolist() == ["too_long"] * 3 + ["empty_response"] + ["too_long"]


def test_a_row_whose_prompt_fills_the_limit_is_no_anchor(tokenizers: dict[str, HFTokenizer]) -> None:
    """As published it counts as a loss for every row."""
    rows, whole = both(tokenizers["bos"])
    first = int(np.argmax(marks(rows, 0)))
    assert anchors_of(rows, first + 1)[0] and not anchors_of(rows, first)[0]
    assert not anchors_of(rows, 500)[3]
    for limit in (first, first - 1):
        with pytest.raises(ValueError, match=f"no target within its first {limit} tokens"):
            put_before_anchors(rows, whole, np.array([0]), limit, most=500)
