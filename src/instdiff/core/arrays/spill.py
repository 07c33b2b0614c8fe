"""What does not fit into memory goes to a temporary file that is mapped: it is nobody else's and leaves nothing behind.

The files have no name, or lose it when the program ends in whatever way; they lie where ``TMPDIR`` says.
"""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from instdiff.errors import StoreError

IN_MEMORY_BYTES = 1 << 18
"""What one column or table may hold in memory before it moves to a file."""
ROWS_AT_ONCE = 1 << 15
"""Rows worked on at once where a column is made of another: 256 KiB of integers."""


@contextmanager
def writing_aside() -> Iterator[None]:
    """Say in one message, a StoreError in place of any ``OSError``, that temporary space is used up."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"cannot write temporary data to '{tempfile.gettempdir()}': {reason}; free space there, or name another "
            "folder with TMPDIR, then run the command again"
        ) from error


def temporary(owner: object) -> IO[bytes]:
    """A new temporary file to write to, closed at the latest when its owner goes."""
    with writing_aside():
        file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 - its owner closes it
    weakref.finalize(owner, _close, file)
    return file


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # a full disk was said already
        file.close()


def map_file(file: IO[bytes]) -> mmap.mmap:
    """The file's bytes, read as they are touched; the file is closed and lives as long as what is returned."""
    with writing_aside(), file:
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def flatnonzero(marks: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where marks are set, not to be written to, in a mapped file where they are many."""
    out = SpillingArray(np.int64)
    for at in range(0, len(marks), ROWS_AT_ONCE):
        out.extend(at + np.flatnonzero(marks[at : at + ROWS_AT_ONCE]))
    return out.array()


def take(values: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The values at these places, not to be written to, in a mapped file where they are many."""
    out = SpillingArray(values.dtype)
    for at in range(0, len(rows), ROWS_AT_ONCE):
        out.extend(values[rows[at : at + ROWS_AT_ONCE]])
    return out.array()


class SpillingArray:
    """An array that grows at its end, in memory while it is small."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[npt.NDArray[Any]] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def extend(self, values: npt.ArrayLike) -> None:
        """Put values at the end; a full disk is a StoreError."""
        part = np.ascontiguousarray(values, self._dtype)
        self._parts.append(part)
        self._bytes += part.nbytes
        if self._bytes > IN_MEMORY_BYTES:
            self._spill()

    def array(self) -> npt.NDArray[Any]:
        """All values, not to be written to; nothing can be put at the end any more."""
        if self._file is None:
            out = np.concatenate([np.zeros(0, self._dtype), *self._parts])
        else:
            self._spill()
            out = np.frombuffer(map_file(self._file), self._dtype)
        self._parts.clear()
        out.flags.writeable = False
        return out

    def _spill(self) -> None:
        self._file = self._file or temporary(self)
        with writing_aside():
            for part in self._parts:
                self._file.write(part.view(np.uint8).data)
        self._parts.clear()
