"""A model of a few kilobytes whose tokens are bytes, rows to score with it, and a folder of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .shell import ROWS, make_model, write_jsonl


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "base", seed=1))


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "calibrated", seed=2))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with ``my.jsonl`` in it; the store lies elsewhere, so that stray files show."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    write_jsonl("my.jsonl", ROWS)
    yield here


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of every pass that a model really runs."""
    from instdiff.scoring.workbench import Workbench

    seen: list[tuple[int, int]] = []
    real = Workbench._sweep

    def counting(self, step, todo, measures):
        rows = self.render_for(step).tokens.take(todo)
        seen.append((len(rows), int(rows.ids.lengths().sum())))
        return real(self, step, todo, measures)

    monkeypatch.setattr(Workbench, "_sweep", counting)
    return seen
