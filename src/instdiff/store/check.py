"""Read every byte of a store, and say what is not what was written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instdiff.core.files import set_aside, without_sum, writing
from instdiff.errors import StoreError
from instdiff.store.column import SOURCES, DamagedPiece, count_rows, names, read_piece, read_sources
from instdiff.store.store import FACTS, Store, read_about

ANSWERS, BATCHES = "answers", "batches"
"""Where evaluations keep what models and judges wrote, and judges their batches, line by line."""


@dataclass(frozen=True)
class Damage:
    """A damaged file: why, how many rows or lines are lost with it, where that is known, and what became of it."""

    path: Path
    reason: str
    rows: int | None
    mended: str | None


@dataclass(frozen=True)
class Checked:
    """What was read of a store, and what was damaged."""

    files: int
    rows: int
    damaged: list[Damage]


def check(store: Store, *, repair: bool = False) -> Checked:
    """Read all pieces, indexes and records of a store, and the answers under it.

    With ``repair`` what is damaged is set aside under another name, so that it is computed again; of answers the lines
    that are right stay in use.

    Raises:
        StoreError: a file may not be read, or the store cannot be written for ``repair``.
    """
    files, rows, damaged = 0, 0, list[Damage]()
    for folder in sorted(path for path in (store.root / "columns").glob("*") if path.is_dir()):
        for path, count in _column(folder, damaged, repair):
            files, rows = files + (4 if path.is_dir() else 1), rows + count
    for path in sorted(path for folder in (ANSWERS, BATCHES) for path in (store.root / folder).rglob("*.jsonl")):
        files += 1
        _lines(path, damaged, repair)
    return Checked(files, rows, damaged)


def _column(folder: Path, damaged: list[Damage], repair: bool) -> Iterator[tuple[Path, int]]:
    """The files of a column that are right, with their rows."""
    about = folder / FACTS
    try:
        if about.is_file():
            read_about(folder)
            yield about, 0
    except DamagedPiece as error:
        damaged.append(_damage(about, error, None, repair))
    for name in names(folder):
        path = folder / name
        try:
            yield path, len(read_piece(path))
        except FileNotFoundError:
            continue  # merged or dropped meanwhile
        except DamagedPiece as error:
            damaged.append(_damage(path, error, _rows(path), repair))
            continue
        try:
            read_sources(path)
        except DamagedPiece as error:
            damaged.append(_damage(path / SOURCES, error, 0, repair))


def _rows(path: Path) -> int | None:
    try:
        return count_rows(path)[0]
    except (DamagedPiece, FileNotFoundError):
        return None


def _damage(path: Path, error: DamagedPiece, rows: int | None, repair: bool) -> Damage:
    return Damage(path, str(error), rows, set_aside(path) if repair else None)


def _lines(path: Path, damaged: list[Damage], repair: bool) -> None:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error.strerror}") from None
    right = [line for line in lines if _is_right(line)]
    if len(right) == len(lines):
        return
    mended = None
    if repair:
        mended = f"{set_aside(path)}; {len(right)} lines stay in use"
        with writing(path) as aside:
            aside.write_bytes(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in right))
    lost = len(lines) - len(right)
    damaged.append(Damage(path, f"'{path}' has {lost} damaged lines", lost, mended))


def _is_right(line: bytes) -> bool:
    try:
        without_sum(json.loads(line))
    except (ValueError, RecursionError):
        return not line.strip()
    return True
