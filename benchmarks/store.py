"""Rows per second, bytes and memory of the store, against a plain cache; and exact quantiles of what outgrows memory.

``store``: three signals, one value a row, appended in batches as the engine gives them and merged as it merges them;
then a rerun that asks what is missing, a read in random order, what ``store info`` says, and growth by 1 %.
``tokens``: the same with one signal of 150 values a row.
``plain``: a JSON line per value, read into a dict, as published code caches: the same appending, rerun and read.
``quantile``: 99 levels of per-token values in a file; the plain way sorts them in memory.

Memory is anonymous and above the start of a fresh process; what is mapped from files can be dropped at any time. The
high-water mark (``peak_memory_mb``) counts it all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish, in_child, peak_anonymous, status_mb, timed

from instdiff.core import Nll
from instdiff.core.arrays.quantile import quantiles
from instdiff.core.arrays.ragged import Ragged
from instdiff.store import ColumnId, Store, info
from instdiff.store import column as pieces
from instdiff.store.keys import Keys

COMPACT_EVERY = 64
CPU_BATCH, GPU_BATCH = 30, 256
CPU_ROWS, PLAIN_ROWS, SORTED_VALUES = 30_000, 1_000_000, 60_000_000
DRAW_TOKENS, DRAWS = 150, 30


def keys_of(count: int, seed: int) -> Keys:
    return np.frombuffer(np.random.default_rng(seed).bytes(16 * count), "S16")


def values_of(numbers: np.ndarray, width: int) -> Ragged:
    """Values that tell their row."""
    return Ragged(np.repeat(numbers, width).astype(np.float32), np.arange(len(numbers) + 1, dtype=np.int64) * width)


def append(store: Store, columns: list[ColumnId], keys: Keys, first: int, width: int, batch: int) -> None:
    for number, start in enumerate(range(0, len(keys), batch), 1):
        some = keys[start : start + batch]
        values = values_of(np.arange(first + start, first + start + len(some)), width)
        for column in columns:
            store.append(column, some, values)
            if number % COMPACT_EVERY == 0:
                store.compact(column)
    for column in columns:
        store.compact(column)


def counted_merges() -> list[int]:
    """Rows of every merge from now on."""
    merged, merge = [], pieces.merge

    def counting(*args: Any) -> int:
        merged.append(merge(*args))
        return merged[-1]

    pieces.merge = counting  # type: ignore[assignment]
    return merged


def ours(root: str, rows: int, signals: int, width: int) -> dict[str, Any]:
    batch = CPU_BATCH if rows <= CPU_ROWS else GPU_BATCH
    columns = [ColumnId("model", "float32", Nll())] + [
        ColumnId(f"model {n}", "float32", Nll()) for n in range(1, signals)
    ]
    keys, more = keys_of(rows, 0), keys_of(rows // 100, 1)
    order = np.random.default_rng(2).permutation(rows)
    merged = counted_merges()
    with peak_anonymous() as memory:
        written, _ = timed(lambda: append(Store(root), columns, keys, 0, width, batch))
        pieces_left = max(len(pieces.names(Store(root).folder(column))) for column in columns)
        store = Store(root)
        asked, lacking = timed(lambda: sum(int(store.missing(column, keys).sum()) for column in columns))
        assert lacking == 0
        again, _ = timed(lambda: [store.missing(column, keys[:batch]) for column in columns for _ in range(100)])
        shuffled = keys[order]
        read = 0.0
        for column in columns:
            seconds, got = timed(lambda: store.read(column, shuffled))  # noqa: B023 - called at once
            read += seconds
            assert np.array_equal(got.values[::width], order.astype(np.float32))
            del got
        told, facts = timed(lambda: info(Store(root)))
        grown, _ = timed(lambda: append(store, columns, more, rows, width, batch))
    total = rows * signals
    return {
        "what": "store" if width == 1 else "tokens", "rows": rows, "signals": signals, "values_per_row": width,
        "batch": batch, "append_rows_per_s": total / written, "missing_rows_per_s": total / asked,
        "missing_batch_ms": again / signals * 10, "read_rows_per_s": total / read, "info_s": told, "grow_s": grown,
        "bytes_per_row": sum(f.bytes for f in facts) / total, "rewrites_per_row": sum(merged) / total,
        "pieces": pieces_left, "anonymous_mb": memory.above, "peak_memory_mb": status_mb("VmHWM"),
    }  # fmt: skip


def lines_of(path: Path) -> Iterator[tuple[str, list[float]]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row["key"], row["value"]


def plain(root: str, rows: int, signals: int, width: int) -> dict[str, Any]:
    """A row's own call writes its line and flushes it, as a cache must that survives a kill."""
    keys = [key.hex() for key in np.frombuffer(keys_of(rows, 0).tobytes(), "V16").astype(object).tolist()]
    order = np.random.default_rng(2).permutation(rows)
    paths = [Path(root) / f"{n}.jsonl" for n in range(signals)]

    def write() -> None:
        for path in paths:
            with open(path, "w", encoding="utf-8") as file:
                for number, key in enumerate(keys):
                    file.write(json.dumps({"key": key, "value": [float(number)] * width}) + "\n")
                    file.flush()

    with peak_anonymous() as memory:
        written, _ = timed(write)
        asked, caches = timed(lambda: [dict(lines_of(path)) for path in paths])
        more, lacking = timed(lambda: sum(key not in cache for cache in caches for key in keys))
        assert lacking == 0
        read, _ = timed(lambda: [np.array([v for i in order for v in cache[keys[i]]], np.float32) for cache in caches])
    total = rows * signals
    return {
        "append_rows_per_s": total / written, "missing_rows_per_s": total / (asked + more),
        "read_rows_per_s": total / read, "bytes_per_row": sum(path.stat().st_size for path in paths) / total,
        "anonymous_mb": memory.above,
    }  # fmt: skip


def compared(rows: int, signals: int, width: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        record = in_child(ours, root, rows, signals, width)
    if rows * width <= PLAIN_ROWS:
        with tempfile.TemporaryDirectory() as root:
            slow = in_child(plain, root, rows, signals, width)
        record |= {f"plain_{name}": value for name, value in slow.items()}
        rates = [name for name in slow if name.endswith("per_s")]
        record |= {f"ratio_{name.removesuffix('_rows_per_s')}": record[name] / slow[name] for name in rates}
        record |= {f"ratio_{name}": slow[name] / record[name] for name in ("bytes_per_row", "anonymous_mb")}
    return record  # type: ignore[no-any-return]


# ── quantiles ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def draws(path: str, rows: int) -> int:
    """NLL-like values of every draw of every row."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, rows, 1000):
            count = min(1000, rows - start) * DRAWS * DRAW_TOKENS
            file.write((rng.standard_exponential(count, np.float32) ** 2).data)
    return rows * DRAWS * DRAW_TOKENS


def quantile_of(path: str, sort: bool) -> tuple[float, float, float, np.ndarray]:
    levels = np.linspace(0.01, 0.99, 99)
    mapped = np.memmap(path, np.float32, "r")
    with peak_anonymous() as memory:
        if sort:
            seconds, found = timed(lambda: np.quantile(mapped.astype(np.float64), levels))
        else:
            seconds, found = timed(lambda: quantiles(mapped, levels).values)
    return seconds, memory.above, status_mb("VmHWM"), found


def quantile(rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/values.f32"
        count = in_child(draws, path, rows)
        seconds, memory, peak, found = in_child(quantile_of, path, False)
        record = {
            "what": "quantile", "values": count, "levels": len(found), "seconds": seconds,
            "values_per_s": count / seconds, "anonymous_mb": memory, "peak_memory_mb": peak,
        }  # fmt: skip
        if count <= SORTED_VALUES:
            slow, much, _, expected = in_child(quantile_of, path, True)
            np.testing.assert_array_max_ulp(found, expected, maxulp=1)
            record |= {"plain_seconds": slow, "plain_anonymous_mb": much}
            record |= {"ratio_seconds": slow / seconds, "ratio_anonymous_mb": much / memory}
    return record


def main() -> None:
    args = arguments()
    sizes = [10_000, 100_000] if args.quick else [10_000, 100_000, 1_000_000, 10_000_000]
    records = [compared(rows, 3, 1) for rows in sizes]
    records.append(compared(6_000 if args.quick else 300_000, 1, DRAW_TOKENS))
    records += [quantile(rows) for rows in ([2_000] if args.quick else [10_000, 52_000])]
    finish(args, records)


if __name__ == "__main__":
    main()
