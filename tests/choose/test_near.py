"""Neighbours and round-robin: what sorting all similarities gives."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.methods.algorithms import neighbours as module
from instdiff.methods.algorithms import round_robin as robin_module
from instdiff.methods.algorithms.neighbours import at_random, bm25, nearest
from instdiff.methods.algorithms.round_robin import robin, robin_tasks
from instdiff.methods.algorithms.vectors import matrix, top_k, unit

from . import plain


@given(st.lists(st.integers(0, 4), min_size=1, max_size=400), st.data())
def test_best_is_the_head_of_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    scores, k = np.array(values, float), data.draw(st.integers(0, len(values)))
    assert top_k(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_best_of_many() -> None:
    scores = np.random.default_rng(0).integers(0, 3000, 5000).astype(float)
    for k in (1, 10, 77, 79, 5000):
        assert top_k(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()
    close = top_k(scores, 10, slack=2)
    assert set(close) == set(np.flatnonzero(scores >= np.sort(scores)[-10] - 2))


@given(plain.SIGNS, st.data())
def test_nearest_is_exact_with_ties(x: plain.Array, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(x) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FLOATS", data.draw(st.integers(1, 99)))
        patch.setattr(module, "_ROWS", data.draw(st.integers(1, 9)))
        assert nearest(x, k).tolist() == plain.highest(plain.cosines(x, x), k)


def test_an_equal_row_is_a_neighbour_and_equal_rows_tie() -> None:
    x = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    x[[50, 170, 299]] = x[7]
    out = nearest(x, 3)
    assert out[7].tolist() == [50, 170, 299]
    assert out[170].tolist() == [7, 50, 299]
    for how in ("hnsw", "ivf"):
        found = nearest(x, 3, how=how)  # type: ignore[arg-type]
        assert found.shape == (300, 3) and not (found == np.arange(300)[:, None]).any()
        assert set(found[7]) == {50, 170, 299}
    assert (nearest(x, 1, how="hnsw") == out[:, :1]).mean() > 0.9


def test_copies_of_large_matrices_do_not_lie_in_memory(tmp_path: Path) -> None:
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (400_000, 32))
    x[:] = np.arange(32) + 1.0
    x[7] = 0
    for copy in (unit, lambda rows: matrix(rows.astype(np.float16))):
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        out = copy(x)
        kept, peak = (size - before for size in tracemalloc.get_traced_memory())
        tracemalloc.stop()
        assert kept < 1_000_000 and peak < 50_000_000 < x.nbytes
        assert out.shape == x.shape and out.dtype == np.float32
        np.testing.assert_allclose(out[-1] / np.linalg.norm(out[-1]), x[-1] / np.linalg.norm(x[-1]), rtol=1e-6)
        assert not out[7].any()


def test_neighbours_hold_no_table_of_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 6_000
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(module, "_FLOATS", 1 << 18)
    tracemalloc.start()
    found = nearest(mapped, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000 < n * n * 4 / 10
    cosines = plain.cosines(mapped[:50], mapped)
    np.fill_diagonal(cosines, -1)
    assert (found[:50] == np.argsort(-cosines, 1, kind="stable")[:, :2]).mean() > 0.99  # near ties may change places


def test_random_neighbours_are_other_rows_and_repeat() -> None:
    out = at_random(40, 5, seed=1)
    assert all(len({*row, at}) == 6 for at, row in enumerate(out.tolist())) and out.min() >= 0 and out.max() < 40
    assert (at_random(40, 5, seed=1) == out).all() and (at_random(40, 5, seed=2) != out).any()
    assert {*at_random(3, 2).ravel().tolist()} == {0, 1, 2}


def by_hand(texts: list[str], k1: float, b: float) -> plain.Array:
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    mean, n = np.mean([len(row) for row in words]), len(texts)
    out = np.zeros((n, n))
    for i, query in enumerate(words):
        for j, row in enumerate(words):
            for word in query:
                df, f = sum(word in other for other in words), row.count(word)
                idf = np.log(1 + (n - df + 0.5) / (df + 0.5))
                out[i, j] += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(row) / mean)) if f else 0
    return out


@given(st.lists(st.lists(st.sampled_from(list("aBbCdé")), max_size=6).map(" ".join), min_size=1, max_size=9))
def test_bm25_is_the_formula(texts: list[str]) -> None:
    k = len(texts) - 1
    scores = by_hand(texts, 1.2, 0.6) if any(texts) else np.zeros((k + 1, k + 1))
    out = bm25(texts, k, k1=1.2, b=0.6)
    for row, found in enumerate(out):
        assert sorted(found.tolist()) == [other for other in range(k + 1) if other != row]
        assert (np.diff(scores[row][found]) <= 1e-9).all()


def test_bm25_finds_the_text_on_the_same_matter() -> None:
    texts = ["Bake a cake with eggs", "Sort a list in Python", "How do I sort a Python list?", "cake recipe", "", "..."]
    assert bm25(texts)[:4, 0].tolist() == [3, 2, 1, 0]
    assert bm25(texts)[4:, 0].tolist() == [0, 0]  # nothing in common with any: the lowest
    assert bm25(["", "!", ""], 2).tolist() == [[1, 2], [0, 2], [0, 1]]


@given(plain.SIGNS, st.data())
def test_robin_takes_turns(x: plain.Array, data: st.DataObject) -> None:
    asked = np.array(data.draw(st.lists(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 4), min_size=1, max_size=5)))
    k = data.draw(st.integers(0, len(x)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robin_module, "_FLOATS", data.draw(st.integers(1, 99)))
        assert robin(x, asked, k).tolist() == plain.turns(plain.cosines(asked, x), k)
        tasks = [asked, asked[::-1][:2] * [1, -1, 1, 1]]
        scores = np.stack([plain.cosines(task, x).max(0) for task in tasks])
        assert robin_tasks(x, tasks, k).tolist() == plain.turns(scores, k)


def test_what_cannot_be_is_said() -> None:
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="3 rows are asked for, of 2"):
        nearest(x, 3)
    with pytest.raises(ValueError, match="how 'lsh' is not"):
        nearest(x, 1, how="lsh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 rows are asked for, of 1"):
        bm25(["a", "b"], 2)
    with pytest.raises(ValueError, match="1 rows are asked for, of 0"):
        at_random(1, 1)
    with pytest.raises(ValueError, match=r"queries have shape \(1, 3\)"):
        robin(x, np.zeros((1, 3)), 1)
    with pytest.raises(ValueError, match="there is no task"):
        robin_tasks(x, [], 1)
