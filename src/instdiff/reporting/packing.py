"""Figures and columns as compressed text inside a page: each array once, in four bytes or less a value."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.reporting.statistics import finite

SMALL = 64
"""Arrays up to this are written out."""


class Packer:
    """Collects arrays; equal ones are kept once.

    Floats keep 16 bits of their mantissa, five digits; integers are kept as steps. Bytes of like weight stand together,
    which compresses well. Points of a figure that are rows of one of the ``columns`` refer to it.
    """

    def __init__(self, columns: Iterable[npt.NDArray[Any]] = ()) -> None:
        self._columns = list(columns)
        self._parts: list[bytes] = []
        self._known: dict[tuple[str, bytes], int] = {}
        self.index: list[list[Any]] = []
        self._size = 0

    def array(self, values: npt.NDArray[Any]) -> dict[str, int]:
        """A reference to these values."""
        kind = "f" if values.dtype.kind == "f" else "i"
        if kind == "f":
            with np.errstate(over="ignore"):
                bits = np.ascontiguousarray(values, "<f4").view("<u4")
            raw = np.where(np.isfinite(values), (bits + np.uint32(0x80)) & np.uint32(0xFFFFFF00), bits).astype("<u4")
        else:
            steps = np.diff(values.astype(np.int64), prepend=0)
            raw = np.ascontiguousarray(steps).astype("<i4").view("<u4")
        planes = raw.reshape(-1, 1).view(np.uint8).T.tobytes()
        place = self._known.setdefault((kind, planes), len(self.index))
        if place == len(self.index):
            self.index.append([kind, self._size, raw.size])
            self._parts.append(planes)
            self._size += len(planes)
        return {"$": place}

    def figure(self, figure: Any) -> Any:
        """A plotly figure as JSON with references in it."""
        return self._walk(_arrays(figure.to_plotly_json()))

    def _rows(self, values: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> dict[str, int] | None:
        """A reference to these rows of a column, where the values are such."""
        for column in self._columns:
            if len(rows) == len(values) and int(rows.max()) < len(column):
                some = column[rows[:16]]
                if np.array_equal(some, values[:16], equal_nan=True) and np.array_equal(
                    column[rows], values, equal_nan=True
                ):
                    return {**self.array(column), "at": self.array(rows)["$"]}
        return None

    def _walk(self, value: Any) -> Any:
        if isinstance(value, dict):
            rows = value.get("customdata")
            known: dict[str, Any] = {}
            if isinstance(rows, np.ndarray) and rows.size > SMALL:
                known = {axis: found for axis in "xy" if (found := self._rows(value[axis], rows)) is not None}
            return {key: known[key] if key in known else self._walk(v) for key, v in value.items()}
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim == 1 and value.size > SMALL:
            return self.array(value)
        if isinstance(value, list | tuple | np.ndarray):
            return [self._walk(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
        if isinstance(value, float | np.floating):
            return finite(float(value))
        return value.item() if isinstance(value, np.generic) else value

    def pack(self) -> str:
        """All arrays, in text."""
        return pack(b"".join(self._parts))


def _arrays(value: Any) -> Any:
    """The same with plotly's own encoding of arrays undone."""
    if isinstance(value, dict):
        if value.keys() >= {"bdata", "dtype"}:
            flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
            shape = tuple(int(n) for n in str(value.get("shape", len(flat))).split(","))
            return flat.reshape(shape)
        return {key: _arrays(v) for key, v in value.items()}
    return [_arrays(v) for v in value] if isinstance(value, list | tuple) else value


def pack(raw: bytes | str) -> str:
    """Compressed, in letters that mean nothing to HTML."""
    data = raw.encode() if isinstance(raw, str) else raw
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def pack_json(value: Any) -> str:
    """JSON, compressed."""
    return pack(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
