"""Which rows are read, and how, is said with the same keys to every verb that reads data."""

from __future__ import annotations

import json
from pathlib import Path

from .shell import ROWS, cli, ok, read_jsonl, write_jsonl

OTHER = [{"q": row["instruction"], "a": row["output"], "source": row["source"]} for row in ROWS]
MAP = ("--map", "instruction=q,response=a")


def scored(*more: object) -> None:
    ok("score", "--data", "my.jsonl", "--method", "longest", "--output", "scores.parquet", *more)


def test_explain_takes_the_rows_that_were_scored() -> None:
    scored("--limit", 5)
    asked = ("explain", 2, "--data", "my.jsonl", "--scores", "scores.parquet", "--json")
    for more in ((), ("--limit", 5), ("--limit", 9), ("max_samples=5",), ("longest_line_mb=1",)):
        assert ok(*asked, *more).json["row"] == 2
    assert "the scores have 5 rows" in cli(*asked[:-1], "--limit", 4).error


def test_published_keys_of_columns_are_read_by_explain() -> None:
    write_jsonl("other.jsonl", OTHER)
    ok("score", "--data", "other.jsonl", "--method", "longest", "--output", "scores.parquet", *MAP)
    keys = ("instruction_key=q", "response_key=a")
    found = ok("explain", 1, "--data", "other.jsonl", "--scores", "scores.parquet", "--json", *keys).json
    assert OTHER[1]["q"] in json.dumps(found["turns"][0])


def test_export_writes_the_first_rows() -> None:
    scored()
    ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--budget", 5, "--output", "few.jsonl")
    ok("export", "--data", "few.jsonl", "--format", "jsonl", "--output", "out", "--limit", 2)
    assert read_jsonl("out/few.jsonl") == read_jsonl("few.jsonl")[:2]


def test_diff_reads_as_many_rows_of_the_input_as_it_is_told() -> None:
    for name, budget in (("a", 3), ("b", 5)):
        ok(
            "select",
            "--data",
            "my.jsonl",
            "--method",
            "random",
            "--limit",
            8,
            "--budget",
            budget,
            "--output",
            f"{name}.jsonl",
        )
        Path(f"{name}.jsonl").unlink()
    asked = ("diff", "a.selection.json", "b.selection.json", "--data", "my.jsonl", "--json")
    assert ok(*asked, "--limit", 8).json["a"]["rows"] == 3
    assert "has no row with id" in cli(*asked[:-1], "--limit", 1).error


def test_report_and_verdict_read_columns_by_a_map() -> None:
    write_jsonl("other.jsonl", OTHER)
    ok("score", "--data", "other.jsonl", "--method", "longest", "--output", "scores.parquet", "--limit", 9, *MAP)
    for more in (MAP, (*MAP, "--limit", 9)):
        ok("report", "scores.parquet", "--data", "other.jsonl", "--output", "page.html", *more)
        assert "are not here" not in Path("page.html").read_text()
        assert json.loads(ok("verdict", "scores.parquet", "--data", "other.jsonl", "--json", *more).out)
