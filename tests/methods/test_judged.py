"""Scores that a judge writes: AlpaGasus, and DS2, which mends them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from instdiff.core import Budget, Column, Judged, Signals
from instdiff.core.arrays.ragged import Ragged
from instdiff.errors import ConfigError
from instdiff.methods import DS2, AlpaGasus
from instdiff.methods.algorithms.curation import curate_labels, infer_labels, long_tail, transition

from .columns import NAN, ones, run, signals

# ── AlpaGasus ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_low_scores_are_filtered_and_ties_broken_by_length() -> None:
    s = signals(6, score=ones(5, 4.5, 4, 5, NAN, 5), length=np.array([3, 9, 9, 8, 9, 8]))
    out = run(AlpaGasus(), s)
    assert out.reason.tolist() == [None, None, "filtered", None, "empty_response", None]
    np.testing.assert_array_equal(out.details["score"], [5, 4.5, 4, 5, NAN, 5])
    assert AlpaGasus().pick(out, Budget(9, "rows")).tolist() == [3, 5, 0, 1]
    by_id = run(AlpaGasus(ties="id", threshold=0), signals(3, score=ones(1, 2, 2)))
    assert by_id.method.pick(by_id, Budget(9, "rows")).tolist() == [1, 2, 0]
    assert list(AlpaGasus(ties="id").signals()) == ["score"]
    assert AlpaGasus().signals()["score"].measure == Judged(0, 5)


def test_no_number_is_minus_one_in_the_published_way() -> None:
    method = AlpaGasus(compat="official", threshold=-1)
    out = run(method, signals(3, [None, None, "no_answer"], score=ones(2, NAN, NAN), length=np.ones(3)))
    np.testing.assert_array_equal(out.value, [2, -1, NAN])
    assert out.reason.tolist() == [None, None, "no_answer"] and method.signals()["score"].optional
    usual = run(AlpaGasus(compat="official"), signals(2, [None] * 2, score=ones(5, NAN), length=np.ones(2)))
    assert usual.reason.tolist() == [None, "filtered"]


# ── DS2 ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pool(rows: int = 240, seed: int = 0) -> tuple[Any, Any, Any]:
    """Vectors in three clear heaps, the level of each, and scores of which a tenth are wrong."""
    rng = np.random.default_rng(seed)
    level = rng.integers(0, 3, rows)
    x = (4 * np.eye(8)[level] + rng.normal(size=(rows, 8))).astype(np.float32)
    wrong = rng.random(rows) < 0.1
    return x, level, np.where(wrong, (level + 1) % 3, level)


def columns(x: Any, score: Any) -> dict[str, Any]:
    return {"vector": Ragged.of(list(x), np.float32), "score": ones(*score.astype(float))}


@pytest.mark.parametrize("compat", ["default", "official"])
def test_wrong_scores_are_mended_and_the_rare_come_first(compat: Any) -> None:
    x, level, seen = pool()
    method = DS2(low=4, high=6, compat=compat)
    out = run(method, signals(240, **columns(x, seen + 4)))
    mended = out.details["curated"] - 4
    assert (mended == level).mean() > (seen == level).mean() + 0.03
    np.testing.assert_array_equal(out.details["score"], seen + 4)
    np.testing.assert_allclose(out.value, out.details["curated"] + out.details["long_tail"])
    assert (out.details["long_tail"] >= 0).all() and (out.details["long_tail"] < 1).all()
    order = method.pick(out, Budget(1.0))
    pairs = [(-mended[row], -out.details["long_tail"][row]) for row in order]
    assert pairs == sorted(pairs)
    if compat == "official":
        assert (out.details["long_tail"].round(4) == out.details["long_tail"]).all()


def test_it_is_the_choosers() -> None:
    x, _, seen = pool(60)
    out = run(DS2(low=4, high=6), signals(60, **columns(x, seen + 4)))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    far = 1 - unit @ unit.T
    np.fill_diagonal(far, 9)
    near = np.argsort(far, 1, kind="stable")[:, :14]
    far = np.take_along_axis(far, near, 1)
    found = infer_labels(seen, near, far, *transition(seen, near, 3))
    assert out.details["curated"].tolist() == (curate_labels(seen, found) + 4).tolist()
    np.testing.assert_allclose(out.details["long_tail"], long_tail(far), rtol=1e-5)


def test_scores_are_brought_into_range_and_may_be_a_column() -> None:
    x, _, _ = pool(6)
    texts = np.array(["1", "9.4", "10", "None", "5.6", "high"], object)
    method = DS2(column="stars", confidence=2)
    s = signals(6, vector=Ragged.of(list(x), np.float32), score=texts)
    out = run(method, s)
    np.testing.assert_array_equal(out.details["score"], [1, 9.4, 10, NAN, 5.6, NAN])
    np.testing.assert_array_equal(out.details["curated"], [4, 9, 9, NAN, 6, NAN])
    assert out.reason.tolist() == [None, None, None, "no_score", None, "no_score"]
    assert method.signals()["score"].measure == Column("stars")
    with pytest.raises(ConfigError, match=r"'ds2.low' is 9 and 'ds2.high' 9; levels need low below high"):
        DS2(low=9)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("compat", ["default", "official"])
def test_few_rows(rows: int, compat: Any) -> None:
    x, _, seen = pool(12)
    out = run(DS2(compat=compat), signals(rows, **columns(x[:rows], 4 + seen[:rows])))
    assert out.eligible.all()


def test_the_inputs_order_never_matters() -> None:
    x, _, seen = pool(60)
    s = signals(60, **columns(x, 4 + seen))
    order = np.random.default_rng(1).permutation(60)
    mixed: Signals = s.take(order)
    np.testing.assert_array_equal(run(DS2(), mixed).value, run(DS2(), s).value[order])
