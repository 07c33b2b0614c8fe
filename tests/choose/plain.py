"""The definitions written out, n² and more, to compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

Array = npt.NDArray[np.float64]

# Small whole numbers: their squared distances are exact, so that ties are ties.
GRID = st.tuples(st.integers(1, 30), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-4, 4).map(float))
)
# Rows whose length is a power of two (or zero): their cosines are exact.
SIGNS = st.integers(1, 30).flatmap(
    lambda n: arrays(np.float32, (n, 4), elements=st.sampled_from([-1.0, 1.0])).flatmap(
        lambda x: arrays(np.float32, (n, 1), elements=st.sampled_from([0.0, 0.5, 1.0, 4.0])).map(lambda by: x * by)
    )
)


def distances(x: Array) -> Array:
    return np.linalg.norm(x[:, None].astype(np.float64) - x[None], axis=-1)


def cosines(x: Array, y: Array) -> Array:
    def unit(z: Array) -> Array:
        length = np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)
        return z / np.where(length > 0, length, 1)

    return unit(x) @ unit(y).T


def farthest_first(x: Array, k: int, chosen: list[int]) -> list[int]:
    apart, out = distances(x), list(chosen)
    for _ in range(k):
        near = apart[:, out].min(1)
        near[out] = -1
        out.append(int(near.argmax()))
    return out[len(chosen) :]


def kernel(x: Array, name: str, gamma: float) -> Array:
    if name == "cosine":
        return cosines(x, x)
    return np.exp(-distances(x) / x.shape[1]) if name == "official" else np.exp(-gamma * distances(x) ** 2)


def location(s: Array, k: int, value: Callable[[Array], Array] = lambda gain: gain) -> list[int]:
    best, out = np.zeros(len(s)), []
    for _ in range(k):
        gain = value(np.round(np.maximum(s - best[:, None], 0).sum(0), 9))
        gain[out] = -np.inf
        out.append(int(gain.argmax()))
        best = np.maximum(best, s[:, out[-1]])
    return out


def filtered(x: Array, order: list[int], threshold: float, alike: int) -> list[int]:
    similar, out = cosines(x, x) > threshold, []
    for row in order:
        if similar[row][out].sum() < alike:
            out.append(row)
    return out


def covered(rows: list[list[int]], k: int, times: int, rarity: bool, common: float) -> list[int]:
    tags = {tag for row in rows for tag in row}
    f = {tag: sum(tag in row for row in rows) for tag in tags}
    worth = {tag: round(float(np.log(len(rows) / f[tag])) * 2**24) if rarity else 1 for tag in tags}
    worth = {tag: value for tag, value in worth.items() if f[tag] <= common * len(rows)}
    left, out = dict.fromkeys(worth, times), []

    def gain(row: int) -> int:
        return sum(worth[tag] for tag in rows[row] if left.get(tag, 0) > 0)

    for _ in range(k):
        free = [row for row in range(len(rows)) if row not in out]
        if all(gain(row) == 0 for row in free):
            left = dict.fromkeys(worth, times)
        out.append(max(free, key=lambda row: (gain(row), -row)))
        for tag in rows[out[-1]]:
            left[tag] = left.get(tag, 0) - 1
    return out


def turns(scores: Array, k: int) -> list[int]:
    out: list[int] = []
    while len(out) < k:
        row = scores[len(out) % len(scores)].copy()
        row[out] = -np.inf
        out.append(int(row.argmax()))
    return out


def highest(scores: Array, k: int) -> list[list[int]]:
    """Per row of ``scores`` the columns but itself, best first, ties by lowest index."""
    n = len(scores)
    return [sorted((j for j in range(n) if j != i), key=lambda j: (-scores[i, j], j))[:k] for i in range(n)]
