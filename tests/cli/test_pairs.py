"""Preference pairs on the command line: both sides are shown, scored, chosen and written; training refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from .shell import cli, ok, write_jsonl

WORDS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")
PAIRS: list[dict[str, Any]] = [
    {"n": at, "prompt": f"Say {word}.", "chosen": f"{word}, as you wish.", "rejected": f"No {word} today, {at}."}
    for at, word in enumerate(WORDS)
]


@pytest.fixture(autouse=True)
def _files(folder: Path) -> None:
    write_jsonl("pairs.jsonl", [*PAIRS, {"n": 8, "prompt": "Same?", "chosen": "yes", "rejected": "yes"}])
    talks = [
        {
            "chosen": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["rejected"]}],
        }
        for row in PAIRS
    ]
    write_jsonl("talks.jsonl", talks)


def test_render_doctor_and_explain_show_both_sides(model: str) -> None:
    shown = [
        json.loads(line) for line in ok("render", "--data", "pairs.jsonl", "--model", model, "--json").out.splitlines()
    ]
    assert [(one["row"], one["side"]) for one in shown[:2]] == [(0, "chosen"), (0, "rejected")]
    assert shown[0]["id"] == shown[1]["id"] != shown[0]["side_id"] != shown[1]["side_id"]
    assert shown[1]["targets"][0].startswith("No ant today, 0.") and len(shown) == 10
    assert "row 0, id" in ok("render", "--data", "pairs.jsonl", "--model", model, "--row", 0).out
    told = ok("doctor", "--data", "pairs.jsonl").out
    assert "chosen side" in told and "rejected side" in told
    assert "9 rows are pairs; methods that know no pairs see the chosen side as the response" in told
    assert "pairs are wanted: rows with 'chosen' and 'rejected'" not in told
    write_jsonl("rows.jsonl", [{"instruction": "i", "output": "o"}])
    assert "reward_gap, selective_dpo: pairs are wanted" in ok("doctor", "--data", "rows.jsonl").out


def test_score_select_explain_and_export(model: str, calibrated: str) -> None:
    models = ("--model", f"base={model}", "--model", f"policy={calibrated}")
    methods = ("--method", "reward_gap,ifd,then", "--set", "then.first=reward_gap", "--set", "then.keep=50%")
    ran = ok(
        "score", "--data", "pairs.jsonl", *models, *methods, "--set", "then.second=longest", "--output", "s.parquet"
    )
    assert ran.err.count("methods that know no pairs see the chosen side") == 1
    table = pq.read_table("s.parquet").to_pydict()
    assert table["reward_gap.why"] == [None] * 8 + ["filtered"]
    np.testing.assert_allclose(np.array(table["reward_gap"][:8]), -np.array(table["reward_gap.gap"][:8]))
    assert sum(value is not None for value in table["then"]) == 4
    ok(
        "select",
        "--data",
        "pairs.jsonl",
        "--scores",
        "s.parquet",
        "--method",
        "reward_gap",
        "--budget",
        3,
        "--output",
        "hard.jsonl",
    )
    chosen = [json.loads(line) for line in Path("hard.jsonl").read_text(encoding="utf-8").splitlines()]
    assert chosen == [PAIRS[at] for at in np.argsort(table["reward_gap.gap"][:8])[:3]]
    told = ok("explain", "--data", "pairs.jsonl", "--scores", "s.parquet", 0).out
    assert "rejected assistant" in told and "policy nll, rejected side" in told
    export = ok("export", "--data", "hard.jsonl", "--format", "trl", "--output", "trl", "--name", "hard")
    assert "trl dpo --config trl/hard.trl.yaml" in export.out
    first = json.loads(Path("trl/hard.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert list(first) == ["prompt", "chosen", "rejected"]
    page = ok("report", "s.parquet", "--data", "pairs.jsonl", "--output", "page.html")
    assert Path("page.html").stat().st_size > 0 and page.code == 0


def test_shards_of_pairs_join_to_the_same_scores(model: str, calibrated: str) -> None:
    models = ("--model", f"base={model}", "--model", f"policy={calibrated}")
    what = ("--data", "talks.jsonl", *models, "--method", "reward_gap")
    ok("score", *what, "--output", "whole.parquet")
    for index in (0, 1):
        part = ("--shards", 2, "--shard-index", index, "--store", f"store{index}")
        ok("score", *what, *part, "--output", "parts")
    ok("merge", "parts", "--output", "joined.parquet", "--store", "joined")
    whole, joined = (pq.read_table(name).to_pydict() for name in ("whole.parquet", "joined.parquet"))
    assert whole["id"] == joined["id"]
    np.testing.assert_allclose(whole["reward_gap"], joined["reward_gap"], atol=1e-6)


def test_training_refuses_pairs_and_takes_the_chosen_side(model: str) -> None:
    said = cli("train", "--data", "pairs.jsonl", "--model", model, "--output", "out").error
    assert said.startswith(
        "training is supervised fine-tuning on one answer of each row, and 9 rows of pairs.jsonl are"
    )
    assert "--map instruction=prompt,response=chosen" in said
    plain = ("--data", "pairs.jsonl", "--map", "instruction=prompt,response=chosen", "--model", model)
    ok("train", *plain, "--output", "out", "train.max_steps=1")
    compare = ("--data", "pairs.jsonl", "--model", model, "--method", "random", "--budget", "2", "--output", "runs")
    assert "preference pairs" in cli("compare", *compare, "eval.suite=heldout", "eval.data=pairs.jsonl").error


def test_a_role_that_is_missing_and_data_without_pairs(model: str) -> None:
    plain = ("--data", "pairs.jsonl", "--model", f"base={model}", "--output", "s.parquet")
    assert "trained by DPO on the pairs that" in cli("score", *plain, "--method", "selective_dpo").error
    write_jsonl("rows.jsonl", [{"instruction": "i", "output": "o"}])
    both = ("--model", f"base={model}", "--model", f"policy={model}", "--method", "reward_gap", "--output", "s.parquet")
    assert "reward_gap compares the two sides of preference pairs" in cli("score", "--data", "rows.jsonl", *both).error
