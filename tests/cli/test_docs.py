"""docs/add-a-method.md is run as it is printed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from .shell import ROWS, ok, read_jsonl, score

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "add-a-method.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_add_a_method(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, apart, check = blocks("python")
    Path("mine.py").write_text(module)
    Path("apart.py").write_text(apart)
    commands = [shlex.split(line.replace("Qwen/Qwen2.5-0.5B", model)) for line in blocks("sh")[0].splitlines()]
    assert [command[:2] for command in commands] == [["instdiff", v] for v in ("methods", "plan", "score", "select")]
    said = [ok(*command[1:]).out for command in commands]
    assert said[0].startswith("margin  (ours)\n\nMean NLL of the response alone minus")
    assert "2 passes over" in said[1] and "one by one: 4 passes" in said[1]

    rows = pq.read_table("scores.parquet").to_pylist()
    assert list(rows[0])[4:8] == ["margin", "margin.why", "margin.nll_given", "margin.nll_alone"]
    for row in rows:
        margin = row["margin.nll_alone"] - row["margin.nll_given"]
        assert row["margin.nll_given"] == row["ifd.nll_given"]
        assert (row["margin"], row["margin.why"]) == ((margin, None) if margin >= 0.1 else (None, "filtered"))
    order = sorted((r for r in rows if r["margin"] is not None), key=lambda r: (-r["margin"], r["id"], r["row"]))
    assert len(order) >= 3
    assert read_jsonl("selected.jsonl") == [ROWS[row["row"]] for row in order[:2]]
    assert json.loads(Path("selected.selection.json").read_text())["params"] == {"at_least": 0.1, "model": "base"}

    score(model, "./mine.py:Steady", "steady.parquet", "--set", "steady.at_least=0.1")
    ok(
        "select",
        "--data",
        "my.jsonl",
        "--scores",
        "steady.parquet",
        "--method",
        "./mine.py:Steady",
        "--budget",
        "2",
        "--output",
        "steady.jsonl",
    )
    easiest = sorted(order[:4], key=lambda r: r["margin.nll_given"])
    assert read_jsonl("steady.jsonl") == [ROWS[row["row"]] for row in easiest[:2]]

    for line in blocks("sh")[1].splitlines():
        ok(*shlex.split(line.replace("Qwen/Qwen2.5-0.5B", model))[1:])
    nll = {row["row"]: -row["apart"] for row in pq.read_table("apart.parquet").to_pylist()}
    taken = json.loads(Path("apart.selection.json").read_text())["rows"]
    assert len(taken) == 3 and taken == sorted(taken, key=nll.__getitem__)
    assert not {3, 11} <= set(taken)  # they are equal

    monkeypatch.syspath_prepend(str(Path.cwd()))
    try:
        exec(check, {})
    finally:
        sys.modules.pop("mine", None)
