"""CPU seconds of reading conversations from zstd parquet, against those of another version of the package.

Each reading has a process of its own. ``--against FOLDER`` names the sources of the other version (``git worktree add
FOLDER COMMIT``, then ``FOLDER/src``); the two take turns, and ``ratio`` is of their medians.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import arguments, finish

LIMIT = 1.3
"""The most that the ratio may be; of calls it is only told, since what is read of them differs between versions."""
SOURCES = Path(__file__).resolve().parents[1] / "src"
READ = (
    "import sys, time; from instdiff import load; import instdiff.data.hub; begin = time.process_time();"
    "pool = load(sys.argv[1]); print(time.process_time() - begin, len(pool), pool.fingerprint)"
)


def write_rows(path: Path, count: int, kind: str) -> None:
    """Conversations of two to eight turns.

    With ``nulls`` turns have keys that are null; with ``calls`` there are tools and calls, with the nulls of others.
    """
    rng = random.Random(0)
    words = [f"word{n}" for n in range(500)]

    def turn(role: str) -> dict[str, Any]:
        plain = {"role": role, "content": " ".join(rng.choices(words, k=rng.randint(5, 60)))}
        if kind == "calls" and role == "assistant":
            plain["tool_calls"] = [{"id": "1", "function": {"name": "f", "arguments": {rng.choice("abcd"): "x"}}}]
        return {**plain, "tool_calls": None, "name": None} if kind == "nulls" else plain

    rows: list[dict[str, Any]] = [
        {"id": str(n), "messages": [turn(role) for _ in range(rng.randint(1, 4)) for role in ("user", "assistant")]}
        for n in range(count)
    ]
    for row in rows if kind == "calls" else ():
        row["tools"] = [{"name": "f", "parameters": {"properties": {rng.choice("abcd"): {"type": "string"}}}}]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def read(path: Path, sources: Path) -> tuple[float, str]:
    """CPU seconds of one reading, and what was read."""
    env = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", READ, str(path)], env=env, capture_output=True, text=True, check=True)
    seconds, _, rest = done.stdout.partition(" ")
    return float(seconds), rest.strip()


def measure(kind: str, count: int, against: Path | None, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(path, count, kind)
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(read(path, SOURCES))
            if against:
                theirs.append(read(path, against))
    record: dict[str, Any] = {"kind": kind, "rows": count, "cpu_s": statistics.median(seconds for seconds, _ in ours)}
    if theirs:
        record["against_cpu_s"] = statistics.median(seconds for seconds, _ in theirs)
        record["ratio"] = record["cpu_s"] / record["against_cpu_s"]
        record["same_ids"] = {said for _, said in ours} == {said for _, said in theirs}
    return record


def main() -> None:
    args = arguments(against="")
    count, repeats = (2000, 1) if args.quick else (100_000, 5)
    against = Path(args.against) if args.against else None
    records = [measure(kind, count, against, repeats) for kind in ("plain", "nulls", "calls")]
    finish(args, records)
    slow = [record for record in records if record["kind"] != "calls" and record.get("ratio", 0) > LIMIT]
    if slow and not args.quick:
        raise SystemExit(f"reading takes more than {LIMIT} times the CPU time: {slow}")


if __name__ == "__main__":
    main()
