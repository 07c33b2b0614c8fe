"""A pipeline whose rows weigh by a detail of their method in training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .kit import CONFIG, configure, pipeline, read_json, read_jsonl, weights, write_jsonl

ANSWERS = [
    {"instruction": f"why {n % 4}", "output": f"the sky is {word} {n}"}
    for n, word in enumerate(["blue", "green", "grass", "seven", "not", "then", "why", "list"] * 2)
]


def test_rounds_and_repeats_have_them_and_controls_do_not(home: Path) -> None:
    write_jsonl(home / "pool.jsonl", ANSWERS)
    configure(
        home, iterations=1, select={"method": "lark", "best": 2, "per": "prompt 3"}, warmup={"sample_size": 4},
        eval={**CONFIG["eval"], "baselines": ["random"], "seeds": [0], "train_seeds": [1]},
    )  # fmt: skip
    pipeline(home)
    run = home / "run"
    record, rows = read_json(run / "iter_1/selection.json"), read_jsonl(run / "iter_1/selected.jsonl")
    assert record["weights"] == "lark.weight" and [row["weight"] for row in rows] == record["row_weights"]
    assert sum(record["row_weights"]) == pytest.approx(4)
    found = {path.parent: read_json(path)["settings"].get("weights") for path in run.rglob("training.json")}
    told = {place.relative_to(run).parts[:2]: name for place, name in found.items()}
    assert (
        told.pop(("iter_1", "calibration_model")) is None and told.pop(("iter_1", "selected_train_model")) == "weight"
    )
    assert all((name == "weight") == (parts[0] != "baselines") for parts, name in told.items()) and len(told) == 2
    before, model = weights(run / "iter_1/selected_train_model"), run / "iter_1/selected_train_model"
    shutil.rmtree(model)
    shutil.rmtree(run / "iter_1/results")
    pipeline(home)
    assert weights(model) == before
