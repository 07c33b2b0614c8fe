"""`instdiff compare` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers import make_llama, some_rows

from .shell import cli, ok, write_jsonl

HELD_OUT = [{**row, "instruction": f"{row['instruction']} of the others"} for row in some_rows(8, seed=4)]
TRAIN = (
    "train.model_max_length=200", "train.num_train_epochs=1", "train.learning_rate=0.01", "train.global_batch_size=4",
    "train.warmup_ratio=0", "train.dtype=float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", some_rows(20, seed=3))
    write_jsonl(tmp_path / "heldout.jsonl", HELD_OUT)
    make_llama(tmp_path / "base", chat=None, num_hidden_layers=1)


def command(*more: str) -> list[str]:
    return [
        "compare", "--data", "pool.jsonl", "--model", "base", "--method", "ifd", "--budget", "25% tokens", "--output",
        "run", "--store", "store", "--dtype", "float32", "--max-length", "200", "eval.data=heldout.jsonl",
        "baselines=[random]", "seeds=[0]", *TRAIN, *more,
    ]  # fmt: skip


def test_the_table_the_files_and_going_on() -> None:
    ran = ok(*command())
    lines = ran.out.splitlines()
    assert lines[0] == "heldout, nll (lower is better), 8 items"
    assert {line.split()[0] for line in lines[3:6]} == {"base", "random", "ifd"}
    found = json.loads(Path("run/comparison.json").read_text(encoding="utf-8"))
    by_name = {line["name"]: line for line in found["lines"]}
    assert by_name["random"]["seeds"] == 3 and by_name["ifd"]["seeds"] == 1
    assert by_name["ifd"]["diff"] == pytest.approx(by_name["ifd"]["value"] - by_name["random"]["value"])
    assert by_name["base"]["low"] < by_name["base"]["value"] < by_name["base"]["high"]
    assert "25% tokens" in found["terms"]
    assert Path("run/report.html").is_file() and Path("run/comparison.md").is_file()
    again = json.loads(ok(*command("--json")).out)
    assert again["lines"] == found["lines"]
    # More methods go into the same folder; another training does not.
    more = json.loads(ok(*command("--json", "--method", "longest")).out)
    assert {line["name"] for line in more["lines"]} == {"base", "random", "ifd", "longest"}
    assert "train.learning_rate=0.01, now it is 0.02" in cli(*command("train.learning_rate=0.02")).error


def test_what_is_missing_is_named() -> None:
    assert "no data is named; give --data FILE" in cli("compare", "--model", "base", "--output", "run").error
    told = cli(*[word for word in command() if not word.startswith("eval.data")]).error
    assert "'eval.data' is missing" in told
    assert "unknown suite 'heldot'" in cli(*command("eval.suite=heldot")).error
    assert not Path("run/cells").exists()
