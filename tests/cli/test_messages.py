"""Whatever data, a server or a model's files say, a terminal is not moved by it."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from instdiff.cli.app import render_error
from instdiff.cli.console import Console, table
from instdiff.core.display import HIDDEN, visible_json
from instdiff.errors import DataError

from .shell import cli, ok

HOSTILE = "".join(c for c in map(chr, range(0xD800)) if unicodedata.category(c) in HIDDEN) + "\U000e0001\ufeff\ud800"
OSC = "\x1b]52;c;QUJD\x07"


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(c) in HIDDEN and c not in "\n\t" for c in text)


@pytest.mark.parametrize("as_json", [False, True])
def test_no_control_or_direction_character_reaches_the_terminal(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(as_json=as_json)
    console.log(HOSTILE, step=HOSTILE)
    console.result({HOSTILE: [HOSTILE]}, HOSTILE)
    console.skipped(HOSTILE, cached=1)
    with console.task(HOSTILE, rows=1, tokens=1) as advance:
        advance(1, 1)
    print(render_error(DataError(HOSTILE), as_json=as_json), file=sys.stderr)
    said = capsys.readouterr()
    assert is_harmless(said.out) and is_harmless(said.err)
    if as_json:
        assert json.loads(said.out) == {HOSTILE: [HOSTILE]}
        assert [json.loads(line).get("message", HOSTILE)[:9] for line in said.err.splitlines()] == [HOSTILE[:9]] * 4
    assert is_harmless(table([HOSTILE], [[HOSTILE]]))


def test_json_for_a_terminal_is_the_same_value() -> None:
    value = {HOSTILE: [HOSTILE, "\ud800", "\U000e0001", "\x7f", 1.5, None]}
    for indent in (None, 2):
        assert json.loads(visible_json(value, indent)) == value
        assert is_harmless(visible_json(value, indent))


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keys.jsonl", json.dumps({OSC: 1, "q": "b"}) + "\n"),
        ("under.json", json.dumps({OSC: [{"question": "q", "answer": "a"}]})),
        ("text.json", OSC),
        ("header.csv", f"{OSC},{OSC}x\na,b\n"),
        ("twice.csv", f"{OSC},{OSC}\na,b\n"),
        ("speaker.jsonl", json.dumps({"messages": [{"role": OSC, "content": "x"}]}) + "\n"),
        ("missing.jsonl", json.dumps({"instruction": "x", OSC: "y"}) + "\n"),
    ],
)
def test_names_in_data_are_shown_and_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text, encoding="utf-8")
    ran = cli("score", "--data", name, "--method", "longest", "--output", "s.parquet", *more)
    assert ran.code == 2
    assert is_harmless(ran.err) and is_harmless(ran.out)
    assert "52;c;QUJD" in ran.err


def test_rejects_of_good_data_are_shown_and_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = json.dumps({"question": "q", "answer": "a"})
    bad = json.dumps({"question": "q", OSC: OSC})
    Path("my.jsonl").write_text("\n".join([good, bad, good]), encoding="utf-8")
    ran = ok("score", "--data", "my.jsonl", "--method", "longest", "--output", "s.parquet")
    assert "⟨U+001B⟩]52;c;QUJD⟨U+0007⟩" in ran.err
    assert is_harmless(ran.err) and is_harmless(ran.out)
