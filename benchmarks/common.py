"""What the benchmarks share: rows, models, the machine, and the record of a run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from instdiff.core import ModelRef, Prompted
from instdiff.data import load
from instdiff.engine.load import load_tokenizer, resolve
from instdiff.ragged import Ragged
from instdiff.render import Rows, render
from instdiff.templates import template

SHARED = Path(os.environ.get("INSTDIFF_SHARED", Path(__file__).resolve().parents[1] / "../shared"))


def arguments(**extra: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    for name, default in extra.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def rows_of(count: int, max_length: int = 512, seed: int = 0) -> Rows:
    """Random Alpaca rows as the model sees them; the embedded ones where the shared folder is absent."""
    path = SHARED / "data" / "alpaca" / "alpaca_union.json"
    pool = load(str(path) if path.is_file() else "builtin:demo")
    pool = pool.take(np.sort(np.random.default_rng(seed).permutation(len(pool))[: count + count // 20 + 4]))
    source = resolve(ModelRef("builtin:tiny"))
    rows = render(Prompted(), pool, load_tokenizer(source), template("alpaca"), max_length)
    return rows.take(np.flatnonzero([why is None for why in rows.why])[:count])


def renamed(rows: Rows, vocabulary: int, seed: int = 0) -> Rows:
    """Every token id replaced by a random one of a larger vocabulary: lengths and shared beginnings stay."""
    to = np.random.default_rng(seed).permutation(vocabulary).astype(np.int32)
    return Rows(Ragged(to[rows.ids.values], rows.ids.offsets), rows.target, rows.truncated, rows.why)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = function()
    return time.perf_counter() - start, out


def peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def finish(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    for record in records:
        print("  ".join(f"{key} {_short(value)}" for key, value in record.items()))
    if args.json:
        command = " ".join(["python", *sys.argv])
        for record in records:
            record |= {"machine": machine(), "command": command}
        args.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
