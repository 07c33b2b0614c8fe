"""A pipeline in which at most so many rows of each prompt are taken."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from instdiff.config.base import load
from instdiff.config.commands import PipelineConfig
from instdiff.experiments.pipeline import budget_of

from .kit import CONFIG, POOL, configure, pipeline, read_json, read_jsonl, write_jsonl

ANSWERS = [{**row, "output": f"{row['output']} {n}"} for row in POOL[:12] for n in range(3)]


def test_the_rounds_and_the_controls_are_bound(home: Path) -> None:
    write_jsonl(home / "pool.jsonl", ANSWERS)
    chosen = {"method": "instructdiff", "per": "prompt 1"}
    configure(home, iterations=1, select=chosen, eval={**CONFIG["eval"], "seeds": [0]})
    pipeline(home)
    record = read_json(home / "run/iter_1/selection.json")
    assert record["budget"] == "100%" and record["per"]["values"] == len({row["instruction"] for row in ANSWERS})
    parts = {"iter_1": 1, "baselines/random_seed_0": 1, "baselines/longest": 1, "baselines/full": 3}
    for part, most in parts.items():
        rows = read_jsonl(home / "run" / part / "selected.jsonl")
        assert max(Counter(row["instruction"] for row in rows).values()) == most, part


def test_without_a_budget_all_that_is_left_is_taken() -> None:
    def budget(**select: object) -> str:
        return str(budget_of(load(PipelineConfig, None, {"select": select})))

    assert budget() == "10% tokens" and budget(per="prompt 1") == "100%" and budget(method="grape") == "100%"
    assert budget(per="prompt 1", select_ratio=0.2) == "20% tokens" and budget(per="prompt 1", budget="5%") == "5%"
    assert load(PipelineConfig, None, {"per": ("prompt", "2")}).select.per == "prompt 2"
