"""The packaged demonstration data: complete, clean where it says so, flawed where it says so, and reproducible."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from instdiff.data.builtin import path

ROOT = Path(__file__).parents[2]
FILES = ("train.jsonl", "heldout.jsonl", "flaws.jsonl", "README.md")
DOMAINS = {"arithmetic", "transform", "python", "everyday"}
FLAWS = {"duplicate", "swapped", "truncated", "garbled", "trivial"}
Row = dict[str, str]


def read(name: str) -> list:
    return [json.loads(line) for line in (path("demo") / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train() -> list[Row]:
    return read("train.jsonl")


@pytest.fixture(scope="module")
def held_out() -> list[Row]:
    return read("heldout.jsonl")


@pytest.fixture(scope="module")
def flaws() -> dict[int, dict]:
    records = read("flaws.jsonl")
    assert len({record["row"] for record in records}) == len(records)
    return {record["row"]: record for record in records}


@pytest.fixture(scope="module")
def clean(train: list[Row], held_out: list[Row], flaws: dict[int, dict]) -> list[Row]:
    return [row for i, row in enumerate(train) if i not in flaws] + held_out


def of_domain(rows: list[Row], domain: str) -> list[Row]:
    return [row for row in rows if row["domain"] == domain]


def key(row: Row) -> tuple[str, str]:
    return row["instruction"], row["input"]


def test_counts(train: list[Row], held_out: list[Row], flaws: dict[int, dict]) -> None:
    assert (len(train), len(held_out)) == (2000, 400)
    assert {tuple(row) for row in train + held_out} == {("instruction", "input", "output", "domain")}
    assert Counter(row["domain"] for row in train) == dict.fromkeys(DOMAINS, 500)
    assert Counter(row["domain"] for row in held_out) == dict.fromkeys(DOMAINS, 100)
    assert Counter(record["flaw"] for record in flaws.values()) == dict.fromkeys(FLAWS, 136)
    assert 0.3 < len(flaws) / len(train) < 0.37
    assert sum(file.stat().st_size for file in path("demo").iterdir()) < 1_500_000


def test_clean_rows_are_distinct_and_whole(clean: list[Row], train: list[Row], held_out: list[Row]) -> None:
    assert len({key(row) for row in clean}) == len(clean)
    assert not {key(row) for row in train} & {key(row) for row in held_out}
    assert all(row["instruction"].strip() and row["output"].strip() for row in clean)
    lengths = [len(row["output"].split()) for row in clean]
    assert min(lengths) <= 3 and 100 <= max(lengths) <= 125
    assert not [row for row in clean if re.search(r"\{\w*\}| {2}\w|\ba [aeio]\w+ (weigh|is)", row["instruction"])]
    assert not [row for row in of_domain(clean, "everyday") if row["output"][-1] not in ".!?" or "{" in row["output"]]


def test_only_duplicates_repeat(train: list[Row], flaws: dict[int, dict]) -> None:
    others = [(*key(row), row["output"]) for i, row in enumerate(train) if flaws.get(i, {}).get("flaw") != "duplicate"]
    assert len(set(others)) == len(others)


def test_flaw_records_are_true(train: list[Row], flaws: dict[int, dict]) -> None:
    for i, record in flaws.items():
        row, flaw = train[i], record["flaw"]
        assert record["domain"] == row["domain"]
        if flaw == "duplicate":
            assert record["of"] < i and record["of"] not in flaws and train[record["of"]] == row
        elif flaw == "swapped":
            source = train[record["from"]]
            assert record["from"] not in flaws
            assert source["output"] == row["output"] and key(source) != key(row)
        elif flaw == "truncated":
            full = record["full"]
            assert full.startswith(row["output"])
            assert 0.2 * len(full) <= len(row["output"]) <= 0.6 * len(full)
            assert row["output"][-1] not in ".!?`"
        elif flaw == "garbled":
            words = zip(record["full"].split(), row["output"].split(), strict=True)
            assert sum(a == b for a, b in words) <= 0.3 * len(record["full"].split())
        else:
            assert len(row["output"].split()) <= 3 and row["output"].rstrip(".").split()[-1] in row["instruction"]


def test_readme_counts(train: list[Row], flaws: dict[int, dict]) -> None:
    text = (path("demo") / "README.md").read_text(encoding="utf-8")
    assert f"| all | {len(train) - len(flaws)} | " in text
    assert "license: mit" in text


EQUATION = re.compile(r"([\d(][\d ()+*/-]*\d\)?) = (-?\d+)")
NUMBER = re.compile(r"\d+")


def test_every_step_and_answer_of_arithmetic_is_right(clean: list[Row]) -> None:
    for row in of_domain(clean, "arithmetic"):
        steps = EQUATION.findall(row["output"])
        assert steps, row
        for left, right in steps:
            assert eval(left) == int(right), row
        assert NUMBER.findall(row["output"])[-1] in (steps[-1][1], NUMBER.findall(steps[-1][0])[-1]), row


DERIVATIONS = {
    r"^(?:Compute|What is|Work out|Calculate:|Evaluate) ([\d(][\d ()+*-]*\d\)?)(?:[.?]| and show.*)?$": lambda m: eval(
        m[1]
    ),
    r"^Add (\d+), (\d+) and (\d+)\.": lambda m: sum(map(int, m.groups())),
    r"buys (\d+) \w+ for (\d+) dollars each and pays with (\d+)": lambda m: int(m[3]) - int(m[1]) * int(m[2]),
    r"^(\d+) \w+ are shared equally among (\d+)": lambda m: int(m[1]) % int(m[2]),
    r"travels at (\d+) kilometres per hour for (\d+) hours": lambda m: int(m[1]) * int(m[2]),
    r"costs (\d+) dollars and is (\d+) percent cheaper": lambda m: int(m[1]) * (100 - int(m[2])) // 100,
    r"is (\d+) years old\. \w+ is (\d+) years older.* in (\d+) years": lambda m: sum(map(int, m.groups())),
    r"There are (\d+) people on a \w+\. (\d+) get off and (\d+)": lambda m: int(m[1]) - int(m[2]) + int(m[3]),
    r"(\d+) \* x \+ (\d+) = (\d+)": lambda m: (int(m[3]) - int(m[2])) // int(m[1]),
    r"(\d+) metres long and (\d+) metres wide\. What is its area": lambda m: int(m[1]) * int(m[2]),
    r"has (\d+) dollars and saves (\d+) .* costs (\d+)": lambda m: (int(m[3]) - int(m[1])) // int(m[2]),
    r"recipe for (\d+) people needs (\d+) .* for (\d+) people": lambda m: int(m[2]) // int(m[1]) * int(m[3]),
}


@pytest.mark.parametrize("pattern", DERIVATIONS)
def test_arithmetic_answers_follow_from_the_question(clean: list[Row], pattern: str) -> None:
    checked = 0
    for row in of_domain(clean, "arithmetic"):
        match = re.search(pattern, row["instruction"])
        if match:
            assert int(NUMBER.findall(row["output"])[-1]) == DERIVATIONS[pattern](match), row
            checked += 1
    assert checked >= 3


EXAMPLE = re.compile(r"`(\w+\(.*\))` gives `(.*)`\.$", re.MULTILINE)


def test_python_examples_give_what_is_said(clean: list[Row]) -> None:
    checked = Counter[str]()
    for row in of_domain(clean, "python"):
        fenced = re.search(r"```python\n(.*?)\n```", row["output"], re.DOTALL)
        scope: dict[str, object] = {}
        if row["input"].endswith(")") and "\n\nprint(" in row["input"]:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(row["input"], scope)
            assert row["output"].startswith(f"It prints `{printed.getvalue().rstrip()}`"), row
            checked["predict"] += 1
            continue
        exec(fenced[1] if fenced else row["input"], scope)
        example = EXAMPLE.search(row["output"])
        assert example, row
        assert repr(eval(example[1], scope)) == example[2], row
        checked["write" if fenced else "explain"] += 1
    assert min(checked.values()) >= 50 and len(checked) == 3


TRANSFORMS = {
    r"^Sort these words alphabetically": lambda s: ", ".join(sorted(s.split(", "), key=str.lower)),
    r"^Reverse the order of this list": lambda s: ", ".join(reversed(s.split(", "))),
    r"capital letters\.$|upper case\.$": lambda s: s.upper(),
    r"from smallest to largest": lambda s: ", ".join(map(str, sorted(map(int, s.split(", "))))),
    r"^Count the words|^How many words": lambda s: f"The sentence has {len(s.split())} words.",
    r"^Join the words with hyphens": lambda s: s.replace(", ", "-"),
}


@pytest.mark.parametrize("pattern", TRANSFORMS)
def test_transformations_are_right(clean: list[Row], pattern: str) -> None:
    checked = 0
    for row in of_domain(clean, "transform"):
        ask, _, inline = row["instruction"].partition("\n")
        if re.search(pattern, ask):
            assert row["output"] == TRANSFORMS[pattern](row["input"] or inline), row
            checked += 1
    assert checked >= 1


def run(out: Path, seed: int) -> None:
    script = ROOT / "scripts" / "make_demo.py"
    subprocess.run([sys.executable, str(script), "--out", str(out), "--seed", str(seed)], check=True, timeout=60)


def test_the_script_reproduces_the_files(tmp_path: Path) -> None:
    run(tmp_path / "same", 0)
    for name in FILES:
        assert (tmp_path / "same" / name).read_bytes() == (path("demo") / name).read_bytes(), name
    run(tmp_path / "other", 1)
    assert (tmp_path / "other" / "train.jsonl").read_bytes() != (path("demo") / "train.jsonl").read_bytes()
