"""Responses that are too short for a ratio of two losses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def too_short(tokens: npt.NDArray[np.int64], least: int | None, compat: str) -> npt.NDArray[np.bool_]:
    """Rows with fewer response tokens than a ratio needs: by default 2, and 1 as published."""
    least = (1 if compat == "official" else 2) if least is None else least
    return np.asarray((tokens > 0) & (tokens < least))
