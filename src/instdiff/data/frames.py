"""Rows that other libraries hold: frames, Arrow tables, data sets. None of these libraries is imported to read them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from instdiff.errors import ConfigError, DataError, require

TAKEN = (
    "a path, hub:owner/name, a datasets.Dataset, a pandas or polars frame, an Arrow table, a pool, a selection, "
    "or a list of dicts"
)
"""What ``load`` and all that read rows take."""


def rows_of_container(source: Any) -> Iterable[Any]:
    """The rows of what is neither path nor file; a ConfigError for a type that has none, a DataError for splits."""
    if isinstance(source, Mapping):
        return rows_of_container(_train_split(source))
    if hasattr(source, "to_pool"):
        source = source.to_pool()
    rows: Iterable[Any]
    if hasattr(source, "source_rows"):
        rows = source.source_rows()
        return rows
    module = type(source).__module__.partition(".")[0]
    if module == "polars":
        frame = source.collect() if hasattr(source, "collect") else source
        rows = frame.iter_rows(named=True)
        return rows
    if module == "pandas" and hasattr(source, "notna") and hasattr(source, "columns"):
        known = source.astype(object).where(source.notna(), None)
        rows = known.to_dict("records")
        return rows
    if hasattr(source, "to_batches"):
        return _of_arrow(source)
    if isinstance(source, Iterable) and not isinstance(source, str | bytes | os.PathLike):
        return source
    raise ConfigError(f"rows are taken from {TAKEN}, not from {type(source).__name__}")


def dataset_of(rows: list[dict[str, Any]]) -> Any:
    """Rows as a ``datasets.Dataset``; a PlanError where that is missing, a DataError where a column has two types."""
    require("datasets", "a data set")
    from datasets import Dataset

    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise DataError(f"a data set cannot hold these rows ({error}); write them with to_jsonl") from None


def _of_arrow(table: Any) -> Iterator[Any]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _train_split(splits: Mapping[Any, Any]) -> Any:
    """The split to train on, of a ``DatasetDict``."""
    if not splits or not all(hasattr(split, "column_names") for split in splits.values()):
        raise DataError("a list of rows is expected, this is one dict; put it into a list")
    if "train" in splits or len(splits) == 1:
        return splits.get("train", next(iter(splits.values())))
    raise DataError(f"this data set has splits and none is 'train'; give one of them: {', '.join(map(str, splits))}")
