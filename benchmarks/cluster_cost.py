"""What `plan --cluster` predicts against runs at three sizes: two shards one after the other, and their merge.

Rates are counted and measured on the smallest size, and the share of the peak is that of one run of a few rows; all
else is predicted before it is run. Everything runs in this process, so that its start is not in the times.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alpaca, arguments, counting, finish, timed

from instdiff import IFD, Pool, Settings, Store, load
from instdiff.data.load import load_shards
from instdiff.engine.peak import matmul_peak
from instdiff.scoring.cluster_cost import Cluster, Estimate, Rates, estimate, measure
from instdiff.scoring.sharding.shard import Shard
from instdiff.scoring.sharding.shard_file import shard_files
from instdiff.scoring.sharding.shards import merge, score_shard
from instdiff.store import info

MODEL = "builtin:tiny"
SETTINGS = Settings(max_length=512, dtype="float32", device="cpu")
SHARDS = 2
FACTOR, SLACK = 2.0, 0.15
"""Times may be off by this factor, counts and bytes by this part."""


def write_rows(pool: Pool, file: Path, count: int) -> Path:
    """Random rows, with copies under other instructions where there are too few."""
    order = np.random.default_rng(0).permutation(len(pool))
    rows = pool.source_rows(order[:count])
    more = [rows[number % len(rows)] for number in range(len(rows), count)]
    rows += [{**row, "instruction": f"{number}. {row['instruction']}"} for number, row in enumerate(more)]
    load(rows).to_jsonl(file)
    return file


def run_shard(file: Path, folder: Path, index: int, count: int, store: Path) -> int:
    with counting() as counted:
        score_shard(
            partial(load_shards, str(file)),
            [IFD()],
            MODEL,
            Shard(index, count),
            folder,
            settings=SETTINGS,
            store=Store(store),
        )
    return counted.tokens


def run_merge(file: Path, folder: Path, store: Path) -> int:
    return len(merge(folder, load(str(file)), [IFD()], MODEL, settings=SETTINGS, store=Store(store)))


def calibrated(pool: Pool, rates: Rates, home: Path, peak: float) -> float:
    """The share of the peak that a run of a few rows reaches; the first run warms up."""
    file = home / "calibration.jsonl"
    pool.to_jsonl(file)
    for name in ("warm", "measured"):
        took, _ = timed(lambda to=home / name: run_shard(file, to, 0, 1, to / "store"))
    beside = len(pool) * (rates.load_s + rates.render_s)
    return len(pool) * rates.own_flops / peak / max(took - beside, 1e-3)


def record(rows: int, file: Path, home: Path, rates: Rates, cluster: Cluster) -> dict[str, Any]:
    said: Estimate = estimate(rates, cluster, rows)
    folder, store = home / f"shards-{rows}", home / f"store-{rows}"
    measured_s, tokens = 0.0, 0
    for index in range(SHARDS):
        took, counted = timed(lambda i=index: run_shard(file, folder, i, SHARDS, home / f"own-{rows}-{i}"))
        measured_s, tokens = measured_s + took, tokens + counted
    merge_s, merged = timed(lambda: run_merge(file, folder, store))
    assert merged == rows
    pairs = {
        "s": (said.seconds, measured_s),
        "merge_s": (said.merge_s, merge_s),
        "tokens": (rows * rates.sized_tokens, tokens),
        "store_bytes": (said.store_bytes, sum(column.bytes for column in info(Store(store)))),
        "file_bytes": (said.file_bytes, sum(path.stat().st_size for path in shard_files(folder).values())),
    }
    out: dict[str, Any] = {"rows": rows, "shards": SHARDS, "share_of_peak": cluster.share}
    for name, (predicted, measured) in pairs.items():
        out |= {f"predicted_{name}": float(predicted or 0), f"measured_{name}": float(measured)}
        out[f"ratio_{name}"] = out[f"predicted_{name}"] / max(out[f"measured_{name}"], 1e-9)
    return out


def broken(records: list[dict[str, Any]]) -> list[str]:
    """Predictions that are off by more than they may be."""
    out = []
    for found in records:
        for name in ("s", "tokens", "store_bytes"):
            ratio, most = found[f"ratio_{name}"], FACTOR if name == "s" else 1 + SLACK
            if not 1 / most <= ratio <= most:
                out.append(f"{found['rows']} rows: predicted {name} is {ratio:.2f} times what was measured")
    return out


def main() -> None:
    args = arguments()
    sizes = (60, 120, 240) if args.quick else (1000, 4000, 16_000)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        pool = alpaca()
        files = {rows: write_rows(pool, home / f"{rows}.jsonl", rows) for rows in sizes}
        few = load(str(files[sizes[0]]))
        rates = measure(few, [IFD()], MODEL, settings=SETTINGS, store=Store(home / "memo"))
        peak = matmul_peak(torch.device("cpu"), torch.float32, 1.0, 2048)
        share = calibrated(few.take(np.arange(min(len(few), 300))), rates, home, peak)
        cluster = Cluster(gpus=1, flops=peak, share=share, start=0.0, shards=SHARDS)
        records = [record(rows, file, home, rates, cluster) for rows, file in files.items()]
    finish(args, records)
    if not args.quick and (found := broken(records)):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
