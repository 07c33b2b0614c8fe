"""A search over planted scores: what it sees, what it never sees, what it costs, and going on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.shell import write_jsonl
from helpers import make_llama, some_rows
from instdiff.cli.compare import leak_parts
from instdiff.config.base import build, load
from instdiff.config.evaluate import EvalConfig
from instdiff.config.kinds import kind_of
from instdiff.config.methods import make_method
from instdiff.config.search import SearchConfig, built_in_recipes
from instdiff.core import ModelRef, Settings
from instdiff.core.files import read_json
from instdiff.core.progress import Quiet
from instdiff.data import Pool
from instdiff.data import load as load_data
from instdiff.errors import ConfigError, DataError, EngineError
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.subject import BenchmarkItem, Subject
from instdiff.experiments.engine import Engine
from instdiff.experiments.halving import half
from instdiff.experiments.inputs import hold_out
from instdiff.experiments.items import read_items
from instdiff.experiments.search import SearchRun, find_recipe, open_search
from instdiff.experiments.tables import bracket_rows, leak_rows
from instdiff.methods import METHODS
from instdiff.reporting.sources import gather
from instdiff.store import Store

ROOT = Path(__file__).resolve().parents[2]
IDS = [f"item {n}" for n in range(60)]
UNSEEN = set(half(TaskResult("t", "m", IDS, np.zeros(60)), True).ids)
RECIPES = {"longest": {}, "ifd": {}, "short": {"method": "perplexity"}, "again": {"method": "instructdiff"}}
Effects = dict[str, tuple[float, float]]
"""Of lines what they add to an item of the half that is seen, and of the other."""


@dataclass(frozen=True)
class Planted:
    """A suite whose scores are known by line."""

    effects: Effects
    noise: float = 0.01
    fails: str = "nobody"
    name: str = "planted"
    asks: tuple[str, ...] = ()

    def items(self, log: Any) -> list[BenchmarkItem]:
        texts = [self.asks[at] if at < len(self.asks) else f"nobody asks for the {name}" for at, name in enumerate(IDS)]
        return [BenchmarkItem("points", name, text) for name, text in zip(IDS, texts, strict=True)]

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        if subject.name.startswith(self.fails):
            raise EngineError("no answer")
        line, seed = subject.name.split()[0], re.search(r"seed (\d+)", subject.name)
        seen, untouched = self.effects.get(line, (0.0, 0.0))
        rng = np.random.default_rng([int(seed[1]) if seed else 0])  # the same for all lines
        score = rng.normal(0, self.noise, len(IDS)) + [untouched if name in UNSEEN else seen for name in IDS]
        return (TaskResult("points", "points", IDS, score),)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("search")
    write_jsonl(home / "pool.jsonl", some_rows(30, seed=3))
    make_llama(home / "base", chat=None, num_hidden_layers=1)
    return home


class Trainings(list[tuple[Any, ...]]):
    """The rows and seeds of every training, which does nothing; ``last`` is the number of the one that is killed."""

    last = -1

    def train(
        self, engine: Engine, rows: Pool, start: ModelRef, how: Any, seed: int, name: Any, beside: Any = None
    ) -> Any:
        if len(self) == self.last:
            raise KeyboardInterrupt
        self.append((tuple(rows.ids), seed, beside is not None))
        return start, {"steps": 1, "train_s": 2.0, "train_tokens": 10, "model": "none"}

    @property
    def of_cells(self) -> list[tuple[Any, ...]]:
        return [one for one in self if one[2]]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    kept = Trainings()
    monkeypatch.setattr(Engine, "train", lambda engine, *args, **more: kept.train(engine, *args, **more))
    return kept


Make = Callable[..., SearchRun]


@pytest.fixture
def make(home: Path, tmp_path: Path, trainings: Trainings) -> Make:
    pool = load_data(str(home / "pool.jsonl"))

    def made(effects: Effects, folder: str = "run", log: Any = None, **changes: Any) -> SearchRun:
        planted = Planted(effects, **{key: changes.pop(key) for key in ("noise", "fails", "asks") if key in changes})
        values = {
            "data": str(home / "pool.jsonl"), "model": str(home / "base"), "output": str(tmp_path / folder),
            "recipes": RECIPES, "budget": "25% tokens", "trainings": 15, "final_seeds": 3, "cells_at_once": 1,
            "warmup": {"sample_size": 8}, **changes,
        }  # fmt: skip
        config = build(SearchConfig, values, "test")
        settings = Settings(max_length=200, dtype="float32", device="cpu")
        return SearchRun(
            config, tmp_path / folder, pool, pool, None, settings, Store(str(tmp_path / "store")),
            EvalConfig(device="cpu"), [planted], log or (lambda line, **facts: None), Quiet(),
        )  # fmt: skip

    return made


GOOD: Effects = {"longest": (0.2, 0.2), "ifd": (0.9, 0.5), "short": (0.5, 0.7), "again": (-1.0, 0.0)}


def test_the_best_recipe_and_its_optimism(make: Make, trainings: Trainings) -> None:
    run = make(GOOD)
    found = find_recipe(run)
    assert found["recommended"] == found["best"] == "ifd" and found["recipe"] == {"method": "ifd"}
    assert found["gain_seen"] == pytest.approx(0.9) and found["gain_untouched"] == pytest.approx(0.5)
    assert found["optimism"] == pytest.approx(0.4)
    final = found["final"]
    assert final["verdict"] == "better" and final["diff"] == pytest.approx(0.5)
    assert final["diff_low"] < 0.5 < final["diff_high"] and final["items"] == len(UNSEEN) and final["seeds"] == 3
    assert found["sentence"].startswith("Choose rows by ifd: a points of ")
    assert "the search took 14 trainings and " in found["sentence"]
    assert f"on {len(UNSEEN)} items that the search never saw, with 3 seeds each" in found["sentence"]
    kept = [[one["name"] for one in rung["recipes"] if one["kept"]] for rung in found["rungs"]]
    assert kept == [["ifd", "short"], ["ifd"]]
    # Five in the first rung, three in the second, and twice three in the end.
    assert found["cost"]["trainings"] == len(trainings.of_cells) == 14 <= run.config.trainings
    assert read_json(run.places.search)["sentence"] == found["sentence"]
    comparison = read_json(run.places.comparison)
    assert comparison["verdicts"] == found["told"] and {one["name"] for one in comparison["lines"]} == {"random", "ifd"}
    cells, _ = read_items(run.places.search_items)
    items = {name for one in cells for result in one.results for name in result.tasks[0].ids}
    assert items == set(IDS) - UNSEEN
    cells, _ = read_items(run.places.items)
    assert {name for one in cells for name in one.results[0].tasks[0].ids} == UNSEEN
    header, rows = bracket_rows(found)
    assert header == ["recipe", "rung 1 (1 seed)", "rung 2 (2 seeds)", "untouched half", "95 % interval"]
    assert [row[0] for row in rows] == ["ifd", "short", "longest", "again"]
    assert rows[0][3] == pytest.approx(0.5) and rows[2][2] is None


def test_rows_that_ask_what_items_ask(make: Make, home: Path, tmp_path: Path) -> None:
    """Every item asks what a row of the pool asks; those of the untouched half count."""
    asked = [row["instruction"] for row in some_rows(30, seed=3)]
    run = make(GOOD, asks=tuple(asked * 2))
    found = find_recipe(run)
    leaks = {line["name"]: line for line in found["leaks"]["lines"]}
    assert set(leaks) == {"random", "ifd"} and found["leaks"]["against"] == "random"
    assert leaks["ifd"]["items"] == len(UNSEEN) and 0 < leaks["ifd"]["items_hit"] <= len(UNSEEN)
    assert leaks["ifd"]["rows"] > 0 and leaks["ifd"]["diff"] == pytest.approx(0.5)
    assert read_json(run.places.search)["leaks"] == read_json(run.places.comparison)["leaks"] == found["leaks"]
    assert "## Overlap with the evaluation" in run.places.comparison.with_suffix(".md").read_text()
    assert gather(run.folder).leaks == found["leaks"]
    (row,) = [row for row in leak_rows(found["leaks"])[1] if row[0] == "ifd"]
    assert row[4] == f"{leaks['ifd']['items_hit']} of {len(UNSEEN)}"
    assert any("look at the difference without them" in part for part in leak_parts(found))
    assert "leaks" not in find_recipe(make(GOOD, "off", leaks=False))
    stopped = find_recipe(make(dict.fromkeys(RECIPES, (-0.5, 1.0)), "stopped", asks=tuple(asked * 2)))
    assert {line["items"] for line in stopped["leaks"]["lines"]} == {60 - len(UNSEEN)}


def test_the_untouched_half_decides_nothing_in_the_search(make: Make) -> None:
    other = {line: (seen, -untouched) for line, (seen, untouched) in GOOD.items()}
    one, two = find_recipe(make(GOOD)), find_recipe(make(other, "other"))
    assert one["rungs"] == two["rungs"] and one["best"] == two["best"] == "ifd"
    assert two["final"]["verdict"] == "worse" and two["recommended"] == "random"
    assert two["sentence"].startswith(
        "Random rows are the better choice: ifd, the best of 4 recipes, is worse: a points"
    )
    assert two["optimism"] == pytest.approx(1.4)


def test_a_recipe_that_is_not_told_apart_is_not_recommended(make: Make) -> None:
    found = find_recipe(make({"ifd": (0.3, 0.0)}))
    assert found["best"] == "ifd" and found["recommended"] == "random" and found["recipe"] == {"method": "random"}
    assert "is not told apart from them" in found["sentence"]


def test_it_stops_where_no_recipe_beats_random(make: Make, trainings: Trainings) -> None:
    found = find_recipe(make(dict.fromkeys(RECIPES, (-0.5, 1.0))))
    assert found["stopped"] and found["final"] is None and "optimism" not in found
    assert found["sentence"].startswith(
        "Random rows are the better choice: none of 4 recipes beats them, the best, longest, by -0.500 with 2 seeds"
    )
    assert len(trainings.of_cells) == 8  # no last judgement


def test_one_warm_up_serves_all_seeds(make: Make, trainings: Trainings) -> None:
    find_recipe(make({"again": (1.0, 1.0)}))
    warm_ups = [one[:2] for one in trainings if not one[2]]
    assert len(set(warm_ups)) == 1
    assert {seed for _, seed, _ in trainings.of_cells} == {42, 43, 1042, 1043, 1044}


def test_what_was_killed_goes_on(make: Make, trainings: Trainings) -> None:
    whole = find_recipe(make(GOOD, "whole"))
    trained = trainings.of_cells.copy()
    trainings.clear()
    trainings.last = 7
    with pytest.raises(KeyboardInterrupt):
        find_recipe(make(GOOD))
    trainings.last = -1
    assert find_recipe(make(GOOD))["rungs"] == whole["rungs"]
    assert sorted(trainings.of_cells) == sorted(trained)
    trainings.clear()
    assert find_recipe(make(GOOD))["final"]["diff"] == whole["final"]["diff"]
    assert not trainings


def test_what_is_ahead(make: Make) -> None:
    def lines(run: SearchRun) -> list[str]:
        return [f"{cell.line} {cell.seed}" for cell in run.look_ahead().wanted]

    before = lines(make(GOOD))
    first = [f"{name} 42" for name in ("random", "longest", "ifd", "short", "again")]
    assert before[:5] == first and len(before) == 14
    assert before[5:8] == ["random 43", "longest 43", "ifd 43"]  # the first stand for the better half
    assert before[8:10] == ["random 1042", "longest 1042"]
    find_recipe(make(GOOD))
    after = lines(make(GOOD))
    assert after[5:8] == ["random 43", "ifd 43", "short 43"] and after[9] == "ifd 1042"
    assert lines(make(dict.fromkeys(RECIPES, (-1.0, 0.0)), "other")) == before
    find_recipe(make(dict.fromkeys(RECIPES, (-1.0, 0.0)), "other"))
    assert len(lines(make({}, "other"))) == 8


def test_more_trainings_add_seeds_and_keep_what_is_there(make: Make, trainings: Trainings) -> None:
    find_recipe(make(GOOD))
    before = trainings.of_cells.copy()
    found = find_recipe(make(GOOD, trainings=18))
    assert [rung["seeds"] for rung in found["rungs"]] == [1, 3]
    assert trainings.of_cells[: len(before)] == before and len(trainings.of_cells) == 17


def test_what_fails(make: Make) -> None:
    found = find_recipe(make(GOOD, fails="ifd"))
    assert found["best"] == "short" and found["rungs"][0]["failed"] == ["ifd"]
    with pytest.raises(EngineError, match="random 25% tokens seed 42, which all recipes are compared with, failed: no"):
        find_recipe(make(GOOD, "random", fails="random"))
    with pytest.raises(EngineError, match="ifd 25% tokens seed 1042 failed, so that the recipe cannot be judged"):
        find_recipe(make(GOOD, "final", fails="ifd 25% tokens seed 10"))
    with pytest.raises(ConfigError, match="'decide' names 'point', which no suite has; did you mean 'points'"):
        find_recipe(make(GOOD, "task", decide="point"))


# ── configuration ─────────────────────────────────────────────────────────────────────────────────────────────────────


def configured(**values: Any) -> SearchConfig:
    return build(SearchConfig, {"data": "d", "model": "m", **values}, "test")


def test_recipes_that_cannot_be() -> None:
    for name in ("random", "base"):
        with pytest.raises(ConfigError, match=f"'{name}' is always there"):
            configured(recipes={name: {}})
    with pytest.raises(ConfigError, match="'ifd' has seeds of its own"):
        configured(recipes={"ifd": {"seeds": [1]}})
    assert list(configured(recipes="ifd,longest").lines()) == ["random", "ifd", "longest"]


def test_built_in_recipes_are_methods() -> None:
    known = built_in_recipes(configured(group_by="source"))
    for name, recipe in known.items():
        assert make_method(recipe.method or name, recipe.params, 0).name
    assert {"random_by_source", "perplexity_mid_by_source", "instructdiff"} < set(known)
    assert ("learnability" in known) == ("learnability" in METHODS)
    plain = built_in_recipes(configured(trained_scorers=False))
    assert not {"instructdiff", "learnability", "random_by_source"} & set(plain) and len(plain) == 10


def test_built_in_recipes_fit_the_trainings(home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    values = {"data": str(home / "pool.jsonl"), "model": str(home / "base"), "output": str(tmp_path / "run")}
    config = build(SearchConfig, {**values, "eval": {"data": str(home / "pool.jsonl")}, "trainings": 22}, "test")
    run = open_search(config, said.append, Quiet(), claim=False)
    assert list(run.config.recipes) == list(built_in_recipes(config))[:7]
    (line,) = [line for line in said if "left out" in line]
    assert line.startswith("22 trainings are enough for 7 recipes; left out: ")
    assert not (tmp_path / "run").exists()
    opened = open_search(config, said.append, Quiet())
    (opened.folder / "cells").mkdir()
    more = open_search(config.model_copy(update={"trainings": 40, "final_seeds": 6}), said.append, Quiet())
    assert more.config.recipes == opened.config.recipes and more.config.trainings == 40


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/search/*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_of_searches(path: Path, tmp_path: Path) -> None:
    import yaml

    assert kind_of(yaml.safe_load(path.read_text()), str(path)) is SearchConfig
    config = load(SearchConfig, path, {"output": str(tmp_path)})
    run = open_search(config, lambda line: None, Quiet(), claim=False)
    assert run.rungs and set(run.config.lines()) == {"random", *run.config.recipes}


def test_rows_are_held_out_where_none_are_named(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n % 350}.", "output": f"It is {n % 350}."} for n in range(400)]  # 50 are copies
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pool, said = load_data(str(tmp_path / "rows.jsonl")), list[str]()
    usual: dict[str, Any] = {"suite": ["heldout"], "data": None}
    (kept, warmup, _), held = hold_out(configured(), (pool, pool, None), usual, said.append)
    assert held is not None and 20 < len(held) < 60 and len(kept) + len(held) == 400
    assert not set(kept.ids) & set(held.ids) and list(warmup.ids) == list(kept.ids)
    assert said == [line for line in said if line.startswith(f"no held-out rows are named: {len(held)} rows")]
    few = hold_out(configured(heldout=8), (pool, pool, None), usual, said.append)[1]
    assert few is not None and 1 <= len(few) < 20 and set(few.ids) < set(held.ids)
    for given in ({"data": "x"}, {"data_path": "x"}, {"suite": "math"}):
        assert hold_out(configured(eval=given), (pool, pool, None), usual, print) == ((pool, pool, None), None)
    with pytest.raises(DataError, match="2 rows are too few to hold a tenth out"):
        hold_out(configured(), (pool.take([0, 1]), pool, None), usual, print)
