"""Methods x budgets x seeds on equal terms: the same budget, the same training, the same suites, with intervals.

Every cell of a comparison leaves files that are whole; a cell that fails says why in its folder and does not end the
run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from instdiff.config.base import OPERATIONAL
from instdiff.config.compare import CompareConfig, Variant
from instdiff.config.methods import make_method
from instdiff.config.pipeline import weights_by
from instdiff.config.search import SearchConfig
from instdiff.config.train import TrainSettings
from instdiff.core import Budget, Log, Method, ModelRef
from instdiff.core.budget import parse_budget
from instdiff.core.caps import PROMPT, parse_per
from instdiff.core.files import fingerprint, read_whole, write_record
from instdiff.core.progress import Progress, Quiet
from instdiff.data import Pool
from instdiff.engine.sources import resolve
from instdiff.errors import ConfigError, EngineError, InstDiffError
from instdiff.evaluation.results import read_results
from instdiff.evaluation.subject import Suite
from instdiff.experiments.engine import Engine, Roles, Scores, mark_of
from instdiff.experiments.inputs import (
    as_lines,
    builtin_heldout,
    configured,
    fingerprints,
    hold_out,
    make_suites_for,
    read_inputs,
    read_rows,
    with_template,
)
from instdiff.experiments.leaks import find_leaks
from instdiff.experiments.made_of import (
    by_content,
    by_name,
    columns_of,
    contents,
    files_of,
    items_of,
    signals_of,
    texts_in,
)
from instdiff.experiments.records import Records
from instdiff.experiments.run_folder import BASE, CELL, ERROR, Cell, CellResult, ComparisonFolder, alone, drop_model
from instdiff.experiments.side_by_side import KILLED, CellWorkers, Done
from instdiff.experiments.summary import cost, record_cost, shares, summarize
from instdiff.experiments.tables import ComparisonResult, terms, write_comparison
from instdiff.methods import Oracle
from instdiff.scoring.cost import plan
from instdiff.scoring.crossfit import Training, lacking, saves, splits, start_of
from instdiff.scoring.models import bind, check_roles, parse_model, settings_of
from instdiff.scoring.table import read_scores
from instdiff.selection.record import RECORD, copy_record, read_selection
from instdiff.selection.selector import sample_rows
from instdiff.store import Store
from instdiff.store.parquet import is_whole

Made = TypeVar("Made")
Opened = TypeVar("Opened", bound="Comparison")
OPEN = (
    *(*OPERATIONAL, "judge_concurrency", "judge_timeout", "judge_tries", "judge_batch"),
    *("eval.concurrency", "eval.judge_concurrency", "eval.judge_timeout", "eval.judge_tries", "eval.judge_batch"),
    *("method", "budgets", "seeds", "random_seeds", "baselines", "keep_models", "strict", "by", "cells_at_once"),
    *("headroom", "records", "leaks"),
    *("trainings", "final_seeds", "decide"),
)
"""Keys that may change when a comparison goes on: they add cells, and change none that is there."""
PLACES = (
    *("data", "model", "student", "models", "target", "holdout"),
    *("eval", "train", "limit", "warmup", "near_duplicates", "per"),
)
HELD = ("data", "data_path")
"""Keys, and keys of ``eval``, that a record of a cell has by what they lead to."""


@dataclass
class Comparison(Engine):
    """A comparison's run folder with everything that its cells share."""

    config: CompareConfig | SearchConfig

    def __post_init__(self) -> None:
        assert self.config.model
        self.scorer = parse_model(self.config.model)
        self.student = parse_model(self.config.student or self.config.model)
        self.models = bind(self.config.models)
        self.variants = self.config.lines()
        self.places = ComparisonFolder(self.folder)
        self._tokens: dict[str, int] = {}
        self._items: dict[int, str | None] = {}
        self._scores: dict[tuple[str, int], Scores] = {}
        self.trained: dict[Hashable, Path] = {}
        """Where the models lie that were made, by what they are made of."""
        self.warmed = set[str]()
        """Variants that need a calibrated model which nobody has named."""
        self.oracles = list[str]()
        self.records = Records(Path(self.config.records), self.log) if self.config.records else None
        self.kinds: dict[str, str] = {}
        """Of each variant: those of a kind see the same rows with the same models, and are scored together."""
        for name, variant in self.variants.items():  # a typo must be found before anything is trained
            method, roles = self.method(name, 0), self.roles_of(variant)
            self.oracles += [name] * isinstance(method, Oracle)
            trained = lacking([method], roles, self.holdout)
            check_roles({name: method}, {**roles, variant.rebind: self.scorer, **dict.fromkeys(trained, self.scorer)})
            seeded = [[self.method(name, seed)] for seed in (0, 1)]
            trains = [repr(one) for methods in seeded for one in (*splits(methods).values(), *saves(methods))]
            self.kinds[name] = fingerprint(variant.models, variant.limit, variant.warmup, *trains)[:8]
            if "calibrated" in {signal.model for signal in method.signals().values()} - set(roles):
                self.warmed.add(name)
            bound = parse_per(self.per(Cell(name)))
            for column in (variant.group_by, bound.by if bound and bound.by != PROMPT else None):
                if column:
                    self.pool.column(column)
        if by := getattr(self.config, "by", None):
            self.pool.column(by)

    # ── what is compared ──────────────────────────────────────────────────────────────────────────────────────────

    def cells(self) -> Iterator[Cell]:
        """The base, then seed by seed all variants, so that a first table is there early."""
        yield Cell(BASE)
        asked = ("random", *self.oracles) if getattr(self.config, "headroom", False) else self.variants
        variants = {name: variant for name, variant in self.variants.items() if name in asked}
        for seed in dict.fromkeys(seed for variant in variants.values() for seed in self._seeds(variant)):
            for name, variant in variants.items():
                if seed in self._seeds(variant):
                    for budget in self._budgets(name):
                        yield Cell(name, budget, seed)

    def _seeds(self, variant: Variant) -> tuple[int, ...]:
        return variant.seeds or self.config.seeds

    def _budgets(self, name: str) -> list[str]:
        variant = self.variants[name]
        if self._is_whole_pool(name):
            return ["100%"]
        return [str(b) for b in ([variant.budget] if variant.budget is not None else self.config.budgets)]

    def method(self, name: str, seed: int) -> Method:
        """A variant's method, with the cell's seed where it has one."""
        variant = self.variants[name]
        return make_method(variant.method or name, variant.params, seed)

    def roles_of(self, variant: Variant) -> dict[str, ModelRef]:
        """The models that a variant scores with."""
        return {"base": self.scorer, **self.models, **bind(variant.models)}

    # ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> list[CellResult]:
        """Every cell; what fails is told and passed over."""
        cells = list(self.cells())
        for cell in cells if self.records else ():
            self.exchange(cell)
        count = self.at_once(sum(not self._is_made(cell) for cell in cells))
        if count == 1:
            return self._one_by_one(cells, [])
        workers = CellWorkers(partial(open_beside, type(self), self.config), count, torch.get_num_threads(), self.log)
        results: list[CellResult] = []
        try:
            self._side_by_side(cells, workers, count, results)
        except BrokenProcessPool:
            self.log(KILLED)
        finally:
            workers.close()
            for lock in self.places.models.glob(".*.lock"):
                lock.unlink(missing_ok=True)
        return self._one_by_one(cells, results)

    def _one_by_one(self, cells: Sequence[Cell], results: list[CellResult]) -> list[CellResult]:
        for number, cell in enumerate(cells[len(results) :], len(results) + 1):
            label = f"cell {number} of {len(cells)}: {cell}"
            results.append(self._attempt(cell, partial(self._made, cell, label)))
            self._drop([one.cell for one in results if one.error is not None] + list(cells[number:]))
        return results

    def _side_by_side(self, cells: Sequence[Cell], workers: CellWorkers, count: int, results: list[CellResult]) -> None:
        """Select for each cell in turn, and let the processes train and evaluate a few behind."""
        todo = deque[tuple[Cell, CellResult | Future[Done]]]()

        def collect() -> None:
            cell, found = todo.popleft()
            if isinstance(found, Future):
                found = self._attempt(cell, partial(self._take, found))
            results.append(found)
            self._drop([one.cell for one in results if one.error is not None] + list(cells[len(results) :]))

        for number, cell in enumerate(cells, 1):
            label = f"cell {number} of {len(cells)}: {cell}"
            todo.append((cell, self._attempt(cell, partial(self._handed, cell, label, workers))))
            if len(todo) > count:
                collect()
        while todo:
            collect()

    def _made(self, cell: Cell, label: str) -> CellResult:
        if (found := self._read(cell)) is None:
            self.log(label)
            found = self.make_cell(cell)
        return found

    def _handed(self, cell: Cell, label: str, workers: CellWorkers) -> CellResult | Future[Done]:
        """Write a cell's selection, note where its first model will lie, and have the rest done."""
        if (found := self._read(cell)) is not None:
            return found
        if cell.line != BASE:
            assert cell.seed is not None
            record = self.select(cell, 1, self.roles_of(self.variants[cell.line]))
            how = self.settings_of(cell, self._rows_of)
            self.model_of(cell, 1, mark_of(self.rows_of(record), self.student, how, cell.seed))
        return workers.submit(cell, label)

    def _take(self, future: Future[Done]) -> CellResult:
        result, made = future.result()
        self.trained |= made
        return result

    def _attempt(self, cell: Cell, work: Callable[[], Made]) -> Made | CellResult:
        """What some work on a cell gives; one bad cell does not end the run."""
        try:
            result = work()
            (self.places.cell(cell) / ERROR).unlink(missing_ok=True)
        except BrokenProcessPool:
            raise
        except Exception as error:
            if self.config.strict:
                raise
            reason = str(error) if isinstance(error, InstDiffError) else f"{type(error).__name__}: {error}"
            self.log(f"warning: {cell} failed and is left out: {reason}")
            write_record(self.places.cell(cell) / ERROR, {"error": reason})
            return CellResult(cell, error=reason)
        return result

    def _is_made(self, cell: Cell) -> bool:
        return (self.places.cell(cell) / CELL).is_file()

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell is made, here or in the kept records."""
        return self._is_made(cell) or (self.records is not None and self.records.fit(cell, self.made_of(cell)) is None)

    def exchange(self, cell: Cell) -> None:
        """Keep a cell that is made here, and take one that is only kept."""
        assert self.records is not None
        facts, place = self.made_of(cell), self.places.cell(cell)
        if not self._is_made(cell):
            self.records.take(cell, facts, place)
        elif self.records.fit(cell, facts) is not None:
            self.records.keep(cell, facts, place)

    def made_of(self, cell: Cell) -> dict[str, Any]:
        """What a cell's results depend on, by what it is and not by where it lies: the same on every machine."""
        config, aside = self.config, {*(key for key in OPEN if "." not in key), *PLACES}
        asked = {
            key: value
            for key, value in config.eval.items()
            if not {key, f"eval.{key}"} & {*OPEN, *HELD} or isinstance(value, Mapping)  # files of tasks
        }
        facts: dict[str, Any] = {
            # Without what is as it is by default, so that a record outlives keys that are added later.
            "config": by_content(
                config.model_dump(mode="json", exclude=aside, exclude_defaults=True), by_name([config.template or ""])
            ),
            "student": self._known(self.student),
            "eval": by_content(asked, by_name(texts_in(asked))),
            "items": {one.name: self._items_of(one) for one in self.suites_of(cell)},
        }
        if cell.seed is None:
            return facts
        variant, method = self.variants[cell.line], self.method(cell.line, cell.seed)
        signals, files = signals_of(method), files_of(method)
        bound = parse_per(self.per(cell)) or method.default_per
        bound_to = self.roles_of(variant)
        roles = {one.model for one in signals if one.measure.needs_model}
        roles |= {start_of(of) for of in lacking([method], bound_to, self.holdout).values()}
        named = (variant.group_by, bound.by if bound else None, None if self.weights(cell) else config.train.weights)
        columns = {name for name in named if name and name != PROMPT} | columns_of(signals)
        facts |= {
            "data": self.pool.fingerprint,
            "target": self.target and self.target.fingerprint,
            **({"holdout": self.holdout.fingerprint} if self.holdout is not None else {}),
            "columns": contents(self.pool, columns),
            "models": {role: self._known(model) for role, model in bound_to.items() if role in roles},
            "line": variant.model_dump(mode="json", include={"rounds", "rebind", "train_from", "warmup", "limit"})
            | ({} if variant.near_duplicates is None else {"near_duplicates": variant.near_duplicates}),
            **{key: value for key, value in self._bounds(cell).items() if value},
            "method": by_content({"name": variant.method or cell.line, **method.params()}, files),
            "train": config.train.learning() | ({} if config.train.seed is None else {"seed": config.train.seed}),
            "budget": cell.budget,
            "seed": cell.seed,
            **({} if config.steps == "epochs" else {"steps_by": self._steps_by(cell)}),
        }
        if cell.line in self.warmed:
            facts["warm-up"] = [self.warmup.fingerprint, config.warmup.model_dump(mode="json", exclude={"data_path"})]
        return facts

    def _items_of(self, suite: Suite) -> str | None:
        """Read once: a run's suites stay the same."""
        if id(suite) not in self._items:
            self._items[id(suite)] = items_of(suite)
        return self._items[id(suite)]

    def line_made_of(self, name: str) -> dict[str, Any]:
        """What the results of all cells of a line depend on: what its name stands for in the run folder."""
        if name == BASE:
            return self.made_of(Cell(BASE))
        budget = self._budgets(name)[0]
        facts = self.made_of(Cell(name, budget, 0))
        if "steps_by" in facts and budget in map(str, self.config.budgets):
            facts["steps_by"] = facts["steps_by"][1:]  # more budgets may come
        first = ("method", "line", *facts)  # of several that differ the telling one is named
        return {key: facts[key] for key in first if key not in ("budget", "seed")}

    def _bounds(self, cell: Cell) -> dict[str, str | None]:
        by = self.variants[cell.line].group_by
        return {"group_by": by, "per": self.per(cell), "weights": self.weights(cell)}

    def _known(self, model: ModelRef) -> str:
        """A model by its weights; one at a server, or of another library, by its name."""
        try:
            return resolve(model, self.store.memo).fingerprint
        except EngineError:
            return str(model)

    def _read(self, cell: Cell) -> CellResult | None:
        place = self.places.cell(cell)
        facts = read_whole(place / CELL, self.log)
        if facts is None:
            return None
        names = [f"{suite}.json" for suite in facts["suites"]] + ([] if cell.line == BASE else [RECORD])
        if any(read_whole(place / name, self.log) is None for name in names):
            return None
        return CellResult(cell, facts, [read_results(place / f"{suite}.json") for suite in facts["suites"]])

    def make_cell(self, cell: Cell) -> CellResult:
        """Select, train and evaluate; what is there already is not made again."""
        began = time.monotonic()
        model, facts = (self.student, {}) if cell.line == BASE else self._train_cell(cell)
        results = self.evaluate(model, str(cell), self.places.cell(cell), self.suites_of(cell))
        facts |= {"seconds": round(time.monotonic() - began, 2), "suites": [one.suite for one in results]}
        write_record(self.places.cell(cell) / CELL, facts)
        if self.records:
            self.records.keep(cell, self.made_of(cell), self.places.cell(cell))
        return CellResult(cell, facts, results)

    def _train_cell(self, cell: Cell) -> tuple[ModelRef, dict[str, Any]]:
        """The model of a cell's last round, and what all of them took."""
        assert cell.seed is not None
        facts, model, variant = dict[str, Any](), self.student, self.variants[cell.line]
        for done in self.run_rounds(
            cell, variant, self.roles_of(variant), self.settings_of(cell, self._rows_of), cell.seed
        ):
            sums = {key: done.facts[key] + facts.get(key, 0) for key in ("train_s", "train_tokens")}
            facts, model = {**done.facts, **sums}, done.model
        copy_record(self.places.round(cell, variant.rounds), self.places.cell(cell))
        return model, {**facts, **cost(self.folder, cell.line, variant.rounds, self.settings, self.log)}

    def place_of(self, cell: Cell, number: int) -> Path:
        """In the folder of the cell."""
        return self.places.round(cell, number)

    def model_of(self, cell: Cell, number: int, mark: str) -> Path:
        """By what it is made of, so that cells share it."""
        return self.place_of_model(self._round_key(cell, number), mark)

    def place_of_model(self, key: Hashable, mark: str) -> Path:
        """By what it is made of; ``key`` is what cells that begin alike share."""
        place = self.trained[key] = self.places.models / mark[:16]
        return place

    def group_by(self, cell: Cell) -> str | None:
        """That of the cell's line."""
        return self.variants[cell.line].group_by

    def near_duplicates(self, cell: Cell) -> float | None:
        """That of the cell's line."""
        return self.variants[cell.line].near_duplicates

    def per(self, cell: Cell) -> str | None:
        """That of the cell's line, or of all lines but the whole pool."""
        return self.variants[cell.line].per or (None if self._is_whole_pool(cell.line) else self.config.per)

    def weights(self, cell: Cell) -> str | None:
        """Those of the cell's line."""
        usual = self.method(cell.line, cell.seed or 0).default_weights
        return weights_by(self.variants[cell.line].weights, self.config.train, usual)

    def _is_whole_pool(self, name: str) -> bool:
        return name == "full" and self.variants[name].method in (None, "full")

    def budget_of(self, cell: Cell, number: int) -> Budget:
        """That of the cell, in every round."""
        return self.budget(cell.budget)

    def budget(self, text: str) -> Budget:
        """The same count for every line: a share of tokens is one of the student's response tokens."""
        budget = parse_budget(text)
        if budget.kind != "token_share":
            return budget
        if text not in self._tokens:
            self._tokens[text] = max(1, round(budget.target(self.counted(self.pool)["random"])))
        return budget.count(self._tokens[text])

    def settings_of(self, cell: Cell, rows_of: Callable[[Cell], int]) -> TrainSettings:
        """The training of a cell: with equal steps those of the first random subset, which has ``rows_of`` its cell.

        That is of the cell's budget, and of the first budget for variants that have their own.
        """
        how = self.weighted(cell, self.config.train)
        if self.config.steps == "epochs":
            return how
        budget, seed = self._steps_by(cell)
        count = rows_of(Cell("random", budget, seed))
        steps = np.ceil(np.ceil(count / how.global_batch_size) * how.num_train_epochs)
        fields = {key: getattr(how, key) for key in TrainSettings.model_fields}
        return TrainSettings(**{**fields, **(how.model_extra or {}), "max_steps": max(1, int(steps))})

    def _steps_by(self, cell: Cell) -> tuple[str, int]:
        """Budget and seed of the random subset that says how many equal steps there are."""
        budgets = [str(one) for one in self.config.budgets]
        return cell.budget if cell.budget in budgets else budgets[0], self._seeds(self.variants["random"])[0]

    def _rows_of(self, cell: Cell) -> int:
        return len(self.select(cell, 1, self.roles_of(self.variants[cell.line]))["ids"])

    def find_leaks(self, results: Sequence[CellResult], suites: Sequence[Suite] | None = None) -> dict[str, Any] | None:
        """What the selections have in common with the items of ``suites``, by default of all that judge them."""
        chosen: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for cell in (one.cell for one in results if one.error is None and one.cell.line != BASE):
            record = read_selection(self.places.cell(cell))
            chosen.setdefault((cell.line, cell.budget), []).extend([record] if record else [])
        return find_leaks(self.pool, self.suites if suites is None else suites, chosen, results, self.log)

    # ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────

    def score_round(self, cell: Cell, number: int, roles: Roles) -> Scores:
        """In the first round together with other variants; later by the model that the round before has made."""
        return self._first_scores(cell) if number == 1 else self._later_scores(cell, number, roles)

    def _first_scores(self, cell: Cell) -> Scores:
        """A variant's first scores with a seed, made together with those of all variants that see the same."""
        assert cell.seed is not None
        key = (cell.line, cell.seed)
        if key not in self._scores:
            mine = self.kinds[cell.line]
            left = {cell.line} | {c.line for c in self.cells() if c.seed == cell.seed and not self._is_selected(c)}
            wanted = [name for name, kind in self.kinds.items() if name in left and kind == mine]
            try:
                self._score_together(wanted, cell.seed)
            except InstDiffError:
                if len(wanted) == 1:
                    raise
                self._score_together([cell.line], cell.seed)  # another variant's trouble is its own
        return self._scores.pop(key) if len(self.config.budgets) == 1 else self._scores[key]

    def _is_selected(self, cell: Cell) -> bool:
        return self._is_made(cell) or self.selected(self.places.round(cell, 1)) is not None

    def _score_together(self, names: Sequence[str], seed: int) -> None:
        variant, spent, drawn = self.variants[names[0]], dict.fromkeys(names, 0.0), list[str]()
        methods = {name: self.method(name, seed) for name in names}
        given, pool = self.roles_of(variant), self.part_of(variant)
        roles, seconds = self.crossfit(methods, given, pool, seed)
        for name, method in methods.items():
            spent[name] = sum(seconds[role] for role in lacking([method], given, self.holdout))
        if calibrated := [name for name in names if name in self.warmed]:
            roles["calibrated"], drawn, warmup_s = self._calibrate(variant, seed)
            spent |= {name: spent[name] + warmup_s for name in calibrated}
        began = time.monotonic()
        costs = plan(pool, methods, roles, settings=self.settings, store=self.store, target=self.target).to_dict()
        listed = {"warmup": drawn, "selected": drawn}
        table = self.score(methods, roles, pool=pool, listed=listed, specs=self._specs(names))
        spent = {name: seconds for name, seconds in spent.items() if seconds}
        record_cost(self.folder, costs, time.monotonic() - began, spent, self.log)
        for name in names:
            self._scores[name, seed] = table[name], table.meta
        path = self.places.scores(self.kinds[names[0]], seed)
        there = is_whole(path, self.log) and path.is_file()  # a damaged one is set aside
        known = read_scores(path, run=list(self._specs(names).values())) if there else table
        known.joined(table).write(path)  # lines may come later

    def _later_scores(self, cell: Cell, number: int, roles: Roles) -> Scores:
        assert cell.seed is not None
        name, before = cell.line, self.selected(self.places.round(cell, number - 1))
        assert before is not None
        methods, pool = {name: self.method(name, cell.seed)}, self.part_of(self.variants[name])
        table = self.score(
            methods,
            self.crossfit(methods, roles, pool, cell.seed)[0],
            pool=pool,
            listed={"warmup": [], "selected": before["ids"]},
            specs=self._specs([name]),
        )
        return table[name], table.meta

    def _specs(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.variants[name].method or name for name in names}

    def part_of(self, variant: Variant) -> Pool:
        """The rows that a variant sees."""
        return self.pool if variant.limit is None else self.pool.take(range(min(variant.limit, len(self.pool))))

    def _calibrate(self, variant: Variant, seed: int) -> tuple[ModelRef, list[str], float]:
        """The scorer trained on a random subset, the ids of that subset, and what the training cost."""
        part, subset = self.config.warmup, self.warmup_rows(variant, seed)
        place = partial(self.place_of_model, self.warmup_key(variant, seed))
        base, how = self.roles_of(variant)["base"], part.train or self.config.train
        model, facts = self.train(subset, base, how, self.config.warmup_seed(seed), place)
        return self.restore(model), list(subset.ids), facts["train_s"]

    def warmup_rows(self, variant: Variant, seed: int) -> Pool:
        """The random subset that a variant's first model is trained on."""
        size = parse_budget(self.config.warmup.sample_size if variant.warmup is None else variant.warmup)
        count = int(size.amount * len(self.warmup)) if size.kind == "share" else int(size.amount)
        return self.warmup.take(sample_rows(len(self.warmup), max(1, count), self.config.warmup_seed(seed)))

    # ── models that nothing needs any more ────────────────────────────────────────────────────────────────────────

    def _drop(self, later: Sequence[Cell]) -> None:
        """Drop the models that no later cell begins with, unless models are kept."""
        if self.config.keep_models:
            return
        unmade = [cell for cell in later if not (self.places.cell(cell) / CELL).is_file()]
        needed = {key for cell in unmade for key in self._keys(cell)}
        places = {place for key, place in self.trained.items() if key in needed}
        kept = {key: place for key, place in self.trained.items() if place in places}
        for place in {*self.trained.values()} - places if needed else self.places.models.glob("*"):
            drop_model(place)
        self.trained = kept

    def _keys(self, cell: Cell) -> set[Hashable]:
        """What stands for the models that a cell makes: cells that begin alike share them."""
        if cell.seed is None:
            return set()
        variant = self.variants[cell.line]
        keys: set[Hashable] = {self._round_key(cell, number) for number in range(1, variant.rounds + 1)}
        roles = self.roles_of(variant)
        for role, of in lacking([self.method(cell.line, cell.seed)], roles, self.holdout).items():
            keys.add((role, repr(of or cell.seed), str(roles.get(start_of(of)))))  # without a start the line fails
        return keys | ({self.warmup_key(variant, cell.seed)} if cell.line in self.warmed else set())

    def place_of_trained(self, asked: Training, mark: str) -> Path:
        """By what it is made of; lines that want the same share it."""
        return self.place_of_model((asked.role, repr(asked.of or asked.seed), str(asked.start)), mark)

    def warmup_key(self, variant: Variant, seed: int) -> Hashable:
        """Of the model that calibrates a variant."""
        return "warm-up", str(self.roles_of(variant)["base"]), str(variant.warmup), self.config.warmup_seed(seed)

    def _round_key(self, cell: Cell, number: int) -> Hashable:
        """Of a round; how rounds follow one another makes a difference from the second on."""
        one = self.variants[cell.line]
        made_of: tuple[Any, ...] = (one.method or cell.line, one.params, one.models, one.limit, str(one.warmup))
        made_of += (one.group_by, self.per(cell), *([] if one.near_duplicates is None else [one.near_duplicates]))
        made_of += (self.weights(cell),) if self.weights(cell) else ()
        then = (one.rebind, one.train_from) if number > 1 else ()
        return fingerprint(made_of, then), cell.budget, cell.seed, number


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


@alone()
def compare(
    data: Any,
    model: Any = None,
    methods: Any = None,
    output: str | Path | None = None,
    *,
    log: Log | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> ComparisonResult:
    """Run or go on with a comparison of methods with random rows, the longest, all rows and the base model.

    Args:
        data: the rows, or what ``load`` reads; or a whole configuration, without the rest.
        model: scores the rows and is trained: a folder, a hub id, or a loaded one as ``(model, tokenizer)``.
        methods: names or instances, one or several, or a mapping from the names of lines to these or to their keys.
        output: the run folder.
        log: is told what happens.
        progress: shows it.
        options: keys of the configuration, such as ``budgets``, ``seeds``, ``train`` and ``eval``.

    Returns:
        What ``comparison.json`` holds: ``lines`` with values, intervals and differences, and the cells that failed.

    Raises:
        ConfigError: something is missing or of a type that is not taken, or the folder holds another comparison.
        DataError: the data has changed since the comparison began.
        EngineError: every cell failed.
        StoreError: another process works in the folder.
    """
    options |= {"model": model, "method": as_lines(methods), "output": output}
    config = configured(CompareConfig, data, **options)
    run = open_comparison(config, log or (lambda line: None), progress or Quiet())
    results = run.run()
    if all(one.error is not None for one in results):
        raise EngineError(f"every cell of the comparison failed, first {results[0].cell}: {results[0].error}")
    facts: dict[str, Any] = {"data": config.data, "model": config.model}
    facts |= {"student": config.student or config.model, "terms": terms(config)}
    if run.oracles:
        facts["oracles"] = run.oracles
    if config.by:
        facts["by"] = config.by
        facts["shares"] = shares(run.folder, [one.cell for one in results], run.pool, config.by)
    if config.leaks and (leaks := run.find_leaks(results)) is not None:
        facts["leaks"] = leaks
    found = write_comparison(run.folder, results, summarize(results, oracles=run.oracles), facts)
    return ComparisonResult(found, run.folder)


def check_named(config: CompareConfig | SearchConfig) -> None:
    """Raise a ConfigError where something that a comparison cannot do without is not named."""
    for key in ("data", "model", "output"):
        if not getattr(config, key):
            raise ConfigError(f"the {'search' if isinstance(config, SearchConfig) else 'comparison'} needs '{key}'")
    methods = [make_method(one.method or name, one.params, 0) for name, one in config.lines().items()]
    if getattr(config, "headroom", False) and not any(isinstance(one, Oracle) for one in methods):
        raise ConfigError(
            "'headroom' compares random rows with an oracle, and no line has one; "
            "name the column that says what is wrong with a row: method.oracle.column=flaw"
        )


def open_beside(kind: type[Comparison], config: CompareConfig | SearchConfig, log: Log) -> Comparison:
    """A comparison that another process has opened, and that works on the same run."""
    run = open_cells(kind, config, lambda line: None, Quiet(), claim=False)
    run.beside, run.log = True, log
    return run


def open_comparison(
    config: CompareConfig | SearchConfig, log: Log, progress: Progress, *, claim: bool = True
) -> Comparison:
    """A comparison's run folder for this configuration: a new one, or the same one again.

    Without ``claim`` nothing is written; whoever runs it must have claimed the folder.
    """
    return open_cells(Comparison, config, log, progress, claim)


def open_cells(
    kind: type[Opened], config: CompareConfig | SearchConfig, log: Log, progress: Progress, claim: bool
) -> Opened:
    """The run folder of a kind of comparison; a search judges on rows of the data where no others are named."""
    check_named(config)
    assert config.output
    places = ComparisonFolder(Path(config.output))
    places.check_config(config, OPEN)
    store = Store(config.store)
    data = read_inputs(config, places.path if claim else None, log)
    rendering = with_template(config, [config.model, config.student], log)
    settings = settings_of(rendering)
    holdout = read_rows(config, config.holdout, None, log) if config.holdout else None
    inputs = fingerprints((*data, holdout), "warm-up data")
    for name, where in (("model", config.model), ("student", config.student)):
        if where:
            inputs[name] = resolve(parse_model(where), store.memo).fingerprint
    if claim:
        places.claim(config, inputs)
    known: dict[str, Any] = {"suite": ["heldout"], "model": config.model, **config.turns()}
    known["data"] = builtin_heldout(config.data)
    if isinstance(config, SearchConfig):
        data, known["heldout"] = hold_out(config, data, known, log)
    suites = make_suites_for(rendering, config.eval, store, data[0], log, **known)
    run = kind(config, places.path, *data, settings, store, *suites, log, progress, holdout)
    if claim:
        places.claim_lines({name: run.line_made_of(name) for name in (BASE, *run.variants)})
    return run
