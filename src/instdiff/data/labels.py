"""The labels of rows, such as topics or tags, as people write them into a column."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.data.pool import Pool
from instdiff.errors import DataError

_NAMES = ("tag", "label", "name")
"""Keys under which objects in a list have their label; InsTagger writes the first."""


def labels_of(pool: Pool, column: str) -> npt.NDArray[np.object_]:
    """Per row a tuple of labels, each once, in the row's order; empty where a row has none.

    A row holds a list of texts, or of objects with a ``tag``, ``label`` or ``name``; such a list as JSON text; or one
    text or number. A DataError for anything else, with the row, and where no row has the column.
    """
    out = np.empty(len(pool), object)
    for at, (row, value) in enumerate(zip(pool.rows.tolist(), pool.column(column), strict=True)):
        try:
            out[at] = tuple(dict.fromkeys(_labels(value)))
        except ValueError:
            shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}…"
            raise DataError(
                f"row {row} of {pool.origin}: '{column}' is {shown}, which is no list of labels; name another column"
            ) from None
    return out


def each_label(labels: Iterable[tuple[str, ...]]) -> list[str]:
    """All labels of rows, each once, by name."""
    return sorted({label for row in labels for label in row})


def _labels(value: Any) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list):
        value = [value]
    return [text for one in value if (text := _label(one))]


def _label(one: Any) -> str:
    """A label as text, empty for none; a ValueError for what cannot be one."""
    if isinstance(one, dict):
        one = next((one[name] for name in _NAMES if name in one), one)
    if isinstance(one, list | dict):
        raise ValueError
    return "" if one is None else str(one).strip()
