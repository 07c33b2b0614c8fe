"""Rows whose tokens are scored with their prompt, column ``given``, and without it, column ``alone``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats, Signals
from instdiff.methods.shared.short import too_short

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def clean_rows(s: Signals, least: int | None, compat: str) -> tuple[Indices, dict[str, Mask], Floats]:
    """Rows with all columns, those left out by reason (views that differ in tokens as no others do), and IFD.

    ``least`` tokens of a response are as of ``too_short``.
    """
    given, alone = s.given, s.alone
    with np.errstate(over="ignore"):
        ifd = np.exp(given.mean() - alone.mean())
    short = too_short(given.count(), least, compat)
    usable = np.array([word is None for word in s.reason], bool) & ~short
    more = given.lengths() - alone.lengths()
    kinds, counts = np.unique(more[usable], return_counts=True)
    misaligned = usable & (more != (kinds[counts.argmax()] if len(kinds) else 0))
    return np.flatnonzero(usable & ~misaligned), {"too_short": short, "misaligned": misaligned}, ifd


def have_both(s: Signals, rows: Indices, end: str) -> Mask:
    """Rows that have both columns of a draw."""
    given, alone = getattr(s, f"given{end}"), getattr(s, f"alone{end}")
    return np.asarray((given.lengths()[rows] > 0) & (alone.lengths()[rows] > 0))


def pair(s: Signals, rows: Indices, end: str) -> tuple[Any, Floats]:
    """NLL with the prompt minus NLL without, of the tokens that both have, and the ratio of perplexities."""
    given, alone = getattr(s, f"given{end}").take(rows), getattr(s, f"alone{end}").take(rows)
    with np.errstate(over="ignore"):
        return given.keep_last(alone.lengths()) - alone, np.exp(given.mean() - alone.mean())


def placed(rows: Indices, count: int, values: npt.ArrayLike) -> Floats:
    """Values of these rows in a column of ``count``, NaN elsewhere."""
    out = np.full(count, np.nan)
    out[rows] = values
    return out
