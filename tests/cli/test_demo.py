"""The first command of the README: embedded rows and model, and a page at the end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .shell import ok

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def shape(text: str) -> list[list[str]]:
    """Its words line by line, without the numbers and the verdicts, which are the machine's."""
    words = re.sub(r"not told apart|too few seeds|better|worse|[-+]?\d[\d.,]*|[\[\],-]+", " ", text)
    return [line.split() for line in words.splitlines()]


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_page(tmp_path: Path) -> None:
    for name, extra in (("trl", "train"), ("plotly", "report")):
        pytest.importorskip(name, reason=f'{name} is missing; it comes with pip install "instdiff[{extra}]"')
    first = ok("demo")
    printed = re.search(r"```sh\ninstdiff demo\n```\n\n```text\n(.*?)```", README, re.S)
    assert printed and shape(first.out) == shape(printed[1])
    assert len(first.out.splitlines()) <= 10
    facts = json.loads(Path("instdiff-demo/comparison.json").read_text())
    seeds = {line["name"]: line["seeds"] for line in facts["lines"]}
    assert seeds == {"base": 1, "random": 3, "longest": 3, "ifd": 3}
    assert Path("instdiff-demo/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert ok("demo").out == first.out  # and computes nothing again
