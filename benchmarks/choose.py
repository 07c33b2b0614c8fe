"""Seconds and memory of the choosers, each run in a process of its own; beside it the plain definition where it fits.

``plain`` is the definition with all pairs in memory, or one row at a time where no table is needed. ``parts`` are as
many as the methods' ``parts=auto`` makes. The cases ``loss`` hold parts, or ``sparse loss`` gains over the nearest
``neighbours`` alone, against the exact way. Data: rows around 300
centres, unit length, 384 wide; for ``ranking`` scores that all differ, or that have nine levels, with ids of 32
characters.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from common import arguments, finish, in_child, peak_anonymous, peak_resident, timed

from instdiff.core import Signals
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.arrays.ranking import best_first
from instdiff.methods import FacilityLocation, KCenter
from instdiff.methods.algorithms.coverage import coverage
from instdiff.methods.algorithms.facility_location import facility
from instdiff.methods.algorithms.kcenter import kcenter
from instdiff.methods.algorithms.kmeans import by_cluster, cluster
from instdiff.methods.algorithms.neighbours import bm25, nearest
from instdiff.methods.algorithms.partitioned import run_in_partitions
from instdiff.methods.algorithms.round_robin import robin
from instdiff.methods.algorithms.threshold import diverse, diverse_by_cell
from instdiff.methods.shared.set_method import parts_of

WIDTH, QUERIES, TAGS, TAGS_EACH = 384, 100, 8192, 400


def rows_into(path: str, n: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(300, WIDTH)).astype(np.float32)
    x = np.lib.format.open_memmap(path, "w+", np.float32, (n, WIDTH))
    for start in range(0, n, 8192):
        part = rng.standard_normal((min(8192, n - start), WIDTH), np.float32)
        part = centres[rng.integers(0, 300, len(part))] + 0.8 * part
        x[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)


def tagged(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Tags of a long tail: the rank of a tag is drawn log-uniformly, as often as makes about TAGS_EACH per row."""
    rng = np.random.default_rng(0)
    often = np.minimum(0.5, TAGS_EACH / np.log(TAGS) / 2 / np.arange(1, TAGS + 1) ** 0.7)
    often *= TAGS_EACH / often.sum()
    rows = [np.flatnonzero(rng.random(TAGS, np.float32) < often).astype(np.int32) for _ in range(n)]
    return np.cumsum([0, *map(len, rows)]), np.concatenate(rows)


def texts(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"w{int(word)}" for word in rng.zipf(1.3, 40) % 30_000) for _ in range(n)]


def plain_kcenter(x: np.ndarray, k: int) -> list[int]:
    out = kcenter(x, 1).tolist()
    near = np.square(x - x[out[0]]).sum(1)
    while len(out) < k:
        out.append(int(near.argmax()))
        near = np.minimum(near, np.square(x - x[out[-1]]).sum(1))
    return out


def plain_facility(x: np.ndarray, k: int) -> list[int]:
    s, out = x @ x.T, []
    best = np.zeros(len(x), np.float32)
    for _ in range(k):
        gain = np.maximum(s - best, 0).sum(1, dtype=np.float64)
        gain[out] = -1
        out.append(int(gain.argmax()))
        best = np.maximum(best, s[out[-1]])
    return out


def plain_diverse(x: np.ndarray, k: int) -> list[int]:
    out: list[int] = []
    for row in range(len(x)):
        if len(out) < k and (not out or (x[out] @ x[row]).max() <= 0.9):
            out.append(row)
    return out


def plain_nearest(x: np.ndarray, k: int) -> list[list[int]]:
    s = x @ x.T
    np.fill_diagonal(s, -np.inf)
    return np.argsort(-s, 1, kind="stable")[:, :k].tolist()


def similar_left(x: np.ndarray, rows: np.ndarray, threshold: float = 0.9) -> float:
    """Share of the rows that have one before them above the threshold."""
    found = 0
    for start in range(0, len(rows), 1024):
        some = x[rows[start : start + 1024]] @ x[rows[: start + 1024]].T > threshold
        found += int(np.tril(some, start - 1).any(1).sum())
    return found / len(rows)


def nearest_chosen(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosine of each row with the nearest chosen one."""
    best = np.full(len(x), -1, np.float32)
    for start in range(0, len(rows), 512):
        np.maximum(best, (x @ x[rows[start : start + 512]].T).max(1), out=best)
    return best


def loss(name: str, path: str, n: int, k: int) -> list[dict[str, Any]]:
    """What parts lose, as a share of the exact way's, and of the way from there to random rows."""
    x = np.array(np.load(path, mmap_mode="r")[:n])
    choose: Any = partial(kcenter, start="mean") if name == "kcenter loss" else facility

    def worth(rows: np.ndarray) -> float:
        near = nearest_chosen(x, rows)
        if name == "kcenter loss":
            return float(np.sqrt(max(0.0, 2 - 2 * float(near.min()))))
        return float(np.maximum(near, 0).sum(dtype=np.float64))

    at_random, exact, out = worth(np.random.default_rng(1).permutation(n)[:k]), float("nan"), []
    for parts, over in ((1, 1), (3, 1), (3, 2), (10, 1), (10, 2), (20, 1), (20, 2)):
        with peak_resident() as memory:
            seconds, rows = timed(lambda: run_in_partitions(x, k, choose, parts=parts, oversample=over))  # noqa: B023
        value = worth(rows)
        exact = value if parts == 1 else exact
        facts = {"value": value, "exact": exact, "random": at_random, "lost": abs(value - exact) / exact}
        facts["lost_to_random"] = (value - exact) / (at_random - exact)
        out.append({"parts": parts, "over": over, "seconds": seconds, "peak_memory_mb": memory.most, **facts})
    return out


def sparse_loss(path: str, n: int, k: int) -> list[dict[str, Any]]:
    """What gains over the nearest alone lose, as a share of what the exact way has more than random rows."""
    x = np.array(np.load(path, mmap_mode="r")[:n])
    by_chance = float(np.maximum(nearest_chosen(x, np.random.default_rng(1).permutation(n)[:k]), 0).sum(dtype=float))
    exact, whole, out = float("nan"), float("nan"), []
    for neighbours in (None, 64, 256):
        start = sum(os.times()[:2])
        with peak_resident() as memory:
            seconds, rows = timed(lambda: facility(x, k, neighbours=neighbours))  # noqa: B023
        cpu, value = sum(os.times()[:2]) - start, float(np.maximum(nearest_chosen(x, rows), 0).sum(dtype=float))
        exact, whole = (value, cpu) if neighbours is None else (exact, whole)
        facts = {"value": value, "random": by_chance, "gain_kept": (value - by_chance) / (exact - by_chance)}
        facts |= {"seconds": seconds, "cpu_seconds": cpu, "ratio_exact": whole / cpu, "peak_memory_mb": memory.most}
        out.append({"neighbours": neighbours, **facts})
    return out


def cells_loss(path: str, n: int, k: int) -> list[dict[str, Any]]:
    """What stays though it is similar; half of the rows are those of the other half, changed to a cosine of 0.95."""
    half = np.array(np.load(path, mmap_mode="r")[: n // 2])
    noise = np.random.default_rng(2).standard_normal(half.shape, np.float32)
    x = np.concatenate([half, half + noise * (0.33 / np.linalg.norm(noise, axis=1, keepdims=True))])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    exact, out = len(diverse(x, limit=k)), []
    for cells in (3, 20, 100):
        with peak_resident() as memory:
            seconds, rows = timed(lambda: diverse_by_cell(x, cells=cells, limit=k))  # noqa: B023
        facts = {"kept": len(rows), "kept_exact": exact, "similar_left": similar_left(x, rows)}
        out.append({"cells": cells, "seconds": seconds, "peak_memory_mb": memory.most, **facts})
    return out


def rank(n: int, levels: int) -> dict[str, Any]:
    """Seconds, and memory beside scores and ids."""
    rng = np.random.default_rng(0)
    value = rng.integers(1, levels, n, endpoint=True).astype(float) if levels else rng.random(n)
    marks = rng.integers(0, 2**63, (n, 2))
    ids = [f"{high:016x}{low:016x}" for high, low in marks.tolist()]
    del marks
    with peak_resident() as memory, peak_anonymous() as anonymous:
        seconds, order = timed(lambda: best_first(value, ids))
    sample = np.sort(rng.integers(0, n - 1, 10_000))
    pairs = zip(order[sample].tolist(), order[sample + 1].tolist(), strict=True)
    right = all((-value[a], ids[a], a) < (-value[b], ids[b], b) for a, b in pairs)
    facts = {"seconds": seconds, "peak_memory_mb": memory.most, "above_mb": anonymous.above}
    return {"levels": levels, **facts, "in_order": right}


def scored(path: str, n: int, k: int) -> dict[str, Any]:
    """A method from the columns on: rows are brought into the order of their ids, dealt out, and ranked."""
    x = np.load(path, mmap_mode="r")[:n]
    column = Ragged(x.reshape(-1), np.arange(n + 1, dtype=np.int64) * WIDTH)
    marks = np.random.default_rng(0).integers(0, 2**63, (n, 2)).tolist()
    s = Signals({"vector": column}, [f"{high:016x}{low:016x}" for high, low in marks], np.full(n, None, object))
    del marks
    with peak_resident() as memory, peak_anonymous() as anonymous:
        seconds, out = timed(lambda: KCenter(parts="auto", reach=k / n).score(s))
    assert np.isfinite(out.value).sum() == k
    return {"seconds": seconds, "peak_memory_mb": memory.most, "above_mb": anonymous.above}


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "kcenter": (kcenter, plain_kcenter),
    "facility cosine": (facility, plain_facility),
    "facility official": (lambda x, k: facility(x, k, kernel="official"), None),
    "diverse": (lambda x, k: diverse(x, limit=k), plain_diverse),
    "kmeans quota": (lambda x, k: by_cluster(*cluster(x, 100, engine="faiss"), k), None),
    "robin": (lambda x, k: robin(x, x[:QUERIES], k), None),
    "nearest": (nearest, plain_nearest),
    "nearest hnsw": (lambda x, k: nearest(x, k, how="hnsw"), None),
    "nearest ivf": (lambda x, k: nearest(x, k, how="ivf"), None),
    "parts kcenter": (
        lambda x, k: run_in_partitions(x, k, kcenter, parts=parts_of("auto", len(x), KCenter.of_a_part)),
        None,
    ),
    "parts facility": (
        lambda x, k: run_in_partitions(x, k, facility, parts=parts_of("auto", len(x), FacilityLocation.of_a_part)),
        None,
    ),
    "parts diverse": (lambda x, k: diverse_by_cell(x, cells=parts_of("auto", len(x)), limit=k), None),
    "parts kmeans quota": (
        lambda x, k: by_cluster(*cluster(x, int((len(x) / 2) ** 0.5), engine="faiss"), k),
        None,
    ),
    "coverage": (lambda x, k: coverage(*x, k), None),
    "bm25": (bm25, None),
}
# rows, rows to take; in --quick; whether the plain definition is run beside it
FULL = [
    ("kcenter", 100_000, 1000), ("kcenter", 1_000_000, 1000), ("facility cosine", 100_000, 1000),
    ("facility official", 100_000, 1000), ("diverse", 100_000, 10_000), ("kmeans quota", 100_000, 10_000),
    ("robin", 100_000, 10_000), ("nearest", 52_000, 1), ("nearest hnsw", 52_000, 1), ("coverage", 50_000, 8000),
    ("bm25", 20_000, 1), ("parts kcenter", 1_000_000, 100_000), ("parts facility", 1_000_000, 100_000),
    ("parts diverse", 1_000_000, 100_000), ("parts kmeans quota", 1_000_000, 100_000), ("nearest ivf", 100_000, 1),
    ("kcenter loss", 20_000, 2000), ("facility loss", 20_000, 2000), ("cells loss", 20_000, 20_000),
    ("ranking", 10_000_000, 0), ("ranking", 10_000_000, 9), ("scored kcenter", 1_000_000, 100_000),
    ("sparse loss", 10_000, 200), ("sparse loss", 10_000, 50),
]  # fmt: skip
QUICK = [
    ("kcenter", 10_000, 100), ("facility cosine", 3_000, 50), ("facility official", 3_000, 50), ("diverse", 3_000, 500),
    ("kmeans quota", 5_000, 500), ("robin", 5_000, 500), ("nearest", 3_000, 1), ("nearest hnsw", 3_000, 1),
    ("coverage", 2_000, 300), ("bm25", 1_000, 1), ("parts kcenter", 20_000, 500), ("parts facility", 9_000, 200),
    ("parts diverse", 9_000, 500), ("parts kmeans quota", 9_000, 900), ("nearest ivf", 5_000, 1),
    ("kcenter loss", 2_000, 200), ("facility loss", 2_000, 200), ("cells loss", 2_000, 2_000), ("ranking", 100_000, 9),
    ("sparse loss", 2_000, 40), ("scored kcenter", 9_000, 900),
]  # fmt: skip


def run(name: str, path: str, n: int, k: int, plain: bool) -> tuple[float, float, Any]:
    if name in ("coverage", "bm25"):
        x: Any = tagged(n) if name == "coverage" else texts(n)
    else:
        x = np.load(path, mmap_mode="r")[:n]
    function = CASES[name][plain]
    assert function is not None
    with peak_resident() as memory:
        seconds, out = timed(lambda: function(x, k))
    return seconds, memory.most, np.asarray(out).tolist()


def special(name: str, path: str, n: int, k: int) -> list[dict[str, Any]]:
    """The facts of a case that is no chooser alone."""
    if name == "ranking":
        return [in_child(rank, n, k)]
    if name == "scored kcenter":
        return [in_child(scored, path, n, k)]
    if name == "cells loss":
        return list(in_child(cells_loss, path, n, k))
    if name == "sparse loss":
        return list(in_child(sparse_loss, path, n, k))
    return list(in_child(loss, name, path, n, k)) if name.endswith("loss") else []


def main() -> None:
    args = arguments(only="", note="")
    cases = [case for case in (QUICK if args.quick else FULL) if case[0].startswith(args.only)]
    records = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.npy"
        in_child(rows_into, path, max([n for what, n, _ in cases if what != "ranking"], default=1))
        for name, n, k in cases:
            if found := special(name, path, n, k):
                taken = n if name == "ranking" else k
                records += [{"what": name, "n": n, "k": taken, **one, "load": os.getloadavg()[0]} for one in found]
                print(name, flush=True)
                continue
            seconds, memory, _ = in_child(run, name, path, n, k, False)
            record = {"what": name, "n": n, "k": k, "seconds": seconds, "peak_memory_mb": memory}
            if CASES[name][1] is not None:
                small, few = min(n, 10_000 if not args.quick else n), min(k, 200)
                mine, _, rows = in_child(run, name, path, small, few, False)
                slow, _, expected = in_child(run, name, path, small, few, True)
                same = float(np.mean([a == b for a, b in zip(rows, expected, strict=True)]))
                record |= {"plain_n": small, "plain_k": few, "ratio_plain": slow / mine, "same_as_plain": same}
            record |= {"load": os.getloadavg()[0]} | ({"note": args.note} if args.note else {})
            records.append(record)
            print(name, f"{seconds:.1f} s", flush=True)
    finish(args, records)


if __name__ == "__main__":
    main()
