"""Hand-made columns, and a method's scores from them as the table would show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instdiff.core import Method, Scored, Signals
from instdiff.core.arrays.ragged import Ragged

NAN = float("nan")


def ragged(*rows: Sequence[float]) -> Ragged:
    return Ragged.of(rows, np.float64)


def ones(*means: float) -> Ragged:
    """One token per row; NaN for a row without any."""
    return ragged(*([] if np.isnan(mean) else [mean] for mean in means))


def signals(ids: Sequence[str] | int, reason: Sequence[str | None] | None = None, **columns: Any) -> Signals:
    names = [f"id{i:03d}" for i in range(ids)] if isinstance(ids, int) else list(ids)
    words = np.full(len(names), None, object)
    if reason is not None:
        words[:] = list(reason)
    else:
        for column in columns.values():
            if isinstance(column, Ragged):
                words[column.lengths() == 0] = "empty_response"
    return Signals(columns, names, words)


def run(method: Method, s: Signals, tokens: Sequence[int] | None = None) -> Scored:
    out = method.score(s).with_reasons(s)
    counts = np.array(tokens if tokens is not None else [1] * len(s), np.int64)
    return Scored(method.name, method, out.value, out.reason, out.details, s.ids, counts)
