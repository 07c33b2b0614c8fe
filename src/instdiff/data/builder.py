"""Samples into one Arrow table, a chunk at a time."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa

from instdiff.data.arrow import Batches
from instdiff.data.sample import Message, Sample

# Offsets of 64 bits where texts lie: taking rows out of more than 2 GiB of text overflows 32.
_TURN = pa.struct([("role", pa.string()), ("content", pa.large_string()), ("input", pa.large_string())])
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("messages", pa.list_(_TURN)),
        ("tools", pa.string()),
        ("source", pa.large_string()),
    ]
)
_ROWS = 4096
_CHARACTERS = 64_000_000

_canonical = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def content_id(sample: Sample) -> str:
    """32 hex digits that depend on what is said by whom and on the tools, and on nothing else."""
    turns = [[m.role, m.content, m.input] for m in sample.messages]
    return hashlib.blake2b(_canonical([turns, sample.tools]).encode(), digest_size=16).hexdigest()


class TableBuilder:
    """Collects samples and turns them into Arrow as soon as there are enough."""

    def __init__(self) -> None:
        self._batches = Batches(SCHEMA)
        self._clear()

    def add(self, row: int, sample: Sample, source: str) -> None:
        """Appends a sample with its position in the input and the input's row as JSON text."""
        self._rows.append(row)
        self._ids.append(content_id(sample))
        self._turns.extend(sample.messages)
        self._offsets.append(len(self._turns))
        self._tools.append(sample.tools)
        self._sources.append(source)
        self._size += len(source)
        if len(self._rows) >= _ROWS or self._size >= _CHARACTERS:
            self._flush()

    def table(self) -> pa.Table:
        """All samples added so far."""
        self._flush()
        return self._batches.table()

    def _clear(self) -> None:
        self._rows: list[int] = []
        self._ids: list[str] = []
        self._offsets: list[int] = [0]
        self._turns: list[Message] = []
        self._tools: list[str] = []
        self._sources: list[str] = []
        self._size = 0

    def _flush(self) -> None:
        if not self._rows:
            return
        turns = pa.StructArray.from_arrays(
            [
                pa.array([m.role for m in self._turns], pa.string()),
                pa.array([m.content for m in self._turns], pa.large_string()),
                pa.array([m.input for m in self._turns], pa.large_string()),
            ],
            fields=list(_TURN),
        )
        messages = pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), turns)
        columns = [pa.array(self._rows, pa.int64()), self._ids, messages, self._tools, self._sources]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, SCHEMA, strict=True)
        ]
        self._batches.add(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        self._clear()
