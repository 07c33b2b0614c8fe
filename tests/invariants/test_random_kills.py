"""Killed at random moments, a command leaves outputs whole or absent; given again, it comes to the same end."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cli.shell import write_jsonl
from helpers import make_llama, some_rows
from instdiff.core.files import without_sum
from instdiff.data import load
from instdiff.store import Store, check, info

HELD_OUT = [{**row, "instruction": f"{row['instruction']} of the others"} for row in some_rows(8, seed=4)]
TRAIN = (
    "train.model_max_length=200", "train.num_train_epochs=1", "train.learning_rate=0.01", "train.global_batch_size=4",
    "train.warmup_ratio=0", "train.dtype=float32", "train.checkpoint_steps=1",
)  # fmt: skip
COMMON = ("--data", "pool.jsonl", "--model", "base", "--store", "store", "--dtype", "float32", "--max-length", "200")
SCORE = ("score", *COMMON, "--method", "ifd,entropy", "--output", "scores.parquet", "--batch-tokens", "300")
PIPELINE = (
    "pipeline", *COMMON, "--output", "run", "warmup.sample_size=8", "select.method=instructdiff",
    "select.select_ratio=0.2", "eval.suite=heldout", "eval.data_path=heldout.jsonl", "eval.baselines=[random]",
    "eval.seeds=[0]", *TRAIN,
)  # fmt: skip
COMPARE = (
    "compare", *COMMON, "--method", "ifd", "--budget", "25% tokens", "--output", "run", "eval.data=heldout.jsonl",
    "baselines=[random]", "seeds=[0]", *TRAIN,
)  # fmt: skip
COMMANDS = {
    "score": SCORE,
    "score by two workers": (*SCORE, "--workers", "2"),
    "pipeline": PIPELINE,
    "compare": COMPARE,
    "report": ("report", "scores.parquet", "--output", "report.html"),
    "store gc": ("store", "gc", "--older-than", "0h", "--keep", "base", "--store", "store"),
}
MADE = ("scores.parquet", "run", "report.html", "store")
PATIENCE = 600.0


class Killer:
    """A command in a folder, which may be killed."""

    def __init__(self, home: Path, *words: str) -> None:
        program = [sys.executable, str(Path(__file__).with_name("killing.py")), *words]
        self.home, self.command = home, " ".join(words)
        self._process = subprocess.Popen(program, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, seconds: float = PATIENCE, most: str = "") -> tuple[int, float]:
        """The exit code, and how long it ran with at ``most`` so many megabytes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{seconds} {most}\n")
        self._process.stdin.flush()
        code, took = self._process.stdout.readline().split()
        assert int(code) in (0, 2, -9), (self.home / "said.txt").read_text()
        return int(code), float(took)

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "pool.jsonl", some_rows(30, seed=3))
    write_jsonl(tmp_path / "heldout.jsonl", HELD_OUT)
    make_llama(tmp_path / "base", chat=None, num_hidden_layers=1)
    return tmp_path


def run_to_the_end(home: Path, *words: str) -> None:
    killer = Killer(home, *words)
    assert killer.run()[0] == 0
    killer.end()


def whole(home: Path) -> None:
    """Every file that has its name has all that belongs to it."""
    for path in home.rglob("*"):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(home).parts):
            continue
        if path.suffix == ".json":
            without_sum(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".jsonl" and path.name != "log.jsonl":
            assert len(load(str(path))) and path.read_bytes().endswith(b"\n")
        elif path.suffix == ".parquet":
            pq.read_table(path, page_checksum_verification=True)
        elif path.suffix == ".html":
            assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    if (home / "store").is_dir():
        assert check(Store(home / "store")).damaged == []


def outcome(home: Path) -> dict[str, Any]:
    """What the command came to, by file and column."""
    found: dict[str, Any] = {}
    for path in [*home.glob("scores.parquet"), *home.glob("run/**/scores*.parquet"), *home.glob("run/items.parquet")]:
        table = pq.read_table(path)
        found |= {f"{path.relative_to(home)} {name}": table[name].to_pylist() for name in table.column_names}
    for path in sorted(home.glob("run/**/selected.jsonl")):
        found[str(path.relative_to(home))] = path.read_text(encoding="utf-8").splitlines()
    for path in home.glob("run/comparison.json"):
        lines = without_sum(json.loads(path.read_text(encoding="utf-8")))["lines"]
        found |= {f"{number} {key}": [line.get(key)] for number, line in enumerate(lines) for key in ("name", "value")}
    found["columns"] = sorted({f"{one.measure} {one.model}" for one in info(Store(home / "store"))})
    found["page"] = [len(list(home.glob("report.html")) + list(home.glob("run/report.html")))]
    return found


def assert_same(mine: dict[str, Any], clean: dict[str, Any]) -> None:
    assert mine.keys() == clean.keys()
    for name, values in clean.items():
        if isinstance(values[0], float):
            got = np.array(mine[name], float)
            np.testing.assert_allclose(got, np.array(values, float), rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            assert mine[name] == values, name


def remove(home: Path, name: str, base: dict[str, bytes]) -> None:
    """Everything that the command made is gone; what it began with is there again."""
    for made in MADE:
        subprocess.run(["rm", "-rf", str(home / made)], check=True)
    for place, raw in base.items():
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_bytes(raw)


def begin(home: Path, name: str) -> dict[str, bytes]:
    """What a command begins with, besides rows and model."""
    if name == "report":
        run_to_the_end(home, *SCORE)
    elif name == "store gc":
        make_llama(home / "other", chat=None, num_hidden_layers=1, seed=9)
        run_to_the_end(home, *SCORE)
        run_to_the_end(home, *[word.replace("base", "other") for word in SCORE])
    kept = [path for made in MADE for path in (home / made, *(home / made).rglob("*")) if path.is_file()]
    return {str(path.relative_to(home)): path.read_bytes() for path in kept}


def survive(home: Path, name: str, moments: int) -> int:
    """How many times the command was killed; each time it is killed on the way, and at last comes to its end."""
    draw, base = random.Random(7), begin(home, name)
    killer = Killer(home, *COMMANDS[name])
    _, took = killer.run()
    clean, killed = outcome(home), 0
    remove(home, name, base)
    while killed < moments:
        code, _ = killer.run(draw.uniform(0, took))
        assert code in (0, -9), (home / "said.txt").read_text(encoding="utf-8")
        whole(home)
        killed += code != 0
        if code == 0 or killed == moments:
            assert killer.run()[0] == 0
            whole(home)
            assert_same(outcome(home), clean)
            remove(home, name, base)
    killer.end()
    return killed


MOMENTS = {"score": 8, "score by two workers": 8, "pipeline": 8, "compare": 8, "report": 4, "store gc": 4}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(home: Path, name: str) -> None:
    assert survive(home, name, MOMENTS[name]) == MOMENTS[name]


def test_killed_at_two_random_moments(home: Path) -> None:
    assert survive(home, "score", 2) == 2


def test_little_memory_ends_in_a_sentence_or_in_the_same_scores(home: Path) -> None:
    killer, said = Killer(home, *SCORE), []
    for megabytes in (0, 8, 64, 512):
        code, _ = killer.run(most=str(megabytes))
        whole(home)
        said.append((home / "said.txt").read_text(encoding="utf-8"))
        assert "Traceback" not in said[-1] and (code == 0) is (home / "scores.parquet").is_file()
        assert (code == 2) is (said[-1].count("error: ") == 1)
        if code == 0:
            break
    assert "error: " in said[0]
    assert killer.run()[0] == 0
    mine = outcome(home)
    remove(home, "score", {})
    assert killer.run()[0] == 0
    assert_same(mine, outcome(home))
    killer.end()
