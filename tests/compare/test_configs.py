"""Every comparison and study that is shipped can start: its methods, parameters, roles and budgets are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from instdiff.config.base import load
from instdiff.config.compare import CompareConfig
from instdiff.core import Settings
from instdiff.core.budget import parse_budget
from instdiff.core.progress import Quiet
from instdiff.data import load as load_data
from instdiff.experiments.compare import Comparison, check_named
from instdiff.store import Store

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted(ROOT.glob("configs/papers/*.yaml"))
TWINS = [path.parent / "small" / path.name for path in PAPERS]
FILES = sorted([*ROOT.glob("configs/compare/*.yaml"), *ROOT.glob("configs/studies/*.yaml"), *PAPERS, *TWINS])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_starts(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load(CompareConfig, path, {"output": str(tmp_path / "run")})
    check_named(config)
    if (config.model or "").startswith("builtin:"):
        assert config.train.learning_rate == 1e-3  # a model this small learns nothing at the paper's rate
    pool = load_data("builtin:demo", limit=20)
    pool = pool.with_column(config.by, ["a"] * len(pool)) if config.by else pool

    made = Comparison(
        config, tmp_path, pool, pool, None, Settings(), Store(str(tmp_path)), None, [], print, Quiet()
    )  # fmt: skip
    cells = list(made.cells())
    assert len({cell.place for cell in cells}) == len(cells)
    assert {"base", "random"} <= {cell.line for cell in cells}
    for cell in cells[1:]:
        parse_budget(cell.budget)
        assert made.method(cell.line, 0).params() is not None


def test_budget_curves() -> None:
    config = load(CompareConfig, ROOT / "configs" / "compare" / "budgets.yaml", {})
    shares = [parse_budget(budget) for budget in config.budgets]
    assert [round(100 * one.amount) for one in shares] == [1, 5, 10, 20, 50]
    assert {one.kind for one in shares} == {"token_share"} and len(config.seeds) >= 3


REAL = sorted([*ROOT.glob("configs/compare/flawed*.yaml"), ROOT / "configs/compare/clean.yaml"])


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_rows_are_compared_on_equal_terms(path: Path) -> None:
    config, flawed = load(CompareConfig, path, {}), path.stem != "clean"
    told = config.train.num_train_epochs, config.train.learning_rate, config.train.global_batch_size
    assert (told, config.budgets, config.max_length) == ((2, 1e-4, 8), ("10% tokens",), 512)
    assert config.records and config.by == ("flaw" if flawed else "source")
    assert any((one.method or name) == "oracle" for name, one in config.lines().items()) == flawed
    assert config.eval["suite"] == (["math"] if path.stem == "flawed_answers" else ["heldout"])


AXES = {
    "instructdiff": {
        "band": {"min", "mid", "max"}, "nll_reject_ratio": {0.0}, "warmup": {"1%", "5%", "20%"},
        "limit": {500, 1000}, "models": None,
    },
    "miwv": {"shots": {2, 3}, "retrieval": {"bm25", "random"}, "train_from": {"last"}, "models": None},
    "tshirt": {
        "k": {25, 75, 100}, "draws": {5, 10, 30}, "alpha": {1.0, 10.0}, "gamma": {1.5, 4.0}, "hierarchical": {False},
        "variance": {"high"},
    },
    "mads": {"quantile": {0.9, 0.99}, "layers": {"spread", "diverse"}, "models": None},
}  # fmt: skip
"""What each study turns; the default is a line of its own. None: some value."""


@pytest.mark.parametrize("name", AXES)
def test_a_study_turns_every_axis(name: str) -> None:
    config = load(CompareConfig, ROOT / "configs" / "studies" / f"{name}.yaml", {})
    for axis, wanted in AXES[name].items():
        lines = [line.params.get(axis, getattr(line, axis, None)) for line in config.lines().values()]
        values = [value for value in lines if value is not None and value != {}]
        assert values if wanted is None else wanted <= set(values), axis
