"""Real files, of which only counts and shapes are asserted."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from instdiff.data import load

pytestmark = pytest.mark.shared_data


def test_alpaca_union(shared: Path) -> None:
    path = shared / "alpaca" / "alpaca_union.json"
    begin = time.perf_counter()
    pool = load(path)
    # Loading takes a second; ten times that would be another algorithm.
    assert time.perf_counter() - begin < 10
    assert (len(pool), pool.format, pool.rejected) == (20_678, "alpaca", ())
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert pool.source_rows(range(len(pool))) == rows
    assert [(s.instruction, s.input, s.response) for s in pool.samples()] == [
        (row["instruction"], row["input"], row["output"]) for row in rows
    ]
    assert sum("cherry5" in sets for sets in pool.column("sets")) == sum("cherry5" in row["sets"] for row in rows) > 0


@pytest.mark.parametrize(
    ("name", "count", "form"),
    [
        ("gsm8k/train.jsonl", 7473, "question_answer"),
        ("alpaca/filtered_alpaca_1k_longest.json", 1000, "sharegpt"),
        ("dolly/dolly_3k.json", 2996, "alpaca"),
        ("llamafactory_demo/identity.json", 91, "alpaca"),
        ("code_alpaca/new_codealpaca.json", None, "alpaca"),
    ],
)
def test_counts(shared: Path, name: str, count: int | None, form: str) -> None:
    pool = load(shared / name)
    assert (pool.format, pool.rejected) == (form, ())
    assert count is None or len(pool) == count
    assert all(sample.instruction for sample in pool.samples())


def test_glaive_has_calls_and_tools(shared: Path) -> None:
    pool = load(shared / "llamafactory_demo" / "glaive_toolcall_en_demo.json")
    turns = [message for sample in pool.samples() for message in sample.messages]
    assert Counter(turn.role for turn in turns) == {"user": 746, "assistant": 957, "tool": 211}
    assert sum(turn.only_calls for turn in turns) == 211
    with_tools = [sample for sample in pool.samples() if sample.tools]
    assert 0 < len(with_tools) <= 300
    assert all(isinstance(json.loads(sample.tools), list) for sample in with_tools)


def test_parts_of_llamafactory_v1(shared: Path) -> None:
    pool = load(shared / "llamafactory_demo" / "v1_sft_demo.jsonl")
    assert (len(pool), pool.format) == (500, "messages")
    assert pool.sample(0).instruction == "hi"
    assert pool.sample(499).instruction == "List three features of the moon."


def test_lima_prompts(shared: Path) -> None:
    pool = load(shared / "sft_testsets" / "lima_test_set.jsonl")
    assert (len(pool), pool.format) == (300, "sharegpt")
    assert [sample.instruction for sample in pool.samples()] == pool.column("conversations")
    assert all(sample.response == "" for sample in pool.samples())


def test_map_for_math(shared: Path) -> None:
    pool = load(shared / "math" / "math.8k.json", map={"instruction": "prompt", "response": "answer"})
    assert len(pool) == 8523
    assert pool.sample(0).response == "118"


def test_medmcqa(shared: Path) -> None:
    path = shared / "med" / "medmcqa_test.jsonl"
    pool = load(path, limit=3183)
    assert (len(pool), pool.format, pool.rejected) == (3183, "medmcqa", ())
    rows = pool.source_rows(range(len(pool)))
    said = Counter(sample.response[:2] for sample in pool.samples())
    assert said == {f"{letter}.": sum(row["cop"] == at for row in rows) for at, letter in enumerate("ABCD")}
    for row, sample in zip(rows, pool.samples(), strict=True):
        options = [f"{letter}. {row[f'op{letter.lower()}']}" for letter in "ABCD"]
        assert sample.instruction == "\n".join([row["question"], *options])
        assert sample.response == options[row["cop"]]
    # That 0 is the first option shows in the explanations, most of which begin with the right letter.
    named = [re.match(r"Ans(?:wer)?\W*(?:is\W*)?([a-dA-D])\W", row["exp"] or "") for row in rows]
    agree = [sample.response[0] == m[1].upper() for sample, m in zip(pool.samples(), named, strict=True) if m]
    assert len(agree) > 400 and sum(agree) / len(agree) > 0.95
    explained = load(path, limit=3183, format="medmcqa+exp")
    assert len(explained) == 3183
    for row, short, long in zip(rows, pool.samples(), explained.samples(), strict=True):
        assert long.response == (f"{short.response}\n\n{row['exp']}" if row["exp"] else short.response)


def test_compressed_file(shared: Path) -> None:
    pool = load(
        shared / "humaneval" / "HumanEval.jsonl.gz", map={"instruction": "prompt", "response": "canonical_solution"}
    )
    assert len(pool) == 164
