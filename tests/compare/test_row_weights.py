"""Lines whose rows weigh by a detail of their method in training; what is kept, resumed and planned knows of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.shell import read_jsonl, write_jsonl
from compare.test_compare import TRAIN
from compare.test_side_by_side import config
from helpers import WORDS, make_llama
from instdiff.config.base import build
from instdiff.config.commands import PipelineConfig
from instdiff.config.compare import CompareConfig
from instdiff.core import ModelRef
from instdiff.core.files import read_json
from instdiff.core.progress import Quiet
from instdiff.data import load
from instdiff.experiments.compare import Comparison, open_comparison
from instdiff.experiments.cost import plan_run
from instdiff.experiments.engine import mark_of
from instdiff.experiments.run_folder import Cell, CellResult

LINES: dict[str, Any] = {
    "lark": {"best": 2, "per": "prompt 3"},
    "plain": {"method": "lark", "best": 2, "per": "prompt 3", "weights": "none"},
}
LARK, PLAIN = (Cell(name, "100%", 0) for name in LINES)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("weights")
    rows = [
        {"instruction": f"why {n % 4}", "output": f"the sky is {w} {n}", "much": n} for n, w in enumerate(WORDS[:8] * 2)
    ]
    write_jsonl(home / "pool.jsonl", rows)
    write_jsonl(home / "held.jsonl", [{"instruction": "why 9", "output": f"the sky is {word}"} for word in WORDS[:4]])
    make_llama(home / "base", chat=None, num_hidden_layers=1)
    return home


def opened(home: Path, place: Path, said: list[str] | None = None, **changes: Any) -> Comparison:
    given = {"method": LINES, "budgets": ["100%"], "seeds": [0], "baselines": [], "cells_at_once": 1, **changes}
    return open_comparison(config(home, place / "run", **{"keep_models": True, **given}), (said or []).append, Quiet())


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    place = tmp_path_factory.mktemp("whole")
    ran(opened(home, place, records=str(place / "records")))
    return place


def ran(run: Comparison) -> dict[str, CellResult]:
    found = {one.cell.line: one for one in run.run()}
    assert all(one.error is None for one in found.values()), [one.error for one in found.values()]
    return found


def model_of(place: Path, line: str) -> Path:
    run = place / "run"
    (record,) = (run / "cells" / line).rglob("round_1/model.json")
    return Path(run / read_json(record)["model"])


def test_the_methods_weights_are_trained_with(whole: Path) -> None:
    (record,) = (read_json(path) for path in (whole / "run/cells/lark").rglob("round_1/selection.json"))
    weights = np.array(record["row_weights"])
    assert record["weights"] == "lark.weight" and len(weights) == len(record["ids"]) == 12
    assert weights.sum() == pytest.approx(4) and (weights > 0).sum() == 8, "two of each of four prompts"
    (rows,) = (read_jsonl(path) for path in (whole / "run/cells/lark").rglob("round_1/selected.jsonl"))
    assert [row["weight"] for row in rows] == record["row_weights"]
    (plain,) = (read_json(path) for path in (whole / "run/cells/plain").rglob("round_1/selection.json"))
    assert plain["ids"] == record["ids"] and "weights" not in plain and "row_weights" not in plain
    settings = {line: read_json(model_of(whole, line) / "training.json")["settings"] for line in LINES}
    assert settings["lark"]["weights"] == "weight" and "weights" not in settings["plain"]
    assert {**settings["plain"], "weights": "weight"} == settings["lark"]
    losses = [read_json(model_of(whole, line) / "training.json")["losses"] for line in LINES]
    assert losses[0] != losses[1] and model_of(whole, "lark") != model_of(whole, "plain")


def test_a_run_goes_on_with_them(home: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "again")
    place = tmp_path / "again"
    model, cell = model_of(place, "lark"), next((place / "run/cells/lark").rglob("cell.json")).parent
    before, losses = read_json(cell / "heldout.json")["items"], read_json(model / "training.json")["losses"]
    rows = next(cell.rglob("selected.jsonl"))
    written = rows.read_bytes()
    shutil.rmtree(model)
    for path in (cell / "cell.json", cell / "heldout.json"):
        path.unlink()
    rows.write_text("{}\n")
    ran(opened(home, place))
    assert read_json(model / "training.json")["losses"] == losses and rows.read_bytes() == written
    assert read_json(cell / "heldout.json")["items"] == before


def test_a_cell_is_kept_with_them(home: Path, whole: Path, tmp_path: Path) -> None:
    run = opened(home, tmp_path, records=str(whole / "records"))
    assert run.is_done(LARK) and run.is_done(PLAIN)
    assert run.made_of(LARK)["weights"] == "weight" and "weights" not in run.made_of(PLAIN)
    other = opened(
        home, tmp_path / "other", records=str(whole / "records"), method={"lark": {**LINES["lark"], "weights": "none"}}
    )
    assert not other.is_done(LARK)
    assert other.records is not None
    assert "weights='weight', now it is None" in str(other.records.fit(LARK, other.made_of(LARK)))


def test_a_plan_of_a_finished_run_trains_nothing(home: Path, whole: Path) -> None:
    run = opened(home, whole, records=str(whole / "records"))
    assert plan_run(run.config, log=print).stages == []  # type: ignore[arg-type]


def test_a_column_of_the_data_belongs_to_what_a_training_is_made_of(home: Path, tmp_path: Path) -> None:
    train = {**TRAIN, "weights": "much"}
    run = opened(home, tmp_path, train=train)
    assert run.weights(LARK) is None and run.config.train.weights == "much", "a column that is named goes first"
    first, pool = run.made_of(LARK), load(str(home / "pool.jsonl"))
    more = pool.with_column("much", [n + 1 for n in range(len(pool))])
    assert more.ids == pool.ids and more.column("much")[:2] == [1, 2]
    more.to_jsonl(tmp_path / "more.jsonl")
    second = opened(home, tmp_path / "more", train=train, data=str(tmp_path / "more.jsonl")).made_of(LARK)
    assert {key for key in first if first[key] != second[key]} == {"columns"}
    marks = {mark_of(one, ModelRef("base"), run.config.train, 0) for one in (pool, more)}
    assert len(marks) == 2


def test_rows_that_weigh_nothing_are_told(home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = opened(home, tmp_path)
    run.log = said.append
    run.select(LARK, 1, run.roles_of(run.variants["lark"]))
    assert "warning: 4 of 12 selected rows have the weight 0, so training learns nothing from them" in said


def test_weights_of_a_blend_are_its_own() -> None:
    blend = {"method": "blend", "of": ["longest", "random"], "weights": [2, 1]}
    lines = build(CompareConfig, {"method": {"both": blend, "lark": {"weights": "none"}}}, "test").method
    assert lines["both"].params["weights"] == [2, 1] and lines["both"].weights is None
    assert lines["lark"].weights == "none" and lines["lark"].params == {}
    assert build(PipelineConfig, {"select": blend}, "test").select.params["weights"] == [2, 1]
    given = build(PipelineConfig, {"method": "lark", "weights": "lark.weight"}, "test").select
    assert (given.method, given.weights, given.params) == ("lark", "lark.weight", {})
