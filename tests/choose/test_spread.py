"""k-center and facility location: the rows of the plain greedy, and no table of rows times rows."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.methods.algorithms import facility_location as facility_module
from instdiff.methods.algorithms import kcenter as kcenter_module
from instdiff.methods.algorithms.facility_location import facility
from instdiff.methods.algorithms.kcenter import kcenter

from . import plain


@given(plain.GRID, st.data())
def test_kcenter_takes_the_rows_of_the_plain_definition(x: plain.Array, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 8))
    some = data.draw(st.lists(st.integers(0, len(x) - 1), unique=True, max_size=5))
    k = data.draw(st.integers(0, len(x) - len(some)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kcenter_module, "_FLOATS", 2 * size)
        for name in ("_FIRST", "_LEAST", "_MOST"):
            patch.setattr(kcenter_module, name, size)
        out = kcenter(x, k, chosen=np.array(some, np.int64), seed=3).tolist()
    start = some or out[:1]
    assert out == (plain.farthest_first(x, k, some) if some else start + plain.farthest_first(x, max(0, k - 1), start))
    assert len({*out, *some}) == k + len(some)


def test_kcenter_starts_where_it_is_told() -> None:
    x = np.array([[0, 0], [9, 0], [4, 0], [4, 0], [5, 5]], np.float32)
    assert kcenter(x, 3, start="mean").tolist() == [2, 4, 1]
    assert kcenter(x, 5, start="mean").tolist() == [2, 4, 1, 0, 3]  # the equal row last
    assert {int(kcenter(x, 1, seed=seed)[0]) for seed in range(40)} == set(range(5))
    assert kcenter(x, 3, seed=1).tolist() == kcenter(x, 3, seed=1).tolist()
    assert kcenter(x, 2, chosen=np.array([4, 1, 1])).tolist() == [0, 2]


def test_kcenter_reads_a_memory_map_in_little_memory(tmp_path: Path) -> None:
    n, d, k = 80_000, 32, 100
    rng = np.random.default_rng(0)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, d))
    x[:] = rng.normal(size=(n, d))
    tracemalloc.start()
    out = kcenter(x, k)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000  # 2048² among the farthest; the data are 10 MB, n x k would be 32 MB, n x n 26 GB
    near = np.full(n, np.inf)
    for row, after in pairwise(out.tolist()):
        near = np.minimum(near, np.square(x - x[row]).sum(1))
        assert near[after] >= near.max() * (1 - 1e-5)


@pytest.mark.parametrize("name", ["cosine", "rbf", "official"])
@given(data=st.data())
def test_facility_takes_the_rows_of_the_plain_greedy(name: str, data: st.DataObject) -> None:
    x = data.draw(plain.SIGNS if name == "cosine" else plain.GRID)
    k, size = data.draw(st.integers(0, len(x))), data.draw(st.integers(4, 9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facility_module, "_BLOCK", size)
        patch.setattr(facility_module, "_PIECE", data.draw(st.integers(1, 9)))
        patch.setattr(facility_module, "_FIRST", data.draw(st.integers(1, 30)))
        patch.setattr(facility_module, "_TABLE", data.draw(st.sampled_from([0, 30])))
        out = facility(x, k, kernel=name, gamma=0.5)
    s, best = plain.kernel(x, name, 0.5), np.zeros(len(x))
    assert len(set(out.tolist())) == k
    for at, row in enumerate(out):
        gain = np.maximum(s - best[:, None], 0).sum(0)
        gain[out[:at]] = -np.inf
        assert gain[row] >= gain.max() - 2e-6 * len(x)
        best = np.maximum(best, s[:, row])
    if name == "cosine":  # its similarities are exact here, and so are the ties
        assert out.tolist() == plain.location(s, k)


@pytest.mark.parametrize("table", [0, 8192])
@pytest.mark.parametrize("name", ["cosine", "rbf", "official"])
def test_facility_on_real_looking_data_is_the_plain_order(
    name: str, table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facility_module, "_TABLE", table)
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(20, 24))[rng.integers(0, 20, 400)] + 0.7 * rng.normal(size=(400, 24))).astype(np.float32)
    assert facility(x, 60, kernel=name, gamma=0.02).tolist() == plain.location(plain.kernel(x, name, 0.02), 60)


def test_facility_weighs_quality_as_qdit_does() -> None:
    rng = np.random.default_rng(2)
    x, quality = rng.normal(size=(80, 6)).astype(np.float32), rng.normal(size=80) * 10
    s = plain.kernel(x, "cosine", 1)
    for alpha in (0.0, 0.3, 1.0):
        out = facility(x, 30, quality=quality, alpha=alpha).tolist()
        assert out == plain.location(s, 30, lambda gain, a=alpha: (1 - a) * gain + a * quality)
    assert out == np.argsort(-quality, kind="stable")[:30].tolist()


@pytest.mark.parametrize("name", ["cosine", "rbf", "official"])
@given(data=st.data())
def test_sparse_facility_is_the_greedy_of_gains_over_the_nearest_alone(name: str, data: st.DataObject) -> None:
    x = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(25, 3)).astype(np.float32)
    k, few = data.draw(st.integers(0, 25)), data.draw(st.integers(1, 24))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facility_module, "_FLOATS", data.draw(st.integers(1, 200)))
        patch.setattr(facility_module, "_FIRST", data.draw(st.integers(1, 30)))
        out = facility(x, k, kernel=name, gamma=0.5, neighbours=few)
    s = plain.kernel(x, name, 0.5)
    near, best = np.argsort(-s, 1, kind="stable")[:, :few], np.zeros(25)
    assert len(set(out.tolist())) == k
    for at, row in enumerate(out):
        gain = np.maximum(np.take_along_axis(s, near, 1) - best[near], 0).sum(1)
        gain[out[:at]] = -np.inf
        assert gain[row] >= gain.max() - 5e-5
        best = np.maximum(best, s[row])


def test_sparse_facility_of_all_rows_is_exact_and_of_a_few_loses_little() -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(20, 24))[rng.integers(0, 20, 600)] + 0.7 * rng.normal(size=(600, 24))).astype(np.float32)
    s = plain.kernel(x, "cosine", 1)

    def worth(rows: np.ndarray) -> float:
        return float(np.maximum(s[:, rows].max(1), 0).sum())

    exact = facility(x, 30)
    assert facility(x, 30, neighbours=600).tolist() == exact.tolist()
    sparse, by_chance = facility(x, 30, neighbours=80), rng.permutation(600)[:30]
    assert (worth(sparse) - worth(by_chance)) / (worth(exact) - worth(by_chance)) > 0.95


def test_facility_holds_no_table_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 6_000
    monkeypatch.setattr(facility_module, "_TABLE", 5_000)
    x = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    tracemalloc.start()
    facility(x, 20)
    peak = tracemalloc.get_traced_memory()[1]
    assert peak < 30_000_000 < n * n * 4 / 4
    monkeypatch.setattr(facility_module, "_FLOATS", 1 << 19)
    tracemalloc.reset_peak()
    facility(x, 20, neighbours=16)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_what_cannot_be_is_said() -> None:
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="4 rows are asked for, of 3"):
        kcenter(x, 4)
    with pytest.raises(ValueError, match="3 rows are asked for, of 2"):
        kcenter(x, 3, chosen=np.array([1]))
    with pytest.raises(ValueError, match="start 'first' is not"):
        kcenter(x, 1, start="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        facility(x[:, 0], 1)
    with pytest.raises(ValueError, match="kernel 'dot' is not"):
        facility(x, 1, kernel="dot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        facility(x, 1, alpha=1.5)
    with pytest.raises(ValueError, match="neighbours is 0; the least is 1"):
        facility(x, 1, neighbours=0)
    with pytest.raises(ValueError, match="quality must be 3 finite numbers"):
        facility(x, 1, quality=np.array([1, 2, np.nan]), alpha=0.5)
    x[1, 1] = np.nan
    with pytest.raises(ValueError, match="x: row 1 has a number that is not finite"):
        kcenter(x, 1)
