"""Control-C while it scores: what was computed is kept, and the same command goes on from there."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from instdiff.cli.app import Verb
from instdiff.cli.entry import app
from instdiff.cli.heartbeat import INTERRUPTED

from .shell import ROWS, cli, files, ok, python

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

DEAF = (
    SLOWLY.replace("time.sleep(0.05 if done < 3 else 60)", "hash_long(50_000_000 if done == 3 else 1)")
    .replace("import signal,", "import hashlib, signal,")
    .replace("place.Sweep =", "hash_long = lambda n: hashlib.pbkdf2_hmac('sha256', b'', b'', n)\nplace.Sweep =")
)
"""A long computation that hears no signal."""


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
    assert err.splitlines()[-1] == INTERRUPTED
    assert out == ""
    assert files() == {"my.jsonl"}
    store = Path("../store")
    assert not [name for name in files(store) if name.endswith((".partial", ".tmp"))]

    ok(*command)
    assert [rows for rows, _ in computed] == [8]  # 11 different rows in batches of one; three were kept
    ok(*command[:-1], "clean.parquet", "--store", "../clean")
    assert pq.read_table("scores.parquet").equals(pq.read_table("clean.parquet"))
    assert len(pq.read_table("scores.parquet")) == len(ROWS)


def test_a_computation_that_hears_no_signal_is_ended_too(model: str) -> None:
    command = ["score", "--data", "my.jsonl", "--model", model, "--method", "perplexity", "--dtype", "float32",
               "--batch-tokens", "100", "--output", "scores.parquet"]  # fmt: skip
    run = subprocess.Popen(python(DEAF, *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None and any(line == "3\n" for line in run.stdout)
    run.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = run.communicate()
    assert time.monotonic() - began < 5  # one and a half seconds, and what a busy machine takes
    assert (run.returncode, err.splitlines()[-1], err.count("interrupted; ")) == (130, INTERRUPTED, 1)
    assert "still at work" not in err and "Traceback" not in err
    ok(*command)


def test_also_before_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Verb, "make_params", interrupted)
    monkeypatch.setattr(app.commands["score"], "params", [])
    ran = cli("score", "--data", "my.jsonl")
    assert (ran.code, ran.err.strip()) == (130, INTERRUPTED)


EARLY = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupts:
    def find_spec(self, name, *more):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
runpy.run_module("instdiff", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["instdiff.cli", "click", "instdiff.cli.train"])
def test_also_while_the_program_is_read(module: str) -> None:
    done = subprocess.run(python(EARLY, module), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
