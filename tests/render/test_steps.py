"""Where a trace is cut into steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.rendering.steps import cut_steps, runs

TRACE = "<think>\nJanet has 3. She eats 1.5 eggs!\nSo 2 left.\n\n1. Add them.\n</think>\n\nA: 18"


def cut(text: str, unit: str = "sentence") -> list[str]:
    starts = [*cut_steps(text, unit), len(text)]
    return [text[a:b] for a, b in pairwise(starts)]


def test_sentences_and_lines() -> None:
    assert cut(TRACE) == [
        "<think>\nJanet has 3.", " She eats 1.5 eggs!", "\nSo 2 left.", "\n\n1. Add them.", "\n</think>\n\nA: 18"
    ]  # fmt: skip


def test_paragraphs() -> None:
    assert cut(TRACE, "paragraph") == [
        "<think>\nJanet has 3. She eats 1.5 eggs!\nSo 2 left.\n\n", "1. Add them.\n</think>\n\n", "A: 18"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "steps"),
    [("", []), (" \n ", []), ("ok", ["ok"]), ("It is. no", ["It is. no"]), ("So. Done here.", ["So. Done here."])],
)
def test_short_pieces_join_a_neighbour(text: str, steps: list[str]) -> None:
    assert cut(text) == steps


@given(st.text("ab.!?\n <>/think"), st.sampled_from(["sentence", "paragraph"]))
def test_steps_are_the_text(text: str, unit: str) -> None:
    assert "".join(cut(text, unit)) == (text if text.strip() else "")
    assert len(cut(text, unit)) <= 1 or all(len("".join(step.split())) >= 4 for step in cut(text, unit))


def test_runs_of_marks() -> None:
    assert runs(np.array([0, 1, 1, 0, 1], bool)) == [(1, 3), (4, 5)]
    assert runs(np.zeros(0, bool)) == []
