"""What `plan` says of a judge: calls and tokens of a server, and what a model of this machine has to write."""

from __future__ import annotations

import json

import pytest

from .shell import ROWS, cli, ok

WHERE = "openai:m@http://127.0.0.1:9/v1"


def test_a_server_is_called_and_nothing_is_loaded() -> None:
    words = ["plan", "--data", "my.jsonl", "--method", "alpagasus", "--model", f"judge={WHERE}"]
    said = ok(*words).out
    bill = json.loads(ok(*words, "--json").out)["total"]
    rows = len({str(row) for row in ROWS})
    assert (bill["calls"], bill["most_tokens_out"], bill["model_loads"], bill["seconds"]) == (rows, rows * 256, 0, 0.0)
    line = said.splitlines()[-1]
    assert line.startswith(
        f"{WHERE}: {rows} calls with about {bill['todo_tokens']:,} tokens, and at most {rows * 256:,} "
    )
    assert line.endswith("the time depends on the server")
    assert "model loads" not in said and "0:00" not in said


def test_the_length_of_answers_counts() -> None:
    words = ["--data", "my.jsonl", "--method", "alpagasus", "--model", f"judge={WHERE}", "--judge-max-tokens", "40"]
    bill = json.loads(ok("plan", *words, "--json").out)["total"]
    assert bill["most_tokens_out"] == 40 * bill["calls"] > 0


def test_the_price_of_a_server_s_tokens() -> None:
    words = ["plan", "--data", "my.jsonl", "--method", "alpagasus", "--model", f"judge={WHERE}"]
    assert json.loads(ok(*words, "--json").out)["total"]["most_price"] is None
    bill = json.loads(ok(*words, "--judge-price", "2000,500", "--json").out)
    price = (2000 * bill["total"]["todo_tokens"] + 500 * bill["total"]["most_tokens_out"]) / 1e6
    assert bill["total"]["most_price"] == bill["passes"][0]["most_price"] == price > 1
    assert (
        f" tokens of answers, which cost at most about {price:.4g}; more where"
        in ok(*words, "--judge-price", "2000,500").out
    )
    assert "cost at most" not in ok(*words).out


@pytest.mark.parametrize("price", ["3", "a,b", "1,-1", "nan,1", "1,inf", "1,2,3"])
def test_a_price_that_is_none_is_said(price: str) -> None:
    words = ["plan", "--data", "my.jsonl", "--method", "alpagasus", "--model", f"judge={WHERE}"]
    assert "write what a million tokens in and out cost, as 0.15,0.6" in cli(*words, "--judge-price", price).error


def test_a_model_of_this_machine_writes_too(model: str) -> None:
    words = ["plan", "--data", "my.jsonl", "--method", "alpagasus", "--model", f"judge={model}", "--json"]
    bill, short = (json.loads(ok(*words, *more).out)["total"] for more in ([], ["--judge-max-tokens", "1"]))
    assert bill["calls"] == 0 and bill["model_loads"] == 1
    assert bill["flops"] > 2 * short["flops"] and bill["most_tokens_out"] == 256 * short["most_tokens_out"]
