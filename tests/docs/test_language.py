"""Pages, help and messages are in plain English: none of the words of ``jargon.txt``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .pages import FENCE, PAGES, ROOT, prose, title

LINES = (Path(__file__).parent / "jargon.txt").read_text(encoding="utf-8").splitlines()
JARGON = {
    re.compile(word): plain for word, _, plain in (line.partition(" => ") for line in LINES if not line.startswith("#"))
}
READ = [path for path in PAGES if title(path) != "docs/log.md"]
SOURCES = sorted((ROOT / "src" / "instdiff").rglob("*.py"))


def found(text: str) -> list[str]:
    """Where a text has one of the words, with what to write instead."""
    return [
        f"'{text[max(0, hit.start() - 30) : hit.end() + 30]}': write {plain}"
        for word, plain in JARGON.items()
        for hit in word.finditer(text)
    ]


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a source; of its docstrings those that a user reads: of commands and of methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.lineno, node.value
        shown = isinstance(node, ast.ClassDef) and path.parent.name == "methods"
        shown |= isinstance(node, ast.FunctionDef) and path.parent.name == "cli" and bool(node.decorator_list)
        if shown and (text := ast.get_docstring(node)):  # type: ignore[arg-type]
            yield node.lineno, text  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", READ, ids=title)
def test_pages_have_no_jargon(path: Path) -> None:
    assert not found(re.sub(r"\s+", " ", prose(path)))


def test_messages_and_help_have_no_jargon() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {one}"
        for path in SOURCES
        for line, text in messages(path)
        for one in found(" ".join(text.split()))
        if not text.isidentifier() and "nobody" not in text.split(":")  # a key, and a user of the system
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_finds_what_it_looks_for() -> None:
    assert found("Then mend it; the two can be told apart.") == [
        "'Then mend it; the two can be told apart': write fix, correct",
        "'Then mend it; the two can be told apart.': write "
        'significantly different; "not told apart" is the word of a verdict',
    ]
    assert not found("It is not told apart from random.") and len(JARGON) > 15


LONGEST = 45
"""Words of a sentence: more are several facts."""


@pytest.mark.parametrize("path", READ, ids=title)
def test_sentences_are_short(path: Path) -> None:
    text = re.sub(r"<!-- generated.*?<!-- end -->", "", FENCE.sub("\n\n", path.read_text(encoding="utf-8")), flags=re.S)
    text = "\n".join("" if line.lstrip().startswith(("|", "#")) else line for line in text.splitlines())
    paragraphs = re.split(r"\n\s*\n|\n\s*- |\n\s*\d\. ", text)
    sentences = [one for part in paragraphs for one in re.split(r"(?<=[.:;])\s+(?=[A-Z`*\[])", " ".join(part.split()))]
    assert not [one for one in sentences if len(one.split()) > LONGEST]
