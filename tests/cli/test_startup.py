"""What runs no model works without the packages of the extras, of which `report` alone draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ABSENT, WITHOUT

RUN = f"{WITHOUT}\nfrom instdiff.cli.entry import main\nmain()"


def ask(code: str, home: Path, *words: str, absent: str = ABSENT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, absent, *words],
        cwd=home, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def run(home: Path, *words: str) -> str:
    done = ask(RUN, home, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("startup")
    words = "score --data builtin:demo --limit 60 --method random,longest,full --store st --output s.parquet"
    run(home, *words.split())
    words = "select --scores s.parquet --data builtin:demo --limit 60 --method longest --budget 10 --output sel.jsonl"
    run(home, *words.split())
    return home


def test_a_method_of_text_alone(home: Path) -> None:
    words = "score --data builtin:demo --limit 60 --method zip --store st --output z.parquet"
    run(home, *words.split())
    words = "select --data builtin:demo --limit 60 --method zip --budget 10 --output zip.jsonl"
    said = run(home, *words.split())
    assert "10 of 60 rows" in said and len((home / "zip.jsonl").read_text().splitlines()) == 10


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


@pytest.mark.parametrize(
    ("words", "absent", "said"),
    [
        ("score --method ifd --model builtin:tiny --output i.parquet", "torch", ("the method ifd", "torch", "models")),
        ("select --method ifd --model builtin:tiny --budget 5 --output i.jsonl", "torch",
         ("the method ifd", "torch", "models")),
        ("score --method kcenter --output k.parquet", "sentence_transformers",
         ("the method kcenter", "sentence-transformers", "embed")),
        ("score --method kcenter --output k.parquet", "torch,sentence_transformers",
         ("the method kcenter", "sentence-transformers", "embed")),  # one extra brings both
        ("eval --suite skills --model builtin:tiny --output e", "torch", ("the suite skills", "torch", "models")),
        ("report sel.selection.json --output p.html", "plotly", ("a report", "plotly", "report")),
    ],
)  # fmt: skip
def test_an_extra_that_lacks_is_told_before_anything_is_read(
    home: Path, words: str, absent: str, said: tuple[str, str, str]
) -> None:
    data = [] if words.startswith("report") else ["--data", "builtin:demo"]
    before = sorted(home.iterdir())
    done = ask(RUN, home, *words.split(), *data, absent=absent)
    who, package, extra = said
    assert done.returncode == 2
    assert done.stderr == f'error: {who} needs {package}, which is missing; run: pip install "instdiff[{extra}]"\n'
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("i.train", "instdiff.train needs torch"),
        ("i.score(i.load('builtin:demo', limit=5), 'ifd', model='builtin:tiny')", "the method ifd needs torch"),
        ("i.load('builtin:demo', limit=5).to_pandas()", "a data frame needs pandas"),
    ],
)
def test_python_says_the_same(home: Path, asked: str, said: str) -> None:
    code = f"{WITHOUT}\nimport instdiff as i\ntry:\n    {asked}\nexcept i.PlanError as error:\n    print(error)"
    told = ask(code, home, absent="torch,pandas")
    assert told.stdout.startswith(f"{said}, which is missing; run: pip install ") and "Traceback" not in told.stderr
