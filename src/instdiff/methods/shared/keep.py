"""Which rows a method keeps for the next one, as people write it."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from instdiff.core import Budget, Scored
from instdiff.errors import ConfigError

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
_HEAD = re.compile(rf"{_NUMBER}\s*(%(?:\s*eligible)?)?")
_BAND = re.compile(rf"{_NUMBER}\s*%\s*-\s*{_NUMBER}\s*%")
_MIDDLE = re.compile(rf"mid\s*{_NUMBER}\s*%")
_LIMIT = re.compile(rf"(>=|<=|>|<)\s*([-+]?{_NUMBER})")
_LIMITS = {">=": np.greater_equal, "<=": np.less_equal, ">": np.greater, "<": np.less}


def check(keep: str) -> None:
    """Raise a ConfigError where it cannot be understood."""
    head, band, middle = _HEAD.fullmatch(keep), _BAND.fullmatch(keep), _MIDDLE.fullmatch(keep)
    if not (head or band or middle or _LIMIT.fullmatch(keep)):
        raise ConfigError(
            f"keep '{keep}' is not understood; write 20%, '20% eligible', 500, 10%-90%, 'mid 30%' or >=4.5"
        )
    if head and not head[2] and not (float(head[1]) >= 1 and float(head[1]).is_integer()):
        raise ConfigError(f"keep '{keep}' is no whole count; for a share write {float(head[1]) * 100:g}%")
    share = band or middle or (head if head and head[2] else None)
    shares = [float(part) for part in share.groups() if part[0] != "%"] if share else []
    if any(not 0 <= part <= 100 for part in shares) or (band and shares[0] >= shares[1]):
        raise ConfigError(f"keep '{keep}': shares lie in 0 to 100 %, the lower one first")


def keep_rows(keep: str, scored: Scored) -> npt.NDArray[np.int64]:
    """Rows kept; of a count or a share those that the method itself picks, which may be more than its scores hold."""
    if found := _HEAD.fullmatch(keep):
        kind = "rows" if not found[2] else "eligible" if found[2].endswith("eligible") else "share"
        budget = Budget(float(found[1]) / (1 if kind == "rows" else 100), kind)
        return scored.method.pick(scored, budget)
    rising = scored.best()[::-1]
    if found := _BAND.fullmatch(keep):
        return rising[_part(found[1], len(rising)) : _part(found[2], len(rising))]
    if found := _MIDDLE.fullmatch(keep):
        size = _part(found[1], len(rising))
        return rising[(len(rising) - size) // 2 :][:size]
    found = _LIMIT.fullmatch(keep)
    assert found is not None, keep
    return rising[_LIMITS[found[1]](scored.value[rising], float(found[2]))]


def _part(percent: str, rows: int) -> int:
    # As for budgets: the share is a decimal that somebody typed.
    return int(float(percent) / 100 * rows * (1 + 1e-12))
