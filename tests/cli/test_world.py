"""What the system refuses is a sentence and exit 2: long names, odd bytes, closed and full outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from .shell import cli

ASKED = {
    "sample": "--data my.jsonl --max-samples 1 --output o.jsonl",
    "doctor": "--data my.jsonl --model builtin:tiny --output o.json",
    "render": "--data my.jsonl --model builtin:tiny",
    "plan": "--data my.jsonl --method random",
    "score": "--data my.jsonl --method random --output o.parquet",
    "select": "--data my.jsonl --method random --output o.jsonl",
    "export": "--data my.jsonl --format trl --output o",
    "train": "--data my.jsonl --model ./nowhere --output o",
    "eval": "--suite heldout --data my.jsonl --model nowhere --output o",
    "pipeline": "--data my.jsonl --model ./nowhere --output o",
    "compare": "--data my.jsonl --model ./nowhere --output o",
    "search": "--data my.jsonl --model ./nowhere --output o",
    "explain": "1 --data my.jsonl --scores s.parquet",
    "diff": "a.jsonl b.jsonl --data my.jsonl",
    "report": "s.parquet --data my.jsonl --output o.html",
    "verdict": "run --data my.jsonl --output o.svg",
    "merge": "here --output o.parquet",
}
NAMES = {
    "long": "n" * 300 + ".jsonl",
    "deep": "d/" * 2500 + "my.jsonl",
    "bytes": "b\udcff.jsonl",
    "beyond": "\U0001f600.jsonl",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ASKED)
def test_names_that_the_system_refuses(verb: str, name: str) -> None:
    words = ASKED[verb].split()
    for option in ("--data", "--output", "--scores", "--model"):
        if option in words:
            changed = list(words)
            changed[words.index(option) + 1] = NAMES[name]
            ran = cli(verb, *changed)
            assert ran.code in (0, 2) and "Traceback" not in ran.err, (changed, ran.err[-600:])
            if name in ("long", "deep"):
                assert ran.code == 2 and ran.err.splitlines()[-1], changed


def test_a_name_that_records_cannot_hold_is_refused_before_the_work() -> None:
    name = os.fsencode("my.jsonl").replace(b"my", b"\xff")
    Path(os.fsdecode(name)).write_text('{"instruction": "a", "output": "b"}\n')
    line = f"{sys.executable} -m instdiff score --data $'\\xff.jsonl' --method random --output o.parquet"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not Path("o.parquet").exists()
    assert done.stderr.splitlines()[-1] == "error: data '⟨U+DCFF⟩.jsonl' is not UTF-8; rename it, or set LC_ALL=C.UTF-8"


def test_each_of_several_outputs_is_named_alone() -> None:
    ran = cli("verdict", "run", "--output", "a.svg", "--output", NAMES["deep"].replace("jsonl", "svg"))
    assert ran.code == 2 and "error: 'd/d/d/" in ran.err and "['" not in ran.err


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "a: " + "{b: " * 3000, "\x00\x01\xff", "limit: " + "9" * 30, "limit: " + "9" * 5000],
    ids=["deep", "deep mapping", "binary", "30 digits", "5000 digits"],
)
def test_configuration_files_that_are_none(text: str) -> None:
    Path("c.yaml").write_bytes(text.encode("latin-1"))
    ran = cli("score", "--config", "c.yaml", "--data", "my.jsonl", "--method", "random", "--output", "o.parquet")
    assert ran.error and len(ran.error) < 7000


def test_a_model_whose_configuration_is_a_list() -> None:
    Path("m").mkdir()
    Path("m/config.json").write_text("[1]")
    save_file({"a": np.zeros(1, np.float32)}, "m/model.safetensors")
    ran = cli("score", "--data", "my.jsonl", "--method", "ifd", "--model", "./m", "--output", "o.parquet")
    assert "config.json" in ran.error


@pytest.mark.parametrize("words", ["methods", "--help", "score --help", "--version"])
@pytest.mark.parametrize(
    ("place", "said"), [(">&-", "standard output is closed"), ("> /dev/full", "No space left"), ("2>&-", "")]
)
def test_outputs_that_are_closed_or_full(words: str, place: str, said: str) -> None:
    line = f"{sys.executable} -m instdiff {words} {place}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if said else 0) and "Traceback" not in done.stderr
    assert said in done.stderr and done.stderr.count("\n") == bool(said)


def test_messages_that_nobody_can_read() -> None:
    line = f"{sys.executable} -m instdiff plan --data builtin:demo --method random 2> /dev/full"
    assert subprocess.run(["bash", "-c", line], capture_output=True, check=False).returncode == 2
