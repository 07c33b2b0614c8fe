"""How a judge's server is called is the user's to say: how many calls at once, how long, how often, for what length."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instdiff.config.evaluate import EvalConfig
from instdiff.errors import ConfigError
from instdiff.evaluation.llm_judge.judge import Waits
from instdiff.evaluation.llm_judge.suite import general_suite
from judging import Reply, Server, completion

from .shell import ROWS, cli, ok, read_jsonl, write_jsonl


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


def test_eval_is_told_how_to_call(tmp_path: Path) -> None:
    questions = tmp_path / "vicuna.jsonl"
    write_jsonl(questions, [{"instruction": "Say it."}])
    asked = {"suite": ["general"], "task": ["vicuna"], "task_data": {"vicuna": str(questions)}}
    how = {"judge_timeout": 7, "judge_tries": 2, "judge_max_tokens": 30}
    suite = general_suite(EvalConfig(**asked, judge="openai:j@http://x/v1", **how))
    assert suite.waits == Waits(8, 7.0, 2) and suite.judge_max_tokens == 30


def test_two_evaluations_at_once_pay_each_question_once(server: Server) -> None:
    """No call is answered before both ask."""
    both = threading.Barrier(4)

    def play(body: dict[str, Any], number: int) -> Reply:
        if number < 4:
            both.wait(timeout=100)
        return completion("9 1")

    server.play = play
    write_jsonl("koala.jsonl", [{"instruction": f"Say {i}.", "output": f"{i}!"} for i in range(6)])
    words = ["eval", "--model", "builtin:tiny", "--suite", "general", "--task", "koala", "--answers", "answers"]
    words += ["--judge", f"openai:grader@{server.url}", "--judge-concurrency", "2", "--max-new-tokens", "4"]
    words += ["data.koala=koala.jsonl", "--output"]
    ran = [subprocess.Popen([sys.executable, "-m", "instdiff", *words, f"{i}.json"]) for i in range(2)]
    assert [one.wait(200) for one in ran] == [0, 0]
    asked = [json.dumps(body["messages"]) for body in server.bodies]
    assert len(asked) == len(set(asked)) == 12
    assert len(read_jsonl(next(Path("answers").glob("judgements-*.jsonl")))) == 12
    first, second = (json.loads(Path(f"{i}.json").read_text()) for i in range(2))
    assert first["tasks"] == second["tasks"] and first["tasks"]["koala"]["scored"] == 6


def test_score_is_told_how_to_call(server: Server) -> None:
    """Two calls for each row, for at most 30 tokens each, and each given up early."""

    def play(body: dict[str, Any], number: int) -> Reply:
        server.released.wait(20)
        return completion("3")

    server.play = play
    write_jsonl("one.jsonl", ROWS[:1])
    judge = ["--model", f"judge=openai:grader@{server.url}", "--judge-timeout", "0.2", "--judge-tries", "2"]
    words = ["score", "--data", "one.jsonl", "--method", "alpagasus", *judge, "--judge-max-tokens", "30"]
    ran = cli(*words, "--output", "scores.parquet")
    assert "did not answer after 2 tries: no answer within 0.2 s" in ran.error
    assert {body["max_tokens"] for body in server.bodies} == {30}
    assert sum("JSON {" not in body["messages"][-1]["content"] for body in server.bodies) == 2


def test_a_batch_api_is_asked_for_by_an_option(server: Server, tmp_path: Path) -> None:
    """This server has none."""
    write_jsonl("one.jsonl", ROWS[:1])
    judge = f"openai:grader@{server.url}"
    words = ["score", "--data", "one.jsonl", "--method", "alpagasus", "--model", f"judge={judge}", "--judge-batch"]
    assert f"at {server.url} has no batch API (GET /batches: 501); leave judge_batch out" in (
        cli(*words, "--output", "scores.parquet").error
    )
    asked: dict[str, Any] = {"suite": ["general"], "task": ["vicuna"], "task_data": {"vicuna": "one.jsonl"}}
    assert general_suite(EvalConfig(**asked, judge=judge, judge_batch=True)).judge_batch
    with pytest.raises(ConfigError, match="judge_batch is for a server, and 'some/where' is a model of this machine"):
        general_suite(EvalConfig(**asked, judge="some/where", judge_batch=True))


def test_another_length_of_answers_is_another_judge(server: Server) -> None:
    server.play = lambda body, number: completion('{"score": 3}')
    write_jsonl("one.jsonl", ROWS[:1])
    words = ["score", "--data", "one.jsonl", "--method", "alpagasus", "--model", f"judge=openai:grader@{server.url}"]
    for more in ([], ["--judge-max-tokens", "256"], ["--judge-max-tokens", "30"], ["--judge-tries", "1"]):
        ok(*words, *more, "--output", "scores.parquet")
    assert [body["max_tokens"] for body in server.bodies] == [256, 30]
