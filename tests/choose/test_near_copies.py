"""Near copies: every planted pair is found, rows that share little are none, whatever their order."""

from __future__ import annotations

import numpy as np

from instdiff.core.arrays.ragged import Ragged
from instdiff.methods.algorithms.near_copies import near_copies


def found(rows: list[list[int]], **how: float) -> list[int]:
    return np.flatnonzero(near_copies(Ragged.of(rows, np.int64), **how) >= 0).tolist()


def test_the_later_row_of_each_pair_is_found_and_no_other() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 10_000, 60).tolist() for _ in range(300)]
    equal, changed, half = list(rows[7]), list(rows[20]), rows[30][:30] + rows[31][:30]
    changed[10] = 10_001  # 3 of 58 triples: 55 in both of 61
    longer = [*rows[40], *range(20_000, 20_008)]  # 58 in both of 66
    rows += [equal, changed, half, longer]
    assert found(rows) == [300, 301, 303]
    assert found(rows, alike=0.895) == [300, 301]
    assert found(rows, alike=0.999) == found(rows, alike=1.0) == [300]
    assert found(rows[::-1]) == [263, 283, 296], "which of a pair is the copy goes by the order"


def test_rows_of_few_words_are_one_shingle() -> None:
    assert found([[], [5], [5], [5, 6], [5, 6], [6, 5], [], [5, 6, 7], [5, 6, 7], [0], [0, 0]]) == [2, 4, 8]


def test_many_copies_of_one_row() -> None:
    assert found([[1, 2, 3, 4]] * 50) == list(range(1, 50))
    assert found([[]] * 3) == [] and found([]) == []
