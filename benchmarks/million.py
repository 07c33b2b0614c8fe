"""A million synthetic rows by a tiny model: memory of the driver, speed of a worker beside others, bytes of the store.

``no_model`` are five million rows of a jsonl file: read, scored by length and by chance, written as parquet, and a
tenth of them selected and written as jsonl.

Each case is a process of its own with one thread, and so has every worker. ``peak_memory_mb`` is the most anonymous
memory of the process that reads, deals out and writes, above what it had when it had imported all it needs; workers do
not count. ``worker_rows_per_s`` is that of the pass alone, by the clock, for each process that scores;
``ratio_worker`` is what is left of it beside the others and the driver, against one process that does it all.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from common import arguments, cpu_seconds, finish, in_child, peak_anonymous, timed
from growth import make_model

from instdiff import Longest, Perplexity, Random, Settings, Store, load, score, select
from instdiff.core.progress import Advance, Quiet
from instdiff.store import info

SIZES, QUICK = (10_000, 100_000, 1_000_000), (500, 2000)
FILES = (500_000, 5_000_000)
"""Rows without a model."""
WORKERS = 2
FEW = 200
"""Rows of the warm-up."""
LEAST_RATIO, MOST_GROWTH_MB, MOST_BYTES = 0.9, 32, 24
"""Of a worker's speed; memory of the driver for ten times the rows; bytes of a row in the store beside its values."""


class Clocked(Quiet):
    """Rows of the passes, and the seconds from their first batch to their last."""

    def __init__(self) -> None:
        self.rows, self.seconds = 0, 0.0

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """The start of workers is left out: the clock starts with the first batch, whose rows are left out too."""
        first: list[float] = []
        last, counted = 0.0, 0

        def advance(rows: int, tokens: int) -> None:
            nonlocal last, counted
            last = time.perf_counter()
            if first:
                counted += rows
            else:
                first.append(last)

        yield advance
        self.rows += counted
        self.seconds += last - first[0] if first else 0.0


def write_rows(file: Path, count: int) -> Path:
    """Rows of made-up words, all different; half of a row's tokens are its response's."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 4)) for _ in range(500)]
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            drawn = [words[at] for at in rng.integers(0, len(words), 8)]
            row = {"instruction": f"{number}: {' '.join(drawn[:4])}", "input": "", "output": " ".join(drawn[4:])}
            out.write(json.dumps(row) + "\n")
    return file


def run(file: Path, model: Path, home: Path, workers: int) -> dict[str, Any]:
    settings = Settings(
        max_length=128, dtype="float32", device="cpu", workers=workers, templates={"*": "plain"}, batch_tokens=4096
    )
    few = load(str(file)).take(np.arange(FEW))
    score(few, [Perplexity()], str(model), settings=settings, store=Store(home / "warm"))
    clock, store = Clocked(), Store(home / "store")
    with peak_anonymous(0.05) as memory:
        before = cpu_seconds()
        pool = load(str(file))
        wall_s, table = timed(
            lambda: score(pool, [Perplexity()], str(model), settings=settings, store=store, progress=clock)
        )
        cpu_s = cpu_seconds() - before
    scored = int(np.isfinite(table["perplexity"].value).sum())
    (column,) = info(store)
    values = int(table.n_tokens.sum())
    return {
        "what": "model", "rows": len(pool), "workers": workers, "scored": scored, "wall_s": wall_s, "cpu_s": cpu_s,
        "pass_s": clock.seconds, "worker_rows_per_s": clock.rows / clock.seconds / workers,
        "peak_memory_mb": memory.above, "start_memory_mb": memory.start,
        "store_bytes_per_row": (column.bytes - 4 * values) / len(pool), "values_per_row": values / len(pool),
    }  # fmt: skip


def run_without(file: Path, home: Path) -> dict[str, Any]:
    home.mkdir()
    with peak_anonymous(0.05) as memory:
        before = cpu_seconds()

        def through() -> int:
            pool = load(str(file))
            table = score(pool, [Longest(), Random()], settings=Settings(device="cpu"), store=Store(home / "store"))
            table.write(home / "scores.parquet")
            select(pool, table["random"], budget="10%").to_jsonl(home / "selected.jsonl")
            return len(pool)

        wall_s, rows = timed(through)
        cpu_s = cpu_seconds() - before
    return {
        "what": "no_model", "rows": rows, "file_mb": file.stat().st_size / 1e6, "wall_s": wall_s, "cpu_s": cpu_s,
        "peak_memory_mb": memory.above, "start_memory_mb": memory.start,
        "bytes_per_row": memory.above * 1024**2 / rows,
    }  # fmt: skip


def broken(records: list[dict[str, Any]]) -> list[str]:
    records = [record for record in records if record["what"] == "model"]
    out = [f"{r['rows']} rows: {r['scored']} have a score" for r in records if r["scored"] < r["rows"]]
    several = [record for record in records if record["workers"] > 1]
    out += [f"{r['rows']} rows: a row takes {r['store_bytes_per_row']:.0f} bytes and 4 a value"
            for r in records if r["rows"] >= 100_000 and r["store_bytes_per_row"] > MOST_BYTES + 1]  # fmt: skip
    for before, now in itertools.pairwise(several):
        more = now["peak_memory_mb"] - before["peak_memory_mb"]
        if more > MOST_GROWTH_MB:
            out.append(f"{now['rows']} rows: the driver takes {more:.0f} MB more than for {before['rows']}")
    if several and several[-1]["ratio_worker"] < LEAST_RATIO:
        out.append(f"a worker does {several[-1]['ratio_worker']:.2f} of what a single process does")
    return out


def main() -> None:
    args = arguments(only="")
    sizes, files = (QUICK, QUICK[-1:]) if args.quick else (SIZES, FILES)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for rows in files if args.only != "model" else ():
            file = write_rows(home / "rows.jsonl", rows)
            records.append(in_child(run_without, file, home / f"no-model-{rows}"))
            print(json.dumps(records[-1]), flush=True)
        model, first = make_model(home / "model"), len(records)
        for workers, rows in [(1, sizes[-2]), *((WORKERS, size) for size in sizes)] if args.only != "no_model" else ():
            file = write_rows(home / f"{rows}.jsonl", rows)
            case = home / f"{workers}-{rows}"
            records.append(in_child(run, file, model, case, workers))
            records[-1]["ratio_worker"] = records[-1]["worker_rows_per_s"] / records[first]["worker_rows_per_s"]
            print(json.dumps(records[-1]), flush=True)
    finish(args, records)
    if not args.quick and (found := broken(records)):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
