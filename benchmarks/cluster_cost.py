"""What `plan --cluster` predicts against runs at three sizes, with one core of this machine as the cluster.

Seconds are those of the processor, so that other work beside it does not count. What a row costs is counted on the
smallest size, and the share of the peak is that of one run of a few rows; all else is predicted before it is run.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alpaca, arguments, counting, finish

from instdiff import IFD, Pool, Settings, Store, load, score
from instdiff.engine.models import matmul_peak
from instdiff.scoring.cost import Cluster, Rates
from instdiff.scoring.scorer import workbench

MODEL = "builtin:tiny"
METHODS = {"ifd": IFD()}
SETTINGS = Settings(max_length=512, dtype="float32", device="cpu")
FACTOR, SLACK = 2.0, 0.15
"""Times may be off by this factor, tokens by this part."""


def rows_of(pool: Pool, count: int) -> Pool:
    """Random rows, with copies under other instructions where there are too few."""
    order = np.random.default_rng(0).permutation(len(pool))
    rows = pool.source_rows(order[:count])
    more = [rows[number % len(rows)] for number in range(len(rows), count)]
    rows += [{**row, "instruction": f"{number}. {row['instruction']}"} for number, row in enumerate(more)]
    return load(rows)


def run(pool: Pool, store: Path) -> tuple[float, int]:
    """Score the rows; the processor's seconds that it took, and how many tokens were computed."""
    start = time.process_time()
    with counting() as counted:
        score(pool, METHODS, MODEL, settings=SETTINGS, store=Store(store))
    return time.process_time() - start, counted.tokens


def reached_share(pool: Pool, rates: Rates, home: Path, peak: float) -> float:
    """The share of the peak that a run of a few rows reaches; the first run warms up."""
    for name in ("warm", "measured"):
        took, _ = run(pool, home / name)
    return len(pool) * rates.flops / peak / took


def record(pool: Pool, home: Path, rates: Rates, cluster: Cluster) -> dict[str, Any]:
    said = rates.on(cluster, len(pool))
    took, tokens = run(pool, home / f"store-{len(pool)}")
    out: dict[str, Any] = {"rows": len(pool), "share_of_peak": cluster.share}
    for name, predicted, measured in (("s", said["seconds"], took), ("tokens", len(pool) * rates.sized_tokens, tokens)):
        out |= {f"predicted_{name}": predicted, f"measured_{name}": measured, f"ratio_{name}": predicted / measured}
    return out


def broken(records: list[dict[str, Any]]) -> list[str]:
    """Predictions that are off by more than they may be."""
    out = []
    for found in records:
        for name, most in (("s", FACTOR), ("tokens", 1 + SLACK)):
            ratio = found[f"ratio_{name}"]
            if not 1 / most <= ratio <= most:
                out.append(f"{found['rows']} rows: predicted {name} is {ratio:.2f} times what was measured")
    return out


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    sizes = (60, 120, 240) if args.quick else (1000, 4000, 16_000)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        pools = [rows_of(alpaca(), rows) for rows in sizes]
        rates = Rates.count(workbench(pools[0], METHODS, MODEL, SETTINGS, Store(home / "memo")), METHODS)
        peak = matmul_peak(torch.device("cpu"), torch.float32, 1.0, 512)
        share = reached_share(pools[0].take(np.arange(min(len(pools[0]), 300))), rates, home, peak)
        cluster = Cluster(gpus=1, flops=peak, share=share)
        records = [record(pool, home, rates, cluster) for pool in pools]
    finish(args, records)
    if not args.quick and (found := broken(records)):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
