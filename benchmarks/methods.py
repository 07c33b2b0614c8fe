"""Every method alone on 2,000 Alpaca rows, by the command and with a store of its own; then all of them in one command.

The model of all roles is ``base-5m`` (else ``builtin:tiny``), the embedder the small one that is the default, the
judge the same model, asked in the command's process. T-SHIRT makes 10 noisy copies and NUGGETS has 10 anchors, as
``options`` says; with ``--only defaults`` both have the papers' 30 and 100. There is no plain way: what the passes gain
against a loop is in ``scoring``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, alpaca, arguments, finish

ROWS, QUICK, TARGETS = 2000, 60, 100
ROLES = ("base", "proxy", "complexity_rater", "quality_rater", "judge")
FEWER = {"tshirt": ["tshirt.draws=10"], "nuggets": ["nuggets.anchors=10"]}
METHODS = (
    "random", "full", "longest", "perplexity", "entropy", "ifd", "superfiltering", "instructdiff", "tshirt", "selectit",
    "miwv", "nuggets", "kcenter", "facility_location", "kmeans_quota", "cosine_filter", "superfiltering_d", "zip",
    "mads", "deita", "rds", "ds2", "alpagasus",
)  # fmt: skip


def model() -> str:
    folder = SHARED / "models" / "base-5m"
    return str(folder) if folder.is_dir() else "builtin:tiny"


def measured(methods: list[str], options: list[str], rows: Path, target: Path, count: int) -> dict[str, Any]:
    """One command with an empty store, in a process of its own."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "instdiff.cli", "score", "--data", str(rows), "--method", ",".join(methods)]
        command += [
            "--workers",
            str(os.cpu_count()),
            "--store",
            f"{home}/store",
            "--output",
            f"{home}/scores.parquet",
            "--target",
            str(target),
            "--quiet",
        ]
        command += [part for role in ROLES for part in ("--model", f"{role}={model()}")]
        command += ["--model", "calibrated=builtin:tiny", *(part for one in options for part in ("--set", one))]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        start = time.perf_counter()
        with open(f"{home}/said", "w+", encoding="utf-8") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
            _, status, used = os.wait4(process.pid, 0)  # with the workers that it has waited for
            seconds = time.perf_counter() - start
            said.seek(0)
            if status:
                raise SystemExit(f"{', '.join(methods)}: {said.read()[-2000:]}")
    return {
        "what": "all" if len(methods) > 1 else methods[0], "rows": count, "options": " ".join(options),
        "workers": os.cpu_count(), "seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime,
        "peak_memory_mb": used.ru_maxrss / 1024, "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    args = arguments(only="", rows=ROWS)
    count = QUICK if args.quick else args.rows
    names = args.only.split(",") if args.only else [*METHODS, "all"]
    pool = alpaca()
    records = []
    with tempfile.TemporaryDirectory() as home:
        rows, target = Path(home) / "rows.jsonl", Path(home) / "target.jsonl"
        pool.to_jsonl(rows, np.arange(count))
        pool.to_jsonl(target, np.arange(len(pool) - TARGETS, len(pool)))
        for name in names:
            if name == "defaults":
                records += [measured([one], [], rows, target, count) for one in FEWER]
                continue
            few = [one for options in FEWER.values() for one in options]
            methods, options = (list(METHODS), few) if name == "all" else ([name], FEWER.get(name, []))
            records.append(measured(methods, options, rows, target, count))
            print(json.dumps(records[-1]), flush=True)
    finish(args, records)


if __name__ == "__main__":
    main()
