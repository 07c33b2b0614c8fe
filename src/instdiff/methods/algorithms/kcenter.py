"""k-center by farthest first: Sener & Savarese, ICLR 2018, section 4 (Gonzalez' greedy, a 2-approximation)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core.caps import Caps, Room
from instdiff.methods.algorithms.vectors import Indices, Matrix, blocks, count, matrix, squares

_FIRST, _LEAST, _MOST = 256, 32, 2048  # rows looked at together: at first, at least, at most
_FLOATS = 1 << 19  # distances held at once beside those among them


def kcenter(
    x: npt.NDArray[Any],
    k: int,
    *,
    start: Literal["random", "mean"] = "random",
    chosen: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
    caps: Caps | None = None,
) -> Indices:
    """Take, ``k`` times, the row whose Euclidean distance to the nearest chosen row is the greatest.

    A distance to the nearest centre only falls. So the farthest rows are compared among each other, and taken one after
    the other for as long as the best of them lies beyond all rows outside; then all rows meet the new centres, in one
    product. The rows are those of the plain definition. Ties go to the lowest index; equal rows are taken last.

    ``start`` is a row drawn by ``seed``, or the one nearest to the mean of all, unless some are ``chosen`` already,
    which are not returned. A memory map of float32 is read in blocks; beside it stand 12 bytes a row and 16 MB. Squared
    distances are float32, |x|² + |c|² - 2xc: distances that agree to about 1e-6 of the squared lengths count as equal
    up to rounding. Subtract a large common mean beforehand. ``caps`` are the room that ``chosen`` rows leave: of a
    value that is full no further row is taken. A ValueError where ``k`` exceeds the rows left, a row is not finite, or
    ``start`` is unknown.
    """
    x = matrix(x)
    given = np.zeros(0, np.int64) if chosen is None else np.unique(chosen)
    count(k, len(x) - len(given))
    if k == 0:
        return np.zeros(0, np.int64)
    out: list[int] = [] if len(given) else [_first_center(x, start, seed)]
    front, new, size = _Front(x, Room(caps, len(x))), given if len(given) else np.array(out), _FIRST
    for row in out:
        front.shut(row)
    while len(out) < k:
        front.meet(new)
        new = front.ahead(size, k - len(out))
        out += new.tolist()
        # As much work for the distances among them as for those to the centres that came of it.
        size = int(np.clip((len(x) * len(new)) ** 0.5, _LEAST, _MOST))
    return np.array(out, np.int64)


def _first_center(x: Matrix, start: str, seed: int) -> int:
    if start == "random":
        return int(np.random.default_rng(seed).integers(len(x)))
    if start != "mean":
        raise ValueError(f"start '{start}' is not 'random' or 'mean'")
    parts = list(blocks(len(x), 8192))
    mean = sum(x[part].sum(0, dtype=np.float64) for part in parts) / len(x)
    return int(np.argmin(np.concatenate([np.square(x[part] - mean).sum(1) for part in parts])))


class _Front:
    """Squared distance of each row to its nearest centre."""

    def __init__(self, x: Matrix, room: Room) -> None:
        self.x, self.square, self.room = x, squares(x), room
        self.near = np.where(room.shut, np.float32(-1), np.float32(np.inf))  # -1: a centre, or its value is full

    def shut(self, row: int) -> bool:
        """Take a row: whether others can no longer be taken."""
        full = self.room.take(row)
        self.near[full] = -1
        return len(full) > 0

    def meet(self, new: Indices) -> None:
        """Make these rows centres."""
        for some in blocks(len(new), _MOST):
            centres = self.x[new[some]]
            for part in blocks(len(self.x), max(1, _FLOATS // len(centres))):
                least = self._apart(part, centres, self.square[new[some]]).min(1)
                np.minimum(self.near[part], least, out=self.near[part])
        self.near[new] = -1

    def ahead(self, size: int, most: int) -> Indices:
        """The next rows to take, ``most`` at most: what the ``size`` farthest rows alone can tell."""
        size = min(size, len(self.near))
        beyond = np.partition(self.near, len(self.near) - size)[len(self.near) - size]  # no row outside is farther
        rows = np.flatnonzero(self.near > beyond)
        if len(rows) == 0:  # so many are equally far
            rows = np.array([self.near.argmax()])
        near, apart = self.near[rows], self._apart(rows, self.x[rows], self.square[rows])
        taken: list[int] = []
        while len(taken) < most:
            at = int(near.argmax())  # the first of equal ones, so that the lowest index wins
            if taken and near[at] <= beyond:
                break
            taken.append(at)
            np.minimum(near, apart[at], out=near)
            near[at] = -1
            if self.shut(int(rows[at])):
                near[self.near[rows] < 0] = -1
        return rows[taken]

    def _apart(self, rows: slice | Indices, centres: Matrix, lengths: npt.NDArray[np.float32]) -> Matrix:
        """Squared distances [rows, centres]."""
        out: Matrix = self.x[rows] @ centres.T
        out *= -2
        out += lengths
        out += self.square[rows][:, None]
        return np.maximum(out, 0, out=out)
