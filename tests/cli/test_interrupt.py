"""Control-C while it scores: what was computed is kept, and the same command goes on from there."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq

from .shell import ROWS, files, ok, python

SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without it
import instdiff.engine.models as place

class Slow(place.Sweep):
    def __call__(self, rows, measures):
        for done, swept in enumerate(super().__call__(rows, measures), 1):
            yield swept
            print(done, flush=True)
            time.sleep(0.05 if done < 3 else 60)

place.Sweep = Slow
sys.argv = ["instdiff", *sys.argv[1:]]
from instdiff.cli.entry import main
main()
"""


def test_an_interrupted_run_goes_on(model: str, computed: list[tuple[int, int]]) -> None:
    command = ["score", "--data", "my.jsonl", "--model", model, "--method", "perplexity", "--dtype", "float32",
               "--batch-tokens", "100", "--output", "scores.parquet"]  # fmt: skip
    run = subprocess.Popen(python(SLOWLY, *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for line in run.stdout:
        if line == "3\n":
            break
    run.send_signal(signal.SIGINT)
    out, err = run.communicate()
    assert run.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == ("interrupted; what was computed is kept: give the same command again to go on")
    assert out == ""
    assert files() == {"my.jsonl"}
    store = Path("../store")
    assert not [name for name in files(store) if name.endswith((".partial", ".tmp"))]

    ok(*command)
    assert [rows for rows, _ in computed] == [8]  # 11 different rows in batches of one; three were kept
    ok(*command[:-1], "clean.parquet", "--store", "../clean")
    assert pq.read_table("scores.parquet").equals(pq.read_table("clean.parquet"))
    assert len(pq.read_table("scores.parquet")) == len(ROWS)
