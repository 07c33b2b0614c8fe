"""One value per token, one offset per row."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core.arrays.ragged import Ragged

FLOATS = st.floats(-1e6, 1e6, width=32)
ROWS = st.lists(st.lists(FLOATS, max_size=6), max_size=8)


@given(ROWS)
def test_rows_come_back_as_they_went_in(rows: list[list[float]]) -> None:
    column = Ragged.of(rows, np.float32)
    assert len(column) == len(rows)
    assert [column[i].tolist() for i in range(len(rows))] == rows
    assert column.lengths().tolist() == [len(row) for row in rows]
    assert column.offsets[0] == 0 and column.offsets[-1] == sum(map(len, rows))


@given(ROWS, ROWS, st.lists(FLOATS, max_size=6))
def test_a_rows_sum_does_not_depend_on_its_neighbours(
    before: list[list[float]], after: list[list[float]], row: list[float]
) -> None:
    alone = Ragged.of([row], np.float32)
    among = Ragged.of([*before, row, *after], np.float32)
    at = len(before)
    assert among.sum()[at] == alone.sum()[0]  # to the last bit
    assert among.count()[at] == len(row)
    np.testing.assert_array_equal(among.mean()[at], alone.mean()[0])


def test_a_large_neighbour_swallows_nothing() -> None:
    column = Ragged.of([[1e30, 1e30], [1.0, 2.0], [], [-1e30], [0.25]], np.float32)
    assert column.sum()[[1, 2, 4]].tolist() == [3.0, 0.0, 0.25]
    assert column.mean()[[1, 4]].tolist() == [1.5, 0.25]


def test_sums_and_means_against_numpy() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=size).astype(np.float32) for size in (3, 0, 1, 7, 0)]
    column = Ragged.of(rows, np.float32)
    np.testing.assert_allclose(column.sum(), [row.astype(float).sum() for row in rows], rtol=1e-15, atol=0)
    np.testing.assert_allclose(column.mean()[[0, 2, 3]], [rows[i].astype(float).mean() for i in (0, 2, 3)], rtol=1e-15)
    assert np.isnan(column.mean()[[1, 4]]).all()
    assert column.sum().dtype == column.mean().dtype == np.float64


def test_tokens_without_a_value_are_left_out() -> None:
    column = Ragged.of([[1.0, np.nan, 3.0], [np.nan], [], [np.inf, 2.0]], np.float32)
    assert column.count().tolist() == [2, 0, 0, 1]
    assert column.sum().tolist() == [4.0, 0.0, 0.0, 2.0]
    np.testing.assert_array_equal(column.mean(), [2.0, np.nan, np.nan, 2.0])


def test_no_rows_at_all() -> None:
    column = Ragged.of([], np.float32)
    assert len(column) == 0 and column.sum().tolist() == [] and column.mean().tolist() == []
    assert column.take(np.zeros(0, np.int64)).lengths().tolist() == []


def test_take_may_repeat_and_reorder() -> None:
    column = Ragged.of([[1], [], [2, 3]], np.int32)
    taken = column.take(np.array([2, 0, 2, 1]))
    assert [taken[i].tolist() for i in range(4)] == [[2, 3], [1], [2, 3], []]
    assert taken.values.dtype == np.int32


@pytest.mark.parametrize("at_once", [1, 3, 1 << 18])
@given(ROWS, st.randoms(use_true_random=False))
def test_the_last_values_of_each_row(at_once: int, rows: list[list[float]], random: Random) -> None:
    counts = [random.randint(0, len(row)) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instdiff.core.arrays.ragged.AT_ONCE", at_once)
        last = Ragged.of(rows, np.float32).keep_last(np.array(counts, np.int64))
    assert [last[i].tolist() for i in range(len(rows))] == [
        row[len(row) - n :] for row, n in zip(rows, counts, strict=True)
    ]
    assert last.values.dtype == np.float32


def test_no_more_values_than_a_row_has() -> None:
    column = Ragged.of([[1], [2, 3]], np.int32)
    for counts in ([2, 1], [-1, 1]):
        with pytest.raises(ValueError, match="more values of a row"):
            column.keep_last(np.array(counts))


def test_operands_need_the_same_rows() -> None:
    a, b = Ragged.of([[5.0, 7.0], [1.0]], np.float64), Ragged.of([[1.0, 2.0], [4.0]], np.float64)
    assert (a - b).values.tolist() == [4.0, 5.0, -3.0]
    other = Ragged.of([[1.0], [2.0, 4.0]], np.float64)  # as many values, other rows
    with pytest.raises(ValueError, match="different row lengths"):
        a - other
    with pytest.raises(ValueError, match="different row lengths"):
        a.map(np.add, b, other)


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must"):
        Ragged(np.zeros(3), np.array(offsets, np.int64))
