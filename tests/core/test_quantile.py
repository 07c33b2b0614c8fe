"""Quantiles by counting: what numpy gives for everything at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instdiff.core.arrays import quantile as module
from instdiff.core.arrays.quantile import quantiles
from instdiff.core.arrays.ragged import Ragged

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
CLOSE = st.integers(0, 200).map(lambda n: np.float32(1 + n * 2.0**-23))  # many in one bucket
LEVELS = [0.0, 0.01, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.999, 1.0]


def f32(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


@given(st.lists(FINITE | CLOSE | st.sampled_from([0.0, -0.0, 1e-45, -1e-45]), min_size=1, max_size=200))
@example([0.0, -0.0])
def test_equals_numpy(values: list[float]) -> None:
    array = f32(values)
    for method in module.METHODS:
        expected = np.quantile(array.astype(np.float64), LEVELS, method=method)
        got = quantiles(array, LEVELS, method)
        if method == "linear":
            np.testing.assert_array_max_ulp(got.values, expected, maxulp=1)
        else:
            np.testing.assert_array_equal(got.values, expected)
        assert (got.count, got.nan) == (len(values), 0)


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=60), st.data())
def test_order_statistics_with_nan_and_infinity(values: list[float], data: st.DataObject) -> None:
    array = f32(values)
    real = np.sort(array[~np.isnan(array)])
    if len(real) == 0:
        with pytest.raises(ValueError, match=rf"no values to take quantiles of \({len(array)} NaN left out\)"):
            quantiles(array, 0.5)
        return
    cuts = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=4)))
    at = np.array(LEVELS) * (len(real) - 1)
    for method, ranks in (("lower", np.floor(at)), ("higher", np.ceil(at))):
        got = quantiles(lambda: np.split(array, cuts), LEVELS, method)
        assert got.values.tolist() == real[ranks.astype(int)].tolist()
        assert got.nan == len(array) - len(real) and got.count == len(real)


def test_infinity_between_neighbours() -> None:
    inf = np.inf
    assert quantiles(f32([-inf, 1, 2, inf, inf]), [0, 0.25, 0.5, 0.6, 0.9, 1]).values.tolist() == [
        *(-inf, 1, 2, inf, inf, inf)
    ]
    assert np.isnan(quantiles(f32([-inf, inf]), 0.5).values[0])
    assert quantiles(f32([-0.0]), [0, 1]).values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("buckets", [1, 3, 128])
def test_many_values_many_levels_small_chunks(buckets: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1000)
    monkeypatch.setattr(module, "BUCKETS_AT_ONCE", buckets)
    array = np.random.default_rng(0).gamma(0.3, 2.0, 30_000).astype(np.float32) - 1
    np.save(tmp_path / "values.npy", array)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    levels = np.linspace(0, 1, 23)
    expected = np.quantile(array.astype(np.float64), levels)
    for source in (array, mapped, array.reshape(300, 100), Ragged(array, np.array([0, 7, 7, 30_000]))):
        np.testing.assert_array_max_ulp(quantiles(source, levels).values, expected, maxulp=1)


def test_what_is_read_and_how_often() -> None:
    begun = []

    def source() -> Iterator[np.ndarray]:
        begun.append(1)
        yield f32([3, 1])
        yield f32([])
        yield np.array([2, np.nan], np.float16)

    got = quantiles(source, np.linspace(0, 1, 5))
    assert got.values.tolist() == [1, 1.5, 2, 2.5, 3] and got.nan == 1 and len(begun) == 2


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no values to take quantiles of \(0 NaN left out\)"):
        quantiles(f32([]), 0.5)
    with pytest.raises(ValueError, match=r"no values"):
        quantiles(lambda: [], 0.5)
    for level in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="levels must be between 0 and 1"):
            quantiles(f32([1]), level)
    with pytest.raises(ValueError, match="method 'median' is not one of linear, lower, higher"):
        quantiles(f32([1]), 0.5, "median")
    with pytest.raises(TypeError, match="values of float64 do not fit into float32"):
        quantiles(np.zeros(3), 0.5)
    chunks = iter([[f32([1, 2, 3])], [f32([1, 2])]])
    with pytest.raises(ValueError, match="the values changed between two readings"):
        quantiles(lambda: next(chunks), 1.0)
