"""Implicit rewards of the sides of a preference pair: how much likelier a policy makes them than its reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats
from instdiff.core.arrays.ragged import Ragged

SIDES = ("chosen", "rejected")


def total(column: Ragged) -> Floats:
    """The sum over the response tokens of each row, in nats; NaN for a row without any."""
    return np.where(column.lengths() > 0, column.sum(), np.nan)


def same_sides(chosen: Ragged, rejected: Ragged) -> npt.NDArray[np.bool_]:
    """Pairs whose sides are one text as far as a model sees them: equal rows share their values in the store."""
    equal = (chosen.lengths() == rejected.lengths()) & (chosen.lengths() > 0) & (chosen.sum() == rejected.sum())
    for row in np.flatnonzero(equal).tolist():
        equal[row] = np.array_equal(chosen[row], rejected[row])
    return np.asarray(equal)


def reward_gaps(beta: float, base: tuple[Floats, Floats], policy: tuple[Floats, Floats]) -> Floats:
    """Implicit reward of the chosen side minus that of the rejected, in nats times ``beta`` (arXiv:2508.04149).

    ``base`` and ``policy`` are summed NLLs of the chosen and the rejected side [rows].
    """
    chosen, rejected = (reference - own for reference, own in zip(base, policy, strict=True))
    return np.asarray(beta * (chosen - rejected))
