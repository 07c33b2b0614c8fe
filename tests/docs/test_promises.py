"""What pages promise is held by a test that is there, and the files that they name are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from instdiff.evaluation.code.programs import TASKS

from .pages import ROOT, title

SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SANDBOX = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")


def test_each_promise_of_the_security_page_names_a_test() -> None:
    rows = re.findall(r"^\| (.+) \| (`tests/.+) \|$", SECURITY, re.M)
    assert len(rows) >= 15
    for promise, tests in rows:
        for place in re.findall(r"`([^`]+)`", tests):
            path, _, name = place.partition("::")
            defined = {
                node.name
                for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
                if isinstance(node, ast.FunctionDef)
            }
            assert (name in defined) if name else any(one.startswith("test_") for one in defined), promise


def test_what_the_policy_of_the_page_allows_is_told() -> None:
    page = (ROOT / "src" / "instdiff" / "reporting" / "assets" / "report.html").read_text(encoding="utf-8")
    policy = re.search(r"default-src 'none'[^\"]*", page)
    assert policy
    assert all(f"`{word}`" in SECURITY for word in re.findall(r"'unsafe-\w+'", policy[0].partition("style-src")[0]))


def test_the_limits_of_programs_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`.+`) \| (\d+) s \| (\d+) s \| (\d+) GiB \| (\d+) MiB \| (\d+) \|$", SANDBOX, re.M)
    told = {name: tuple(map(int, rest)) for names, *rest in rows for name in re.findall(r"`(\w+)`", names)}
    limits = {name: task.limits for name, task in TASKS.items()}
    assert told == {
        name: (one.cpu, one.wall, one.memory >> 30, one.disk >> 20, one.processes) for name, one in limits.items()
    }


NAMED = re.compile(r"`((?:[\w-]+/)+(?:[\w-]+\.\w+)?|[\w-]+\.(?:py|yml|yaml|md|toml))`")
PATHS = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / f"{name}.md" for name in ("architecture", "security", "sandbox"))]


@pytest.mark.parametrize("path", PATHS, ids=title)
def test_files_that_are_named_are_there(path: Path) -> None:
    places = (ROOT, ROOT / "src" / "instdiff", ROOT / "docs")
    made = {"mine.py", "config.yaml"}
    named = NAMED.findall(path.read_text(encoding="utf-8"))
    assert not [name for name in named if name not in made and not any((place / name).exists() for place in places)]
