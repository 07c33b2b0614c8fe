"""Controls and repeated trainings side by side leave what they leave one after another."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.evaluation.results import read_results
from instdiff.experiments import side_by_side

from .conftest import Done
from .kit import pipeline


def events(run: Path) -> set[str]:
    return {json.loads(line)["event"] for line in (run / "log.jsonl").read_text().splitlines()}


def values(run: Path) -> dict[str, list[float]]:
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("results/heldout.json")):
        (task,) = read_results(path).tasks
        found[str(path.relative_to(run))] = [float(one) for one in task.score]
    return found


@pytest.mark.parametrize("seeds", [[], pytest.param([8, 9], marks=pytest.mark.slow)], ids=["controls", "seeds too"])
def test_two_at_once_leave_what_one_leaves(done: Done, home: Path, seeds: list[int]) -> None:
    ran = pipeline(home, "cells_at_once=2", "iterations=1", f"eval.train_seeds={seeds}")
    alone = values(done.run)
    mine = values(home / "run")
    controls = [name for name in alone if name.startswith("baselines/")]
    assert len(controls) == 4
    assert {name for name in mine if "seed_" in name and name.startswith("iter_1")} == {
        f"iter_1/seed_{seed}/results/heldout.json" for seed in seeds
    }
    for name in [*controls, "base/results/heldout.json", "iter_1/results/heldout.json"]:
        np.testing.assert_allclose(mine[name], alone[name], rtol=1e-6)
    heard = {name for name in events(done.run) if "baselines" in name or name.startswith(("judged random", "judged l"))}
    assert heard and heard <= events(home / "run")
    assert all(any(f"seed_{seed}" in event for event in events(home / "run")) for seed in seeds)
    assert "random seed 1" in ran.err + ran.out


def test_a_killed_process_leaves_the_rest_to_the_run(done: Done, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = side_by_side.CellWorkers.__init__

    def shot(self: Any, *args: Any) -> None:
        init(self, *args)
        os.kill(self._pool.submit(os.getpid).result(), signal.SIGKILL)

    monkeypatch.setattr(side_by_side.CellWorkers, "__init__", shot)
    ran = pipeline(home, "cells_at_once=2", "iterations=1", "eval.train_seeds=[]", "eval.baselines=[random]")
    assert "was killed" in ran.err + ran.out
    mine, alone = values(home / "run"), values(done.run)
    controls = [name for name in alone if name.startswith("baselines/random")]
    assert len(controls) == 2
    for name in controls:
        np.testing.assert_allclose(mine[name], alone[name], rtol=1e-6)
