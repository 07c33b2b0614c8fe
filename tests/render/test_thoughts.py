"""How many tokens of a response are of its thought, under every kind of template; and lengths of the parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import instdiff
from helpers import CHAT_PLAIN, Lab, make_tokenizer
from instdiff.core import Prompted
from instdiff.data import Pool
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.methods import ByColumn, Longest, Perplexity
from instdiff.rendering.renderer import Renderer, text_lengths
from instdiff.rendering.steps import thought_tokens
from instdiff.rendering.templates import ChatTemplate, Template, template

THINKS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.reasoning_content %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}{% endfor %}"
)


def talk(*answers: dict[str, Any]) -> dict[str, Any]:
    turns = [
        turn for answer in answers for turn in ({"role": "user", "content": "why"}, {"role": "assistant"} | answer)
    ]
    return {"messages": turns}


ROWS = [
    talk({"content": "the sky is blue", "reasoning_content": "grass is green"}),
    talk({"content": "<think>\ngrass is green and\n</think>\n\nthe sky is blue"}),
    talk({"content": "the sky is blue"}),
    talk(
        {"content": "7", "reasoning_content": "list things"},
        {"content": "the sky"},
        {"content": "is blue", "reasoning_content": "not"},
    ),
    {"instruction": "why", "output": ""},
    talk({"content": "", "reasoning_content": "grass is green"}),
]


def counted(pool: Pool, layout: Template, limit: int = 200) -> tuple[list[int], list[str]]:
    """Tokens of thoughts, and what follows them in the row's targets."""
    hf = make_tokenizer(chat=CHAT_PLAIN)
    renderer = Renderer(pool, HFTokenizer(hf, limit))
    rows = renderer.rows(Prompted(), layout, limit)
    found = thought_tokens(rows, pool, renderer.tokenised.thinking, renderer.tokenizer.locate)  # type: ignore[attr-defined]
    said = []
    for row in range(len(rows)):
        a, b = rows.ids.offsets[row : row + 2]
        said.append(hf.decode(rows.ids.values[a:b][rows.target[a:b]][found[row] :]))
    return found.tolist(), said


@pytest.mark.parametrize("layout", [template("alpaca"), template("plain"), ChatTemplate("thinks", THINKS)], ids=str)
def test_what_follows_the_thought_is_the_answer(layout: Template) -> None:
    found, said = counted(instdiff.load(ROWS), layout)
    assert said[0].strip() == said[1].strip() == said[2].strip() == "the sky is blue"
    assert found[2] == found[4] == 0 and min(found[0], found[1], found[3]) > 0
    assert said[5] == "" and found[5] > 0


def test_several_turns_each_have_a_thought() -> None:
    rows = [
        talk({"content": "7", "reasoning_content": "list things"}),
        talk({"content": "is blue", "reasoning_content": "not"}),
    ]
    (both, first, second), _ = counted(instdiff.load([ROWS[3], *rows]), template("plain"))
    assert both == first + second


def test_a_thought_that_is_cut_or_not_learnt() -> None:
    whole = counted(instdiff.load(ROWS[:1]), template("plain"))[0][0]
    assert counted(instdiff.load(ROWS[:1]), template("plain"), 9)[0][0] < whole
    assert counted(instdiff.load(ROWS[:1]), template("plain"), 9)[1] == [""]
    for reasoning in ("context", "drop"):
        assert counted(instdiff.load(ROWS, reasoning=reasoning), template("plain"))[0] == [0] * len(ROWS)


def test_lengths_of_the_parts() -> None:
    pool = instdiff.load(ROWS)
    assert text_lengths(pool, "thought", "words").tolist() == [3, 4, 0, 3, 0, 3]
    assert text_lengths(pool, "answer", "words").tolist() == [4, 4, 4, 5, 0, 0]
    assert text_lengths(pool, "thought", "steps").tolist() == [1, 1, 0, 1 + 1, 0, 1]
    renderer = Renderer(pool, HFTokenizer(make_tokenizer(), 200))
    assert renderer.lengths("thought")[0] > 0 and renderer.lengths("thought")[2] == 0
    assert renderer.lengths("answer")[0] == renderer.lengths("answer")[2]


def test_longest_thoughts_and_details_for_column(lab: Lab, tmp_path: Any) -> None:
    scored = lab.score(ROWS, [Longest(of="thought", unit="words", parts=True)])
    best = scored["longest"]
    np.testing.assert_array_equal(best.value[:4], [3, 4, 0, 3])
    assert best.reason[4] == "empty_response"
    assert best.details["answer"].tolist()[:4] == [4, 4, 4, 5] and best.details["steps"][2] == 1
    assert scored.n_thought is not None and scored.n_thought[2] == 0 < scored.n_thought[0]
    scored.write(file := tmp_path / "s.parquet")
    again = instdiff.read_scores(file)
    np.testing.assert_array_equal(again["longest"].n_thought, scored.n_thought)  # type: ignore[arg-type]
    pool = instdiff.load(ROWS)
    by = instdiff.score(pool, ByColumn(file=f"{file}:longest.steps"), store=tmp_path / "st")["column"]
    np.testing.assert_array_equal(by.value[:4], best.details["steps"][:4])
    with pytest.raises(
        instdiff.DataError, match=r"the scores of 'longest' have no detail 'stepz'; did you mean 'steps'"
    ):
        instdiff.score(pool, ByColumn(file=f"{file}:longest.stepz"), store=tmp_path / "st")


def test_a_budget_of_answer_tokens(lab: Lab) -> None:
    pool = instdiff.load(ROWS)
    scored = lab.score(pool, [Perplexity()])["perplexity"]
    chosen = instdiff.select(pool, scored, "3 answer tokens")
    counts = chosen.record()["counts"]
    assert counts["asked_answer_tokens"] == 3 <= counts["selected_answer_tokens"]
    assert counts["selected_answer_tokens"] + counts["selected_thought_tokens"] == counts["selected_tokens"]
    assert "asked for 3 answer tokens: 3 answer tokens" in chosen.told() and chosen.shortfall() is None
    short = instdiff.select(pool, scored, "900 answer tokens").shortfall()
    assert short is not None and short.startswith("asked for 900 answer tokens, the 5 rows that have a score hold")


def test_rows_without_a_thought_have_no_such_column(lab: Lab) -> None:
    table = lab.score([ROWS[2]], [Perplexity()])
    assert table.n_thought is None and "n_thought" not in table.to_arrow().column_names
    assert "selected_thought_tokens" not in instdiff.select(instdiff.load([ROWS[2]]), table, 1).record()["counts"]
