"""Methods x budgets x seeds on equal terms: the same budget, the same training, the same suites, with intervals.

Every cell of the comparison leaves files that are whole; a cell whose files are there is not done again, and a cell
that fails says why in its folder and does not end the run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.config.compare import CompareConfig, Variant
from instdiff.config.methods import make_method
from instdiff.config.train import TrainSettings
from instdiff.core import Budget, Log, Method, ModelRef, Scored, Settings
from instdiff.core.budget import parse_budget
from instdiff.core.files import fingerprint, read_json, write_json
from instdiff.core.progress import Progress
from instdiff.data import Pool
from instdiff.errors import InstDiffError
from instdiff.evaluation.results import SuiteResult, read_results
from instdiff.experiments.run_folder import BASE, RECORD, Cell, CellResult, drop_model, trained_model, whole
from instdiff.experiments.summary import cost, record_cost
from instdiff.methods import Random
from instdiff.scoring.cost import plan
from instdiff.scoring.models import bind, check_roles, parse_model
from instdiff.scoring.scorer import score
from instdiff.selection.selector import sample_rows, select
from instdiff.store import Store
from instdiff.training.sft import train

Judge = Callable[[ModelRef, str, Path], list[SuiteResult]]
"""Evaluates a model, under a name, with a folder for its files."""

Made = tuple[Scored, dict[str, Any]]
"""One line's scores, and what the table says of models and settings."""

__all__ = ["BASE", "Cell", "CellResult", "Comparison", "Judge", "drop_model", "whole"]


@dataclass
class Comparison:
    """A run folder with everything that its cells share."""

    config: CompareConfig
    folder: Path
    pool: Pool
    warmup: Pool
    target: Pool | None
    settings: Settings
    store: Store
    judge: Judge
    log: Log
    progress: Progress
    _tokens: dict[str, int] = field(default_factory=dict)
    _scored: dict[tuple[str, int], Made] = field(default_factory=dict)
    _makers: dict[Path, Callable[[], ModelRef]] = field(default_factory=dict)
    _made: dict[Hashable, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.config.model
        self.scorer = parse_model(self.config.model)
        self.student = parse_model(self.config.student or self.config.model)
        self.models = bind(self.config.models)
        self.lines = self.config.lines()
        self.warmed = set[str]()
        """Lines that need a calibrated model which nobody has named."""
        for name, line in self.lines.items():  # a typo must be found before anything is trained
            method, roles = self.method(name, 0), self._roles(line)
            check_roles({name: method}, {**roles, line.rebind: self.scorer})
            if "calibrated" in {signal.model for signal in method.signals().values()} - set(roles):
                self.warmed.add(name)

    # ── what is compared ──────────────────────────────────────────────────────────────────────────────────────────

    def cells(self) -> Iterator[Cell]:
        """The base, then seed by seed all lines, so that a first table is there early."""
        yield Cell(BASE)
        seeds = list(dict.fromkeys(s for line in self.lines.values() for s in line.seeds or self.config.seeds))
        for seed in seeds:
            for name, line in self.lines.items():
                if seed in (line.seeds or self.config.seeds):
                    for budget in self._budgets(name):
                        yield Cell(name, budget, seed)

    def _budgets(self, name: str) -> list[str]:
        line = self.lines[name]
        if name == "full" and line.method in (None, "full"):
            return ["100%"]
        return [str(b) for b in ([line.budget] if line.budget is not None else self.config.budgets)]

    def method(self, name: str, seed: int) -> Method:
        """A line's method, with the cell's seed where it has one."""
        line = self.lines[name]
        return make_method(line.method or name, line.params, seed)

    def _specs(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self.lines[name].method or name for name in names}

    def _roles(self, line: Variant) -> dict[str, ModelRef]:
        return {"base": self.scorer, **self.models, **bind(line.models)}

    # ── stages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> list[CellResult]:
        """Every cell; what fails is told and passed over."""
        outcomes = []
        cells = list(self.cells())
        for number, cell in enumerate(cells, 1):
            place = self.folder / "cells" / cell.place
            try:
                outcome = self._done(cell, place) or self._make(cell, place, f"cell {number} of {len(cells)}: {cell}")
                (place / "error.json").unlink(missing_ok=True)
            except Exception as error:  # one bad cell does not end the run
                if self.config.strict:
                    raise
                said = str(error) if isinstance(error, InstDiffError) else f"{type(error).__name__}: {error}"
                self.log(f"warning: {cell} failed and is left out: {said}")
                write_json(_there(place) / "error.json", {"error": said})
                outcome = CellResult(cell, error=said)
            outcomes.append(outcome)
            self._leave([o.cell for o in outcomes if o.error is not None] + cells[number:])
        return outcomes

    def _done(self, cell: Cell, place: Path) -> CellResult | None:
        if not (place / "cell.json").is_file():
            return None
        facts = read_json(place / "cell.json")
        return CellResult(cell, facts, [read_results(place / f"{suite}.json") for suite in facts["suites"]])

    def _make(self, cell: Cell, place: Path, label: str) -> CellResult:
        self.log(label)
        began = time.monotonic()
        facts: dict[str, Any] = {}
        model = self.student
        if cell.line != BASE:
            model, facts = self.train(cell, place)
        results = self.judge(self._whole(model), str(cell), _there(place))
        for result in results:
            result.write(place / f"{result.suite}.json")
        facts |= {"seconds": round(time.monotonic() - began, 2), "suites": [r.suite for r in results]}
        write_json(place / "cell.json", facts)
        return CellResult(cell, facts, results)

    def train(self, cell: Cell, place: Path) -> tuple[ModelRef, dict[str, Any]]:
        """The rounds of a cell: choose, train, and again."""
        assert cell.seed is not None
        line = self.lines[cell.line]
        student, roles, facts = self.student, self._roles(line), dict[str, Any]()
        for number in range(1, line.rounds + 1):
            ids, tokens = self._chosen(cell, place / f"round_{number}", roles if number > 1 else None)
            start = student if line.train_from == "last" else self.student
            model, told = self._train(ids, start, cell, number)
            summed = {key: told[key] + facts.get(key, 0) for key in ("train_s", "train_tokens")}
            facts = {"rows": len(ids), "tokens": tokens, **told, **summed}
            roles, student = {**roles, line.rebind: model}, model
        shutil.copyfile(place / f"round_{line.rounds}" / "selection.json", place / "selection.json")
        return student, {**facts, **cost(self.folder, cell.line, line.rounds, self.settings)}

    def _chosen(self, cell: Cell, place: Path, roles: dict[str, ModelRef] | None) -> tuple[list[str], int]:
        """The ids of a round's rows, best first, and their response tokens."""
        path = place / "selection.json"
        if not path.is_file():
            scored, meta = self._first(cell) if roles is None else self._again(cell, place, roles)
            at = np.isin(np.array(self.pool.ids), np.array(scored.ids))
            pool = self.pool.take(np.flatnonzero(at)) if len(scored) < len(self.pool) else self.pool
            chosen = select(pool, scored, self.budget(cell.budget), meta=meta)
            chosen.write(_there(place) / "selected.jsonl")
            chosen.write_record(path)
        told = read_json(path)
        return told["ids"], told["counts"]["selected_tokens"]

    def budget(self, text: str) -> Budget:
        """The same count for every line: a share of tokens is one of the student's response tokens."""
        budget = parse_budget(text)
        if budget.kind != "token_share":
            return budget
        if text not in self._tokens:
            counted = score(self.pool, {"random": Random()}, self.student, settings=self.settings, store=self.store)
            self._tokens[text] = max(1, round(budget.target(counted["random"])))
        return Budget(self._tokens[text], "tokens")

    # ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _first(self, cell: Cell) -> Made:
        """A line's first scores with a seed, made together with those of all lines that see the same."""
        assert cell.seed is not None
        key = (cell.line, cell.seed)
        if key not in self._scored:
            mine = _alike(self.lines[cell.line])
            open_ = [name for name in self.lines if name == cell.line or self._wants(name, cell.seed)]
            every = {name: self.lines[name] for name in open_ if _alike(self.lines[name]) == mine}
            try:
                self._score(every, cell.seed)
            except InstDiffError:
                if len(every) == 1:
                    raise
                self._score({cell.line: self.lines[cell.line]}, cell.seed)  # another line's trouble is its own
        return self._scored.pop(key) if len(self.config.budgets) == 1 else self._scored[key]

    def _wants(self, name: str, seed: int) -> bool:
        """Whether a line has a cell with this seed that is not chosen yet."""
        if seed not in (self.lines[name].seeds or self.config.seeds):
            return False
        places = [self.folder / "cells" / Cell(name, budget, seed).place for budget in self._budgets(name)]
        return not all((place / "round_1" / "selection.json").is_file() for place in places)

    def _score(self, lines: Mapping[str, Variant], seed: int) -> None:
        line, warmup_s = next(iter(lines.values())), 0.0
        methods = {name: self.method(name, seed) for name in lines}
        roles, pool, drawn = self._roles(line), self._part(line), list[str]()
        if calibrated := [name for name in lines if name in self.warmed]:
            roles["calibrated"], drawn, warmup_s = self.calibrated(line, seed)
        began = time.monotonic()
        costs = plan(pool, methods, roles, settings=self.settings, store=self.store, target=self.target).to_dict()
        table = score(
            pool,
            methods,
            roles,
            settings=self.settings,
            store=self.store,
            target=self.target,
            listed={"warmup": drawn, "selected": drawn},
            specs=self._specs(lines),
            log=self.log,
            progress=self.progress,
        )
        record_cost(self.folder, costs, time.monotonic() - began, dict.fromkeys(calibrated, warmup_s))
        for name in lines:
            self._scored[name, seed] = table[name], table.meta
        path = self.folder / "scores" / f"{_alike(line)}_seed_{seed}.parquet"
        if not path.is_file():
            table.write(_there(path.parent) / path.name)

    def _again(self, cell: Cell, place: Path, roles: dict[str, ModelRef]) -> Made:
        """A later round's scores, by the model that the round before has made."""
        assert cell.seed is not None
        before = read_json(place.parent / f"round_{int(place.name[6:]) - 1}" / "selection.json")["ids"]
        for model in roles.values():
            self._whole(model)
        table = score(
            self._part(self.lines[cell.line]),
            {cell.line: self.method(cell.line, cell.seed)},
            roles,
            settings=self.settings,
            store=self.store,
            target=self.target,
            listed={"warmup": [], "selected": before},
            specs=self._specs([cell.line]),
            log=self.log,
            progress=self.progress,
        )
        return table[cell.line], table.meta

    def _part(self, line: Variant) -> Pool:
        return self.pool if line.limit is None else self.pool.take(range(min(line.limit, len(self.pool))))

    def calibrated(self, line: Variant, seed: int) -> tuple[ModelRef, list[str], float]:
        """The scorer trained on a random subset, the ids of that subset, and what the training cost."""
        part = self.config.warmup
        size = parse_budget(part.sample_size if line.warmup is None else line.warmup)
        count = int(size.amount * len(self.warmup)) if size.kind == "share" else int(size.amount)
        subset = self.warmup.take(sample_rows(len(self.warmup), max(1, count), seed))
        base = self._roles(line)["base"]
        model, told = self._fit(subset, base, part.train or self.config.train, seed, self._warm_key(line, seed))
        return self._whole(model), list(subset.ids), told["train_s"]

    # ── training ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _train(self, ids: list[str], start: ModelRef, cell: Cell, number: int) -> tuple[ModelRef, dict[str, Any]]:
        assert cell.seed is not None
        how = self.config.train
        if self.config.steps == "equal":
            how = _with(how, max_steps=self._steps(cell))
        rows = self.pool.take(self._places(ids))
        return self._fit(rows, start, how, cell.seed, self._round_key(cell, number))

    def _places(self, ids: list[str]) -> list[int]:
        at = {name: place for place, name in reversed(list(enumerate(self.pool.ids)))}
        return [at[name] for name in ids]

    def _steps(self, cell: Cell) -> int:
        """Optimizer steps of the first random subset; of the first budget for lines that have their own."""
        budget = cell.budget if cell.budget in map(str, self.config.budgets) else str(self.config.budgets[0])
        first = Cell("random", budget, (self.lines["random"].seeds or self.config.seeds)[0])
        ids, _ = self._chosen(first, self.folder / "cells" / first.place / "round_1", None)
        per_step, epochs = self.config.train.global_batch_size, self.config.train.num_train_epochs
        return max(1, int(np.ceil(np.ceil(len(ids) / per_step) * epochs)))

    def _fit(
        self, rows: Pool, start: ModelRef, how: TrainSettings, seed: int, key: Hashable
    ) -> tuple[ModelRef, dict[str, Any]]:
        """A model by what it was made of: the same rows, start, settings and seed are trained once."""
        mark = fingerprint(list(rows.ids), str(start), how.learning(), seed)
        place = self.folder / "models" / mark[:16]

        def make() -> ModelRef:
            whole = self._whole(start)
            return train(rows, whole, how, self.settings, place, store=self.store, seed=seed, log=self.log)

        self._makers[place], self._made[key] = make, place
        model = trained_model(start, how, place) if (place / RECORD).is_file() else make()
        took = read_json(place / RECORD)
        spent = round(took["wall_s"] * took["batch"]["processes"], 2)
        return model, {
            "steps": took["steps"],
            "train_s": spent,
            "train_tokens": took["target_tokens"],
            "model": place.name,
        }

    # ── models that nothing needs any more ────────────────────────────────────────────────────────────────────────

    def _whole(self, model: ModelRef) -> ModelRef:
        return whole(model, self._makers, self.log)

    def _leave(self, later: Sequence[Cell]) -> None:
        """Drop the models that no later cell begins with, unless models are kept."""
        if self.config.keep_models:
            return
        needed = {key for cell in later if not self._is_done(cell) for key in self._keys(cell)}
        kept = {place for key, place in self._made.items() if key in needed}
        for place in {*self._made.values()} - kept if needed else {*(self.folder / "models").glob("*")}:
            drop_model(place)
        self._made = {key: place for key, place in self._made.items() if place in kept}

    def _is_done(self, cell: Cell) -> bool:
        return (self.folder / "cells" / cell.place / "cell.json").is_file()

    def _keys(self, cell: Cell) -> set[Hashable]:
        """What stands for the models that a cell makes: cells that begin alike share them."""
        if cell.seed is None:
            return set()
        line = self.lines[cell.line]
        rounds: set[Hashable] = {self._round_key(cell, number) for number in range(1, line.rounds + 1)}
        return rounds | ({self._warm_key(line, cell.seed)} if cell.line in self.warmed else set())

    def _warm_key(self, line: Variant, seed: int) -> Hashable:
        return "warm-up", str(self._roles(line)["base"]), str(line.warmup), seed

    def _round_key(self, cell: Cell, number: int) -> Hashable:
        """Of a round; how rounds follow one another makes a difference from the second on."""
        line = self.lines[cell.line]
        said = line.method or cell.line, line.params, line.models, line.limit, str(line.warmup)
        then = (line.rebind, line.train_from) if number > 1 else ()
        return fingerprint(said, then), cell.budget, cell.seed, number


def _with(how: TrainSettings, **more: Any) -> TrainSettings:
    fields = {key: getattr(how, key) for key in TrainSettings.model_fields}
    return TrainSettings(**{**fields, **(how.model_extra or {}), **more})


def _alike(line: Variant) -> str:
    """Lines that are alike see the same rows with the same models, and are scored together."""
    return fingerprint(line.models, line.limit, line.warmup)[:8]


def _there(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
