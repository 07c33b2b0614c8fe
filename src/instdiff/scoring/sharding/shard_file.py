"""The file that a shard leaves: columns by key, and the record of what they are of.

Row groups are of one column each, so that a reader takes what it needs. A file is whole or absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instdiff.core.arrays.ragged import Ragged
from instdiff.core.files import writing
from instdiff.errors import ConfigError, StoreError
from instdiff.store import ColumnId, Store
from instdiff.store.keys import Keys
from instdiff.store.parquet import reading_parquet, writing_parquet

NAME = re.compile(r"shard-(\d+)-of-(\d+)\.wave-(\d+)\.parquet")
META = b"instdiff"
TEXTS = "texts.parquet"
"""What embedders and judges said of all rows, where they are not run by shards."""
KEYS_AT_ONCE, VALUES_AT_ONCE = 1 << 16, 1 << 21
"""What is written or read at once, at most: a row group of a shard file."""
SCHEMA = pa.schema([("column", pa.int32()), ("key", pa.binary(16)), ("value", pa.large_list(pa.float32()))])


def shard_path(folder: Path, index: int, count: int, wave: int) -> Path:
    """Where a shard's columns of a wave lie."""
    return folder / f"shard-{index:05d}-of-{count:05d}.wave-{wave}.parquet"


def shard_files(folder: Path) -> dict[tuple[int, int, int], Path]:
    """The shard files of a folder, by index, number of shards and wave."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [(NAME.fullmatch(path.name), path) for path in there]
    return {(int(name[1]), int(name[2]), int(name[3])): path for name, path in found if name}


def record(path: Path) -> dict[str, Any]:
    """What a shard file says of itself; a StoreError where it cannot be read."""
    try:
        with reading_parquet(path, whole=False) as file:
            return dict(json.loads((file.schema_arrow.metadata or {})[META]))
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _damaged_error(path, error) from error


def _damaged_error(path: Path, error: Exception) -> StoreError:
    return StoreError(f"shard file '{path}' cannot be read ({error}); delete it and run that shard again")


def write_shard(path: Path, facts: Mapping[str, Any], columns: Mapping[ColumnId, Keys], store: Store) -> None:
    """A shard file, whole or absent, whoever else writes it at the same time."""
    meta = json.dumps({**facts, "columns": [column.name for column in columns]})
    schema, how = SCHEMA.with_metadata({META: meta}), {"compression": "zstd", "use_dictionary": False}
    with writing(path) as aside, writing_parquet(aside, schema, **how) as file:
        for number, (column, keys) in enumerate(columns.items()):
            for piece in _pieces(column, keys, store):
                _write_piece(file, number, piece, store.read(column, piece))


def _pieces(column: ColumnId, keys: Keys, store: Store) -> Iterator[Keys]:
    """The keys that the store has; rows without a number are tried again by the next run, as in a single one."""
    there = keys[~store.missing(column, keys)]
    few = there[:64]
    width = len(store.read(column, few).values) // max(len(few), 1)
    step = max(256, min(KEYS_AT_ONCE, VALUES_AT_ONCE // max(width, 1)))
    for start in range(0, len(there), step):
        yield there[start : start + step]


def _write_piece(file: pq.ParquetWriter, number: int, keys: Keys, values: Ragged) -> None:
    raw = pa.py_buffer(keys.astype("S16").tobytes())
    columns = [
        pa.array(np.full(len(keys), number, np.int32)),
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, raw]),
        pa.LargeListArray.from_arrays(pa.array(values.offsets, pa.int64()), pa.array(values.values, pa.float32())),
    ]
    file.write_table(pa.Table.from_arrays(columns, schema=file.schema), row_group_size=len(keys))


def join(paths: Sequence[Path], about: Any, columns: Collection[ColumnId], store: Store) -> None:
    """Put the columns of shard files into a store, as far as it lacks them."""
    wanted = {column.name: column for column in columns}
    for path in paths:
        facts = record(path)
        same_run(path, facts["about"], about, "the shards that it lies with")
        try:
            _take_over(path, [wanted.get(name) for name in facts["columns"]], store)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise _damaged_error(path, error) from error
        for column in wanted.values():
            store.compact(column)


def _take_over(path: Path, columns: Sequence[ColumnId | None], store: Store) -> None:
    with reading_parquet(path) as file:
        for group in range(file.num_row_groups):
            column = columns[file.metadata.row_group(group).column(0).statistics.min]
            if column is None:
                continue
            table = file.read_row_group(group, columns=["key", "value"], use_threads=False)
            key, value = table["key"].combine_chunks(), table["value"].combine_chunks()
            keys = np.frombuffer(key.buffers()[1], "S16", count=len(key), offset=key.offset * 16)
            offsets = value.offsets.to_numpy().astype(np.int64)
            lack = np.flatnonzero(store.missing(column, keys))
            store.append(column, keys[lack], Ragged(value.values.to_numpy(), offsets).take(lack))


def _flat(facts: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(facts, dict) or not facts:
        yield prefix.rstrip("."), facts
        return
    for key, value in facts.items():
        yield from _flat(value, f"{prefix}{key}.")


def same_run(path: Path, theirs: Any, mine: Any, mine_is: str) -> None:
    """Refuse a file of another run, by a ConfigError that names the first key that differs."""
    a, b = dict(_flat(theirs)), dict(_flat(mine))
    differing = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    if differing:
        key = differing[0]
        more = f", and {len(differing) - 1} more: {', '.join(differing[1:4])}" if len(differing) > 1 else ""
        raise ConfigError(
            f"'{path}' does not belong to {mine_is}: its {key} is {a.get(key)!r}, not {b.get(key)!r}{more}; "
            "shards of one run have the same data, models, methods and settings: give each run a folder of its own"
        )


# ── a folder of them ──────────────────────────────────────────────────────────────────────────────────────────────────


def complete(folder: str | Path) -> dict[str, Any]:
    """The record of a folder with all shards; a StoreError names those that lack, several runs are a ConfigError."""
    folder = Path(folder)
    found = shard_files(folder)
    if not found:
        raise StoreError(f"'{folder}' holds no shard files; `instdiff score --shards N --shard-index i` writes them")
    counts = sorted({count for _, count, _ in found})
    if len(counts) > 1:
        said = " and ".join(f"--shards {count}" for count in counts)
        raise ConfigError(f"'{folder}' holds files of {said}, which do not belong together; give each run a folder")
    first = record(next(iter(found.values())))
    for path in found.values():
        same_run(path, record(path)["about"], first["about"], f"'{next(iter(found.values())).name}'")
    lacking = missing_files(folder, counts[0], range(1, first["waves"] + 1))
    told = []
    for wave in sorted({wave for _, wave in lacking}):
        when = f" in wave {wave} of {first['waves']}" if first["waves"] > 1 else ""
        told.append(f"{ranges([index for index, other in lacking if other == wave])} of {counts[0]}{when}")
    if told:
        raise StoreError(f"'{folder}' is not complete: it lacks shards {'; '.join(told)}; run these and merge again")
    return first


def missing_files(folder: Path, count: int, waves: Iterable[int]) -> list[tuple[int, int]]:
    """Index and wave of the files that are not there."""
    there = shard_files(folder)
    return [(index, wave) for wave in waves for index in range(count) if (index, count, wave) not in there]


def ranges(numbers: Sequence[int]) -> str:
    """``0, 3-5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
