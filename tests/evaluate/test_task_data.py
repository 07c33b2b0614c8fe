"""The files of benchmarks: where they are found, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instdiff.errors import DataError
from instdiff.evaluation.task_data import find_file, locate, read_rows, split_slice


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"a": 1}\n')


def test_a_file_is_found_by_the_first_of_its_names(tmp_path: Path) -> None:
    touch(tmp_path, "GSM8K.json", "gsm8k.jsonl", "gsm8k.txt", "math/aime__test.jsonl.gz", "b/koala.csv", "a/koala.csv")
    assert find_file(tmp_path, ["gsm8k"]) == tmp_path / "gsm8k.jsonl"  # before what has to be read as a whole
    assert find_file(tmp_path, ["none", "gsm8K.json"]) == tmp_path / "gsm8k.jsonl"  # whatever its ending and case
    assert find_file(tmp_path, ["aime__test"]) is None
    assert find_file(tmp_path, ["math/aime__test"]) == tmp_path / "math" / "aime__test.jsonl.gz"
    assert find_file(tmp_path, ["koala", "*/koala"]) == tmp_path / "a" / "koala.csv"
    assert find_file(tmp_path, ["*/*oal?.jsonl"]) == tmp_path / "a" / "koala.csv"
    assert find_file(tmp_path / "none", ["gsm8k"]) is None


def test_the_file_that_is_given_goes_first(tmp_path: Path) -> None:
    touch(tmp_path, "arc.jsonl", "mine.jsonl")
    mine = str(tmp_path / "mine.jsonl")
    assert locate("arc", ["arc"], str(tmp_path), {}) == str(tmp_path / "arc.jsonl")
    assert locate("arc", ["arc"], str(tmp_path), {"arc": mine}) == mine
    assert locate("arc", ["arc"], None, {"arc": f"{mine}[3:]"}) == f"{mine}[3:]"
    assert locate("arc", ["arc"], None, {}) is None and locate("arc", ["ark"], str(tmp_path), {}) is None
    with pytest.raises(DataError, match=r"file of task 'arc' is not there: no file '/no/such'; check data\.arc"):
        locate("arc", ["arc"], None, {"arc": "/no/such"})


def test_rows_with_their_lines(tmp_path: Path) -> None:
    rows = [{"a": number} for number in range(5)]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)).replace('{"a": 2}', '\n{"a": 2}'))
    (tmp_path / "array.json").write_text(json.dumps(rows))
    (tmp_path / "object.json").write_text(json.dumps({"canary": "x", "examples": rows}))
    assert read_rows(tmp_path / "lines.jsonl") == list(zip([1, 2, 4, 5, 6], rows, strict=True))
    assert read_rows(tmp_path / "array.json") == read_rows(tmp_path / "object.json") == list(enumerate(rows, 1))
    assert [row for _, row in read_rows(f"{tmp_path / 'object.json'}[-2:]")] == rows[-2:]
    assert split_slice("a[1:]") == (Path("a"), slice(1, None))
    touch(tmp_path, "b[1:2]")
    assert split_slice(str(tmp_path / "b[1:2]")) == (tmp_path / "b[1:2]", slice(None))
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n[]\n')
    with pytest.raises(DataError, match=r"broken\.jsonl:2: .*; correct the file"):
        read_rows(tmp_path / "broken.jsonl")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json"):
        read_rows(tmp_path / "broken.json")
