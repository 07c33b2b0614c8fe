"""Reading the documents: their blocks, their commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.S | re.M)


def title(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    return [text for _, name, text in FENCE.findall(path.read_text(encoding="utf-8")) if name == language]


def lines(path: Path) -> list[str]:
    """What the page's ``sh`` blocks run, a command each."""
    text = "\n".join(blocks(path, "sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def commands(path: Path) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in lines(path) if line.startswith("instdiff ")]


def shown(path: Path) -> list[list[str]]:
    """Every command of the page, also those that are only shown."""
    text = path.read_text(encoding="utf-8")
    inside = "\n".join(block for _, _, block in FENCE.findall(text))
    indented = re.findall(r"^    (instdiff .*)$", FENCE.sub("", text), re.M)
    found = [line for line in inside.replace("\\\n", " ").splitlines() if line.startswith("instdiff ")]
    return [shlex.split(line, comments=True) for line in [*found, *indented]]


def prose(path: Path) -> str:
    """The text without its blocks and without code in lines."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))


def run(*words: str) -> Any:
    """A command in this process."""
    from click.testing import CliRunner

    from instdiff.cli import entry

    return CliRunner().invoke(entry.app, list(words), prog_name="instdiff", env={"COLUMNS": "80"})
