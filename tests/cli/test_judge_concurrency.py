"""How many calls a judge's server gets at once is the user's to say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instdiff.config.evaluate import EvalConfig
from instdiff.evaluation.llm_judge.suite import general_suite
from judging import Reply, Server, completion

from .shell import ROWS, ok, write_jsonl


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    yield playing
    playing.close()


@pytest.mark.parametrize("calls", [1, 3])
def test_score(server: Server, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answers are held back until so many are asked for."""
    together = threading.Barrier(calls)

    def play(body: dict[str, Any], number: int) -> Reply:
        if number < calls:
            together.wait(timeout=30)
        return completion('{"score": 5}')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    write_jsonl("my.jsonl", ROWS)
    server.play = play
    judge = f"judge=openai:grader@{server.url}"
    ok("score", "--data", "my.jsonl", "--method", "alpagasus", "--model", judge, "--judge-concurrency", calls,
       "--output", "scores.parquet")  # fmt: skip
    assert server.most == calls and len(server.bodies) == len({str(row) for row in ROWS})


def test_eval(tmp_path: Path) -> None:
    questions = tmp_path / "vicuna.jsonl"
    write_jsonl(questions, [{"instruction": "Say it."}])
    asked = {
        "suite": ["general"],
        "task": ["vicuna"],
        "task_data": {"vicuna": str(questions)},
        "judge": "openai:j@http://x/v1",
    }
    assert general_suite(EvalConfig(**asked, concurrency=5)).waits.concurrency == 5
    assert general_suite(EvalConfig(**asked, concurrency=5, judge_concurrency=2)).waits.concurrency == 2
