"""Parquet files with sums: of each page, which every reader can check, and of the whole file, which this one does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from instdiff.core import Log
from instdiff.core.files import open_file, set_aside
from instdiff.core.sums import check_parquet, seal_parquet


@contextmanager
def writing_parquet(where: Path | BinaryIO, schema: pa.Schema, **how: Any) -> Iterator[pq.ParquetWriter]:
    """Write a file, by name or open for reading and writing; it gets its sums when the block ends."""
    with pq.ParquetWriter(where, schema, write_page_checksum=True, **how) as writer:
        yield writer
    if isinstance(where, Path):
        with open(where, "r+b") as file:
            seal_parquet(file)
    else:
        seal_parquet(where)


def is_whole(path: Path, log: Log) -> bool:
    """Whether a file is as it was written, or is not there; a damaged one is set aside, and the log told."""
    if path.is_file():
        try:
            with reading_parquet(path):
                pass
        except (PermissionError, MemoryError):
            return True  # whoever reads it says so
        except (OSError, pa.ArrowException, ValueError) as error:
            log(f"warning: '{path}' is damaged ({error}); {set_aside(path)}, and made again")
            return False
    return True


@contextmanager
def reading_parquet(
    where: str | os.PathLike[str] | BinaryIO, *, whole: bool = True, **how: Any
) -> Iterator[pq.ParquetFile]:
    """Open a file, by name or address or open already; its sums are checked, and those of pages as they are read.

    Without ``whole`` only the footer's sum is checked before. A file without sums is read as it is.

    Raises:
        OSError, pa.ArrowException: it was changed since it was written, or is no parquet file.
    """
    if isinstance(where, str | os.PathLike):
        with open_file(where) as file, reading_parquet(file, whole=whole, **how) as table:
            yield table
        return
    try:
        check_parquet(where, pages=whole)
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from None
    where.seek(0)
    with pq.ParquetFile(where, page_checksum_verification=True, **how) as table:
        yield table
