"""Ranking: what sorting all rows by score, id and place gives, in memory and by runs that are merged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core.arrays.ranking import best_first

VALUES = st.sampled_from([-1.5, -0.0, 0.0, 2.0, float("nan"), float("inf"), float("-inf")])
IDS = st.sampled_from(["", "a", "ab", "b", "é", "z", "𝄞", "\uffff"])


def plain(value: list[float], ids: list[str]) -> list[int]:
    rows = [row for row in range(len(value)) if np.isfinite(value[row])]
    return sorted(rows, key=lambda row: (-value[row], ids[row], row))


@given(st.lists(st.tuples(VALUES, IDS), max_size=60), st.integers(1, 70))
def test_ties_missing_values_and_equal_rows(pairs: list[tuple[float, str]], at_once: int) -> None:
    value, ids = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert best_first(np.array(value, float), ids, at_once=at_once).tolist() == plain(value, ids)
    assert best_first(np.zeros(len(ids)), ids).tolist() == sorted(range(len(ids)), key=lambda row: (ids[row], row))


@pytest.mark.parametrize("levels", [1, 7, 10**9])
def test_runs_in_files_give_the_same(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instdiff.core.arrays.spill.IN_MEMORY_BYTES", 1 << 12)
    rng = np.random.default_rng(levels)
    value = rng.integers(0, levels, 20_000) / 7
    value[rng.random(20_000) < 0.1] = np.nan
    ids = [f"{number:032x}" for number in rng.integers(0, 15_000, 20_000)]
    whole = best_first(value, ids)
    assert len(whole) == np.isfinite(value).sum()
    assert whole.tolist() == plain(value.tolist(), ids)
    for at_once in (700, 9_999, 20_000):
        np.testing.assert_array_equal(best_first(value, ids, at_once=at_once), whole)


def test_a_column_that_is_mapped_and_sorted_already() -> None:
    value = np.linspace(0, 1, 5_000)
    value.flags.writeable = False
    ids = ["same"] * 5_000
    assert best_first(value, ids, at_once=512).tolist() == list(range(4_999, -1, -1))
    assert best_first(-value, ids, at_once=512).tolist() == list(range(5_000))
    assert best_first(np.full(3, np.nan), ["a", "b", "c"], at_once=1).tolist() == []
