"""DEITA: ratings from log-probabilities, and the filter of a selection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Lab
from instdiff.config.methods import make_method
from instdiff.core import Asked, Budget, Embedding, Pooled, Prompted, Scored, Signals, WholeText, Words
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.errors import ConfigError, PlanError
from instdiff.methods import DEITA
from instdiff.scoring.scorer import score

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


def test_turns_are_summed() -> None:
    s = signals(
        4,
        [None, None, "empty_response", None],
        turns=np.array([2, 1, 0, 2]),
        complexity=rated(2, 3, None, 4),
        complexity_1=rated(4, None, None, None),
        quality=rated(5, 6, None, 2),
        quality_1=rated(1, None, None, 3),
    )
    out = run(DEITA(turns=2), s)
    np.testing.assert_allclose(out.value, [2 * 5 + 4 * 1, 3 * 6, np.nan, np.nan])
    np.testing.assert_allclose(out.details["complexity"], [3, 3, np.nan, np.nan])
    np.testing.assert_allclose(out.details["quality"], [3, 6, np.nan, 2.5])
    assert out.reason.tolist() == [None, None, "empty_response", "no_rating"]
    np.testing.assert_allclose(run(DEITA(turns=1), s).value, [10, 18, np.nan, 8])
    with pytest.raises(ConfigError, match=r"'deita.turns' is 0; the least is 1"):
        make_method("deita", {"turns": 0})


def test_the_published_way_sums_ten_turns_and_takes_three_for_a_failed_rating() -> None:
    method = DEITA(compat="official")
    asked = method.signals()
    later = {f"{what}_{at}": rated(None, 2) for what in ("complexity", "quality") for at in range(1, 10)}
    s = signals(2, [None, None], turns=np.array([2, 12]), complexity=rated(2, None), quality=rated(5, None), **later)
    assert asked.keys() == s._columns.keys() | {"vector"}
    assert all(signal.optional for name, signal in asked.items() if name not in ("vector", "turns"))
    np.testing.assert_allclose(run(method, s).value, [2 * 5 + 3 * 3, 3 * 3 + 9 * 2 * 2])


def test_turns_are_rated_like_rows_of_their_own(lab: Lab) -> None:
    talk = [("user", "one?"), ("assistant", "first answer"), ("user", "two?"), ("assistant", "second answer")]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in talk[a:b]]} for a, b in ((0, 4), (0, 2), (2, 4))
    ]
    models = dict.fromkeys(("base", "complexity_rater", "quality_rater"), str(lab.models["llama"]))

    def scored(method: DEITA) -> Any:
        return score(load(rows), [method], models=models, store=lab.store())["deita"]

    once, each, official = scored(DEITA()), scored(DEITA(turns=2)), scored(DEITA(compat="official"))
    np.testing.assert_allclose(each.value, [once.value[1] + once.value[2], once.value[1], once.value[2]], rtol=1e-5)
    np.testing.assert_allclose(official.value, each.value)
    assert each.value[0] != pytest.approx(once.value[0])


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
    s = signals(["c", "b", "a"], turns=np.ones(3), complexity=rated(2, 2, 2), quality=rated(2, 2, 2), vector=x)
    for compat, rows in (("default", [2, 1, 0]), ("official", [0, 1, 2])):
        method = DEITA(turns=1, compat=compat)  # type: ignore[arg-type]
        assert method.pick(stored(method, s), Budget(3, "rows")).tolist() == rows


def test_signals() -> None:
    asked = DEITA().signals()
    assert {name: signal.model for name, signal in asked.items()} == {
        "complexity": "complexity_rater", "quality": "quality_rater", "vector": "base",
    }  # fmt: skip
    assert asked["quality"].view == Asked("quality") and asked["vector"].measure == Pooled("last")
    assert asked["vector"].view == Prompted()
    for published in (DEITA(vector="end"), DEITA(compat="official")):
        assert published.signals()["vector"].view == WholeText(end=True)
    other = DEITA(vector="embedder").signals()["vector"]
    assert (other.measure, other.view, other.model) == (Embedding(), Words("row"), "embedder")
