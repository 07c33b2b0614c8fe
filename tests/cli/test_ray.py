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

from instdiff.scoring.sharding.shard_file import record, shard_files
from instdiff.store.parquet import writing_parquet
from onray import started

from .shell import cli, files, ok, read_jsonl, write_jsonl
from .test_kill import MANY, kept, processes, wait_until

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning:ray", "ignore::pytest.PytestUnraisableExceptionWarning"
)
PATIENCE = 300
REPORT = r"ray: \d+ shards? on 1 host"


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
    said = ok(*command(model, "ray", *ray())).err
    assert len(re.findall(rf"^{REPORT}$", said, re.MULTILINE)) == 1
    same("ray", "local")
    assert chosen("ray") == chosen("local") and len(chosen("ray")) == len(MANY) // 10


@pytest.mark.slow
def test_the_same_by_workers(model: str, tmp_path: Path) -> None:
    started()
    ok(*command(model, "two", "--workers", "2"))
    ok(*command(model, "ray", *ray()))
    same("ray", "two")
    assert chosen("ray") == chosen("two")


def test_tasks_that_read_their_own_rows(model: str, tmp_path: Path) -> None:
    """With a shared folder every task is a shard: it leaves its file there, and the driver joins them."""
    started()
    ok(*command(model, "local"))
    words = command(model, "ray", *ray(f"shared={tmp_path / 'shared'}"))
    assert re.search(r"^ray: 8 shards on 1 host$", ok(*words).err, re.MULTILINE)
    same("ray", "local")
    found = shard_files(tmp_path / "shared")
    assert sorted(found) == [(index, 8, 1) for index in range(8)]
    assert sum(record(path)["rows"]["count"] for path in found.values()) == len(MANY)
    assert chosen("ray") == chosen("local")
    ok("merge", tmp_path / "shared", "--output", "merged.parquet", "--store", "../merged-store")
    same("merged", "local")

    found[3, 8, 1].unlink()  # what is there is not done again
    before = {path: path.stat().st_mtime_ns for path in found.values() if path.exists()}
    ok(*words)
    assert {path: path.stat().st_mtime_ns for path in before} == before and found[3, 8, 1].is_file()


def test_rows_shown_to_each_other_wait_for_all_shards(model: str, tmp_path: Path) -> None:
    """Two waves: the driver computes the vectors, and the second wave begins when the first is there of all shards."""
    started()
    methods = ["miwv,nuggets", "--set", "nuggets.anchors=3", "--set", "miwv.retrieval=embedding", "--max-length", "200"]
    words = ["--method", *methods, "--limit", "60"]
    ok(*command(model, "local", *words))
    ok(*command(model, "ray", *ray(*words)))
    ok(*command(model, "shared", *ray(*words, f"shared={tmp_path / 'shared'}")))
    assert sorted(shard_files(tmp_path / "shared")) == sorted((i, 8, wave) for i in range(8) for wave in (1, 2))
    assert not any("text" in record(path)["columns"] for path in shard_files(tmp_path / "shared").values())
    for name in ("ray", "shared"):
        a, b = pq.read_table(f"{name}.parquet"), pq.read_table("local.parquet")
        assert a.column_names == b.column_names and len(a) == len(b) == 60
        assert a["miwv.neighbour"].equals(b["miwv.neighbour"])
        for column in ("miwv", "nuggets"):
            assert a[column].to_pylist() == pytest.approx(b[column].to_pylist(), rel=1e-5, abs=1e-5)


def test_a_disk_that_gets_full(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started()
    write, calls = writing_parquet, list[int]()

    def full(where: Any, schema: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(where, schema, **more)

    monkeypatch.setattr("instdiff.store.column.writing_parquet", full)
    error = cli(*command(model, "ray", *ray())).error
    assert re.match(r"cannot write '.*': No space left on device; .*Free space or choose another place", error)
    assert "ray.parquet" not in files() and kept("../ray-store") >= 3
    monkeypatch.setattr("instdiff.store.column.writing_parquet", write)
    again = ok(*command(model, "ray"))  # the same store, and what lacks, in this process
    ok(*command(model, "local"))
    same("ray", "local")
    assert "ray:" not in again.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--executor", "raid"], "the command line: 'executor': "),
        (["shared=/x"], "'shared' is of use with the executor ray only; add --executor ray, or leave it out"),
        (ray("shared=s3://x"), "'shared' is a folder that all nodes see, not the address 's3://x'"),
        (ray("shared=/proc/none"), "cannot write '/proc/none"),
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
