"""Judges, raters, embedders and targets through the real commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from judging import Reply, Server, completion

from .shell import ROWS, cli, ok, read_jsonl, write_jsonl

JUDGED = ("score", "--data", "my.jsonl", "--method", "alpagasus", "--set", "alpagasus.threshold=0")


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    yield playing
    playing.close()


def scores(method: str, path: str = "scores.parquet") -> tuple[list[Any], list[Any]]:
    table = pq.read_table(path)
    return table[method].to_pylist(), table[f"{method}.why"].to_pylist()


def test_a_judge_is_asked_once_for_each_row(server: Server) -> None:
    """What it cannot put into a number is null with a reason, and is not paid for again."""
    odd = ROWS[3]["output"]

    def play(body: dict[str, Any], number: int) -> Reply:
        asked = body["messages"][-1]["content"]
        return completion("No idea." if odd in asked else '{"score": 4, "reason": "fine"}')

    server.play = play
    judge = ("--model", f"judge=openai:grader@{server.url}")
    ok(*JUDGED, *judge, "--output", "scores.parquet")
    value, reason = scores("alpagasus")
    bad = [at for at, row in enumerate(ROWS) if row["output"] == odd]
    assert [at for at, word in enumerate(reason) if word == "unparsable"] == bad
    assert all(value[at] == (None if at in bad or reason[at] else 4.0) for at in range(len(ROWS)))
    paid = len(server.bodies)
    ok(*JUDGED, *judge, "--output", "again.parquet")
    assert len(server.bodies) == paid
    assert scores("alpagasus", "again.parquet") == (value, reason)
    write_jsonl("more.jsonl", [*ROWS, {"instruction": "New one", "input": "", "output": "New answer"}])
    ok("score", "--data", "more.jsonl", *JUDGED[3:], *judge, "--output", "more.parquet")
    assert len(server.bodies) == paid + 1


def test_a_judge_that_is_away_ends_in_one_message_and_what_was_paid_for_stays(server: Server) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        return completion('{"score": 5}') if number < 4 else (401, {"error": {"message": "bad key"}}, {})

    server.play = play
    judge = ("--model", f"judge=openai:grader@{server.url}")
    ran = cli(*JUDGED, *judge, "--output", "scores.parquet")
    assert ran.code == 2 and "OPENAI_API_KEY" in ran.error and "Traceback" not in ran.err
    assert not Path("scores.parquet").exists()
    answered = sum(number < 4 for number in range(len(server.bodies)))
    server.play = lambda body, number: completion('{"score": 5}')
    before = len(server.bodies)
    ok(*JUDGED, *judge, "--output", "scores.parquet")
    distinct = len({(row["instruction"], row.get("input", ""), row["output"]) for row in ROWS if row["output"]})
    assert len(server.bodies) - before == distinct - answered


def test_a_judge_without_an_address() -> None:
    ran = cli(*JUDGED, "--output", "scores.parquet")
    assert ran.code == 2 and "role 'judge'" in ran.error and "openai:MODEL@" in ran.error
    ran = cli(*JUDGED, "--model", "judge=openai:grader", "--output", "scores.parquet")
    assert ran.code == 2 and "openai:MODEL@http://host:port/v1" in ran.error


def test_targets(model: str) -> None:
    write_jsonl("target.jsonl", ROWS[4:6])
    ran = cli("score", "--data", "my.jsonl", "--model", model, "--method", "rds", "--output", "scores.parquet")
    assert ran.code == 2 and "--target FILE" in ran.error
    ok("score", "--data", "my.jsonl", "--model", model, "--method", "rds", "--target", "target.jsonl",
       "--set", "rds.reach=1", "--output", "scores.parquet")  # fmt: skip
    ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--budget", "2", "--output", "out.jsonl")
    assert [row["instruction"] for row in read_jsonl("out.jsonl")] == [row["instruction"] for row in ROWS[4:6]]


def test_raters_read_digits(model: str) -> None:
    ok("score", "--data", "my.jsonl", "--model", model, "--method", "selectit", "--output", "scores.parquet")
    value, reason = scores("selectit")
    assert all((v is None) == (w is not None) for v, w in zip(value, reason, strict=True))
    assert all(0 <= v <= 5 for v in value if v is not None)


def test_a_method_goes_beyond_what_it_ranked_only_with_the_store(model: str, tmp_path: Path) -> None:
    ok("score", "--data", "my.jsonl", "--model", model, "--method", "kcenter", "--set", "kcenter.model=base",
       "--set", "kcenter.reach=0.2", "--output", "scores.parquet")  # fmt: skip
    few, reason = scores("kcenter")
    assert reason.count("not_reached") > 0
    select = ("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--output", "out.jsonl")
    ok(*select, "--budget", "6")
    rows = [ROWS.index(row) for row in read_jsonl("out.jsonl")]
    assert len(rows) == 6
    reached = sorted((at for at, v in enumerate(few) if v is not None), key=lambda at: -few[at])
    assert rows[: len(reached)] == reached
    ran = cli(*select, "--budget", "6", "--store", str(tmp_path / "another"))
    assert ran.code == 2 and "--store" in ran.error and "instdiff score" in ran.error
