"""Facility location by lazy greedy (Minoux 1978); Superfiltering.D, Li et al., ACL 2024; QDIT, arXiv:2311.14736."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.choose.blocks import Matrix, Rows, blocks, count, matrix, squares, unit

Kernel = Literal["cosine", "rbf", "official"]
Floats = npt.NDArray[np.float64]

_BLOCK = 1024
_TIE = 1e-6  # in a symmetric kernel two rows that only gain by each other tie, but for rounding
_FIRST = 16  # candidates looked at again at once; doubled until the best one is found
_FEW = 0.7  # of the rows: below, only those that changed are looked at, which means gathering them
_NOTHING = np.float32(-np.inf)


def facility(
    x: npt.NDArray[Any],
    k: int,
    *,
    kernel: Kernel = "cosine",
    gamma: float = 1.0,
    quality: npt.NDArray[Any] | None = None,
    alpha: float = 0.0,
) -> Rows:
    """Take, ``k`` times, the row that adds most to sum_i max_{j chosen} s_ij.

    A gain only falls, so an old one is a bound: only rows whose bound is the highest are looked at again, many in one
    product, and only against the rows that have since found a better representative.

    Args:
        x: [n, d]; float32 may be a memory map (``cosine`` makes a copy). The n² similarities are made in blocks and
            dropped; memory beside ``x`` is a few blocks and some 200 bytes a row, up to 1 KB a row in the first steps.
        k: rows to take.
        kernel: ``cosine`` (below 0 counts 0), ``rbf`` = exp(-gamma |xi - xj|²), or ``official`` = exp(-|xi - xj| / d),
            that of submodlib, which Superfiltering.D uses.
        gamma: of ``rbf``.
        quality: [n], as QDIT; on the scale of a gain, which is a sum over n rows.
        alpha: QDIT's weight in [0, 1]: (1 - alpha) gain + alpha quality.

    Returns:
        [k] row indices in the order taken, which is that of the plain greedy. Gains within 1e-6 of the best are ties
        and go to the lowest index.

    Raises:
        ValueError: ``k`` exceeds the rows, a row is not finite, ``kernel`` is unknown, ``alpha`` lies outside [0, 1],
            or ``quality`` is not one finite number per row.

    1 - s is computed in float32, which keeps seven digits where s is near 1, as ``official`` is; sums are float64.
    """
    x = matrix(x)
    n = len(x)
    count(k, n)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it lies in 0 to 1")
    extra = np.zeros(n) if quality is None else alpha * np.asarray(quality, np.float64)
    if extra.shape != (n,) or not np.isfinite(extra).all():
        raise ValueError(f"quality must be {n} finite numbers, one per row")
    gains = _Gains(_Costs(x, kernel, gamma))
    out, taken = np.empty(k, np.int64), np.zeros(n, bool)
    for at in range(k):
        out[at] = row = _next(gains, taken, 1 - alpha, extra)
        taken[row] = True
        gains.take(row)
    return out


def _next(gains: _Gains, taken: npt.NDArray[np.bool_], share: float, extra: Floats) -> int:
    """The row of the highest value, the first of equal ones; old gains are looked at again until no other can be it."""
    values, size = share * gains.gain + extra, _FIRST
    values[taken] = -np.inf
    while True:
        fresh = gains.seen == len(gains.before)
        top = values[fresh].max(initial=-1e300)
        near = values >= top - _TIE * abs(top)
        old = np.flatnonzero(near & ~fresh)
        if len(old) == 0:
            return int(near.argmax())
        # No more than it may take: the first of them often show that the rest is not needed.
        some = old if len(old) <= size else old[np.argpartition(-values[old], size)[:size]]
        gains.refresh(some)
        values[some] = share * gains.gain[some] + extra[some]
        size *= 2


class _Costs:
    """1 - s_ij in blocks of float32."""

    def __init__(self, x: Matrix, kernel: str, gamma: float) -> None:
        if kernel not in ("cosine", "rbf", "official"):
            raise ValueError(f"kernel '{kernel}' is not 'cosine', 'rbf' or 'official'")
        self.kernel, self.x = kernel, unit(x) if kernel == "cosine" else x
        self.square = squares(self.x)
        self.scale = np.float32(gamma if kernel == "rbf" else 1 / x.shape[1])

    def __call__(self, rows: slice | Rows, columns: slice | Rows) -> Matrix:
        """Costs [rows, columns]."""
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
    """What each candidate would add, each as of the number of rows taken when it was last looked at."""

    def __init__(self, costs: _Costs) -> None:
        self.costs, n = costs, len(costs.x)
        self.cost = np.ones(n, np.float32)  # of each row, to its representative; nobody represents at similarity 0
        self.gain = np.zeros(n)
        self.seen = np.zeros(n, np.int64)
        self.changed = np.full(n, -1, np.int64)  # the step at which `cost` last fell
        self.before: list[tuple[Rows, npt.NDArray[np.float32]]] = []  # per step the rows whose cost fell, and from what
        self._first()

    def _first(self) -> None:
        parts = list(blocks(len(self.cost), _BLOCK))
        for at, rows in enumerate(parts):
            for columns in parts[at:]:  # the kernel is symmetric
                gain = 1 - self.costs(rows, columns)
                np.maximum(gain, 0, out=gain)
                self.gain[rows] += gain.sum(1, dtype=np.float64)
                if columns is not rows:
                    self.gain[columns] += gain.sum(0, dtype=np.float64)

    def take(self, row: int) -> None:
        """Let ``row`` represent whom it represents better."""
        n, one = len(self.cost), np.array([row])
        new = np.concatenate([self.costs(one, part)[0] for part in blocks(n, 8 * _BLOCK)])
        better = np.flatnonzero(new < self.cost)
        self.before.append((better, self.cost[better]))
        self.changed[better] = len(self.before) - 1
        self.cost[better] = new[better]

    def refresh(self, candidates: Rows) -> None:
        """Bring the gains of ``candidates`` up to date: from scratch, or by what they lost where few rows changed."""
        steps, n = len(self.before), len(self.cost)
        age = np.bincount(self.changed + 1, minlength=steps + 1)[::-1].cumsum()[::-1]
        # age[s + 1]: rows whose cost fell at step s or later
        many = age[self.seen[candidates] + 1] > n * _FEW
        everything: list[slice | Rows] = [*blocks(n, _BLOCK)]
        for part in blocks(int(many.sum()), _BLOCK):
            some = candidates[many][part]
            self.gain[some] = sum(self._between(some, rows, _NOTHING, self.cost[None, rows]) for rows in everything)
        few = candidates[~many]
        few = few[np.argsort(-self.seen[few], kind="stable")]
        for part in blocks(len(few), _BLOCK // 4):
            some = few[part]
            rows = np.flatnonzero(self.changed >= self.seen[some[-1]])
            high = self._costs_at(self.seen[some], rows)
            for piece in blocks(len(rows), _BLOCK):
                self.gain[some] -= self._between(some, rows[piece], self.cost[rows[piece]], high[:, piece])
        self.seen[candidates] = steps

    def _between(self, some: Rows, rows: slice | Rows, low: Any, high: npt.NDArray[np.float32]) -> Floats:
        """Sum over ``rows`` of what each of ``some`` would save of a cost ``high``, were it not for costs ``low``."""
        cost = self.costs(some, rows)
        np.clip(cost, low, high, out=cost)
        return np.asarray(np.subtract(high, cost, out=cost).sum(1, dtype=np.float64))

    def _costs_at(self, steps: Rows, rows: Rows) -> npt.NDArray[np.float32]:
        """The costs of ``rows`` as they were at each of ``steps``, which fall: [steps, rows]."""
        out = np.empty((len(steps), len(rows)), np.float32)
        cost, at = self.cost.copy(), len(self.before)
        for place, step in enumerate(steps.tolist()):
            while at > step:
                at -= 1
                fell, old = self.before[at]
                cost[fell] = old
            out[place] = cost[rows]
        return out
