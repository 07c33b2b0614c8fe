"""What a run cost, as its log and its report tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instdiff.reporting import report
from pipeline.kit import CONFIG, pipeline, read_json, read_jsonl, set_up

EVAL = {**CONFIG["eval"], "baselines": ["random"], "seeds": [0]}
PASSES = ["base · prompted", "calibrated · prompted"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and another of the same things with the same store."""
    home = set_up(tmp_path_factory.mktemp("cost") / "home", iterations=1, eval=EVAL)
    pipeline(home)
    pipeline(home, "output_dir=again")
    return home


def events(folder: Path) -> dict[str, Any]:
    return {line["event"]: line for line in read_jsonl(folder / "log.jsonl")}


def test_the_log_counts_what_each_stage_computed(home: Path) -> None:
    found = events(home / "run")
    stage = found["scored round 1"]
    assert sorted(one["label"] for one in stage["passes"]) == PASSES
    assert (stage["rows"], stage["cached"]) == (80, 0)
    tokens = [one["tokens"] for one in stage["passes"]]
    assert tokens[0] == tokens[1] > 40 and stage["tokens"] == sum(tokens)
    assert stage["tokens_per_s"] == pytest.approx(stage["tokens"] / stage["seconds"], rel=0.01)
    assert {one["batch_tokens"] for one in stage["passes"]} == {4096}
    for name in ("base", "random seed 0", "instructdiff round 1"):
        assert (found[f"judged {name}"]["rows"], found[f"judged {name}"]["cached"]) == (12, 0)
    trained = found["trained iter_1/calibration_model"]
    record = read_json(home / "run/iter_1/calibration_model/training.json")
    assert (trained["rows"], trained["tokens"], trained["seconds"]) == (10, record["target_tokens"], record["wall_s"])
    assert trained["tokens_per_s"] == round(record["target_tokens"] / record["wall_s"])


def test_a_run_with_the_same_store_finds_everything_there(home: Path) -> None:
    found = read_json(home / "again/report.json")["sections"]["cost"]
    steps = {line["event"]: line for line in found["facts"]["steps"]}
    stage = steps["scored round 1"]
    assert {key: stage[key] for key in ("rows", "tokens", "cached", "tokens_per_s")} == {
        "rows": 0, "tokens": 0, "cached": 80, "tokens_per_s": None
    }  # fmt: skip
    passes = sorted((one["label"], one["rows"], one["cached"]) for one in stage["passes"])
    assert passes == [(name, 0, 40) for name in PASSES]
    judged = [steps[f"judged {name}"]["cached"] for name in ("base", "random seed 0", "instructdiff round 1")]
    assert judged == [12, 12, 12]
    assert found["text"][-1] == (
        "Passes computed 0 rows with 0 tokens; 116 rows (100 %) were in the store."
    )  # two of forty rows, three of twelve


def test_going_on_says_nothing_again(home: Path) -> None:
    before = read_jsonl(home / "run/log.jsonl")
    pipeline(home)
    assert read_jsonl(home / "run/log.jsonl") == before
    again = read_json(report(home / "run").with_suffix(".json"))
    assert again["sections"]["cost"]["facts"]["steps"] == [
        {key: value for key, value in line.items() if key != "crc32"} for line in before if "tokens_per_s" in line
    ]


def test_the_total_comes_first_and_no_saving_is_told_where_nothing_is_saved(home: Path) -> None:
    found = read_json(report(home / "run").with_suffix(".json"))["sections"]["cost"]
    stages, total = found["facts"]["stages"], found["facts"]["total"]
    assert set(stages) == {"warm-up", "scoring", "training", "controls", "evaluation"}
    assert total == pytest.approx(sum(stages.values()))
    assert found["text"][0].startswith(f"In all {total:,.0f} s on the CPU: warm-up ")
    assert found["facts"]["passes"] == found["facts"]["passes_alone"]
    assert not any("one by one" in text for text in found["text"])
    assert "evaluated random seed 0" in (home / "run/report.html").read_text(encoding="utf-8")
