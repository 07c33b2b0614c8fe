"""Own rows, by the README alone: score, select, report, export, and train with the command that was printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from .shell import ok, read_jsonl, write_jsonl

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
OWN = [
    {"instruction": f"Count {n % 8 + 1} {what}.", "input": "", "output": f"{' '.join(NUMBERS[: n % 8 + 1])} {what}"}
    for n, what in enumerate(f"{colour} {thing}" for colour in ("red", "blue", "old", "new", "odd")
                             for thing in ("cups", "keys", "hats", "cars", "dogs", "pens", "maps", "jars"))
]  # fmt: skip


def journey() -> list[str]:
    """Run what the README says to do with own rows, the embedded model for the hub's; what each command printed."""
    text = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("instdiff ")]
    assert lines.pop(0) == "instdiff demo"  # run in test_demo.py
    commands = [shlex.split(line) for line in lines]
    assert [words[1] for words in commands] == ["score", "select", "report", "export"]
    write_jsonl("my.jsonl", OWN)
    return [ok(*(word.replace("Qwen/Qwen2.5-0.5B", "builtin:tiny") for word in words[1:])).out for words in commands]


def test_the_commands_lead_to_each_other() -> None:
    said = journey()
    scores = pq.read_table("scores.parquet").to_pylist()
    assert [row["row"] for row in scores] == list(range(40))
    best = sorted((r for r in scores if r["ifd"] is not None), key=lambda r: (-r["ifd"], r["id"], r["row"]))[:4]
    chosen = read_jsonl("selected.jsonl")
    assert chosen == [OWN[row["row"]] for row in best]
    assert "40 rows" in said[0] and "report.html" in said[2]
    summary = json.loads(Path("report.json").read_text())["sections"]["summary"]["facts"]
    assert (summary["rows"], summary["method"]) == (40, "ifd")
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and not re.search(r'(?:src|href)="https?://', page)
    assert "trl sft --config trl/tenth.trl.yaml" in said[3]
    assert [row["completion"].strip() for row in read_jsonl("trl/tenth.jsonl")] == [row["output"] for row in chosen]


@pytest.mark.slow
def test_the_printed_command_trains() -> None:
    pytest.importorskip("trl", reason='TRL is missing; it comes with pip install "instdiff[train]"')
    (line,) = re.findall(r"^ *(trl sft .*)$", journey()[3], re.M)
    program = Path(sys.executable).parent / "trl"
    ten = ["--max_steps", "10", "--use_cpu", "true", "--report_to", "none", "--logging_steps", "1"]
    done = subprocess.run([program, *shlex.split(line)[1:], *ten], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (state,) = Path.cwd().rglob("checkpoint-10/trainer_state.json")
    losses = [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    assert len(losses) == 10 and losses[-1] < losses[0]
