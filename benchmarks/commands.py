"""Whole commands in processor seconds and by the clock: ``random`` with a base model, ``make demo``, a comparison.

With ``--before FOLDER``, the sources of an older version, each command runs there too, right after ours. Every command
has a store of its own. ``random`` is the fastest of three. ``--only`` takes some of the commands, as ``random,demo``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHARED, arguments, finish

from instdiff.data import load

HOME = Path(__file__).resolve().parents[1]
MODELS = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models"))


def seconds(source: Path, place: Path, *words: str) -> tuple[float, float]:
    """Of the processor and by the clock, for a command of the version whose sources these are."""
    place.mkdir()
    env = {**os.environ, "PYTHONPATH": str(source / "src"), "INSTDIFF_STORE": str(place / "store")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's modules are compiled once
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "instdiff", *words], cwd=HOME, env=env, check=True, capture_output=True)
    took, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, took


def commands(place: Path, quick: bool) -> dict[str, list[str]]:
    """Words of each command by its name; outputs lie in the place."""
    model = MODELS / "smollm2-135m"
    base, count = str(model) if model.is_dir() else "builtin:tiny", 100 if quick else 2000
    union = SHARED / "data" / "alpaca" / "alpaca_union.json"
    load(str(union) if union.is_file() else "builtin:demo", limit=count).to_jsonl(place / "rows.jsonl")
    score = ["score", "--data", str(place / "rows.jsonl"), "--model", f"base={base}", "--method", "random"]
    known = {"random": [*score, "--output", "{}/scores.parquet"]}
    if not quick:
        known["demo"] = ["pipeline", "--config", "configs/demo.yaml", "output_dir={}/run"]
        known["compare"] = ["compare", "--config", "configs/compare/tiny.yaml", "output={}/run"]
    return known


def main() -> None:
    args = arguments(before="", only="")
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, words in commands(place, args.quick).items():
            if args.only and name not in args.only.split(","):
                continue
            record: dict[str, Any] = {"kind": name}
            for key, source in (("", HOME), *([("before_", Path(args.before))] if args.before else [])):
                runs = []
                for run in range(3 if name == "random" else 1):
                    where = place / f"{key}{name}{run}"
                    runs.append(seconds(source, where, *(word.format(where) for word in words)))
                record |= {f"{key}cpu_s": min(cpu for cpu, _ in runs), f"{key}wall_s": min(wall for _, wall in runs)}
            records.append(record)
    finish(args, records)


if __name__ == "__main__":
    main()
