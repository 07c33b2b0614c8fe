"""Clusters, quotas and anchors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.methods.algorithms.kmeans import anchors, by_cluster, cluster, quotas

ENGINES = ["full", "minibatch", "faiss"]


def heaps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), [40, 30, 20, 10])
    centres = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [-9, -9, 0]])
    return (centres[truth] + 0.3 * rng.normal(size=(100, 3))).astype(np.float32), truth


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("spherical", [False, True])
def test_clear_heaps_are_found(engine: str, spherical: bool) -> None:
    x, truth = heaps()
    if spherical:
        x = x * np.random.default_rng(1).uniform(0.1, 9, (100, 1)).astype(np.float32)
    label, distance = cluster(x, 4, seed=0, engine=engine, spherical=spherical)  # type: ignore[arg-type]
    assert len({*zip(label.tolist(), truth.tolist(), strict=True)}) == 4
    assert distance.max() < (0.2 if spherical else 2)
    again = cluster(x, 4, seed=0, engine=engine, spherical=spherical)  # type: ignore[arg-type]
    assert (again[0] == label).all() and (again[1] == distance).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mapped_matrix_that_cannot_be_written_to(engine: str, tmp_path: Path) -> None:
    x, _ = heaps()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for spherical in (False, True):
        found, expected = (cluster(y, 4, engine=engine, spherical=spherical) for y in (mapped, x))  # type: ignore[arg-type]
        assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_quotas_are_level(sizes: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, sum(sizes)))
    out = quotas(np.array(sizes), k)
    assert out.sum() == k and (out <= sizes).all()
    open_ = out[out < sizes]
    if len(open_):  # a group that could give more has no less than one below any other
        assert out.max() - open_.min() <= 1


def test_quotas_give_the_rest_to_the_first() -> None:
    assert quotas(np.array([1, 9, 9, 9]), 12).tolist() == [1, 4, 4, 3]


def test_a_share_of_each_cluster_best_first() -> None:
    label = np.array([0, 0, 0, 1, 1, 2])
    distance = np.array([3, 1, 1, 5, 4, 0])
    assert by_cluster(label, distance, 5).tolist() == [1, 4, 5, 2, 3]
    score = np.array([9, 1, np.nan, 2, 2, np.nan])
    assert by_cluster(label, distance, 4, score=score).tolist() == [0, 3, 1, 4]
    assert by_cluster(label, distance, 0).tolist() == []
    with pytest.raises(ValueError, match="5 rows are asked for, of 4"):
        by_cluster(label, distance, 5, score=score)


@pytest.mark.parametrize("engine", ENGINES)
def test_anchors_are_the_middle_of_each_heap(engine: str) -> None:
    x, truth = heaps()
    out = anchors(x, 4, engine=engine)  # type: ignore[arg-type]
    assert sorted(truth[out]) == [0, 1, 2, 3]
    for row in out:
        heap = np.flatnonzero(truth == truth[row])
        apart = np.linalg.norm(x[heap] - x[heap].mean(0), axis=1)
        assert apart[heap == row] <= np.partition(apart, 1)[1] + 0.05


def test_what_cannot_be_is_said() -> None:
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="clusters is 0"):
        cluster(x, 0)
    with pytest.raises(ValueError, match="4 rows are asked for, of 3"):
        cluster(x, 4)
    with pytest.raises(ValueError, match="engine 'gpu' is not"):
        cluster(x, 2, engine="gpu")  # type: ignore[arg-type]


def test_rounding_does_not_choose_between_the_two_rows_of_a_cluster() -> None:
    label, distance = np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 2.0, 2.0])
    for noise in ([0, 1e-6, 0, 1e-6], [1e-6, 0, 1e-6, 0]):
        assert by_cluster(label, distance + noise, 2).tolist() == [0, 2]
    assert by_cluster(label, distance - np.array([0, 0.01, 0, 0.01]), 2).tolist() == [1, 3]
