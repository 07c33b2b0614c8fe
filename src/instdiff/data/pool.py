"""Samples, and the pool that holds them: one Arrow table from reading to writing."""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from instdiff.core.arrays.ids import Ids
from instdiff.core.arrays.spill import SpillingArray
from instdiff.core.display import html_table, in_one_line, pandas, visible
from instdiff.data.arrow import samples_of, side_table, take_batches, take_table
from instdiff.data.frames import dataset_of
from instdiff.data.records import LACKS, Reject, value_at
from instdiff.data.sample import Sample, Turns
from instdiff.data.write import with_extra, write_jsonl, write_rows
from instdiff.errors import DataError, did_you_mean

_CHUNK = 256
_SHOWN = 10


@dataclass(frozen=True)
class Pool:
    """All samples of one input, in its order.

    Indices are positions in the pool, from 0. They differ from ``rows`` as soon as a record was rejected. A large table
    lies in a mapped file that is gone with the pool: columns ``row``, ``id``, ``messages``, ``tools``,
    ``template_values``, ``rejected``, ``source``.

    ``format`` is the recognised one, or several joined by ``+`` for a folder of mixed files; ``map`` for a mapping.
    ``origin`` says in messages where the data came from, and ``sources`` are its parts; ``turns`` says how its
    conversations are shown and learnt. ``size`` is that of the whole input: bytes, or records where a part of a file
    was asked for, or what is read is no file.
    """

    table: pa.Table
    format: str
    origin: str
    turns: Turns = field(default_factory=Turns)
    rejected: tuple[Reject, ...] = ()
    size: int = 0
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        rejected = f", {len(self.rejected):,} records rejected" if self.rejected else ""
        return f"<Pool of {len(self):,} rows from {in_one_line(self.origin)}, format {self.format}{rejected}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the first rows."""
        some = self.samples(0, _SHOWN)
        lines = [[at, in_one_line(one.instruction), in_one_line(one.response)] for at, one in enumerate(some)]
        return f"<p>{html.escape(visible(repr(self)))}</p>{html_table(['', 'instruction', 'response'], lines)}"

    def head(self, n: int = 5) -> list[dict[str, Any]]:
        """The input's first rows."""
        return self.source_rows(range(min(n, len(self))))

    @cached_property
    def ids(self) -> Ids:
        """Content id of each sample."""
        return Ids.of(chain.from_iterable(self._column("id")))

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Position of each sample in the input, where rejected records count too."""
        out = SpillingArray(np.int64)
        for chunk in self.table.column("row").chunks:
            out.extend(chunk.to_numpy())
        return out.array()

    @property
    def source(self) -> str | list[str]:
        """What ``load`` reads the input from again, as records have it: one name, or several."""
        return list(self.sources) if len(self.sources) > 1 else self.origin

    @property
    def targets(self) -> str:
        """Which turns are learnt; see ``Turns``."""
        return self.turns.targets

    @property
    def fingerprint(self) -> str:
        """Hash over the ids in row order."""
        digest = hashlib.blake2b(digest_size=16)
        for number, chunk in enumerate(chunk for chunk in self._column("id") if chunk):
            digest.update((("\n" if number else "") + "\n".join(chunk)).encode())
        return digest.hexdigest()

    @property
    def n_duplicates(self) -> int:
        """How many samples say exactly what an earlier one says."""
        return len(self) - len(np.unique(self.ids.column))

    def samples(self, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        """Samples ``start`` to ``stop`` in order, converted a few hundred at a time."""
        begin, end, _ = slice(start, stop).indices(len(self))
        piece = self.table.slice(begin, max(0, end - begin)).select(
            ["messages", "tools", "template_values", "rejected"]
        )
        for batch in piece.to_batches(max_chunksize=_CHUNK):
            yield from samples_of(batch)

    def sample(self, i: int) -> Sample:
        """Sample ``i``, negative from the end; an IndexError where there is none."""
        at = i + len(self) if i < 0 else i
        if not 0 <= at < len(self):
            raise IndexError(f"sample {i} of a pool of {len(self)}")
        return next(self.samples(at, at + 1))

    @cached_property
    def pairs(self) -> npt.NDArray[np.bool_]:
        """Which samples are preference pairs."""
        lengths = [chunk.value_lengths().to_numpy() for chunk in self.table.column("rejected").chunks]
        return np.concatenate([np.zeros(0, np.int32), *lengths]) > 0

    def side(self, name: str) -> Pool:
        """The same rows with one side of each pair, ``chosen`` or ``rejected``, as their only conversation.

        Ids are those of the side. Rows that are no pairs have one conversation on either side.
        """
        return replace(self, table=side_table(self.table, name), rejected=())

    def source_rows(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None) -> list[dict[str, Any]]:
        """The input's own rows at these positions; all of them by default."""
        return [json.loads(text) for text in self._sources(indices)]

    def column(self, name: str) -> list[Any]:
        """What the input's rows hold under ``name``, None where a row lacks it; a DataError where all do.

        Dots lead into objects: ``stats.length`` is the key ``length`` of what lies under ``stats``.
        """
        found = [value_at(row, name) for chunk in self._column("source") for row in map(json.loads, chunk)]
        if all(value is LACKS for value in found):
            keys = {key for row in self.source_rows() for key in row}
            raise DataError(f"no row of {self.origin} has a column '{name}'{did_you_mean(name, keys)}")
        return [None if value is LACKS else value for value in found]

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Pool:
        """The samples at these positions, in the order given; without the list of rejects."""
        return replace(self, table=take_table(self.table, _positions(indices)), rejected=())

    def part(self, start: int, stop: int) -> Pool:
        """Samples ``start`` to ``stop``, which are not copied; without the list of rejects."""
        return replace(self, table=self.table.slice(start, max(0, stop - start)), rejected=())

    def with_column(self, name: str, values: Sequence[Any]) -> Pool:
        """The same samples, whose rows end with a column, as ``write`` puts it there; ids stay."""
        at = self.table.schema.get_field_index("source")
        field = self.table.schema.field(at)
        sources = pa.array(with_extra(chain.from_iterable(self._column("source")), {name: values}), field.type)
        return replace(self, table=self.table.set_column(at, field, sources))

    def to_pandas(self) -> Any:
        """The input's own rows as a pandas data frame; a PlanError where pandas is missing."""
        return pandas().DataFrame(self.source_rows())

    def to_dataset(self) -> Any:
        """The input's own rows as a ``datasets.Dataset``; a PlanError where that is missing."""
        return dataset_of(self.source_rows())

    def to_jsonl(
        self, path: str | os.PathLike[str], indices: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None
    ) -> None:
        """Writes the input's own rows as JSON lines, whatever the name ends in; all of them by default."""
        write_jsonl(path, self._sources(indices))

    def write(
        self,
        path: str | os.PathLike[str],
        indices: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
        extra: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Writes the input's own rows with their own keys, by the path's ending; the file is whole or not there.

        ``indices`` are positions in the order wanted, all by default. ``extra`` are columns to put after each row's
        own, one value for each index; one of the same name is replaced. An ending besides ``.jsonl``, ``.json``,
        ``.parquet`` and ``.csv`` is a ConfigError, a path that cannot be written a StoreError.
        """
        count = len(self) if indices is None else len(indices)
        for name, values in (extra or {}).items():
            if len(values) != count:
                raise ValueError(f"extra column '{name}' has {len(values)} values for {count} rows")
        write_rows(path, lambda: self._sources(indices), extra or {})

    def _sources(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None) -> Iterator[str]:
        if indices is None:
            yield from chain.from_iterable(self._column("source"))
            return
        for batch in take_batches(self.table.select(["source"]), _positions(indices)):
            yield from batch.column(0).to_pylist()

    def _column(self, name: str) -> Iterator[list[str]]:
        for batch in self.table.select([name]).to_batches(max_chunksize=_CHUNK):
            yield batch.column(0).to_pylist()


def concat(pools: Sequence[Pool]) -> Pool:
    """The samples of parts of one input, one after the other."""
    return replace(pools[0], table=pa.concat_tables([pool.table for pool in pools]), rejected=())


def _positions(indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    values = np.asarray(indices)
    # Cast to integers, a mask would silently pick rows 0 and 1.
    if values.dtype == np.bool_:
        raise TypeError("positions are expected, this is a mask; use numpy.flatnonzero(mask)")
    return values.astype(np.int64)
