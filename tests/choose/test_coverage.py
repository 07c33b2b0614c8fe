"""Coverage of tags: the plain greedy in rounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.methods.algorithms.coverage import coverage

from . import plain

TAGGED = st.lists(st.lists(st.integers(0, 9), unique=True, max_size=6), min_size=1, max_size=14)


def csr(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.cumsum([0, *map(len, rows)]), np.array([tag for row in rows for tag in row], np.int64)


@given(TAGGED, st.data())
def test_the_rows_of_the_plain_greedy(rows: list[list[int]], data: st.DataObject) -> None:
    k, times = data.draw(st.integers(0, len(rows))), data.draw(st.integers(1, 3))
    rarity, common = data.draw(st.booleans()), data.draw(st.sampled_from([0.5, 0.9, 1.0]))
    out = coverage(*csr(rows), k, times=times, weight="rarity" if rarity else "one", common=common)
    assert out.tolist() == plain.covered(rows, k, times, rarity, common)


def test_a_round_ends_when_nothing_new_is_left() -> None:
    rows = [[1], [1, 2, 3], [4], [], [1, 2]]
    assert coverage(*csr(rows), 5).tolist() == [1, 2, 4, 0, 3]
    assert coverage(*csr(rows), 5, times=2).tolist() == [1, 4, 2, 0, 3]
    assert coverage(*csr([[0], [0], [0, 5]]), 3).tolist() == [2, 0, 1]  # tag 0 is in all and left out


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="row 1 has tag 3 twice"):
        coverage(*csr([[3], [3, 1, 3]]), 1)
    with pytest.raises(ValueError, match="indptr must rise from 0 to 2"):
        coverage(np.array([0, 1]), np.array([1, 2]), 1)
    with pytest.raises(ValueError, match="tags are whole numbers"):
        coverage(np.array([0, 1]), np.array([-1]), 1)
    with pytest.raises(ValueError, match="times is 0"):
        coverage(*csr([[1]]), 1, times=0)
    with pytest.raises(ValueError, match="weight 'idf' is not"):
        coverage(*csr([[1]]), 1, weight="idf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 rows are asked for, of 1"):
        coverage(*csr([[1]]), 2)
