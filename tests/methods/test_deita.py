"""DEITA: ratings from log-probabilities, and the filter of a selection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.core import Asked, Budget, Embedding, Pooled, Scored, Signals, Words
from instdiff.core.arrays.ragged import Ragged
from instdiff.errors import PlanError
from instdiff.methods import DEITA

from .columns import run, signals


def rated(*digits: int | None) -> Ragged:
    """All probability but a third at one digit, the rest of it on other tokens; nothing for None."""
    rows = [[] if d is None else [np.log(2 / 3) if i + 1 == d else -1e4 for i in range(6)] for d in digits]
    return Ragged.of(rows, np.float32)


def stored(method: DEITA, s: Signals, tokens: Any = None) -> Scored:
    return Scored(**{**vars(run(method, s, tokens)), "recall": lambda: s})


def test_the_score_is_complexity_times_quality() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 6)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    shifted = logits - 3 * rng.random((5, 1), np.float32)  # over the whole vocabulary
    s = signals(5, complexity=Ragged.of(list(shifted), np.float32), quality=rated(1, 2, 3, 4, 6))
    out = run(DEITA(), s)
    expected = p @ np.arange(1, 7)
    np.testing.assert_allclose(out.details["complexity"], expected, rtol=1e-6)
    np.testing.assert_allclose(out.details["quality"], [1, 2, 3, 4, 6])
    np.testing.assert_allclose(out.value, expected * [1, 2, 3, 4, 6], rtol=1e-6)


def test_a_failed_rating_is_no_number() -> None:
    bad = Ragged.of([[0.0] * 6, [np.nan] * 6, [], [0.0] * 6], np.float32)
    s = signals(4, reason=[None, None, "too_long", None], complexity=bad, quality=rated(2, 2, 2, None))
    out = run(DEITA(), s)
    assert out.reason.tolist() == [None, "no_rating", "too_long", "no_rating"]
    np.testing.assert_allclose(out.details["complexity"], [3.5, np.nan, np.nan, 3.5])
    np.testing.assert_array_equal(np.isnan(out.value), [False, True, True, True])


@pytest.mark.shared_data
def test_the_published_filter(shared: Path) -> None:
    """Recorded with hkust-nlp/deita @ b279f2c."""
    golden = shared / "golden" / "deita"
    data = np.load(golden / "embeddings.npz")
    s = signals(300, vector=Ragged.of(list(data["embedding"]), np.float32))
    for name, rows in json.loads((golden / "filter.json").read_text(encoding="utf-8")).items():
        threshold, limit = name.split("_")
        for compat in ("default", "official"):
            method = DEITA(threshold=float(threshold), compat=compat)  # type: ignore[arg-type]
            none = np.full(300, None, object)
            ones = np.ones(300, np.int64)
            scored = Scored("deita", method, data["score"].astype(float), none, {}, s.ids, ones, lambda: s)
            assert method.pick(scored, Budget(int(limit), "rows")).tolist() == rows
            assert method.pick(scored, Budget(int(limit), "tokens")).tolist() == rows


def test_the_filter_needs_vectors_from_the_store() -> None:
    x = Ragged.of([[1, 0], [1, 0.01], [0, 1], [], [1, 1]], np.float32)
    s = signals(5, complexity=rated(6, 5, 4, 6, 1), quality=rated(6, 5, 4, 6, 1), vector=x)
    out = run(DEITA(), s)
    assert out.reason[3] == "empty_response"
    with pytest.raises(PlanError, match="this selection needs more of deita than its scores hold"):
        DEITA().pick(out, Budget(2, "rows"))
    assert DEITA(threshold=1).pick(out, Budget(2, "rows")).tolist() == [0, 1]
    assert DEITA().pick(stored(DEITA(), s), Budget(3, "rows")).tolist() == [0, 2, 4]
    tokens = stored(DEITA(), s, [10, 10, 5, 10, 1])
    assert DEITA().pick(tokens, Budget(14, "tokens")).tolist() == [0, 2]
    assert DEITA().pick(tokens, Budget(0.01)).tolist() == []


def test_published_ties_go_by_row() -> None:
    x = Ragged.of(list(np.eye(3)), np.float32)
    s = signals(["c", "b", "a"], complexity=rated(2, 2, 2), quality=rated(2, 2, 2), vector=x)
    for compat, rows in (("default", [2, 1, 0]), ("official", [0, 1, 2])):
        method = DEITA(compat=compat)  # type: ignore[arg-type]
        assert method.pick(stored(method, s), Budget(3, "rows")).tolist() == rows


def test_signals() -> None:
    asked = DEITA().signals()
    assert {name: signal.model for name, signal in asked.items()} == {
        "complexity": "complexity_rater", "quality": "quality_rater", "vector": "base",
    }  # fmt: skip
    assert asked["quality"].view == Asked("quality") and asked["vector"].measure == Pooled("last")
    other = DEITA(vector="embedder").signals()["vector"]
    assert (other.measure, other.view, other.model) == (Embedding(), Words("row"), "embedder")
