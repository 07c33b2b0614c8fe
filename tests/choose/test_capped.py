"""Every walk that takes rows one after the other passes over rows whose value is full, and they change nothing later.

Each is compared with the same walk on the rows that are left: after every row taken, what is full leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from instdiff.core.caps import Caps
from instdiff.methods.algorithms.compression import zip_greedy
from instdiff.methods.algorithms.coverage import coverage
from instdiff.methods.algorithms.facility_location import facility
from instdiff.methods.algorithms.kcenter import kcenter
from instdiff.methods.algorithms.kmeans import by_cluster
from instdiff.methods.algorithms.partitioned import run_in_partitions
from instdiff.methods.algorithms.round_robin import robin, robin_tasks
from instdiff.methods.algorithms.threshold import diverse, diverse_by_cell

RNG = np.random.default_rng(3)
N = 60
X = RNG.normal(size=(N, 5)).astype(np.float32)
CODES = RNG.integers(0, 14, N)
TEXTS = [" ".join(str(n * k % 11) for k in range(n % 7 + 2)) + f" row {n}" for n in range(N)]
TAGS = [np.flatnonzero(RNG.random(25) < 0.2).astype(np.int32) for _ in range(N)]
OFFSETS, TAG = np.cumsum([0, *map(len, TAGS)]), np.concatenate(TAGS)
SOME = np.linalg.norm(X, axis=1)
Walk = Callable[..., np.ndarray[Any, Any]]

WALKS: dict[str, Walk] = {
    "kcenter": lambda k, caps: kcenter(X, k, start="mean", caps=caps),
    "facility": lambda k, caps: facility(X, k, caps=caps),
    "facility-rbf": lambda k, caps: facility(X, k, kernel="rbf", caps=caps),
    "facility-sparse": lambda k, caps: facility(X, k, neighbours=20, caps=caps),
    "coverage": lambda k, caps: coverage(OFFSETS, TAG, k, caps=caps),
    "robin": lambda k, caps: robin(X, X[:3] + 0.1, k, caps),
    "robin-tasks": lambda k, caps: robin_tasks(X, [X[:3] + 0.1, X[5:7]], k, caps),
    "zip": lambda k, caps: zip_greedy(TEXTS, k, k1=30, k2=12, k3=5, caps=caps),
    "zip-official": lambda k, caps: zip_greedy(TEXTS, k, k1=30, k2=12, k3=5, official=True, caps=caps),
    "by-cluster": lambda k, caps: by_cluster(CODES[::-1] % 6, SOME, k, caps=caps),
    "diverse": lambda k, caps: diverse(X, threshold=0.8, limit=k, caps=caps),
    "diverse-cells": lambda k, caps: diverse_by_cell(X, cells=4, threshold=0.8, limit=k, caps=caps),
    "parts": lambda k, caps: run_in_partitions(X, k, partial(kcenter, start="mean"), parts=4, caps=caps),
    "parts-twice": lambda k, caps: run_in_partitions(X, k, facility, parts=4, oversample=2, caps=caps),
}
every = pytest.mark.parametrize("name", WALKS)


@every
@pytest.mark.parametrize("most", [1, 2])
def test_no_value_has_more(name: str, most: int) -> None:
    caps = Caps.of(CODES, most)
    found = WALKS[name](caps.most, caps)
    assert len(found) and max(Counter(CODES[found].tolist()).values()) <= most
    if not name.startswith(("diverse", "zip-official")):
        assert len(found) == caps.most


@every
def test_without_a_value_that_is_full_nothing_changes(name: str) -> None:
    if name.startswith("parts") or name == "zip-official":
        pytest.skip("rows of one value are in one part, which are other parts; the published code takes rows again")
    assert WALKS[name](20, Caps.of(range(N), 1)).tolist() == WALKS[name](20, None).tolist()


def plain_greedy(value: Callable[[list[int], int], float], k: int, codes: Any, first: int) -> list[int]:
    """The row of the highest value given those taken, of the rows whose value of ``codes`` nobody has."""
    out = [first]
    while len(out) < k:
        left = [row for row in range(N) if codes[row] not in {codes[one] for one in out}]
        out.append(max(left, key=lambda row: (round(value(out, row), 5), -row)))
    return out


def test_kcenter_is_the_plain_walk() -> None:
    caps = Caps.of(CODES, 1)
    apart = np.linalg.norm(X[:, None] - X[None], axis=2)
    found = kcenter(X, caps.most, start="mean", caps=caps).tolist()
    assert found == plain_greedy(lambda out, row: float(apart[row, out].min()), caps.most, CODES, found[0])


def test_facility_location_is_the_plain_walk() -> None:
    caps = Caps.of(CODES, 1)
    like = np.exp(-(np.linalg.norm(X[:, None] - X[None], axis=2) ** 2))
    found = facility(X, caps.most, kernel="rbf", caps=caps).tolist()
    plain = plain_greedy(lambda out, row: float(like[:, [*out, row]].max(1).sum()), caps.most, CODES, found[0])
    assert found == plain


def test_a_row_that_is_passed_over_is_similar_to_none() -> None:
    x = np.array([[1, 0], [1, 0.01], [1, 0.02], [0, 1]], np.float32)
    assert diverse(x, threshold=0.9).tolist() == [0, 3]
    # Row 1 has the value of row 3, which came first, so row 2 is not dropped for it; without the cap it would be.
    order = np.array([3, 1, 2, 0])
    assert diverse(x, order, threshold=0.9).tolist() == [3, 1]
    assert diverse(x, order, threshold=0.9, caps=Caps.of(["a", "b", "c", "b"], 1)).tolist() == [3, 2]


def test_a_cluster_gives_its_next_row() -> None:
    label, distance = np.array([0, 0, 0, 1, 1]), np.array([1.0, 2, 3, 1, 2])
    assert by_cluster(label, distance, 4).tolist() == [0, 3, 1, 4]
    assert by_cluster(label, distance, 3, caps=Caps.of(["a", "b", "c", "a", "b"], 1)).tolist() == [0, 4, 2]


def test_a_target_looks_past_rows_that_are_full() -> None:
    x = np.array([[1, 0], [1, 0.1], [1, 0.2], [0.1, 1]], np.float32)
    caps = Caps.of(["a", "a", "a", "b"], 1)
    assert robin(x, np.array([[1, 0]], np.float32), 2, caps).tolist() == [0, 3]


def test_rows_that_are_there_already_leave_less_room() -> None:
    caps, held = Caps.of(CODES, 1), np.array([4, 9])
    found = kcenter(X, 5, chosen=held, caps=caps.after(held))
    assert not set(CODES[found]) & set(CODES[held]) and len(set(CODES[found])) == 5
    found = run_in_partitions(X, 8, kcenter, parts=3, chosen=held, caps=caps.after(held))
    assert not set(CODES[found]) & set(CODES[held]) and len(set(CODES[found])) == 8
