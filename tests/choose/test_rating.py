"""SelectIT and DEITA arithmetic against the published numbers and plain definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.methods.algorithms.digit_ratings import (
    Norm,
    expected_score,
    model_level,
    published_order,
    sentence_level,
    token_level,
)

chances = st.lists(st.lists(st.floats(1e-6, 1), min_size=5, max_size=5), min_size=1, max_size=6)


@pytest.mark.shared_data
def test_published_ratings(shared: Path) -> None:
    """Blue-Raincoat/SelectIT @ 4813250."""
    golden = json.loads((shared / "golden" / "selectit" / "ratings.json").read_text(encoding="utf-8"))
    token = token_level(golden["probability"], "official")
    row = sentence_level(token)
    np.testing.assert_allclose(token, golden["token_level"], atol=1e-9, rtol=0)
    np.testing.assert_allclose(row, golden["sentence_level"], atol=1e-9, rtol=0)
    assert published_order(row).tolist() == golden["order"]


@given(chances, st.sampled_from(["paper", "official"]), st.floats(0, 1))
def test_levels_are_their_definition(rows: list[list[float]], norm: Norm, alpha: float) -> None:
    ratings = []
    for row in rows:
        p = [x / sum(row) for x in row]
        if norm == "official":
            p = [math.exp(x) / sum(math.exp(y) for y in p) for x in p]
        best = p.index(max(p))
        ratings.append((best + 1) * sum(p[best] - x for x in p) / 4)
    mean = sum(ratings) / len(ratings)
    spread = math.sqrt(sum((x - mean) ** 2 for x in ratings) / len(ratings))
    np.testing.assert_allclose(token_level(rows, norm), ratings, atol=1e-12)
    np.testing.assert_allclose(sentence_level(ratings, alpha), mean / (1 + alpha * spread), atol=1e-12)


def test_a_sure_top_digit_is_worth_itself_and_an_even_guess_nothing() -> None:
    assert token_level([[0, 0, 0, 0, 0.3], [0.1] * 5]).tolist() == [5, 0]
    assert np.isnan(token_level([0.0] * 5))


def test_models_count_by_size() -> None:
    assert model_level([[1, 2, 4]], [7, 13, 70]).tolist() == pytest.approx([(7 + 26 + 280) / 90])


def test_of_equal_ratings_the_later_row_is_first() -> None:
    assert published_order([1, 2, 1, 2]).tolist() == [3, 1, 2, 0]


@given(st.lists(st.floats(-500, 500), min_size=6, max_size=6))
def test_expected_score(logits: list[float]) -> None:
    top = max(logits)
    weight = [math.exp(x - top) for x in logits]
    wanted = sum((n + 1) * w for n, w in enumerate(weight)) / sum(weight)
    assert expected_score(logits) == pytest.approx(wanted, abs=1e-12)


def test_a_logit_that_is_no_number_gives_none() -> None:
    got = expected_score([[0, 0, 0, 0, 0, 0], [0, 0, np.nan, 0, 0, 0], [0, 0, 0, 0, 0, -np.inf]])
    assert got[0] == pytest.approx(3.5) and np.isnan(got[1:]).all()


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="two digits or more"):
        token_level([[0.5]])
    with pytest.raises(ValueError, match="none negative"):
        token_level([[0.5, -0.1]])
    with pytest.raises(ValueError, match="neither 'paper' nor 'official'"):
        token_level([[0.5, 0.1]], "both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many weights"):
        model_level([[1, 2]], [1])
