"""Every comparison and study that is shipped can start: its methods, parameters, roles and budgets are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from instdiff.budget import parse_budget
from instdiff.comparison import Comparison
from instdiff.config.base import load
from instdiff.config.compare import CompareConfig
from instdiff.contest import named
from instdiff.core import Settings
from instdiff.data import load as load_data
from instdiff.progress import Quiet
from instdiff.store import Store

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("configs/compare/*.yaml"), *ROOT.glob("configs/studies/*.yaml")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_starts(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load(CompareConfig, path, {"output": str(tmp_path / "run")})
    named(config)
    assert config.train.learning_rate == 1e-3  # a model this small learns nothing at the paper's rate
    pool = load_data("builtin:demo", limit=20)

    def judge(*_: object) -> list[object]:
        return []

    made = Comparison(
        config, tmp_path, pool, pool, None, Settings(), Store(str(tmp_path)), judge, print, Quiet()  # type: ignore[arg-type]
    )  # fmt: skip
    cells = list(made.cells())
    assert len({cell.place for cell in cells}) == len(cells)
    assert {"base", "random"} <= {cell.line for cell in cells}
    for cell in cells[1:]:
        parse_budget(cell.budget)
        assert made.method(cell.line, 0).params() is not None
