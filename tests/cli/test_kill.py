"""Control-C or kill -9 while several processes score: none is left behind, and the same command goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from .shell import files, ok, write_jsonl

MANY = [
    {"instruction": f"Say {word} {n} times.", "input": "", "output": f"{word} " * (1 + n % 9) + "."}
    for n in range(60)
    for word in ("ant", "bee", "cat", "dog", "elk")
]

PATIENCE = 300
"""Seconds, on a machine that others use too."""


def command(model: str, *more: str) -> list[str]:
    write_jsonl("many.jsonl", MANY)
    return ["score", "--data", "many.jsonl", "--model", model, "--method", "perplexity", "--dtype", "float32",
            "--batch-tokens", "300", *more]  # fmt: skip


def processes(mark: str) -> list[str]:
    """Those that were started, directly or not, with this mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


@contextmanager
def running(model: str, store: str, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command with two workers, and the mark of its processes, none of which is there in the end."""
    mark = f"INSTDIFF_TEST={uuid.uuid4()}"
    args = [*command(model, "--workers", "2", *more), "--store", store, "--output", "scores.parquet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "instdiff", *args],
        env={**os.environ, **dict([mark.split("=")])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job starts without it
    )  # fmt: skip
    try:
        yield process, mark
        process.wait(PATIENCE)
        wait_until(lambda: not processes(mark))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until(there: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < until and (process is None or process.poll() is None), there()
        time.sleep(0.01)


def kept(store: str) -> int:
    return len(list(Path(store).glob("columns/*/*.parquet")))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, model: str) -> pq.Table:
    """The scores of one process that nobody disturbed."""
    here, home = Path.cwd(), tmp_path_factory.mktemp("clean")
    os.chdir(home)
    try:
        ok(*command(model), "--store", "store", "--output", "scores.parquet")
    finally:
        os.chdir(here)
    return pq.read_table(home / "scores.parquet")


def goes_on(model: str, store: str, clean: pq.Table) -> None:
    """Given again, in one process, the command comes to the same scores."""
    ok(*command(model), "--store", store, "--output", "scores.parquet")
    mine = pq.read_table("scores.parquet")
    assert len(mine) == len(MANY)
    for name in clean.column_names:
        for a, b in zip(mine[name].to_pylist(), clean[name].to_pylist(), strict=True):
            assert a == (pytest.approx(b, rel=1e-5, abs=1e-5) if isinstance(b, float) else b), name


@pytest.mark.slow
def test_killed_while_workers_start(model: str, clean: pq.Table) -> None:
    with running(model, "store") as (process, mark):
        wait_until(lambda: any("instdiff.engine.distributed.worker" in line for line in processes(mark)), process)
        process.kill()
    assert process.returncode == -signal.SIGKILL and "scores.parquet" not in files()
    goes_on(model, "store", clean)


def test_killed_while_workers_work(model: str, clean: pq.Table) -> None:
    with running(model, "store") as (process, _):
        wait_until(lambda: kept("store") > 2, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert "scores.parquet" not in files()
    goes_on(model, "store", clean)


def test_interrupted(model: str, clean: pq.Table, computed: list[tuple[int, int]]) -> None:
    # A batch for each row, so that there is still much to do when the signal comes.
    with running(model, "store", "--batch-tokens", "1") as (process, _):
        wait_until(lambda: kept("store") > 2, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted; what was computed is kept: give the same command again to go on"
    goes_on(model, "store", clean)
    assert computed and computed[0][0] <= len(MANY) - 3


@pytest.mark.slow
def test_killed_at_twenty_random_moments(model: str, clean: pq.Table) -> None:
    start = time.monotonic()
    with running(model, "whole"):
        pass
    took, killed = time.monotonic() - start, 0
    for number in range(20):
        with running(model, f"store{number}") as (process, _):
            try:
                process.wait(random.uniform(0, took))
            except subprocess.TimeoutExpired:
                process.kill()
        killed += process.returncode == -signal.SIGKILL
        goes_on(model, f"store{number}", clean)
    assert killed >= 10
