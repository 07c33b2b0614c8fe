"""What a pipeline, a comparison, a training or an evaluation will cost, before anything is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.config.commands import PipelineConfig, TrainConfig
from instdiff.config.compare import CompareConfig, Variant
from instdiff.config.evaluate import EvalConfig
from instdiff.config.methods import make_method
from instdiff.config.search import SearchConfig
from instdiff.config.train import TrainSettings
from instdiff.core import Budget, Log, Method, ModelRef, Scored, Settings
from instdiff.core.caps import parse_per
from instdiff.core.files import fingerprint, read_json
from instdiff.core.progress import Quiet
from instdiff.data import Pool, load
from instdiff.engine.models import pick_device
from instdiff.engine.sources import Source, load_tokenizer, resolve
from instdiff.engine.speed import Machine
from instdiff.errors import ConfigError
from instdiff.evaluation.cost import SuiteCosts
from instdiff.evaluation.subject import Suite
from instdiff.evaluation.suites import make_suites
from instdiff.experiments.compare import Comparison, open_comparison
from instdiff.experiments.engine import Engine, Roles, mark_of
from instdiff.experiments.pipeline import LINE, Pipeline, budget_of, open_pipeline, selector, title
from instdiff.experiments.run_folder import BASE, ROUND_MODEL, TRAINING, Cell, model_folder
from instdiff.experiments.search import open_search
from instdiff.methods import Full, Longest, Oracle, Random
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.rows import Rows
from instdiff.rendering.templates import template
from instdiff.scoring.cost import Planned, StageCost, count_passes, merge_stages, stage_of_passes
from instdiff.scoring.crossfit import Best, Training, place_in_store
from instdiff.scoring.known import KnownRows, foresee_known
from instdiff.scoring.models import check_roles, parse_model, settings_of
from instdiff.scoring.precision import settle_precision
from instdiff.scoring.scorer import score
from instdiff.scoring.workbench import Workbench
from instdiff.selection.per import caps_of
from instdiff.selection.record import RECORD, SCORES
from instdiff.selection.selector import sample_rows, select
from instdiff.store import Store
from instdiff.training.cost import TrainingSpeed, training_speed, training_work
from instdiff.training.pairs import refuse_pairs
from instdiff.training.sft import trained_model

CROSSFIT = "crossfit"
"""The stage of models that methods score by."""
PAGE_S = 7.0
"""Seconds of a run's page."""
Chosen = Pool | int
"""The rows of a selection, or how many there will be."""
Lacking = Callable[[Mapping[str, Method], Best], Iterable[Training]]
"""What methods lack."""


@dataclass(frozen=True)
class RunCost:
    """What a run of a ``kind`` still has to do, stage by stage, in seconds of this machine with no other work.

    ``known`` says of methods with a floor how many rows are below it.
    """

    kind: str
    stages: list[StageCost]
    known: list[KnownRows] = field(default_factory=list)

    @property
    def total(self) -> StageCost:
        """The sum of all stages."""
        return sum(self.stages, StageCost("total", "", count=0))

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        total = {key: value for key, value in asdict(self.total).items() if key not in ("stage", "kind")}
        parts = {"stages": [asdict(one) for one in self.stages], "known": [asdict(one) for one in self.known]}
        return {"kind": self.kind, **parts, "total": total}


@dataclass(frozen=True)
class Unmade(Source):
    """A model that is yet to be trained: of the shape of what it is trained from, and no row is scored by it."""

    number: int = 0
    full: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """That of no other model."""
        return f"planned {self.number}"

    @property
    def base_key(self) -> str:
        """It is loaded by itself, if it is no adapter."""
        return self.fingerprint if self.full else super().base_key


class Book:
    """Counts the work of a run, and remembers the models that earlier work will have made."""

    def __init__(self, settings: Settings, store: Store, price: tuple[float, float] | None) -> None:
        self.settings, self.store, self.price = settings, store, price
        self.machine, self.planned = Machine(pick_device(settings.device)), Planned()
        self.suites = SuiteCosts(store, self.machine, self.planned, price)
        self.lines: list[StageCost] = []
        self.known: dict[str, KnownRows] = {}
        self._unmade: dict[ModelRef, Unmade] = {}
        self._trained: dict[str, ModelRef] = {}
        self._speeds: dict[str, TrainingSpeed] = {}
        self._rows: dict[tuple[str, str, int], tuple[Rows, Any, dict[str, int]]] = {}

    # ── trainings ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def train(
        self,
        stage: str,
        rows: Chosen,
        of: Pool,
        start: ModelRef,
        how: TrainSettings,
        seed: int,
        name: Callable[[str], Path],
    ) -> ModelRef:
        """A training on rows out of a pool, unless it is there; gives the model, which may be one that will be made."""
        mark = ""
        if isinstance(rows, Pool):
            mark = mark_of(rows, start, how, seed)
        place = name(mark)
        if mark in self._trained:
            return self._trained[mark]
        if (place / TRAINING).is_file():
            return trained_model(start, how, place)
        source = self.source(start)
        learnt, tokenizer, lengths = self._rendered(of, start, source, how)
        mean = round(float(np.mean(list(lengths.values()))))
        counts = [lengths.get(one, mean) for one in rows.ids] if isinstance(rows, Pool) else [mean] * rows
        used = np.array([count for count in counts if count], np.int64)
        work = training_work(used, how, source, self.machine.device)
        speed = fingerprint(str(source.folder), {k: v for k, v in how.learning().items() if k != "max_steps"})
        if speed not in self._speeds:
            self._speeds[speed] = training_speed(learnt, source, tokenizer, how, self.machine)
        line = StageCost(
            stage, "train", estimated=not isinstance(rows, Pool), seconds=self._speeds[speed].seconds(work)
        )
        self.lines.append(replace(line, **asdict(work)))
        return self._promise(start, source, how, mark)

    def _promise(self, start: ModelRef, source: Source, how: TrainSettings, mark: str) -> ModelRef:
        number = len(self._unmade) + 1
        model = ModelRef(f"model {number} of the plan", template=start.template)
        self._unmade[model] = Unmade(source.ref, source.folder, number=number, full=not how.use_lora)
        if mark:
            self._trained[mark] = model
        return model

    def source(self, model: ModelRef) -> Source:
        """A model's files; of one that is yet to be made, those that it is trained from."""
        return self._unmade.get(model) or resolve(model, self.store.memo)

    def _rendered(
        self, of: Pool, start: ModelRef, source: Source, how: TrainSettings
    ) -> tuple[Rows, Any, dict[str, int]]:
        """A pool's rows as they are trained on, the tokenizer, and the length of each row by its id, 0 if left out."""
        place = of.fingerprint, start.template or self.settings.template, how.model_max_length
        if place not in self._rows:
            tokenizer = load_tokenizer(source, self.settings.template_date)
            rows = Renderer(of, tokenizer).training_rows(template(place[1]), how.model_max_length)
            used = rows.take(np.flatnonzero(rows.reason == None))  # noqa: E711 - elementwise
            self._rows[place] = used, tokenizer.hf, dict(zip(of.ids, rows.ids.lengths().tolist(), strict=True))
        return self._rows[place]

    def train_lacking(
        self,
        lacking: Lacking,
        methods: Mapping[str, Method],
        roles: Roles,
        pool: Pool,
        target: Pool | None,
        place: Callable[[Training, str], Path],
    ) -> dict[str, ModelRef]:
        """Roles with the models that methods score by and that are trained for them, into the places."""

        def best(before: Method) -> npt.NDArray[np.int64]:
            made = self.train_lacking(lacking, {"before": before}, roles, pool, target, place)
            self.score(CROSSFIT, {"before": before}, made, pool, target)
            return np.arange(len(pool))  # nobody knows yet which are the best, but how many are taken

        bound = dict(roles)
        for one in lacking(methods, best):
            guessed = one.split is not None and one.split.before is not None
            rows, of = (len(one.rows), pool) if guessed else (one.rows, one.rows)
            model = self.train(CROSSFIT, rows, of, one.start, one.how, one.seed, partial(place, one))
            bound |= self._saves(one, model) | {one.role: model}
        return bound

    def _saves(self, one: Training, model: ModelRef) -> dict[str, ModelRef]:
        """The saves of a training by their roles; they are yet to be made where its model is."""
        if model not in self._unmade:
            return one.roles(model, model_folder(model))
        source = self.source(one.start)
        return {role: self._promise(one.start, source, one.how, f"{model} {role}") for role in one.saves}

    # ── scores, selections and evaluations ────────────────────────────────────────────────────────────────────────────

    def score(self, stage: str, methods: Mapping[str, Method], roles: Roles, pool: Pool, target: Pool | None) -> None:
        """The passes of methods, less what the store has and what earlier lines compute."""
        asked = {name: method for name, method in methods.items() if needs_model(method)}
        if not asked:
            return
        bench = self.bench(asked, roles, pool, target)
        told = asked if stage != CROSSFIT else {}
        for one in (one for name, method in told.items() for one in foresee_known(bench, name, method)):
            self.known.setdefault(one.name, one)
        passes = count_passes(bench, asked, self.price, self.planned)
        self.lines += stage_of_passes(stage, bench, passes, self.machine)

    def bench(self, methods: Mapping[str, Method], roles: Roles, pool: Pool, target: Pool | None) -> Workbench:
        """A workbench that takes models which are yet to be trained for what they will be."""
        bench = Workbench(pool, roles, self._precision(methods, roles), self.store, target=target, log=_nobody)
        bench.sources |= {role: self._unmade[model] for role, model in roles.items() if model in self._unmade}
        return bench

    def _precision(self, methods: Mapping[str, Method], roles: Roles) -> Settings:
        settings = settle_precision(self.settings, list(methods.values()), roles)
        full = any(self._unmade[model].full for model in roles.values() if model in self._unmade)
        return replace(settings, dtype="float32") if full and settings.dtype == "auto" else settings

    def evaluate(
        self, stage: str, suites: Sequence[Suite], config: EvalConfig | None, model: ModelRef, place: Path | None
    ) -> None:
        """Suites on a model, less those whose results are in the place."""
        if config is None:
            return
        left = [one for one in suites if place is None or not (place / f"{one.name}.json").is_file()]
        unmade = self._unmade.get(model)
        ref = unmade.ref if unmade is not None else model
        self.lines += self.suites.stages(stage, left, config, replace(ref, template=model.template), unmade)

    def cost(self, kind: str, began: float) -> RunCost:
        """What was counted; ``began`` seconds of work until the run begins are spent where there is any."""
        if not self.lines:
            return RunCost(kind, [])
        page = [StageCost("page", "write", seconds=PAGE_S)] if kind in ("pipeline", "compare", "search") else []
        stages = [StageCost("start", "load", seconds=began), *merge_stages(self.lines), *page]
        return RunCost(kind, stages, list(self.known.values()))


class Rounds:
    """The rounds of an experiment's cells."""

    def __init__(self, run: Engine, book: Book) -> None:
        self.run, self.book = run, book
        fair = {"dtype": "float32"} if run.eval_config and run.eval_config.dtype == "auto" else {}
        self.eval_config = run.eval_config and run.eval_config.model_copy(update=fair)
        self._counted: dict[int, Scored] = {}

    def counted(self, pool: Pool) -> Scored:
        """A pool's response tokens."""
        if id(pool) not in self._counted:
            self._counted[id(pool)] = self.exact("random", Random(), pool)
        return self._counted[id(pool)]

    def exact(self, name: str, method: Method, pool: Pool) -> Scored:
        """The scores of a method that needs no model."""
        run = self.run
        listed = {"warmup": list[str](), "selected": list[str]()}
        models = {"base": run.student}
        return score(pool, {name: method}, models, settings=run.settings, store=run.store, listed=listed)[name]

    def chosen(self, cell: Cell, number: int, method: Method, pool: Pool) -> Chosen:
        """A round's rows: those of its record, those that a baseline takes, or how many the budget comes to."""
        run = self.run
        place = run.place_of(cell, number)
        if (place / RECORD).is_file():
            return run.rows_of(read_json(place / RECORD))
        budget, bound = run.budget_of(cell, number), parse_per(run.per(cell)) or method.default_per
        if isinstance(method, Random | Longest | Full | Oracle):
            return pool.take(select(pool, self.exact(cell.line, method, pool), budget, per=bound).at)
        counted = self.counted(pool)
        most = len(pool) if bound is None else caps_of(pool, bound).most
        if not budget.of_tokens:
            return min(most, budget.target(counted))
        mean = float(budget.costs(counted)[counted.scorable].mean())
        return min(most, max(1, round(budget.target(counted) / mean)))

    def rounds(
        self,
        stage: str,
        cell: Cell,
        variant: Variant,
        roles: Roles,
        how: TrainSettings,
        seed: int,
        method: Method,
        pool: Pool,
        scores: Callable[[int, Roles], None],
    ) -> tuple[ModelRef, ModelRef, Chosen]:
        """Score, select and train; gives the last model, what its training began with, and its rows."""
        start = model = self.run.student
        rows: Chosen = 0
        for number in range(1, variant.rounds + 1):
            start = model if variant.train_from == "last" else self.run.student
            if not (self.run.place_of(cell, number) / RECORD).is_file():
                scores(number, roles)
            rows = self.chosen(cell, number, method, pool)
            place = partial(self.run.model_of, cell, number)
            label = f"{stage} {number}" if cell == LINE else stage
            model = self.book.train(label, rows, self.run.pool, start, how, seed, place)
            roles = {**roles, variant.rebind: model}
            if isinstance(self.run, Pipeline) and cell == LINE:
                self.evaluate(label, model, self.run.place_of(cell, number) / "results")
        return model, start, rows

    def evaluate(self, stage: str, model: ModelRef, place: Path, cell: Cell = LINE) -> None:
        """The suites of a cell on its model."""
        self.book.evaluate(stage, self.run.suites_of(cell), self.eval_config, model, place)


# ── the four kinds ────────────────────────────────────────────────────────────────────────────────────────────────────


def plan_run(
    config: PipelineConfig | CompareConfig | SearchConfig | TrainConfig | EvalConfig, *, log: Log = print
) -> RunCost:
    """What a run with this configuration would still do and cost; nothing is trained, written or asked.

    A few steps of a small model are tried in memory and in a temporary folder, to know how fast this machine is.

    Raises:
        ConfigError: something is missing, or the run's folder holds another run.
    """
    if isinstance(config, PipelineConfig):
        return _pipeline(open_pipeline(config, log, Quiet(), claim=False), config)
    if isinstance(config, CompareConfig):
        return _comparison(open_comparison(config, log, Quiet(), claim=False), "compare")
    if isinstance(config, SearchConfig):
        return _comparison(open_search(config, log, Quiet(), claim=False).look_ahead(), "search")
    return _training(config, log) if isinstance(config, TrainConfig) else _evaluation(config, log)


def plan_training(
    lacking: Lacking,
    methods: Mapping[str, Method],
    roles: Roles,
    pool: Pool,
    target: Pool | None,
    settings: Settings,
    store: Store,
) -> tuple[RunCost, Workbench]:
    """What `score` trains before its passes, and a workbench that prices these; nothing is trained or written."""
    book = Book(settings, store, None)
    bound = book.train_lacking(
        lacking, methods, roles, pool, target, lambda one, mark: place_in_store(one, settings, store)
    )
    check_roles(methods, bound)
    return RunCost("score", merge_stages(book.lines)), book.bench(methods, bound, pool, target)


def _comparison(run: Comparison, kind: str) -> RunCost:
    config = run.config
    book, began = Book(run.settings, run.store, config.judge_price), start_seconds(train=True)
    rounds, together = Rounds(run, book), set[tuple[str, int]]()
    cells = [cell for cell in run.cells() if not run.is_done(cell)]

    def first(cell: Cell, variant: Variant) -> None:
        """All lines that see the same rows with the same models are scored at once."""
        assert cell.seed is not None
        if (place := (run.kinds[cell.line], cell.seed)) in together:
            return
        together.add(place)
        left = {one.line for one in cells if one.seed == cell.seed and one.line != BASE}
        names = [name for name in run.variants if name in left and run.kinds[name] == place[0]]
        methods, part = {name: run.method(name, cell.seed) for name in names}, run.part_of(variant)
        roles = run.roles_of(variant)
        lacking = partial(run.lacking, roles, part, cell.seed)
        roles = book.train_lacking(lacking, methods, roles, part, run.target, run.place_of_trained)
        if any(name in run.warmed for name in names):
            name_model = partial(run.place_of_model, run.warmup_key(variant, cell.seed))
            rows, how = run.warmup_rows(variant, cell.seed), config.warmup.train or config.train
            seed = config.warmup_seed(cell.seed)
            roles["calibrated"] = book.train("warm-up", rows, run.warmup, roles["base"], how, seed, name_model)
        book.score("all lines", methods, roles, part, run.target)

    def rows_of(cell: Cell) -> int:
        rows = rounds.chosen(cell, 1, run.method(cell.line, cell.seed or 0), run.pool)
        return len(rows) if isinstance(rows, Pool) else rows

    for cell in cells:
        model, stage = run.student, f"{cell.line} {cell.budget}".strip()
        if cell.seed is not None:
            variant, method = run.variants[cell.line], run.method(cell.line, cell.seed)
            pool, line, roles = run.part_of(variant), cell.line, run.roles_of(variant)

            def scores(number: int, bound: Roles) -> None:
                if number == 1:
                    first(cell, variant)  # noqa: B023 - called within this turn
                else:
                    mine, lack = {line: method}, partial(run.lacking, bound, pool, cell.seed or 0)  # noqa: B023
                    bound = book.train_lacking(lack, mine, bound, pool, run.target, run.place_of_trained)  # noqa: B023
                    book.score(stage, mine, bound, pool, run.target)  # noqa: B023

            how = run.settings_of(cell, rows_of)
            model, _, _ = rounds.rounds(stage, cell, variant, roles, how, cell.seed, method, pool, scores)
        rounds.evaluate(stage, model, run.places.cell(cell), cell)
    return book.cost(kind, began)


def _pipeline(run: Pipeline, config: PipelineConfig) -> RunCost:
    book, began = Book(run.settings, run.store, config.judge_price), start_seconds(train=True)
    rounds, part, (name, method) = Rounds(run, book), config.warmup, selector(config)
    how, weighted = run.how, run.weighted(LINE, run.how)
    warmup = run.warmup.take(sample_rows(len(run.warmup), part.sample_size, config.seed))
    warm = partial(_same, run.places.calibration_model)
    model = book.train("warm-up", warmup, run.warmup, run.student, part.train or config.train, config.seed, warm)

    def scores(number: int, bound: Roles) -> None:
        if not (run.place_of(LINE, number) / SCORES).is_file():
            mine, lack = {name: method}, partial(run.lacking, bound, run.pool, config.seed)
            bound = book.train_lacking(lack, mine, bound, run.pool, run.target, run.place_of_trained)
            book.score(f"round {number}", mine, bound, run.pool, run.target)

    roles = {**run.roles, "calibrated": model}
    line = Variant(rounds=config.iterations)
    _, start, rows = rounds.rounds("round", LINE, line, roles, weighted, config.seed, method, run.pool, scores)
    if config.eval is None:
        return book.cost("pipeline", began)
    budget, counted = budget_of(config), rounds.counted(run.pool)
    same = budget.as_count(counted)
    if not budget.of_tokens:
        tokens = round(budget.target(counted) * float(counted.n_tokens[counted.scorable].mean()))
        same = Budget(tokens, "tokens")
    for kind in config.eval.baselines:
        for seed in config.eval.seeds if kind == "random" else (None,):
            cell = Cell(kind, "100%" if kind == "full" else str(same), seed)
            control = make_method(kind, {}, seed or 0)
            stage, nothing = title(cell), lambda number, bound: None
            found = rounds.rounds(stage, cell, Variant(), run.roles, how, config.seed, control, run.pool, nothing)
            rounds.evaluate(stage, found[0], run.place_of(cell, 1) / "results")
    for seed in config.eval.repeats(config.seed):
        place = run.places.repeat(config.iterations, seed)
        again = book.train(f"seed {seed}", rows, run.pool, start, weighted, seed, partial(_same, place / ROUND_MODEL))
        rounds.evaluate(f"seed {seed}", again, place / "results")
    rounds.evaluate(BASE, run.student, run.folder / BASE / "results")
    return book.cost("pipeline", began)


def _training(config: TrainConfig, log: Log) -> RunCost:
    part = config.train
    data, model = config.data or part.data_path, config.model or part.model_name_or_path
    if not data or not model:
        raise ConfigError("a training needs 'data' and 'model'")
    how = {"format": config.format, "longest_line_mb": config.longest_line_mb, **config.turns()}
    rows = refuse_pairs(load(data, map=config.mapping(), limit=config.limit, log=log, **how))
    book, began = Book(settings_of(config), Store(config.store), None), start_seconds(train=True)
    output = Path(config.output or part.output_dir or "")
    book.train("train", rows, rows, parse_model(model), part, config.seed, partial(_same, output))
    return book.cost("train", began)


def _evaluation(config: EvalConfig, log: Log) -> RunCost:
    suites = make_suites(config)
    book, began = Book(settings_of(config), Store(config.store), config.judge_price), start_seconds(train=False)
    for suite in suites:
        ref = parse_model(config.model) if config.model else None
        book.lines += book.suites.stages(suite.name, [suite], config, ref)
    return book.cost("eval", began)


def needs_model(method: Method) -> bool:
    """Whether a method reads anything of a model."""
    return any(signal.measure.needs_model for signal in method.signals().values())


def _same(place: Path, mark: str) -> Path:
    return place


def start_seconds(*, train: bool) -> float:
    """Seconds of work of this process until here, with the libraries that a run imports."""
    import transformers  # noqa: F401

    if train:
        from trl import SFTTrainer  # noqa: F401
    return time.process_time()


def _nobody(line: str) -> None:
    """Takes what the run itself will say."""
