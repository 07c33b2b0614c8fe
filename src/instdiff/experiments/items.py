"""The scores of every item of a comparison in one file, from which its tables can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from instdiff.core.files import writing
from instdiff.errors import DataError
from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.experiments.run_folder import Cell, CellResult
from instdiff.store.parquet import reading_parquet, writing_parquet

_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        *((name, _TEXT) for name in ("suite", "task", "line", "budget")),
        ("seed", pa.int64()),
        ("item", _TEXT),
        *((name, pa.float64()) for name in ("score", "weight")),
    ]
)
_KEY = b"instdiff"


def write_items(path: Path, results: Sequence[CellResult], facts: Mapping[str, Any]) -> None:
    """Write a row for each cell, task and item; the file's metadata have what cells and tasks are, and ``facts``."""
    tables, parts = [SCHEMA.empty_table()], []
    for number, one in enumerate(results):
        for suite, task in ((found.suite, task) for found in one.results for task in found.tasks):
            tables.append(_rows(one.cell, suite, task))
            parts.append([number, suite, task.name, task.metric, task.higher_is_better, len(task.ids)])
    cells = [{**asdict(one.cell), "facts": one.facts, "error": one.error} for one in results]
    told = json.dumps({"facts": dict(facts), "cells": cells, "parts": parts}, ensure_ascii=False)
    table = pa.concat_tables(tables).unify_dictionaries().replace_schema_metadata({_KEY: told.encode()})
    with writing(path) as aside, writing_parquet(aside, table.schema, compression="zstd", compression_level=12) as file:
        file.write_table(table)


def _rows(cell: Cell, suite: str, task: TaskResult) -> pa.Table:
    count = len(task.ids)
    same = [[value] * count for value in (suite, task.name, cell.line, cell.budget, cell.seed)]
    score = pa.array(task.score, pa.float64(), from_pandas=True)
    weight = pa.nulls(count, pa.float64()) if task.weight is None else pa.array(task.weight, pa.float64())
    columns = [*same, list(task.ids), score, weight]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def read_items(path: Path) -> tuple[list[CellResult], dict[str, Any]]:
    """The cells of a comparison with their scores, and the facts that stand with its tables.

    Raises:
        DataError: the file is missing, damaged, or another one.
    """
    try:
        with reading_parquet(path) as file:
            table = file.read()
        told = json.loads(table.schema.metadata[_KEY])
        cells = [
            CellResult(Cell(one["line"], one["budget"], one["seed"]), one["facts"], error=one["error"])
            for one in told["cells"]
        ]
        start = 0
        for number, suite, name, metric, higher, count in told["parts"]:
            some, start = table.slice(start, count), start + count
            score, weight = (some[key].to_numpy() for key in ("score", "weight"))
            known = None if some["weight"].null_count else weight
            task = TaskResult(name, metric, some["item"].to_pylist(), score.astype(np.float64), known, None, higher)
            cells[number].results.append(SuiteResult(suite, str(cells[number].cell), (task,)))
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' holds no items of a comparison ({error}); give the items.parquet of its folder"
        ) from None
    return cells, told["facts"]
