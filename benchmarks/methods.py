"""Every method alone on 2,000 Alpaca rows, by the command and with a store of its own; then all of them in one command.

The model of all roles is ``base-5m`` (else ``builtin:tiny``), the embedder the small one that is the default. The judge
is an endpoint in this process that answers at once, so that its own time, which is not ours, does not count; with
``--judge local`` it is the same model, which writes no number and is therefore asked twice for 256 tokens. T-SHIRT
makes 10 noisy copies and NUGGETS has 10 anchors, as ``options`` says; with ``--defaults 1`` both have the papers' 30
and 100. There is no plain way: what the passes gain against a loop is in ``scoring``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, alpaca, arguments, finish, save

ROWS, QUICK, TARGETS = 2000, 60, 100
ROLES = ("base", "proxy", "complexity_rater", "quality_rater")
FEWER = {"tshirt": ["tshirt.draws=10"], "nuggets": ["nuggets.anchors=10"]}
METHODS = (
    "random", "full", "longest", "perplexity", "entropy", "ifd", "superfiltering", "instructdiff", "tshirt", "selectit",
    "miwv", "nuggets", "kcenter", "facility_location", "kmeans_quota", "cosine_filter", "superfiltering_d", "zip",
    "mads", "deita", "rds", "ds2", "alpagasus",
)  # fmt: skip


def model() -> str:
    folder = SHARED / "models" / "base-5m"
    return str(folder) if folder.is_dir() else "builtin:tiny"


class Answers(BaseHTTPRequestHandler):
    """Gives every row a number from 0 to 5 that depends on its text alone."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer at once."""
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        told = {"role": "assistant", "content": json.dumps({"score": sum(asked) % 6})}
        usage = {"prompt_tokens": len(asked) // 4, "completion_tokens": 6}
        body = json.dumps({"choices": [{"message": told, "finish_reason": "stop"}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Nothing."""


@contextmanager
def judging(local: bool) -> Iterator[str]:
    """What the role ``judge`` is bound to."""
    if local:
        yield model()
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"openai:stub@http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def measured(
    methods: list[str], options: list[str], judge: str, rows: Path, target: Path, count: int, workers: int
) -> dict[str, Any]:
    """One command with an empty store, in a process of its own."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "instdiff", "score", "--data", str(rows), "--method", ",".join(methods)]
        command += ["--workers", str(workers), "--store", f"{home}/store", "--output", f"{home}/scores.parquet"]
        command += ["--target", str(target), "--quiet"]
        command += [part for role in ROLES for part in ("--model", f"{role}={model()}")]
        command += ["--model", f"judge={judge}"]
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
        "workers": workers, "seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime,
        "peak_memory_mb": used.ru_maxrss / 1024, "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    args = arguments(only="", rows=ROWS, judge="endpoint", defaults=0, workers=1)
    count = QUICK if args.quick else args.rows
    names = args.only.split(",") if args.only else [*METHODS, "all"]
    pool = alpaca()
    records = []
    with tempfile.TemporaryDirectory() as home, judging(args.judge == "local") as judge:
        rows, target = Path(home) / "rows.jsonl", Path(home) / "target.jsonl"
        pool.to_jsonl(rows, np.arange(count))
        pool.to_jsonl(target, np.arange(len(pool) - TARGETS, len(pool)))
        for name in names:
            methods = list(METHODS) if name == "all" else [name]
            options = [] if args.defaults else [one for method in methods for one in FEWER.get(method, [])]
            records.append(measured(methods, options, judge, rows, target, count, args.workers))
            print(json.dumps(records[-1]), flush=True)
            save(args, records)  # hours of them must not be lost with the last
    finish(args, records)


if __name__ == "__main__":
    main()
