"""k-center by farthest first: Sener & Savarese, ICLR 2018, section 4 (Gonzalez' greedy, a 2-approximation)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.choose.blocks import Matrix, Rows, blocks, count, matrix, squares

_BLOCK = 1024
_CENTRES = 4096  # applied in one product at most


def kcenter(
    x: npt.NDArray[Any],
    k: int,
    *,
    start: Literal["random", "mean"] = "random",
    chosen: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Rows:
    """Take, ``k`` times, the row whose Euclidean distance to the nearest chosen row is the greatest.

    A distance to the nearest centre only falls, so the greatest of a block, computed any time ago, bounds the block:
    a block is brought up to date, with all centres that it has missed in one product, only when its bound is the
    highest. The rows are those of the plain definition.

    Args:
        x: [n, d]; float32 may be a memory map and is read in blocks. Memory beside it: 12 bytes a row, the centres.
        k: rows to take, beside ``chosen``.
        start: the first row is drawn at random, or is the one nearest to the mean of all.
        chosen: rows that are centres already; they are not returned, and ``start`` is not looked at.
        seed: of the random start.

    Returns:
        [k] row indices in the order taken. Ties go to the lowest index; equal rows are taken last.

    Raises:
        ValueError: ``k`` exceeds the rows left, a row is not finite, or ``start`` is unknown.

    Squared distances are float32, |x|² + |c|² - 2xc: distances that agree to about 1e-6 of the squared lengths count as
    equal up to rounding. Subtract a large common mean beforehand.
    """
    x = matrix(x)
    given = np.zeros(0, np.int64) if chosen is None else np.unique(chosen)
    count(k, len(x) - len(given))
    if k == 0:
        return np.zeros(0, np.int64)
    front = _Front(x, len(given) + k)
    out: list[int] = []
    if len(given):
        for row in given.tolist():
            front.add(row)
    else:
        out.append(_first(x, start, seed))
        front.add(out[0])
    while len(out) < k:
        out.append(front.farthest())
        front.add(out[-1])
    return np.array(out, np.int64)


def _first(x: Matrix, start: str, seed: int) -> int:
    if start == "random":
        return int(np.random.default_rng(seed).integers(len(x)))
    if start != "mean":
        raise ValueError(f"start '{start}' is not 'random' or 'mean'")
    parts = list(blocks(len(x), 8192))
    mean = sum(x[part].sum(0, dtype=np.float64) for part in parts) / len(x)
    return int(np.argmin(np.concatenate([np.square(x[part] - mean).sum(1) for part in parts])))


class _Front:
    """Squared distance of each row to its nearest centre, each block as of the centres that it has seen."""

    def __init__(self, x: Matrix, room: int) -> None:
        self.x, self.square = x, squares(x)
        self.near = np.full(len(x), np.inf, np.float32)  # -1: a centre
        self.parts = list(blocks(len(x), _BLOCK))
        self.bound = np.full(len(self.parts), np.inf, np.float32)
        self.seen = np.zeros(len(self.parts), np.int64)
        self.centres = np.empty((room, x.shape[1]), np.float32)
        self.lengths = np.empty(room, np.float32)
        self.count = 0

    def add(self, row: int) -> None:
        """Make ``row`` a centre."""
        self.centres[self.count], self.lengths[self.count] = self.x[row], self.square[row]
        self.count += 1
        self.near[row] = -1
        self.bound[row // _BLOCK] = self.near[self.parts[row // _BLOCK]].max()

    def farthest(self) -> int:
        """The row farthest from all centres."""
        while True:
            at = int(self.bound.argmax())  # the first of equal ones, so that the lowest index wins
            if self.seen[at] == self.count:
                return int(self.parts[at].start + self.near[self.parts[at]].argmax())
            self._refresh(at)

    def _refresh(self, at: int) -> None:
        part = self.parts[at]
        for more in blocks(self.count - int(self.seen[at]), _CENTRES):
            new = slice(more.start + int(self.seen[at]), more.stop + int(self.seen[at]))
            squared = self.x[part] @ self.centres[new].T
            squared *= -2
            squared += self.lengths[new]
            least = np.maximum(squared.min(1) + self.square[part], 0)
            np.minimum(self.near[part], least, out=self.near[part])
        self.seen[at], self.bound[at] = self.count, self.near[part].max()
