"""What runs no model imports no library of models. (pyarrow imports pandas when it makes an array, if it is there.)"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from instdiff.cli.entry import main
sys.argv = ["instdiff", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "datasets", "trl"} & set(sys.modules)
assert not heavy, heavy
"""


def run(home: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], cwd=home, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("startup")
    words = "score --data builtin:demo --limit 60 --method random,longest,full --store st --output s.parquet"
    run(home, *words.split())
    words = "select --scores s.parquet --data builtin:demo --limit 60 --method longest --budget 10 --output sel.jsonl"
    run(home, *words.split())
    return home


def test_scores_with_a_base_model_that_only_counts(home: Path) -> None:
    words = "score --data builtin:demo --limit 60 --method random,longest --model builtin:tiny --store st"
    run(home, *words.split(), "--output", "t.parquet")


@pytest.mark.parametrize(
    "words",
    [
        "select --scores s.parquet --data builtin:demo --limit 60 --method random --budget 10% --output other.jsonl",
        "diff sel.jsonl sel.jsonl --data builtin:demo",
        "report s.parquet --output page.html",
        "export --data sel.selection.json --format trl --output trl",
        "explain 1 --scores s.parquet --data builtin:demo",
        "store info --store st",
    ],
)
def test_the_rest_of_the_work(home: Path, words: str) -> None:
    run(home, *words.split())
