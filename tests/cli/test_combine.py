"""Methods of methods, groups and set methods on the command line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from .shell import ROWS, cli, ok, read_jsonl

THEN = ["--method", "then", "--set", "then.first=longest", "--set", "then.keep=50%", "--set", "then.second=random"]


def test_filter_and_rank_in_one_command() -> None:
    ok("select", "--data", "my.jsonl", *THEN, "--budget", "3", "--output", "out.jsonl", "--seed", "5")
    record = json.loads(Path("out.selection.json").read_text())
    assert record["params"] == {
        "first": {"longest": {"of": "response", "direction": "max", "unit": "tokens", "parts": False}},
        "keep": "50%",
        "second": {"random": {"seed": 5, "balance": None}},
    }
    assert record["excluded"] == {"filtered": len(ROWS) - len(ROWS) // 2}
    longest = sorted(ROWS, key=lambda row: -len(str(row["output"])))[: len(ROWS) // 2]
    assert all(row in longest for row in read_jsonl("out.jsonl"))


def test_scores_of_a_combination_are_selected_from() -> None:
    ok("score", "--data", "my.jsonl", *THEN, "--output", "scores.parquet")
    select = ["select", "--data", "my.jsonl", "--scores", "scores.parquet", "--output", "out.jsonl", "--budget", "2"]
    plain = ok(*select).out
    assert ok(*select, *THEN).out.replace(" (instead of an earlier one)", "") == plain  # the same, written another way
    changed = cli(*select, *THEN[:-1], "then.second=full")
    assert "'scores.parquet' was scored with then.second={'random': {'seed': 42, 'balance': None}}, not 'full'" in (
        changed.error
    )


def test_a_blend_in_a_file() -> None:
    Path("c.yaml").write_text(
        "data: my.jsonl\nmethod: {blend: {of: [longest, {longest: {of: instruction}}], weights: [1, 3]}}\n"
        "budget: 2\noutput: out.jsonl\n"
    )
    ok("select", "--config", "c.yaml")
    assert len(read_jsonl("out.jsonl")) == 2
    assert "blend.1.length" not in ok("select", "--config", "c.yaml", "--with-scores").err
    assert "blend.1.length" in read_jsonl("out.jsonl")[0]


def test_groups() -> None:
    command = ["select", "--data", "my.jsonl", "--method", "random", "--output", "out.jsonl"]
    ok(*command, "--budget", "50%", "--group-by", "source")
    has = Counter(str(row["source"]) for row in ROWS)
    taken = Counter(str(row["source"]) for row in read_jsonl("out.jsonl"))
    assert taken.total() == len(ROWS) // 2 and all(abs(taken[name] - has[name] / 2) < 1 for name in has)
    ok(*command, "--group-by", "source", "quota.a=1", "quota.b=2", "quota.c=100%")
    assert Counter(row["source"] for row in read_jsonl("out.jsonl")) == {"a": 1, "b": 2, "c": has["c"]}
    assert json.loads(Path("out.selection.json").read_text())["groups"] == {
        "by": "source",
        "rows": {"a": 1, "b": 2, "c": has["c"]},
    }
    assert "'quota.d': there is no such group" in cli(*command, "--group-by", "source", "quota.d=1").error
    assert "'quota' is of groups" in cli(*command, "quota.a=1").error


@pytest.mark.parametrize("method", ["then", "blend"])
def test_what_they_are_made_of_must_be_said(method: str) -> None:
    ran = cli("score", "--data", "my.jsonl", "--method", method, "--output", "scores.parquet")
    key = {"then": "first", "blend": "of"}[method]
    assert ran.error == f"method '{method}' needs '{key}', a method; give --set {method}.{key}=NAME"


def test_zip_ranks_on_from_the_store() -> None:
    stages = ["--set", "zip.k1=10", "--set", "zip.k2=4", "--set", "zip.k3=2"]
    ok("score", "--data", "my.jsonl", "--method", "zip", *stages, "--output", "scores.parquet")
    ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--budget", "50%", "--output", "out.jsonl")
    assert len(read_jsonl("out.jsonl")) == len(ROWS) // 2


@pytest.mark.shared_data
def test_the_published_zip(shared: Path) -> None:
    """USTC-StarTeam/ZIP @ f77b0b5: budget 10 gives 12 rows."""
    data = shared / "golden" / "data_sharegpt.json"
    stages = [f"zip.{key}={value}" for key, value in {"k1": 20, "k2": 8, "k3": 4, "compat": "official"}.items()]
    sets = [part for stage in stages for part in ("--set", stage)]
    ok("score", "--data", data, "--method", "zip", *sets, "--output", "scores.parquet")
    ok("select", "--data", data, "--scores", "scores.parquet", "--budget", "10", "--output", "out.jsonl")
    golden = shared / "golden" / "zip" / "sel_budget10k120k28k34.json"
    assert read_jsonl("out.jsonl") == json.loads(golden.read_text(encoding="utf-8"))
