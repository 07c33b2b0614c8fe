"""A file of rejected records that was mended is an input like any other."""

from __future__ import annotations

from pathlib import Path

from .shell import ok

GOOD = '{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n'


def test_an_input_called_rejected_is_neither_removed_nor_overwritten() -> None:
    path = Path("out.rejected.jsonl")
    path.write_text(GOOD)
    ok("sample", "--data", path, "--max-samples", "1", "--output", "out.jsonl")
    assert path.read_text() == GOOD
    path.write_text(GOOD + "{broken\n")
    ok("sample", "--data", path, "--max-samples", "1", "--output", "out.jsonl")
    assert path.read_text() == GOOD + "{broken\n"
    assert "{broken" in Path("out.rejected_again.jsonl").read_text()
