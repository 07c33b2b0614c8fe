"""Facility location by lazy greedy (Minoux 1978); Superfiltering.D, Li et al., ACL 2024; QDIT, arXiv:2311.14736."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.spill import SpillingArray
from instdiff.core.caps import Caps, Room
from instdiff.methods.algorithms.vectors import Indices, Matrix, blocks, count, matrix, squares, unit

Kernel = Literal["cosine", "rbf", "official"]
Floats = npt.NDArray[np.float64]

_BLOCK, _PIECE = 1024, 512  # candidates and rows of one product
_STRIP = 256  # candidates that then pass the processor's cache together
_TIE = 1e-6  # in a symmetric kernel two rows that only gain by each other tie, but for rounding
_FIRST = 16  # candidates looked at again at once, or half of what the step before needed; doubled until one is best
_TABLE = 8192  # rows, 256 MB: all pairs of up to so many are kept
_FLOATS = 1 << 22  # costs among which the lowest are sought at once, 48 MB with their places


def facility(
    x: npt.NDArray[Any],
    k: int,
    *,
    kernel: Kernel = "cosine",
    gamma: float = 1.0,
    quality: npt.NDArray[Any] | None = None,
    alpha: float = 0.0,
    neighbours: int | None = None,
    caps: Caps | None = None,
) -> Indices:
    """Take, ``k`` times, the row of ``x`` [n, d] that adds most to sum_i max_{j chosen} s_ij: indices in that order.

    A gain only falls, so an old one is a bound: only rows whose bound is the highest are looked at again, many in one
    product, and only against the rows that have found a better representative since all gains were known last. When as
    many were looked at as there are rows, all gains are brought up to date. The order is that of the plain greedy;
    gains within 1e-6 of the best are ties and go to the lowest index.

    ``kernel`` is ``cosine`` (below 0 counts 0), ``rbf`` = exp(-gamma |xi - xj|²), or ``official`` = exp(-|xi - xj| /
    d), that of submodlib, which Superfiltering.D uses. With ``quality`` [n], on the scale of a gain, which is a sum
    over n rows, a row counts (1 - alpha) gain + alpha quality, as in QDIT, alpha in [0, 1]. A float32 ``x`` may be a
    memory map (``cosine`` makes a copy, as of ``unit``). Similarities of up to 8,192 rows are kept; those of more are
    made in blocks and dropped, beside 100 bytes a row. Of a value that is full by ``caps`` no further row is taken; its
    rows are still represented. A ``k`` above the rows, or an argument that does not fit, is a ValueError.

    With ``neighbours`` a gain counts only over that many rows, those most like the candidate, itself among them; who
    represents a row is still known exactly. That is an approximation. It needs 8 bytes for each neighbour of each row,
    which lie in a temporary mapped file where they are many.
    """
    x = matrix(x)
    n = len(x)
    count(k, n)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it lies in 0 to 1")
    extra = np.zeros(n) if quality is None else alpha * np.asarray(quality, np.float64)
    if extra.shape != (n,) or not np.isfinite(extra).all():
        raise ValueError(f"quality must be {n} finite numbers, one per row")
    if neighbours is not None and neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}; the least is 1, the row itself")
    sparse = neighbours is not None and neighbours < n
    costs = _Costs(x, kernel, gamma, kept=0 if sparse else _TABLE)
    gains = _SparseGains(costs, neighbours) if sparse and neighbours else _Gains(costs)
    out, room = np.empty(k, np.int64), Room(caps, n)
    taken = room.shut.copy()
    for at in range(k):
        out[at] = row = _next(gains, taken, 1 - alpha, extra)
        taken[row] = True
        taken[room.take(row)] = True
        gains.take(row)
    return out


def _next(gains: _Gains, taken: npt.NDArray[np.bool_], share: float, extra: Floats) -> int:
    """The row of the highest value, the first of equal ones; old gains are looked at again until no other can be it."""
    values, size = share * gains.gain + extra, max(_FIRST, gains.looked // 2)
    gains.looked = 0
    values[taken] = -np.inf
    while True:
        top = values[gains.fresh].max(initial=-1e300)
        near = values >= top - _TIE * abs(top)
        old = np.flatnonzero(near & ~gains.fresh)
        if len(old) == 0:
            return int(near.argmax())
        # No more than it may take: the first of them often show that the rest is not needed.
        gains.refresh(old if len(old) <= size else old[np.argpartition(-values[old], size)[:size]])
        values = np.where(taken, -np.inf, share * gains.gain + extra)
        size *= 2


class _Costs:
    """1 - s_ij in blocks of float32."""

    def __init__(self, x: Matrix, kernel: str, gamma: float, kept: int) -> None:
        if kernel not in ("cosine", "rbf", "official"):
            raise ValueError(f"kernel '{kernel}' is not 'cosine', 'rbf' or 'official'")
        self.kernel, self.x = kernel, unit(x) if kernel == "cosine" else x
        self.square = squares(self.x)
        self.scale = np.float32(gamma if kernel == "rbf" else 1 / x.shape[1])
        self.table: Matrix | None = None
        if len(x) <= kept:
            table: Matrix = np.empty((len(x), len(x)), np.float32)
            parts = list(blocks(len(x), _BLOCK))
            for at, some in enumerate(parts):
                for others in parts[at:]:  # the kernel is symmetric
                    table[some, others] = self._compute(some, others)
                    table[others, some] = table[some, others].T
            self.table = table

    def __call__(self, rows: slice | Indices, columns: slice | Indices) -> Matrix:
        """Costs [rows, columns], to be written to."""
        if self.table is None:
            return self._compute(rows, columns)
        if isinstance(columns, slice):
            return np.array(self.table[rows, columns])
        return self.table[columns, rows].T if isinstance(rows, slice) else self.table[rows[:, None], columns]

    def _compute(self, rows: slice | Indices, columns: slice | Indices) -> Matrix:
        out: Matrix = self.x[rows] @ self.x[columns].T
        if self.kernel == "cosine":
            return np.subtract(1, out, out=out)
        out *= -2
        out += self.square[rows][:, None]
        out += self.square[columns]
        np.maximum(out, 0, out=out)
        if self.kernel == "official":
            np.sqrt(out, out=out)
        out *= -self.scale
        np.expm1(out, out=out)
        return np.negative(out, out=out)


class _Gains:
    """What each candidate would add, or at some time would have added."""

    def __init__(self, costs: _Costs) -> None:
        self.costs, n = costs, len(costs.x)
        self.cost = np.ones(n, np.float32)  # of each row, to its representative; nobody represents at similarity 0
        self.gain = np.zeros(n)
        self.fresh = np.ones(n, bool)  # whose gain is that of now
        self.known, self.then = self.gain, self.cost.copy()  # gains when all were known last, and the costs of then
        self.looked = self.since = 0  # candidates looked at again in this step, and since then
        self._first_gains()

    def _first_gains(self) -> None:
        parts = list(blocks(len(self.cost), _BLOCK))
        for at, rows in enumerate(parts):
            for columns in parts[at:]:  # the kernel is symmetric
                gain = 1 - self.costs(rows, columns)
                np.maximum(gain, 0, out=gain)
                self.gain[rows] += gain.sum(1, dtype=np.float64)
                if columns is not rows:
                    self.gain[columns] += gain.sum(0, dtype=np.float64)
        self.known = self.gain.copy()

    def take(self, row: int) -> None:
        """Let ``row`` represent whom it represents better."""
        for part in blocks(len(self.cost), 8 * _BLOCK):
            np.minimum(self.cost[part], self.costs(np.array([row]), part)[0], out=self.cost[part])
        self.fresh[:] = False

    def refresh(self, candidates: Indices) -> None:
        """Bring the gains of ``candidates`` up to date, or of all where that is due."""
        self.looked += len(candidates)
        self.since += len(candidates)
        due = self.since >= len(self.cost) // (1 if self.costs.table is None else 4)  # whole lines are read faster
        changed = np.flatnonzero(self.cost < self.then)
        for part in blocks(len(self.cost) if due else len(candidates), _BLOCK):
            some = part if due else candidates[part]
            lost = np.zeros(part.stop - part.start)
            for piece in blocks(len(changed), _PIECE):
                rows = changed[piece]
                low, high = self.cost[rows], self.then[rows]
                costs = self.costs(some, rows)
                for strip in blocks(len(costs), _STRIP):
                    cost = costs[strip]
                    np.minimum(cost, high, out=cost)
                    np.maximum(cost, low, out=cost)
                    lost[strip] += np.subtract(high, cost, out=cost).sum(1, dtype=np.float64)
            self.gain[some] = self.known[some] - lost
            self.fresh[some] = True
        if due:
            self.known, self.then, self.since = self.gain.copy(), self.cost.copy(), 0


class _SparseGains(_Gains):
    """The same, counted over the rows most like each candidate alone."""

    def __init__(self, costs: _Costs, neighbours: int) -> None:
        self.neighbours = neighbours
        super().__init__(costs)

    def _first_gains(self) -> None:
        n = len(self.cost)
        near, far = SpillingArray(np.int32), SpillingArray(np.float32)
        for part in blocks(n, max(1, _FLOATS // n)):
            costs = self.costs(part, slice(0, n))
            lowest = np.argpartition(costs, self.neighbours - 1, axis=1)[:, : self.neighbours]
            near.extend(lowest.astype(np.int32).ravel())
            far.extend(np.take_along_axis(costs, lowest, 1).ravel())
        self.near, self.far = near.array().reshape(n, -1), far.array().reshape(n, -1)
        self.refresh(np.arange(n))

    def refresh(self, candidates: Indices) -> None:
        """Bring the gains of ``candidates`` up to date."""
        self.looked += len(candidates)
        for part in blocks(len(candidates), _BLOCK):
            some = candidates[part]
            gain = self.cost[self.near[some]] - self.far[some]
            self.gain[some] = np.maximum(gain, 0, out=gain).sum(1, dtype=np.float64)
        self.fresh[candidates] = True
