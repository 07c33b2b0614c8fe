"""`--executor ray`: the same scores and the same selection, errors that say what to do, and a driver that is killed."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from onray import started

from .shell import cli, files, ok, read_jsonl, write_jsonl
from .test_kill import MANY, kept, processes, wait_until

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning:ray", "ignore::pytest.PytestUnraisableExceptionWarning"
)
PATIENCE = 300
REPORT = r"ray: \d+ blocks? by \d+ workers? on 1 host; \d+ blocks? \(\d+ rows?\) done again, \d+ workers? lost"


@pytest.fixture(autouse=True)
def _ray() -> None:
    pytest.importorskip("ray")


def command(model: str, output: str, *more: str) -> list[str]:
    write_jsonl("many.jsonl", MANY)
    return ["score", "--data", "many.jsonl", "--model", model, "--method", "ifd", "--dtype", "float32",
            "--store", f"../{output}-store", "--output", f"{output}.parquet", *more]  # fmt: skip


def ray(*more: str) -> list[str]:
    return ["--executor", "ray", "--workers", "2", "--device", "cpu", "--batch-tokens", "2000", *more]


def same(mine: str, clean: str) -> None:
    a, b = pq.read_table(f"{mine}.parquet"), pq.read_table(f"{clean}.parquet")
    assert a.column_names == b.column_names and len(a) == len(b) == len(MANY)
    for name in a.column_names:
        for one, other in zip(a[name].to_pylist(), b[name].to_pylist(), strict=True):
            assert one == (pytest.approx(other, rel=1e-5, abs=1e-5) if isinstance(other, float) else other), name


def chosen(scores: str) -> Any:
    picked = f"{scores}-{uuid.uuid4().hex}.jsonl"
    ok("select", "--data", "many.jsonl", "--scores", f"{scores}.parquet", "--method", "ifd", "--budget", "10%",
       "--output", picked)  # fmt: skip
    return read_jsonl(picked)


def test_the_same_scores_and_selection(model: str, tmp_path: Path) -> None:
    started()
    ok(*command(model, "local"))
    ok(*command(model, "two", "--workers", "2"))
    said = ok(*command(model, "ray", *ray(f"shared={tmp_path / 'shared'}"))).err
    assert len(re.findall(rf"^{REPORT}$", said, re.MULTILINE)) == 1
    assert "; 0 blocks (0 rows) done again, 0 workers lost" in said
    assert files(tmp_path / "shared") == set()
    same("ray", "local")
    same("ray", "two")
    assert chosen("ray") == chosen("local") == chosen("two") and len(chosen("ray")) == len(MANY) // 10


def test_a_disk_that_gets_full(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started()
    write, calls = pq.write_table, list[int]()

    def full(table: Any, where: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, where, **more)

    monkeypatch.setattr("instdiff.store.column.pq.write_table", full)
    error = cli(*command(model, "ray", *ray())).error
    assert re.match(r"cannot write '.*': No space left on device; .*Free space or choose another place", error)
    assert "ray.parquet" not in files() and kept("../ray-store") >= 3
    monkeypatch.setattr("instdiff.store.column.pq.write_table", write)
    again = ok(*command(model, "ray"))  # the same store, and what lacks, in this process
    ok(*command(model, "local"))
    same("ray", "local")
    assert "ray:" not in again.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--executor", "raid"], "the command line: 'executor': "),
        (["shared=/x"], "'shared' is of use with the executor ray only; add --executor ray, or leave it out"),
        (ray("shared=nosuch://x"), "the shared folder 'nosuch://x/instdiff-"),
        (ray("shared=/proc/none"), "the shared folder '/proc/none/instdiff-"),
        (
            ["--executor", "ray", "gpus_per_worker=2"],
            "gpus_per_worker is 2, and no node of the Ray cluster has so",
        ),
        (["--executor", "ray", "--device", "cpu", "gpus_per_worker=1"], "gpus_per_worker is given with --device cpu"),
    ],
)
def test_errors(model: str, more: list[str], message: str) -> None:
    started()
    assert cli(*command(model, "ray", *more)).error.startswith(message)


def test_without_ray(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    error = cli(*command(model, "ray", *ray())).error
    assert error == 'the executor ray needs Ray, which is missing; run: pip install "instdiff[ray]"'


@contextmanager
def running(*args: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a driver of its own, and the mark of its processes."""
    mark = f"INSTDIFF_TEST={uuid.uuid4()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "instdiff", *args],
        env={**os.environ, **dict([mark.split("=")]), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        yield process, mark
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_killed_driver_goes_on(model: str) -> None:
    address = started().address
    args = command(model, "ray", *ray("--batch-tokens", "100"))
    with running(*args, RAY_ADDRESS=address) as (process, _):
        wait_until(lambda: kept("../ray-store") > 2, process)
        process.kill()
        process.wait(PATIENCE)
    assert process.returncode == -signal.SIGKILL and "ray.parquet" not in files()
    ok(*command(model, "ray", *ray()))
    ok(*command(model, "local"))
    same("ray", "local")


@pytest.mark.slow
def test_a_cluster_that_is_started_here_ends_with_the_command(model: str) -> None:
    ok(*command(model, "local"))
    with running(*command(model, "ray", *ray("--json"))) as (process, mark):
        out, said = process.communicate(timeout=PATIENCE)
        wait_until(lambda: not processes(mark))
    assert process.returncode == 0, said
    assert json.loads(out)["rows"] == len(MANY)
    assert re.search(REPORT, said)
    same("ray", "local")


@pytest.mark.slow
def test_interrupted(model: str) -> None:
    with running(*command(model, "ray", *ray("--batch-tokens", "50"))) as (process, mark):
        wait_until(lambda: kept("../ray-store") > 2, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, said = process.communicate(timeout=PATIENCE)
        wait_until(lambda: not processes(mark))
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted; what was computed is kept: give the same command again to go on"
    ok(*command(model, "ray"))
    ok(*command(model, "local"))
    same("ray", "local")
