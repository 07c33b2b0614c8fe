"""``--data`` given several times: one pool in this order, in every record and for every command that reads it again."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from instdiff.data import load

from .shell import ROWS, cli, ok, read_jsonl, write_jsonl

TALK = {"messages": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi there."}]}


def both() -> tuple[str, ...]:
    write_jsonl("b.jsonl", ROWS[:4])
    write_jsonl("a.jsonl", [TALK, *ROWS[4:7]])
    return "--data", "b.jsonl", "--data", "a.jsonl"


def test_from_scores_to_a_selection_that_is_found_again() -> None:
    data = both()
    ran = ok("score", *data, "--method", "longest,random", "--output", "s.parquet")
    assert ran.err.splitlines()[0].startswith("b.jsonl + a.jsonl: 8 rows, formats alpaca 7, messages 1 (")
    ok("select", *data, "--scores", "s.parquet", "--method", "random", "--budget", "5", "--output", "out.jsonl")
    rows = [*ROWS[:4], TALK, *ROWS[4:7]]
    record = json.loads(Path("out.selection.json").read_text())
    assert record["data"]["origin"] == ["b.jsonl", "a.jsonl"]
    assert read_jsonl("out.jsonl") == [rows[row] for row in record["rows"]]
    assert ok("explain", *data, "--scores", "s.parquet", "4", "--json").json["row"] == 4
    ok("report", "s.parquet", "--output", "page.html")  # finds the rows by itself
    Path("out.jsonl").unlink()
    ok("export", "--data", "out.selection.json", "--format", "jsonl", "--output", "handed")
    shown = ok("diff", "out.selection.json", "out.selection.json", *data, "--json").json
    assert shown


def test_a_list_in_the_configuration(tmp_path: Path) -> None:
    both()
    Path("c.yaml").write_text(yaml.safe_dump({"data": ["b.jsonl", "a.jsonl"], "max_samples": 8, "output": "out.jsonl"}))
    ok("sample", "--config", "c.yaml")
    assert len(read_jsonl("out.jsonl")) == 8
    ok("sample", "--config", "c.yaml", "--data", "a.jsonl", "--max-samples", "4")
    assert sorted(map(str, read_jsonl("out.jsonl"))) == sorted(map(str, [TALK, *ROWS[4:7]]))
    ok("sample", "--config", "c.yaml", "data=b.jsonl", "--max-samples", "4")
    assert load("out.jsonl").n_duplicates == 0 and len(read_jsonl("out.jsonl")) == 4


def test_a_source_given_twice() -> None:
    data = both()
    words = ("sample", *data, "--data", "./b.jsonl", "--max-samples", "1", "--output", "out.jsonl")
    assert cli(*words).error == "'./b.jsonl' is given twice as data; leave one out"


def test_shards_of_several_sources() -> None:
    data = both()
    for index in range(2):
        ok("score", *data, "--method", "longest", "--output", "parts", "--shards", "2", "--shard-index", str(index))
    ok("merge", "parts", "--output", "merged.parquet")
    ok("score", *data, "--method", "longest", "--output", "whole.parquet")
    from instdiff.scoring.table import read_scores

    merged, whole = read_scores("merged.parquet"), read_scores("whole.parquet")
    assert list(merged.ids) == list(whole.ids)
    words = ("score", "--data", "-", "--data", "a.jsonl", "--method", "longest", "--output", "parts2")
    assert "standard input" in cli(*words, "--shards", "2", "--shard-index", "0").error
