"""Cells side by side leave what cells one after another leave, also where a process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.shell import write_jsonl
from compare.test_compare import TRAIN
from helpers import make_llama, some_rows
from instdiff.config.base import build
from instdiff.config.compare import CompareConfig
from instdiff.experiments import side_by_side
from instdiff.experiments.compare import compare
from instdiff.experiments.items import read_items
from instdiff.experiments.run_folder import is_dropped
from instdiff.experiments.side_by_side import cells_at_once


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("abreast")
    write_jsonl(home / "pool.jsonl", some_rows(40, seed=3))
    write_jsonl(home / "held.jsonl", some_rows(6, seed=9))
    make_llama(home / "base", chat=None, num_hidden_layers=1)
    return home


pytestmark = pytest.mark.usefixtures("one_thread")


def config(home: Path, output: Path, **changes: Any) -> CompareConfig:
    values: dict[str, Any] = {
        "data": str(home / "pool.jsonl"), "model": str(home / "base"), "output": str(output), "template": "plain",
        "method": {"ifd": {}, "again": {"method": "instructdiff", "rounds": 2}}, "budgets": ["25% tokens"],
        "seeds": [0, 1], "train": TRAIN, "warmup": {"sample_size": 8}, "baselines": ["random"], "dtype": "float32",
        "max_length": 200, "device": "cpu", "keep_models": False, "store": str(output.parent / "store"),
        "eval": {"suite": ["heldout"], "data": str(home / "held.jsonl"), "device": "cpu"}, **changes,
    }  # fmt: skip
    return build(CompareConfig, values, "test")


def scores(run: Path) -> dict[str, list[float]]:
    cells, _ = read_items(run / "items.parquet")
    return {str(one.cell): [float(x) for result in one.results for x in result.tasks[0].score] for one in cells}


@pytest.fixture(scope="module")
def alone(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    compare(config(home, run, cells_at_once=1), log=lambda line: None)
    return run


def test_two_at_once_find_what_one_finds(home: Path, alone: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = tmp_path / "run"
    found = compare(config(home, run, cells_at_once=2), log=said.append)
    assert not found.get("failed")
    one, two = scores(alone), scores(run)
    assert one.keys() == two.keys() and len(one) == 8
    for cell, values in one.items():
        np.testing.assert_allclose(two[cell], values, rtol=1e-6)
    assert next(line for line in said if line.startswith("cell ")).startswith("cell 1 of 8: base")
    assert sum(line.startswith("cell ") for line in said) == 8
    assert not list((run / "models").glob(".*.lock"))
    assert all(is_dropped(model) for model in (run / "models").glob("*") if model.is_dir())


def test_a_killed_process_leaves_the_rest_to_the_others(
    home: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    init = side_by_side.CellWorkers.__init__

    def shot(self: Any, *args: Any) -> None:
        init(self, *args)
        future = self._pool.submit(os.getpid)
        os.kill(future.result(), signal.SIGKILL)

    monkeypatch.setattr(side_by_side.CellWorkers, "__init__", shot)
    run = tmp_path / "run"
    compare(config(home, run, cells_at_once=2, seeds=[0], method={"ifd": {}}), log=said.append)
    assert any("was killed" in line and "one after another" in line for line in said)
    one, found = scores(alone), scores(run)
    assert {cell.split()[0] for cell in found} == {"base", "random", "ifd"}
    for cell, values in found.items():
        np.testing.assert_allclose(values, one[cell], rtol=1e-6)


def test_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    program = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
import multiprocessing, threading
from instdiff.experiments.side_by_side import _end_with
def begin(parent):
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin, initargs=(os.getpid(),))
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""
    place = tmp_path / "program.py"
    place.write_text(program)
    with subprocess.Popen([sys.executable, str(place)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        if not is_alive(child):
            return
        time.sleep(0.1)
    pytest.fail("the process is still there")


def test_a_script_without_a_guard_is_run_once(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from instdiff.experiments.run_folder import Cell
from instdiff.experiments.side_by_side import CellWorkers
with open("runs.txt", "a") as file:
    file.write("run")
from functools import partial
workers = CellWorkers(partial(dict), 1, 1, print)
try:
    print(type(workers.submit(Cell("base"), "one").exception()).__name__)
finally:
    workers.close()
"""
    (tmp_path / "script.py").write_text(program)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs.txt").read_text() == "run"


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_how_many_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_free_memory", lambda: 10_000_000_000)
    assert cells_at_once(5_000_000, 4, 50) == 4
    assert cells_at_once(5_000_000, 4, 5) == 1  # too few to pay the start
    assert cells_at_once(135_000_000, 4, 50) == 1
    assert cells_at_once(30_000_000, 16, 50) == 5  # of 1.92 GB each
    monkeypatch.setattr(side_by_side, "_free_memory", lambda: 0)
    assert cells_at_once(5_000_000, 4, 50) == 1
