"""The whole way: warm-up, calibration, score, select, train, evaluate, and again (InstructDiff, Algorithm 1).

A comparison of one line that has rounds and, in its first one, controls at the same token budget.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from instdiff.config.base import OPERATIONAL
from instdiff.config.commands import PipelineConfig
from instdiff.config.compare import Variant
from instdiff.config.evaluate import EvalConfig
from instdiff.config.methods import make_method, make_methods, short_name
from instdiff.config.pipeline import weights_by
from instdiff.config.train import TrainSettings
from instdiff.core import Budget, Log, Method, ModelRef
from instdiff.core.budget import configured_budget, parse_budget
from instdiff.core.display import Shown, some
from instdiff.core.files import write_record
from instdiff.core.progress import Progress, Quiet
from instdiff.data import Pool
from instdiff.engine.sources import resolve
from instdiff.errors import ConfigError
from instdiff.evaluation.evaluator import HELDOUT, nll_facts
from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.evaluation.subject import Suite
from instdiff.experiments.engine import Engine, Roles, Round, Scores
from instdiff.experiments.inputs import (
    builtin_heldout,
    configured,
    fingerprints,
    make_suites_for,
    read_flaws,
    read_inputs,
    read_rows,
    with_template,
)
from instdiff.experiments.leaks import find_leaks
from instdiff.experiments.run_folder import (
    BASE,
    CONTROL_MODEL,
    ROUND_MODEL,
    Cell,
    CellResult,
    PipelineFolder,
    alone,
    drop_model,
    model_folder,
)
from instdiff.experiments.side_by_side import KILLED, CellWorkers
from instdiff.experiments.summary import control_of, devices, summarize
from instdiff.experiments.tables import tell_verdicts, write_comparison
from instdiff.scoring.crossfit import Training
from instdiff.scoring.models import bind, parse_model, settings_of
from instdiff.scoring.scorer import recalling
from instdiff.scoring.table import read_scores
from instdiff.selection.record import SCORES
from instdiff.selection.selector import sample_rows
from instdiff.store import Store

TERMS = (
    "Controls have as many response tokens as the first round's budget, or as its selection where that holds fewer "
    "(full: all rows), and the same training. The seeds of a selection are of its training alone, those of random rows "
    "also of their draw."
)
FREE = (
    *(*OPERATIONAL, "keep_models", "cells_at_once", "strict", "leaks"),
    *("judge_concurrency", "judge_timeout", "judge_tries", "judge_batch"),
    *(
        f"eval.params.{key}"
        for key in ("concurrency", "judge_concurrency", "judge_timeout", "judge_tries", "judge_batch")
    ),
)
"""Keys that may change when a run goes on."""


@dataclass(frozen=True)
class PipelineResult(Shown):
    """What a pipeline found: held-out lines, one per model, the counts of every stage, and ``comparison.json``."""

    folder: Path
    lines: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    suites: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        told = [f"{line['model']} {line['nll']:.3f}" for line in self.lines if line.get("nll") is not None]
        known = f", held-out NLL: {some(told)}" if told else ""
        return f"<PipelineResult in {self.folder}: {len(self.stages)} stages{known}>"


RESULTS = "results"
LINE = Cell("")
"""The line of a pipeline; other cells are controls, or repeated trainings of a round."""
CONTROLS = ("random", "longest", "full")


def title(cell: Cell) -> str:
    """What a control or a repeated training is called."""
    return cell.line if cell.seed is None else f"{cell.line} seed {cell.seed}"


@dataclass
class Pipeline(Engine):
    """A pipeline's run folder, and what its stages found."""

    config: PipelineConfig

    def __post_init__(self) -> None:
        assert self.config.model
        self.student = parse_model(self.config.model)
        self.roles = {**bind(self.config.models), "base": self.student}
        self.places = PipelineFolder(self.folder)
        self.flaws = read_flaws(self.config)
        self.drawn: list[str] = []
        self.results: list[CellResult] = []
        self.chosen: dict[tuple[str, str], list[dict[str, Any]]] = {}
        """By line and budget the records of the selections that were evaluated."""
        self.trained: dict[Hashable, Path] = {}
        """Nothing: each model has a place of its own."""
        self._events: list[tuple[str, dict[str, Any]]] = []

    def record_event(self, name: str, **facts: Any) -> None:
        """Keep what a stage came to in the log, and show it where progress has not."""
        if self.beside:  # the log is written by the process that heads the run
            self._events.append((name, facts))
        elif facts and self.places.add_event(name, facts) and "passes" not in facts:
            self.log(name + "".join(f"  {k} {v}" for k, v in facts.items() if not isinstance(v, dict | None)))

    @property
    def how(self) -> TrainSettings:
        """The training on what is selected."""
        return self.config.select_train.train or self.config.train

    # ── the line and its controls ─────────────────────────────────────────────────────────────────────────────────

    def run_line(self) -> Iterator[Round]:
        """The rounds, of which the first is calibrated by a model that is trained here on a random subset."""
        config, part, places = self.config, self.config.warmup, self.places
        warmup = self.warmup.take(sample_rows(len(self.warmup), part.sample_size, config.seed))
        self.keep_rows(warmup, places.warmup_rows)
        self.record_event("warm-up", rows=len(warmup), of=len(self.warmup))
        how, self.drawn = part.train or config.train, list(warmup.ids)
        model, _ = self.train(warmup, self.student, how, config.seed, lambda _: places.calibration_model)
        roles, how = {**self.roles, "calibrated": model}, self.weighted(LINE, self.how)
        for done in self.run_rounds(LINE, Variant(rounds=config.iterations), roles, how, config.seed, "round"):
            self.drop(model)
            model = done.model
            yield done
        for place in () if config.keep_models else self.places.trained("").glob("*"):
            drop_model(place)

    def controls(self, first: Round) -> list[Cell]:
        """The configured controls, each with the response tokens of the first budget."""
        config, path = self.config, first.folder / SCORES
        assert config.eval is not None
        budget, table = budget_of(config), read_scores(path, run=[config.select.method])
        same = Budget(first.facts["tokens"], "tokens")
        if budget.of_tokens:  # of which filters and a bound on groups may leave less
            asked, counts = budget.as_count(table[selector(config)[0]]), first.record["counts"]
            # Where no row has a thought, nothing is counted of a part: all tokens are of answers.
            spent = counts.get(f"selected_{budget.key}", counts["selected_tokens"])
            same = budget.count(min(int(spent), int(asked.amount)))
        return [
            Cell(kind, "100%" if kind == "full" else str(same), seed)
            for kind in config.eval.baselines
            for seed in (config.eval.seeds if kind == "random" else (None,))
        ]

    def repeats(self, last: Round) -> list[Cell]:
        """The last selection under further seeds, since one training shows no spread."""
        assert self.config.eval is not None
        return [Cell(self.line(last.number), "", seed) for seed in self.config.eval.repeats(self.config.seed)]

    def line(self, number: int) -> str:
        """What a round is called."""
        return f"{selector(self.config)[0]} round {number}"

    def run_cell(self, cell: Cell) -> Round:
        """A control or a repeated training, trained as the rounds are."""
        if cell.line in CONTROLS:
            (done,) = self.run_rounds(cell, Variant(), self.roles, self.how, self.config.seed)
            return done
        number, seed = int(cell.line.rpartition(" ")[2]), cell.seed or 0
        record = self.selected(self.places.round(number))
        assert record is not None
        facts = {"rows": len(record["rows"]), "tokens": record["counts"]["selected_tokens"]}
        last = Round(number, self.places.round(number), record, self.student, facts, self.student)
        place = self.places.repeat(number, seed)
        return self.repeat(last, self.weighted(LINE, self.how), seed, place, place / ROUND_MODEL)

    # ── cells side by side ────────────────────────────────────────────────────────────────────────────────────────

    def make_ahead(self, cells: Sequence[Cell]) -> None:
        """Have cells made side by side where that is faster: who goes through them then finds all there."""
        left = [cell for cell in cells if not self._is_evaluated(cell)]
        count = self.at_once(len(left))
        if count == 1:
            return
        workers = CellWorkers(partial(open_beside, self.config), count, torch.get_num_threads(), self.log)
        try:
            for future in [workers.submit(cell, title(cell)) for cell in left]:
                for name, facts in future.result()[0].facts["events"]:
                    self.record_event(name, **facts)
        except BrokenProcessPool:
            self.log(KILLED)
        finally:
            workers.close()

    def make_cell(self, cell: Cell) -> CellResult:
        """Train and evaluate, beside the process that heads the run; ``facts`` are the events for its log."""
        self._events = []
        model = self.student if cell.line == BASE else self.run_cell(cell).model
        self.evaluate(model, title(cell), self._place(cell) / RESULTS)
        return CellResult(cell, {"events": self._events})

    def _place(self, cell: Cell) -> Path:
        if cell.line == BASE:
            return self.folder / BASE
        if cell.line in CONTROLS:
            return self.places.control(title(cell))
        return self.places.repeat(int(cell.line.rpartition(" ")[2]), cell.seed or 0)

    def _is_evaluated(self, cell: Cell) -> bool:
        return all((self._place(cell) / RESULTS / f"{suite.name}.json").is_file() for suite in self.suites)

    # ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────

    def score_round(self, cell: Cell, number: int, roles: Roles) -> Scores:
        """A round's scores, which are kept in its folder; those of a control are not."""
        if cell != LINE:
            method = make_method(cell.line, {}, cell.seed or 0)
            table = self.score({cell.line: method}, roles, stage=f"scored {title(cell)}")
            return table[cell.line], table.meta
        path, (name, method) = self.place_of(cell, number) / SCORES, selector(self.config)
        before = self.selected(self.place_of(cell, number - 1))
        listed = {"warmup": self.drawn, "selected": before["ids"] if before else self.drawn}
        roles, _ = self.crossfit({name: method}, roles, self.pool, self.config.seed)
        if not path.is_file():
            specs = {name: self.config.select.method}
            self.score({name: method}, roles, listed=listed, specs=specs, stage=f"scored round {number}").write(path)
        for model in roles.values():
            self.restore(model)
        table, root = read_scores(path, run=[self.config.select.method]), str(self.store.root)
        return recalling(table[name], table.meta, self.pool, store=root, listed=listed, log=self.log), table.meta

    def near_duplicates(self, cell: Cell) -> float | None:
        """That of the rounds; controls are as they are."""
        return self.config.select.near_duplicates if cell == LINE else None

    def budget_of(self, cell: Cell, number: int) -> Budget:
        """A round's own, or that of all controls."""
        return budget_of(self.config, number) if cell == LINE else parse_budget(cell.budget)

    def per(self, cell: Cell) -> str | None:
        """That of the selection, and of all controls but the whole pool."""
        return None if cell.line == "full" else self.config.select.per

    def weights(self, cell: Cell) -> str | None:
        """Those of the rounds; controls have none."""
        usual = selector(self.config)[1].default_weights
        return weights_by(self.config.select.weights, self.how, usual) if cell == LINE else None

    def place_of(self, cell: Cell, number: int) -> Path:
        """A folder of its own for each round and control."""
        return self.places.round(number) if cell == LINE else self.places.control(title(cell))

    def model_of(self, cell: Cell, number: int, mark: str) -> Path:
        """In that folder."""
        return self.place_of(cell, number) / (ROUND_MODEL if cell == LINE else CONTROL_MODEL)

    def place_of_trained(self, asked: Training, mark: str) -> Path:
        """By its role and what it is made of: rounds that want the same share it."""
        return self.places.trained(f"{asked.role}_{mark[:8]}")

    def drop(self, model: ModelRef) -> None:
        """Drop a model that nothing later needs, unless models are kept."""
        if not self.config.keep_models:
            drop_model(model_folder(model))

    # ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────

    def evaluate_round(
        self, name: str, done: Round | None, cell: Cell | None = None, **beside: Any
    ) -> dict[str, Any] | None:
        """Every suite on a round's model, or on the base; a round's ``results.json`` has it all, and ``beside``.

        The comparison has the results as those of a ``cell``, by default of the same name. Returns held-out NLL and
        its paired difference to the base, where it was asked for.
        """
        mine = self._results(name, done)
        others = {suite: result for suite, result in mine.items() if suite != HELDOUT}
        facts = {**done.facts, "cost_unit": devices(self.settings)[0]} if done else {}
        cell = cell or Cell(name)
        self.results.append(CellResult(cell, facts, list(mine.values())))
        if done:
            self.chosen.setdefault((cell.line, cell.budget), []).append(done.record)
        record: dict[str, Any] = {}
        if HELDOUT in mine:
            base = self._results(BASE, None)[HELDOUT][HELDOUT]
            line = self._heldout_line(name, mine[HELDOUT][HELDOUT], base, done)
            record = {"suite": HELDOUT, "base": self._heldout_line(BASE, base, base, None), "selection": line}
        if others:
            whole = {suite: result.record() for suite, result in others.items()}
            record["suites"] = {suite: {k: v for k, v in one.items() if k != "items"} for suite, one in whole.items()}
        if done:
            write_record(done.folder / "results.json", {**record, **beside})
        return record.get("selection")

    def _results(self, name: str, done: Round | None) -> dict[str, SuiteResult]:
        model, place = (done.model, done.folder) if done else (self.student, self.folder / BASE)
        return {result.suite: result for result in self.evaluate(model, name, place / RESULTS)}

    def _heldout_line(self, name: str, mine: TaskResult, base: TaskResult, done: Round | None) -> dict[str, Any]:
        rows = done.record["rows"] if done else []
        flawed = sum(row in self.flaws for row in rows) / len(rows) if rows and self.flaws else None
        return {
            "model": name,
            "rows": done.facts["rows"] if done else None,
            "tokens": done.facts["tokens"] if done else None,
            **nll_facts(mine),
            **(nll_facts(mine, base) if done else dict.fromkeys(("gain", "gain_low", "gain_high"))),
            **({"flawed": flawed} if self.flaws else {}),
        }

    def compare(self, last: str) -> dict[str, Any]:
        """What ``comparison.json`` holds: all models against each other, and a verdict on the last selection."""
        lines = summarize(self.results)
        verdicts = tell_verdicts(lines, last, control_of(self.results))
        facts: dict[str, Any] = {"data": self.config.data, "model": self.config.model, "terms": TERMS}
        facts["verdicts"] = verdicts
        leaks = find_leaks(self.pool, self.suites, self.chosen, self.results, self.log) if self.config.leaks else None
        facts |= {} if leaks is None else {"leaks": leaks}
        return write_comparison(self.folder, self.results, lines, facts)


@alone()
def pipeline(
    data: Any,
    model: Any = None,
    output: str | Path | None = None,
    *,
    log: Log | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PipelineResult:
    """Run or go on with a pipeline: warm up, score, select, train, evaluate.

    Args:
        data: the rows, or what ``load`` reads; or a whole configuration, without the rest.
        model: scores the rows and is trained: a folder, a hub id, or a loaded one as ``(model, tokenizer)``.
        output: the run folder.
        log: is told what happens.
        progress: shows it.
        options: keys of the configuration, such as ``select``, ``train``, ``warmup`` and ``eval``.

    Raises:
        ConfigError: something is missing or of a type that is not taken, or the folder
            holds a run with another configuration; names the keys.
        DataError: the data has changed since the run began.
        StoreError: another process works in the folder.
    """
    config = configured(PipelineConfig, data, model=model, output=output, **options)
    run = open_pipeline(config, log or (lambda line: None), progress or Quiet())
    rounds, controls = list[Any](), list[Any]()
    for done in run.run_line():
        line = run.line(done.number)
        if config.eval is not None:
            cells = run.controls(done) if done.number == 1 else []
            if cells:
                run.make_ahead([Cell(BASE), *cells])
            for cell in cells:
                control = run.run_cell(cell)
                controls.append(run.evaluate_round(title(cell), control, Cell(cell.line, "", cell.seed)))
                run.drop(control.model)
            random = [one for one in controls if one and one["model"].startswith("random seed")]
            rounds.append(run.evaluate_round(line, done, Cell(line, "", config.seed), random=random))
            if done.number == config.iterations:
                run.make_ahead(cells := run.repeats(done))
                for cell in cells:
                    again = run.run_cell(cell)
                    run.evaluate_round(title(cell), again, cell)
                    run.drop(again.model)
    base = [run.evaluate_round(BASE, None)] if config.eval is not None else []
    suites = run.compare(line) if run.results else {}
    return PipelineResult(run.folder, [one for one in (*base, *controls, *rounds) if one], run.places.events(), suites)


def open_beside(config: PipelineConfig, log: Log) -> Pipeline:
    """A pipeline that another process has opened, and that makes cells of the same run."""
    run = open_pipeline(config, lambda line: None, Quiet(), claim=False)
    run.beside, run.log = True, log
    return run


def selector(config: PipelineConfig) -> tuple[str, Method]:
    """The configured method and its name."""
    part = config.select
    ((name, (_, method)),) = make_methods([part.method], {short_name(part.method): part.params}, config.seed).items()
    return name, method


def budget_of(config: PipelineConfig, number: int = 1) -> Budget:
    """A round's budget, by default ``select_ratio`` of the tokens, or all that ``per`` leaves.

    A ConfigError where ``grow`` is of another kind.
    """
    part = config.select
    free = part.budget is None and "select_ratio" not in part.model_fields_set
    if free and (part.per or selector(config)[1].default_per):
        return parse_budget("100%")
    budget = configured_budget(part.budget, part.select_ratio)
    if config.select.grow is None:
        return budget
    more = parse_budget(config.select.grow)
    if (more.kind, more.part) != (budget.kind, budget.part):
        raise ConfigError(f"'select.grow' is '{more}', the budget is '{budget}'; both must be of one kind")
    return replace(budget, amount=budget.amount + (number - 1) * more.amount)


def open_pipeline(config: PipelineConfig, log: Log, progress: Progress, *, claim: bool = True) -> Pipeline:
    """A run folder for this configuration: a new one, or the same one again.

    Without ``claim`` nothing is written, and the pipeline must not run.
    """
    for key, option in (("data", "data_path"), ("model", "base_model"), ("output", "output_dir")):
        if not getattr(config, key):
            raise ConfigError(f"the pipeline needs '{option}'")
    assert config.model and config.output
    places = PipelineFolder(Path(config.output))
    scoring = config.model_copy(update={"template": config.score.template or config.template})
    # A typo must be found before anything is trained, and must not bind the folder.
    selector(config)
    budget_of(config)
    places.check_config(config, FREE)
    store = Store(config.store)
    base = resolve(parse_model(config.model), store.memo)
    scoring = with_template(scoring, [config.model], log)
    settings = settings_of(scoring, max_length=config.score.max_length)
    data = read_inputs(config, places.path if claim else None, log)
    heldout = _read_heldout(config, log)
    suites: tuple[EvalConfig | None, list[Suite]] = (None, [])
    if (part := config.eval) is not None:
        known = {"suite": part.suite, "limit": part.limit, "model": config.model, "heldout": heldout}
        known["max_length"] = config.score.max_length or config.max_length
        suites = make_suites_for(scoring, part.params, store, data[0], log, **known)
    holdout = read_rows(config, config.holdout, None, log) if config.holdout else None
    inputs = {"base model": base.fingerprint, **fingerprints((*data, holdout), "warmup data")}
    inputs |= {"eval data": heldout.fingerprint} if heldout is not None else {}
    if claim:
        places.claim(config, inputs)
    return Pipeline(config, places.path, *data, settings, store, *suites, log, progress, holdout)


def _read_heldout(config: PipelineConfig, log: Log) -> Pool | None:
    """The rows that models are evaluated on, where that is asked for."""
    part = config.eval
    if part is None or HELDOUT not in part.suite:
        return None
    path = part.data_path or builtin_heldout(config.data)
    if path is None:
        raise ConfigError("'eval.data_path' is missing: which held-out rows should the models be judged on?")
    return read_rows(config, path, part.limit, log)
