"""The table of published defaults names methods, parameters and options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from instdiff.config.commands import ScoreConfig, SelectConfig
from instdiff.config.methods import make_method
from instdiff.methods import METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "published.md"
HEAD = ["method", "what", "ours", "paper", "published code", "restored by"]


def lines() -> list[list[str]]:
    found = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_the_table_has_its_columns() -> None:
    head, rule, *rows = lines()
    assert head == HEAD and set("".join(rule)) == {"-"}
    assert len(rows) > 30 and all(len(row) == len(HEAD) and all(row) for row in rows)


@pytest.mark.parametrize("row", lines()[2:], ids=lambda row: f"{row[0].strip('`')}: {row[1]}")
def test_what_restores_a_published_default_is_there(row: list[str]) -> None:
    name, how = row[0].strip("`"), row[-1]
    assert name in METHODS
    given = re.findall(r"`([^`]+)`", how)
    assert bool(given) is not how.startswith("none: ")
    for one in given:
        if one.startswith("--"):
            option = one.split()[0].removeprefix("--")
            assert option in SelectConfig.model_fields.keys() | ScoreConfig.model_fields.keys()
            continue
        key, _, value = one.partition("=")
        assert key in make_method(name, {}).params()
        if value != "FILE":
            text = make_method(name, {key: value}).params()[key]
            assert str(text).lower() == value and text != make_method(name, {}).params()[key]


def test_budgets_say_what_they_count() -> None:
    root = PAGE.parents[1]
    for path in sorted((root / "configs").rglob("*.yaml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"\bbudgets?: *[\[\d\"]", line):
                assert re.search(r"rows|tokens", line), f"{path.name}: {line}"
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if re.search(r"--budget \d+%(\s|$)", text):
            assert re.search(r"\d%?`? (% of|is of|of) (the|all) rows|`\d+%` of the rows|\d+% of the rows", text), (
                path.name
            )


def test_every_method_with_a_published_way_is_in_the_table() -> None:
    named = {row[0].strip("`") for row in lines()[2:]}
    official = {name for name in METHODS if "compat" in make_method(name, {}).params()}
    assert official <= named
