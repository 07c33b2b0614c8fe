"""Seconds and memory of the choosers, each run in a process of its own; beside it the plain definition where it fits.

``plain`` is the definition with all pairs in memory, or one row at a time where no table is needed. Data: rows around
300 centres, unit length, 384 wide.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from common import arguments, finish, in_child, peak_resident, timed

from instdiff.choose.coverage import coverage
from instdiff.choose.diverse import diverse
from instdiff.choose.facility import facility
from instdiff.choose.kcenter import kcenter
from instdiff.choose.kmeans import by_cluster, cluster
from instdiff.choose.neighbours import bm25, nearest
from instdiff.choose.robin import robin

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


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "kcenter": (kcenter, plain_kcenter),
    "facility cosine": (facility, plain_facility),
    "facility official": (lambda x, k: facility(x, k, kernel="official"), None),
    "diverse": (lambda x, k: diverse(x, limit=k), plain_diverse),
    "kmeans quota": (lambda x, k: by_cluster(*cluster(x, 100, engine="faiss"), k), None),
    "robin": (lambda x, k: robin(x, x[:QUERIES], k), None),
    "nearest": (nearest, plain_nearest),
    "nearest hnsw": (lambda x, k: nearest(x, k, how="hnsw"), None),
    "coverage": (lambda x, k: coverage(*x, k), None),
    "bm25": (bm25, None),
}
# rows, rows to take; in --quick; whether the plain definition is run beside it
FULL = [
    ("kcenter", 100_000, 1000), ("kcenter", 1_000_000, 1000), ("facility cosine", 100_000, 1000),
    ("facility official", 100_000, 1000), ("diverse", 100_000, 10_000), ("kmeans quota", 100_000, 10_000),
    ("robin", 100_000, 10_000), ("nearest", 52_000, 1), ("nearest hnsw", 52_000, 1), ("coverage", 50_000, 8000),
    ("bm25", 20_000, 1),
]  # fmt: skip
QUICK = [
    ("kcenter", 10_000, 100), ("facility cosine", 3_000, 50), ("facility official", 3_000, 50), ("diverse", 3_000, 500),
    ("kmeans quota", 5_000, 500), ("robin", 5_000, 500), ("nearest", 3_000, 1), ("nearest hnsw", 3_000, 1),
    ("coverage", 2_000, 300), ("bm25", 1_000, 1),
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


def main() -> None:
    args = arguments(only="", note="")
    cases = [case for case in (QUICK if args.quick else FULL) if case[0].startswith(args.only)]
    records = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.npy"
        in_child(rows_into, path, max(n for _, n, _ in cases))
        for name, n, k in cases:
            seconds, memory, _ = in_child(run, name, path, n, k, False)
            record = {"what": name, "n": n, "k": k, "seconds": seconds, "peak_memory_mb": memory}
            if CASES[name][1] is not None:
                small, few = min(n, 10_000 if not args.quick else n), min(k, 200)
                mine, _, found = in_child(run, name, path, small, few, False)
                slow, _, expected = in_child(run, name, path, small, few, True)
                same = float(np.mean([a == b for a, b in zip(found, expected, strict=True)]))
                record |= {"plain_n": small, "plain_k": few, "ratio_plain": slow / mine, "same_as_plain": same}
            record |= {"load": os.getloadavg()[0]} | ({"note": args.note} if args.note else {})
            records.append(record)
            print(name, f"{seconds:.1f} s", flush=True)
    finish(args, records)


if __name__ == "__main__":
    main()
