"""Sums inside our own binary files, by which every flipped bit is found; other readers of the formats pass over them.

A ``.npy`` file has its sum behind the array. A ``.parquet`` file has two between its last page and its footer, of what
is before and of what is after, because the sums of parquet's own pages cover neither the footer nor their own heads.
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

NPY_MARK = b"crc32"
NPY_TAIL = len(NPY_MARK) + 4
"""Bytes behind an array: an odd number, so that no array of other length ends where they do."""
PARQUET_MARK = b"\0instdiff\0crc32\0"
PARQUET_SUMS = len(PARQUET_MARK) + 8
_END = 8
"""Bytes behind the footer of a parquet file: its length and four letters."""
_BLOCK = 1 << 20
DAMAGED = "its bytes are not those that were written"


def npy_tail(data: int, header: bytes) -> bytes:
    """What stands behind an array whose bytes have the sum ``data``."""
    return NPY_MARK + zlib.crc32(header, data).to_bytes(4, "little")


def check_npy(path: Path, start: int) -> None:
    """Read an array's file with a sum, whose header is ``start`` bytes; a ValueError where it was changed."""
    with open(path, "rb") as file:
        header, size = file.read(start), os.fstat(file.fileno()).st_size
        found = _crc(file, size - start - NPY_TAIL)
        if file.read(NPY_TAIL) != npy_tail(found, header):
            raise ValueError(DAMAGED)


def seal_parquet(file: BinaryIO) -> None:
    """Put the sums into a parquet file that is complete, and open for reading and writing."""
    footer, start = _footer(file)
    file.seek(0)
    pages = _crc(file, start)
    file.write(PARQUET_MARK + pages.to_bytes(4, "little") + zlib.crc32(footer).to_bytes(4, "little") + footer)
    file.flush()


def check_parquet(file: BinaryIO, *, pages: bool = True) -> None:
    """Read a parquet file's sums and what they are of, or the footer alone; a ValueError where it was changed.

    A file without sums, such as another program's, passes.
    """
    footer, start = _footer(file)
    begin = start - PARQUET_SUMS
    file.seek(max(begin, 0))
    sums = file.read(PARQUET_SUMS)
    if begin < 0 or not sums.startswith(PARQUET_MARK):
        return
    if zlib.crc32(footer).to_bytes(4, "little") != sums[-4:]:
        raise ValueError(DAMAGED)
    file.seek(0)
    if pages and _crc(file, begin).to_bytes(4, "little") != sums[-8:-4]:
        raise ValueError(DAMAGED)


def sum_of(file: BinaryIO) -> str:
    """The sum of what follows in a file, in hex."""
    return f"{_crc(file, sys.maxsize):08x}"


def file_sum(path: str | os.PathLike[str]) -> str | None:
    """The sum of a plain file; None where there is none."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return sum_of(file)


def _footer(file: BinaryIO) -> tuple[bytes, int]:
    """The footer with all that follows it, and where it starts."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _END, 0))
    end = file.read()
    start = size - _END - int.from_bytes(end[:4], "little")
    if len(end) < _END or start < 0:
        raise ValueError("it is no parquet file, or not all of one")
    file.seek(start)
    footer = file.read()
    file.seek(start)
    return footer, start


def _crc(file: BinaryIO, count: int) -> int:
    """The sum of the next bytes."""
    found = 0
    while count > 0 and (block := file.read(min(_BLOCK, count))):
        found, count = zlib.crc32(block, found), count - len(block)
    return found
