"""The reference pages equal the program and its schema."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from .pages import ROOT

COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.fixture
def tree() -> dict[str, Any]:
    from instdiff.cli.entry import app

    return app.commands


def texts() -> Iterator[tuple[str, str]]:
    yield from re.findall(r"^## instdiff (.+?)\n\n```text\n(.*?)\n```$", COMMANDS, re.S | re.M)


def test_help_texts_equal_the_programs(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a terminal of 80 columns."""
    from instdiff.cli import entry

    monkeypatch.setenv("COLUMNS", "80")
    found = dict(texts())
    below = [f"{name} {inner}" for name, one in tree.items() for inner in getattr(one, "commands", {})]
    assert found.keys() == {*tree, *below}
    for words, text in found.items():
        entry.app([*words.split(), "--help"], prog_name="instdiff", standalone_mode=False)
        assert text == stripped(capsys.readouterr().out), words


def test_the_first_help_text_is_what_a_terminal_shows() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "instdiff", "--help"], capture_output=True, text=True, check=True,
        env={"COLUMNS": "80", "PATH": ""},
    )  # fmt: skip
    shown = re.search(r"```text\n(.*?)\n```", COMMANDS, re.S)
    assert shown and shown[1] == stripped(done.stdout.replace("Usage: python -m instdiff", "Usage: instdiff"))


def stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def test_every_command_with_a_configuration_has_its_keys(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    configured = {name for name, one in tree.items() if "--config" in _options(one)}
    assert configured == reference.configured().keys()
    heads = set(re.findall(r"scripts/make_docs.py: config (.+?) -->", CONFIGURATION))
    assert heads == {*reference.PARTS, *configured} - {"plan"}
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", CONFIGURATION, re.M)
    assert len(rows) > 120 and all(kind and value and meaning for _, kind, value, meaning in rows)
    assert ("ratio" not in {row[0] for row in rows}) and "any" not in {row[1] for row in rows}


def test_every_option_is_a_key(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    for verb, kind in reference.configured().items():
        keys = {*kind.model_fields, *kind.aliases()}
        options = {flag.removeprefix("--").replace("-", "_") for flag in _options(tree[verb])}
        assert options - {"config", "set", "quiet", "json", "help"} <= keys, verb


def _options(one: Any) -> set[str]:
    params = getattr(one, "make_params", list)()
    return {flag for param in params for flag in param.opts if flag.startswith("--")}
