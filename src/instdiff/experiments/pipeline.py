"""The whole way: warm-up, calibration, score, select, train, evaluate, and again (InstructDiff, Algorithm 1).

Every stage leaves a file or folder that is whole; a stage whose result is there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instdiff.config.base import OPERATIONAL
from instdiff.config.commands import PipelineConfig
from instdiff.config.evaluate import EvalConfig
from instdiff.config.methods import make_methods, short_name
from instdiff.config.train import TrainSettings
from instdiff.core import Budget, Log, Method, ModelRef, Scored, Settings
from instdiff.core.budget import configured_budget, parse_budget
from instdiff.core.files import read_json, write_json, writing
from instdiff.core.progress import Progress, Quiet, Recorded, learnt
from instdiff.data import Pool
from instdiff.engine.models import resolve
from instdiff.errors import ConfigError
from instdiff.evaluation.evaluator import HELDOUT, judges, make_subject, nll_facts, run_suites
from instdiff.evaluation.results import SuiteResult, TaskResult, read_results
from instdiff.evaluation.subject import Suite
from instdiff.experiments.grid import BASE
from instdiff.experiments.inputs import first_records, flaws, heldout_pool, read_pool, target_pool, warmup_pool
from instdiff.experiments.run_folder import RECORD, Cell, drop_model, same_config, same_inputs, sweep_up, whole
from instdiff.experiments.run_folder import CellResult as Judged
from instdiff.experiments.summary import devices, summarize
from instdiff.experiments.tables import write_tally
from instdiff.methods import Full, Longest, Random
from instdiff.scoring.models import bind, parse_model, settings_of
from instdiff.scoring.scorer import recalling, score
from instdiff.scoring.table import ScoreTable, read_scores
from instdiff.selection.selector import sample_rows, select
from instdiff.store import Store
from instdiff.training.sft import train

TERMS = "Controls have as many response tokens as the first round's budget (full: all rows), and the same training."
FREE = (
    *(*OPERATIONAL, "keep_models", "judge_concurrency"),
    *("eval.params.concurrency", "eval.params.judge_concurrency"),
)
"""Keys that may change when a run goes on."""


@dataclass(frozen=True)
class Trained:
    """A selection and the model trained on it."""

    name: str
    folder: Path
    model: ModelRef
    rows: list[int]
    tokens: int
    target: int
    """The budget in response tokens, which controls are given too."""
    seed: int | None = None
    """Of a random control."""


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline found: held-out lines, one per model, the counts of every stage, and ``comparison.json``."""

    folder: Path
    lines: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    suites: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A run folder with everything that its stages share.

    ``pool`` are the rows that are scored, ``warmup`` those that the warm-up subset is drawn from, ``target`` those that
    targeted methods match. ``models`` are bound to roles beside the base and the calibrated model. ``suites`` judge
    models, as ``asked`` says; ``judged`` is what they found.
    """

    config: PipelineConfig
    folder: Path
    pool: Pool
    warmup: Pool
    heldout: Pool | None
    target: Pool | None
    base: ModelRef
    models: Mapping[str, ModelRef]
    settings: Settings
    store: Store
    log: Log
    progress: Progress
    flaws: Mapping[int, str] = field(default_factory=dict)
    asked: EvalConfig | None = None
    suites: list[Suite] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    _makers: dict[Path, Callable[[], ModelRef]] = field(default_factory=dict)

    # ── stages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def warm_up(self) -> tuple[ModelRef, list[str]]:
        """The first calibration model, trained on a random subset; and the ids of that subset."""
        part = self.config.warmup
        path = self.folder / "iter_1" / "warmup_subset.jsonl"
        subset = self.warmup.take(sample_rows(len(self.warmup), part.sample_size, self.config.seed))
        if not path.is_file():
            subset.to_jsonl(path)
        self._event("warm-up", rows=len(subset), of=len(self.warmup))
        model = self._train(subset, path.parent / "calibration_model", part.train)
        return model, list(subset.ids)

    def round(self, number: int, calibrated: ModelRef, warmup: list[str]) -> Trained:
        """Score all rows, select, train from the base."""
        folder = self.folder / f"iter_{number}"
        record, scored = self._select(folder, number, calibrated, warmup)
        counts, rows = record["counts"], record["rows"]
        self._event(f"round {number}", **counts, excluded=record["excluded"])
        place = {row: at for at, row in enumerate(self.pool.rows.tolist())}
        pool, own = self.pool.take([place[row] for row in rows]), self.config.select_train.train
        model = self._train(pool, folder / "selected_train_model", own)
        budget, tokens = budget_of(self.config, number), counts["selected_tokens"]
        target = budget.target(scored) if budget.of_tokens else tokens
        return Trained(f"{scored.name} round {number}", folder, model, rows, tokens, target)

    def _select(
        self, folder: Path, number: int, calibrated: ModelRef, warmup: list[str]
    ) -> tuple[dict[str, Any], Scored]:
        """What ``selection.json`` says, and the scores that decided."""
        path = folder / "scores.parquet"
        name, method = selector(self.config)
        listed = {"warmup": warmup, "selected": self._before(number, warmup)}
        if not path.is_file():
            specs = {name: self.config.select.method}
            roles = {"calibrated": self._whole(calibrated)}
            self._score({name: method}, roles, listed, specs, f"scored round {number}").write(path)
        table = read_scores(path, run=[self.config.select.method])
        if not (folder / "selection.json").is_file():
            self._whole(calibrated)
            root = str(self.store.root)
            scored = recalling(table[name], table.meta, self.pool, store=root, listed=listed, log=self.log)
            chosen = select(self.pool, scored, budget_of(self.config, number), meta=table.meta)
            chosen.write(folder / "selected.jsonl")
            chosen.write_record(folder / "selection.json")
        record: dict[str, Any] = read_json(folder / "selection.json")
        return record, table[name]

    def _before(self, number: int, warmup: list[str]) -> list[str]:
        """The ids that the round before has trained on."""
        if number == 1:
            return warmup
        record = read_json(self.folder / f"iter_{number - 1}" / "selection.json")
        ids: list[str] = record["ids"]
        return ids

    def control(self, name: str, method: Method, tokens: int, seed: int | None = None) -> Trained:
        """A control at the same token budget, trained the same way."""
        folder = self.folder / "baselines" / name.replace(" ", "_")
        table = self._score({method.name: method}, {}, {}, {}, f"scored {name}")
        budget = Budget(1.0, "share") if isinstance(method, Full) else Budget(tokens, "tokens")
        chosen = select(self.pool, table[method.name], budget, meta=table.meta)
        if not (folder / "selection.json").is_file():
            chosen.write(folder / "selected.jsonl")
            chosen.write_record(folder / "selection.json")
        model = self._train(chosen.pool.take(chosen.at), folder / "model", self.config.select_train.train)
        return Trained(name, folder, model, chosen.rows.tolist(), chosen.n_tokens, tokens, seed)

    # ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────

    def controls(self, tokens: int) -> Iterator[Trained]:
        """The configured controls, each with as many response tokens as the selections."""
        assert self.config.eval is not None
        for kind in self.config.eval.baselines:
            if kind == "random":
                for seed in self.config.eval.seeds:
                    yield self.control(f"random seed {seed}", Random(seed=seed), tokens, seed)
            else:
                yield self.control(kind, Longest() if kind == "longest" else Full(), tokens)

    def judge(self, trained: Trained, **beside: Any) -> dict[str, Any] | None:
        """Every suite on a model; ``results.json`` tells what was found, and ``beside``.

        Returns:
            Held-out NLL and its paired difference to the base, where it was asked for.
        """
        results = self._results(trained.name, trained.model, trained.folder)
        took = read_json(Path(trained.model.adapter or trained.model.where) / RECORD)
        facts = {"rows": len(trained.rows), "tokens": trained.tokens, "steps": took["steps"]}
        facts |= {"train_s": took["wall_s"], "cost_unit": devices(self.settings)[0]}
        cell = Cell(trained.name if trained.seed is None else "random", "", trained.seed)
        self._record_results(cell, facts, results)
        told: dict[str, Any] = {}
        line = None
        if HELDOUT in results:
            base = self._results(BASE, self.base, self.folder / BASE)[HELDOUT][HELDOUT]
            line = self._line(trained.name, results[HELDOUT][HELDOUT], base, trained)
            told = {"suite": HELDOUT, "base": self._line(BASE, base, base), "selection": line}
        others = {name: result.record() for name, result in results.items() if name != HELDOUT}
        if others:
            told["suites"] = {name: {k: v for k, v in one.items() if k != "items"} for name, one in others.items()}
        write_json(trained.folder / "results.json", {**told, **beside})
        return line

    def judge_base(self) -> dict[str, Any] | None:
        """The base model's own line."""
        results = self._results(BASE, self.base, self.folder / BASE)
        self._record_results(Cell(BASE), {}, results)
        if HELDOUT not in results:
            return None
        return self._line(BASE, results[HELDOUT][HELDOUT], results[HELDOUT][HELDOUT])

    def _record_results(self, cell: Cell, facts: dict[str, Any], results: Mapping[str, SuiteResult]) -> None:
        others = [result for name, result in results.items() if name != HELDOUT]
        if others:
            self.judged.append(Judged(cell, facts, others))

    def _results(self, name: str, model: ModelRef, folder: Path) -> dict[str, SuiteResult]:
        """What each suite finds of a model, item by item; what was found before is read."""
        places = {suite.name: folder / "results" / f"{suite.name}.json" for suite in self.suites}
        todo = [suite for suite in self.suites if not places[suite.name].is_file()]
        if todo:
            assert self.asked is not None
            seen = Recorded(self.progress)
            subject = make_subject(self._whole(model), self.asked, self.store, name=name, log=self.log, progress=seen)
            run_suites(todo, [places[suite.name] for suite in todo], subject, self.asked)
            self._event(f"judged {name}", **seen.facts())
        return {suite: read_results(path) for suite, path in places.items()}

    def _line(self, name: str, mine: TaskResult, base: TaskResult, trained: Trained | None = None) -> dict[str, Any]:
        rows = trained.rows if trained else []
        flawed = sum(row in self.flaws for row in rows) / len(rows) if rows and self.flaws else None
        gain = nll_facts(mine, base) if trained else dict.fromkeys(("gain", "gain_low", "gain_high"))
        return {
            "model": name,
            "rows": len(rows) if trained else None,
            "tokens": trained.tokens if trained else None,
            **nll_facts(mine),
            **gain,
            **({"flawed": flawed} if self.flaws else {}),
        }

    # ── shared steps ──────────────────────────────────────────────────────────────────────────────────────────────

    def _score(
        self,
        methods: dict[str, Method],
        models: dict[str, ModelRef],
        listed: dict[str, list[str]],
        specs: dict[str, str],
        stage: str,
    ) -> ScoreTable:
        seen = Recorded(self.progress)
        table = score(
            self.pool,
            methods,
            {**self.models, "base": self.base, **models},
            settings=self.settings,
            store=self.store,
            listed={"warmup": [], "selected": [], **listed},
            target=self.target,
            specs=specs,
            log=self.log,
            progress=seen,
        )
        self._event(stage, **seen.facts())
        return table

    def _train(self, pool: Pool, output: Path, own: TrainSettings | None) -> ModelRef:
        def make() -> ModelRef:
            return train(
                pool,
                self.base,
                own or self.config.train,
                self.settings,
                output,
                store=self.store,
                seed=self.config.seed,
                log=self.log,
                say=lambda told: self._event(
                    f"trained {output.relative_to(self.folder)}", **told, **learnt(read_json(output / RECORD))
                ),
            )

        self._makers[output] = make
        return make()

    def _whole(self, model: ModelRef) -> ModelRef:
        return whole(model, self._makers, self.log)

    def leave(self, model: ModelRef) -> None:
        """Drop a model that nothing later needs, unless models are kept."""
        if not self.config.keep_models:
            drop_model(Path(model.adapter or model.where))

    def _event(self, what: str, **facts: Any) -> None:
        """One line of ``log.jsonl``: of each event the first, since done again it would find everything there."""
        path = self.folder / "log.jsonl"
        old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if not facts or what in [json.loads(said)["event"] for said in old]:
            return
        text = json.dumps({"event": what, **facts}, ensure_ascii=False)
        with writing(path) as aside:
            aside.write_text("".join(f"{said}\n" for said in [*old, text]), encoding="utf-8")
        if "passes" not in facts:  # which progress has shown
            self.log(what + "".join(f"  {k} {v}" for k, v in facts.items() if not isinstance(v, dict | None)))


def pipeline(config: PipelineConfig, *, log: Log, progress: Progress | None = None) -> PipelineResult:
    """Run or go on with a pipeline.

    Raises:
        ConfigError: the folder holds a run with another configuration; names the keys.
        DataError: the data has changed since the run began.
    """
    run = open_run(config, log, progress or Quiet())
    calibrated, warmup = run.warm_up()
    rounds: list[dict[str, Any] | None] = []
    controls: list[dict[str, Any] | None] = []
    for number in range(1, config.iterations + 1):
        trained = run.round(number, calibrated, warmup)
        run.leave(calibrated)
        calibrated = trained.model
        if config.eval is not None:
            for control in () if controls else run.controls(trained.target):
                controls.append(run.judge(control))
                run.leave(control.model)
            random = [line for line in controls if line and line["model"].startswith("random seed")]
            rounds.append(run.judge(trained, random=random))
    base = [run.judge_base()] if config.eval is not None else []
    stages = [json.loads(text) for text in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    suites: dict[str, Any] = {}
    if run.judged:
        facts = {"data": config.data, "model": config.model, "terms": TERMS}
        suites = write_tally(run.folder, run.judged, summarize(run.judged), facts)
    return PipelineResult(run.folder, [line for line in [*base, *controls, *rounds] if line], stages, suites)


def selector(config: PipelineConfig) -> tuple[str, Method]:
    """The configured method and its name."""
    part = config.select
    ((name, (_, method)),) = make_methods([part.method], {short_name(part.method): part.params}, config.seed).items()
    return name, method


def budget_of(config: PipelineConfig, number: int = 1) -> Budget:
    """The configured budget of a round; ``select_ratio`` of the response tokens by default.

    Raises:
        ConfigError: it grows in another unit than its own.
    """
    budget = configured_budget(config.select.budget, config.select.select_ratio)
    if config.select.grow is None:
        return budget
    more = parse_budget(config.select.grow)
    if more.kind != budget.kind:
        raise ConfigError(f"'select.grow' is '{more}', the budget is '{budget}'; both must be of one kind")
    return Budget(budget.amount + (number - 1) * more.amount, budget.kind)


def open_run(config: PipelineConfig, log: Log, progress: Progress) -> Run:
    """A run folder for this configuration: a new one, or the same one again."""
    for key, option in (("data", "data_path"), ("model", "base_model"), ("output", "output_dir")):
        if not getattr(config, key):
            raise ConfigError(f"the pipeline needs '{option}'")
    assert config.data and config.model and config.output
    folder = Path(config.output)
    asked = config.model_copy(update={"template": config.score.template or config.template})
    settings = settings_of(asked, max_length=config.score.max_length)
    # A typo must be found before anything is trained, and must not bind the folder.
    selector(config)
    budget_of(config)
    begun = _has_begun(folder)
    same_config(config, folder, begun=begun, free=FREE)
    store, base = Store(config.store), parse_model(config.model)
    source = resolve(base, store.memo)
    every = read_pool(config, config.data, config.limit, log, folder / "rejected.jsonl")
    pool, warmup = first_records(every, config.score.max_samples), warmup_pool(config, every, log)
    heldout = heldout_pool(config, pool, log) if config.eval and HELDOUT in config.eval.suite else None
    target = target_pool(config, log)
    eval_config, suites = judges(config, asked, heldout, store)
    inputs = {"base model": source.fingerprint, "data": pool.fingerprint, "warmup data": warmup.fingerprint}
    more = {"eval data": heldout, "target data": target}
    if not begun:
        for name in ("log.jsonl", "iter_1/warmup_subset.jsonl"):
            (folder / name).unlink(missing_ok=True)
    inputs |= {name: rows.fingerprint for name, rows in more.items() if rows is not None}
    same_inputs(config, folder, inputs, begun=begun)
    sweep_up(folder)
    models = bind(config.models)
    return Run(
        config,
        folder,
        pool,
        warmup,
        heldout,
        target,
        base,
        models,
        settings,
        store,
        log,
        progress,
        flaws(config),
        eval_config,
        suites,
    )


def _has_begun(folder: Path) -> bool:
    """Whether the folder holds results that belong to its configuration: from the first training on."""
    return (folder / "config.yaml").is_file() and any((folder / "iter_1").glob("*calibration_model*"))
