"""Samples as one Arrow table: collected, in memory while they are few, and taken out again in any order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from instdiff.core.arrays import spill as spool
from instdiff.core.arrays.ragged import offsets_of
from instdiff.data.sample import Call, Message, Sample

Indices = npt.NDArray[np.int64]

# Offsets of 64 bits where texts lie: taking rows out of more than 2 GiB of text overflows 32.
_TURN = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.large_string()),
        ("input", pa.large_string()),
        ("more", pa.large_string()),  # what few turns have, as JSON text
    ]
)
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("messages", pa.list_(_TURN)),
        ("tools", pa.string()),
        ("template_values", pa.string()),
        ("rejected", pa.list_(_TURN)),  # of a preference pair; else empty
        ("source", pa.large_string()),
    ]
)
_ROWS, _CHARACTERS = 4096, 64_000_000
"""Samples that become a batch."""

BYTES_AT_ONCE, ROWS_AT_ONCE = 1 << 24, 1 << 16
"""What is taken out in one piece."""


class Batches:
    """A table that grows at its end; above ``spool.IN_MEMORY_BYTES`` it lies in a temporary file."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Put a batch at the end; a full disk is a StoreError."""
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > spool.IN_MEMORY_BYTES:
            self._spill()

    def table(self) -> pa.Table:
        """All batches; nothing can be put at the end any more."""
        if self._file is None or self._writer is None:
            return pa.Table.from_batches(self._batches, schema=self._schema)
        self._spill()
        with spool.writing_aside():
            self._writer.close()
        # Mapped without a name: what reads the table keeps the file, and nobody has to remove it.
        return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(spool.map_file(self._file)))).read_all()

    def _spill(self) -> None:
        self._file = self._file or spool.temporary(self)
        with spool.writing_aside():
            self._writer = self._writer or pa.ipc.new_file(self._file, self._schema)
            for batch in self._batches:
                self._writer.write_batch(batch)
        self._batches.clear()


def take_batches(table: pa.Table, positions: Indices) -> Iterator[pa.RecordBatch]:
    """The rows at these positions in their order, a bounded number of bytes at a time.

    Arrow's own ``take`` makes one piece of the whole table first. A row that is not there is an IndexError.
    """
    _check(table, positions)
    batches = table.to_batches()
    edges = offsets_of([batch.num_rows for batch in batches])
    step = max(1, min(BYTES_AT_ONCE // max(1, table.nbytes // max(1, table.num_rows)), ROWS_AT_ONCE))
    for at in range(0, len(positions), step):
        piece = positions[at : at + step]
        order = np.argsort(piece)
        cuts = np.searchsorted(piece[order], edges)
        found = [
            batches[number].take(pa.array(piece[order[cuts[number] : cuts[number + 1]]] - edges[number]))
            for number in np.flatnonzero(np.diff(cuts))
        ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        yield from pa.Table.from_batches(found).combine_chunks().take(pa.array(back)).to_batches()


def take_table(table: pa.Table, positions: Indices) -> pa.Table:
    """The table of the rows at these positions; of neighbours nothing is copied."""
    _check(table, positions)
    if len(positions) and np.array_equal(positions, np.arange(positions[0], positions[0] + len(positions))):
        return table.slice(positions[0], len(positions))
    out = Batches(table.schema)
    for batch in take_batches(table, positions):
        out.add(batch)
    return out.table()


def _check(table: pa.Table, positions: Indices) -> None:
    if len(positions) and not 0 <= positions.min() <= positions.max() < table.num_rows:
        raise IndexError(f"positions from {positions.min()} to {positions.max()} of {table.num_rows} rows")


_canonical = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def content_id(sample: Sample) -> str:
    """32 hex digits that depend on what is said by whom, on either side, and on the tools, and on nothing else."""
    turns = [[m.role, m.content, m.input, *([said] if (said := _more(m)) else [])] for m in sample.messages]
    values = [sample.template_values] if sample.template_values or sample.rejected else []
    values += [content_id(sample.side("rejected"))] if sample.rejected else []
    return hashlib.blake2b(_canonical([turns, sample.tools, *values]).encode(), digest_size=16).hexdigest()


_MORE = ("reasoning", "call_id", "name", "learn")


def _more(message: Message) -> dict[str, Any]:
    """What a turn has beside role, content and input; its unread keys left out."""
    if message.role in ("system", "user"):
        return {}
    said = {name: value for name in _MORE if (value := getattr(message, name)) not in ("", None)}
    calls = [[call.name, call.arguments, call.id] for call in message.calls]
    return {**said, "calls": calls} if calls else said


def _pack(message: Message) -> str | None:
    more = _more(message)
    if message.extra:
        more["extra"] = message.extra
    return _canonical(more) if more else None


def unpack_message(role: str, content: str, input: str, more: str | None) -> Message:
    """A turn as it was put into the table."""
    if more is None:
        return Message(role, content, input)
    fields = json.loads(more)
    fields["calls"] = tuple(Call(*call) for call in fields.pop("calls", ()))
    return Message(role, content, input, **fields)


Packed = tuple[Sample, str, list[str | None] | None]
"""A sample, its ``content_id``, and of each turn, the rejected ones last, what goes into the column ``more``.

None where no turn has it.
"""


def pack(sample: Sample) -> Packed:
    """A sample that can be written; what cannot be, such as a lone surrogate, raises here and spoils no other."""
    more = [_pack(message) for message in (*sample.messages, *sample.rejected)]
    if not any(more):
        return sample, content_id(sample), None
    "".join(filter(None, more)).encode()
    return sample, content_id(sample), more


class TableBuilder:
    """Collects samples and turns them into Arrow as soon as there are enough."""

    def __init__(self) -> None:
        self._batches = Batches(SCHEMA)
        self._clear()

    def add(self, row: int, packed: Packed, source: str) -> None:
        """Append a sample with its position in the input and the input's row as JSON text."""
        # Columns: a tuple for each row would be one more thing that the collector of garbage looks at.
        sample, name, more = packed
        self._rows.append(row)
        self._samples.append(sample)
        self._ids.append(name)
        self._more.append(more)
        self._sources.append(source)
        self._size += len(source)
        if len(self._rows) >= _ROWS or self._size >= _CHARACTERS:
            self._flush()

    def table(self) -> pa.Table:
        """All samples added so far."""
        self._flush()
        return self._batches.table()

    def _flush(self) -> None:
        if self._rows:
            self._batches.add(_batch(self._rows, self._samples, self._ids, self._more, self._sources))
        self._clear()

    def _clear(self) -> None:
        self._rows, self._samples, self._sources = list[int](), list[Sample](), list[str]()
        self._ids, self._more = list[str](), list[list[str | None] | None]()
        self._size = 0


def _batch(
    rows: Sequence[int],
    samples: Sequence[Sample],
    ids: Sequence[str],
    more: Sequence[list[str | None] | None],
    sources: Sequence[str],
) -> pa.RecordBatch:
    chosen = [(own or [])[: len(sample.messages)] for own, sample in zip(more, samples, strict=True)]
    other = [(own or [])[len(sample.messages) :] for own, sample in zip(more, samples, strict=True)]
    columns = {
        "row": pa.array(rows, pa.int64()),
        "id": pa.array(ids, pa.string()),
        "messages": _conversations([sample.messages for sample in samples], chosen),
        "tools": pa.array([sample.tools for sample in samples], pa.string()),
        "template_values": pa.array([sample.template_values for sample in samples], pa.string()),
        "rejected": _conversations([sample.rejected for sample in samples], other),
        "source": pa.array(sources, pa.large_string()),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=SCHEMA)


def _conversations(rows: Sequence[Sequence[Message]], more: Sequence[Sequence[str | None]]) -> pa.ListArray:
    turns = list(chain.from_iterable(rows))
    parts = [pa.array([getattr(turn, part.name) for turn in turns], part.type) for part in list(_TURN)[:-1]]
    extras = (own or repeat(None, len(row)) for own, row in zip(more, rows, strict=True))
    parts.append(pa.array(chain.from_iterable(extras), _TURN.field("more").type))
    offsets = pa.array(offsets_of([len(row) for row in rows]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(parts, fields=list(_TURN)))


def side_table(table: pa.Table, name: str) -> pa.Table:
    """The rows of a table with one side of each pair as their only conversation, and the ids of that."""
    out = Batches(SCHEMA)
    for batch in table.to_batches(max_chunksize=_ROWS):
        samples, ids, more = zip(*(pack(sample.side(name)) for sample in samples_of(batch)), strict=True)
        out.add(_batch(batch.column("row"), samples, ids, more, batch.column("source")))
    return out.table()


def samples_of(batch: pa.RecordBatch) -> Iterator[Sample]:
    """The samples that were put into a table."""
    sides = (_talks(batch.column(name)) for name in ("messages", "rejected"))
    beside = (batch.column(name).to_pylist() for name in ("tools", "template_values"))
    for messages, tools, values, rejected in zip(next(sides), *beside, next(sides), strict=True):
        yield Sample(messages, tools, values, rejected)


def _talks(turns: pa.ListArray) -> Iterator[tuple[Message, ...]]:
    flat = turns.flatten()
    parts = [flat.field(name).to_pylist() for name in ("role", "content", "input", "more")]
    at = 0
    for count in turns.value_lengths().to_pylist():
        end = at + count
        yield tuple(map(unpack_message, *(part[at:end] for part in parts))) if count else ()
        at = end
