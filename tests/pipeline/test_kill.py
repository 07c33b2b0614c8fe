"""Killed at every stage and given again, a run comes to the same end as one that nobody disturbed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Done
from .kit import Work, files, pipeline, read_json, read_jsonl, scores, stray, weights

R1, R2 = "run/iter_1", "run/iter_2"
STAGES = [
    "run/environment.json",
    f"{R1}/warmup_subset.jsonl",
    f"{R1}/.calibration_model.partial|{R1}/calibration_model",
    f"{R1}/.calibration_model.partial/checkpoints/checkpoint-2/trainer_state.json",
    f"{R1}/calibration_model",
    "store/columns/*/*.parquet",
    f"{R1}/scores.parquet",
    f"{R1}/selected.jsonl",
    f"{R1}/.selected_train_model.partial|{R1}/selected_train_model",
    f"{R1}/selected_train_model",
    "run/baselines/random_seed_0/model",
    "run/baselines/full/selection.json",
    f"{R1}/results.json",
    f"{R2}/scores.parquet",
    f"{R2}/selection.json",
    f"{R2}/.selected_train_model.partial/checkpoints/checkpoint-2/trainer_state.json",
    f"{R2}/selected_train_model",
]
FEW = [STAGES[at] for at in (1, 3, 5, 8, 12, 15)]
"""One of each kind."""


def kill(home: Path, *stages: str) -> list[str]:
    """The stages at which the command was killed; all of them, or the test fails."""
    program = [sys.executable, str(Path(__file__).with_name("killing.py")), *stages]
    done = subprocess.run(program, cwd=home, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def told(run: Path) -> list[dict[str, Any]]:
    """What the log says, but for what passes computed and how long things took: that depends on the kills."""
    events = [event for event in read_jsonl(run / "log.jsonl") if "passes" not in event]
    return [{key: v for key, v in event.items() if key not in ("seconds", "tokens_per_s", "crc32")} for event in events]


def untimed(out: str) -> str:
    """Without the seconds that trainings took."""
    return re.sub(r"\d+ s training", "training", out)


@pytest.mark.parametrize(
    "stages", [pytest.param(FEW, id="few"), pytest.param(STAGES, id="every", marks=pytest.mark.slow)]
)
def test_killed_and_given_again(home: Path, done: Done, monkeypatch: pytest.MonkeyPatch, stages: list[str]) -> None:
    assert kill(home, *stages) == stages
    mine, theirs = home / "run", done.run
    # Something was being written, too.
    left = [mine / ".config.yaml.17.partial", mine / "iter_1/.selected.jsonl.77.partial"]
    for path in left:
        path.write_text("{")
    work = Work(monkeypatch)
    assert untimed(pipeline(home).out) == untimed(done.ran.out)
    if stages == STAGES:
        assert work.trained == [] and work.passes <= 1  # the last model on the held-out rows, and nothing twice
    else:
        assert work.trained == [".selected_train_model.partial"]  # that of the second round, from its checkpoint
    assert stray(mine) == [] and files(mine) == files(theirs)
    for number in (1, 2):
        a, b = (folder / f"iter_{number}" for folder in (mine, theirs))
        assert read_jsonl(a / "selected.jsonl") == read_jsonl(b / "selected.jsonl")
        assert read_json(a / "selection.json")["rows"] == read_json(b / "selection.json")["rows"]
        assert scores(a / "scores.parquet") == scores(b / "scores.parquet")
        assert read_json(a / "results.json") == read_json(b / "results.json")
    assert told(mine) == told(theirs)
    assert read_jsonl(mine / "iter_1/warmup_subset.jsonl") == read_jsonl(theirs / "iter_1/warmup_subset.jsonl")
    for model in [p.parent.relative_to(theirs) for p in theirs.rglob("model.safetensors")]:
        assert weights(mine / model) == weights(theirs / model), model
    for model in ("iter_1/calibration_model", "iter_2/selected_train_model"):
        assert read_json(mine / model / "training.json")["resumed_at"] > 0
