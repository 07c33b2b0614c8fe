"""Rows and what was read off them as Arrow blocks, and the shared folder through which they may travel."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instdiff.core import Measure
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine.sweep import BatchResult
from instdiff.errors import InstDiffError, PlanError, StoreError
from instdiff.rendering.rows import Noise, Rows

T = TypeVar("T")

STALLED_S = 120.0
"""Seconds that one file of a shared folder may take to be read or written."""


# ── rows there, results back ──────────────────────────────────────────────────────────────────────────────────────────


def block_of(rows: Rows) -> pa.Table:
    """Rows as a worker needs them: ids, targets, and what makes their noise their own."""
    offsets = rows.ids.offsets
    columns = {"ids": _listed(rows.ids), "target": _listed(Ragged(rows.target, offsets))}
    if rows.noise is None:
        return pa.table(columns)
    noise = rows.noise
    columns |= {"noise_row": pa.array(np.asarray(noise.row)), "noise_tokens": pa.array(np.asarray(noise.tokens))}
    return pa.table(columns).replace_schema_metadata({"noise": json.dumps([noise.alpha, noise.first])})


def rows_of(block: pa.Table) -> Rows:
    """The rows of a block; all of them have targets."""
    ids, target = _ragged(block["ids"]), _ragged(block["target"])
    noise = None
    if "noise_row" in block.column_names:
        alpha, first = json.loads(block.schema.metadata[b"noise"])
        noise = Noise(alpha, block["noise_row"].to_numpy(), block["noise_tokens"].to_numpy(), first)
    return Rows(ids, target.values.astype(bool), np.zeros(len(ids), bool), np.full(len(ids), None, object), noise)


def results_of(batches: Sequence[BatchResult], measures: Sequence[Measure]) -> pa.Table:
    """Batches as one block: a row's number, and a list of values for each measure in turn."""
    columns = {"at": pa.array(np.concatenate([swept.at for swept in batches]))}
    for number, measure in enumerate(measures):
        parts = [_listed(swept.columns[measure]) for swept in batches]
        columns[f"values{number}"] = pa.concat_arrays(parts)
    tokens = sum(swept.tokens for swept in batches)
    return pa.table(columns).replace_schema_metadata({"tokens": str(tokens), "budget": str(batches[-1].budget or "")})


def swept_of(block: pa.Table, measures: Sequence[Measure]) -> BatchResult:
    """A block of results as one batch."""
    columns = {measure: _ragged(block[f"values{number}"]) for number, measure in enumerate(measures)}
    said = block.schema.metadata
    return BatchResult(block["at"].to_numpy(), columns, int(said[b"tokens"]), int(said[b"budget"] or 0) or None)


def _listed(values: Ragged) -> pa.Array:
    flat = np.asarray(values.values)
    return pa.LargeListArray.from_arrays(pa.array(values.offsets), pa.array(flat, pa.from_numpy_dtype(flat.dtype)))


def _ragged(column: pa.ChunkedArray) -> Ragged:
    lists = column.combine_chunks()
    lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
    offsets = lists.offsets.to_numpy()
    flat = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
    return Ragged(flat.to_numpy(zero_copy_only=False), offsets - offsets[0])


# ── the shared folder ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Shared:
    """A folder that driver and workers see: local, ``s3://``, ``gs://`` and whatever else fsspec knows.

    A file has a name of its own, is written by one and read by another who was told that it is whole. No time of any
    clock is in a name or compared.

    Args:
        url: where it is.
        patience: seconds that a file may take.
    """

    url: str
    patience: float = STALLED_S

    def check(self) -> None:
        """Write, read and drop a small file.

        Raises:
            PlanError: what reads such addresses is not installed.
            StoreError: the folder cannot be used.
        """
        self.put("check.parquet", pa.table({"one": [1]}))
        self.get("check.parquet")
        self.drop("check.parquet")

    def put(self, name: str, table: pa.Table) -> str:
        """Write a table; gives back its name."""

        def work() -> None:
            system, root = self._there()
            system.makedirs(root, exist_ok=True)
            with system.open(f"{root}/{name}", "wb") as file:
                pq.write_table(table, file, compression="zstd")

        self._in_time(work, f"writing {name}")
        return name

    def get(self, name: str) -> pa.Table:
        """Read a table."""

        def work() -> pa.Table:
            system, root = self._there()
            with system.open(f"{root}/{name}", "rb") as file:
                return pq.read_table(file)

        return self._in_time(work, f"reading {name}")

    def drop(self, name: str = "") -> None:
        """Remove a file, or the folder; what cannot be removed stays."""

        def work() -> None:
            system, root = self._there()
            with suppress(OSError):
                system.rm(f"{root}/{name}".rstrip("/"), recursive=not name)

        self._in_time(work, f"removing {name or 'it'}")

    def _there(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            system, root = url_to_fs(self.url)
        except ImportError as error:
            raise PlanError(f"the shared folder '{self.url}' needs a package that is missing: {error}") from None
        except ValueError as error:
            raise PlanError(f"the shared folder '{self.url}' is no address that fsspec knows: {error}") from None
        return system, str(root).rstrip("/")

    def _in_time(self, work: Callable[[], T], doing: str) -> T:
        try:
            return in_time(work, self.patience)
        except InstDiffError:
            raise
        except TimeoutError:
            raise StoreError(
                f"the shared folder '{self.url}' did not answer within {self.patience:g} s ({doing}); check that it "
                "is mounted and reachable, then run the command again: what was computed is kept"
            ) from None
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
            raise StoreError(
                f"the shared folder '{self.url}' cannot be used ({doing}: {reason}); it needs free space and must be "
                "seen by the driver and all workers; then run the command again: what was computed is kept"
            ) from error


def in_time(work: Callable[[], T], seconds: float) -> T:
    """What the work gives; it runs in a thread that is left behind when it takes longer.

    Raises:
        TimeoutError: it took longer.
    """
    gave: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            gave.append(work())
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not gave:
        raise TimeoutError(f"not done within {seconds:g} s")
    return gave[0]
