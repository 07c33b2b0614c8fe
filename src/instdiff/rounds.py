"""The whole way: warm-up, calibration, score, select, train, evaluate, and again (InstructDiff, Algorithm 1).

Every stage leaves a file or folder that is whole; a stage whose result is there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instdiff.artifact import read_json, write_json, writing
from instdiff.budget import configured_budget, parse_budget
from instdiff.config.methods import make_methods, short_name
from instdiff.config.train import TrainSettings
from instdiff.config.verbs import PipelineConfig
from instdiff.core import Budget, Log, Method, ModelRef, Settings
from instdiff.data import Pool
from instdiff.engine.load import resolve
from instdiff.errors import ConfigError
from instdiff.folder import same_config, same_inputs, sweep_up
from instdiff.heldout import HeldOut, heldout_nll
from instdiff.inputs import first, flaws, heldout_pool, read_pool, target_pool, warmup_pool
from instdiff.methods import Full, Longest, Random
from instdiff.progress import Progress, Quiet
from instdiff.scoring import bind, parse_model, recalling, score, settings_of
from instdiff.selection import Selection, sample_rows, select
from instdiff.stats import bootstrap_token_mean
from instdiff.store import Store
from instdiff.table import ScoreTable, read_scores
from instdiff.training import train


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


@dataclass(frozen=True)
class Outcome:
    """What a pipeline found: one line per model, and the counts of every stage."""

    folder: Path
    lines: list[dict[str, Any]]
    stages: list[dict[str, Any]]


@dataclass
class Run:
    """A run folder with everything that its stages share.

    ``pool`` are the rows that are scored, ``warmup`` those that the warm-up subset is drawn from, ``target`` those that
    targeted methods match. ``models`` are bound to roles beside the base and the calibrated model.
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
        return model, subset.ids

    def round(self, number: int, calibrated: ModelRef, warmup: list[str]) -> Trained:
        """Score all rows, select, train from the base."""
        folder = self.folder / f"iter_{number}"
        chosen = self._select(folder, number, calibrated, warmup)
        self._event(f"round {number}", **chosen.record()["counts"], excluded=chosen.record()["excluded"])
        model = self._train(
            chosen.pool.take(chosen.at), folder / "selected_train_model", self.config.select_train.train
        )
        name = f"{chosen.scored.name} round {number}"
        in_tokens = chosen.budget.kind in ("tokens", "token_share")
        target = chosen.budget.target(chosen.scored) if in_tokens else chosen.n_tokens
        return Trained(name, folder, model, chosen.rows.tolist(), chosen.n_tokens, target)

    def _select(self, folder: Path, number: int, calibrated: ModelRef, warmup: list[str]) -> Selection:
        path = folder / "scores.parquet"
        name, method = selector(self.config)
        listed = {"warmup": warmup, "selected": self._before(number, warmup)}
        if not path.is_file():
            specs = {name: self.config.select.method}
            self._score({name: method}, {"calibrated": calibrated}, listed, specs).write(path)
        table = read_scores(path, run=[self.config.select.method])
        root = str(self.store.root)
        scored = recalling(table[name], table.meta, self.pool, store=root, listed=listed, log=self.log)
        chosen = select(self.pool, scored, budget_of(self.config, number), meta=table.meta)
        if not (folder / "selection.json").is_file():
            chosen.write(folder / "selected.jsonl")
            chosen.write_record(folder / "selection.json")
        return chosen

    def _before(self, number: int, warmup: list[str]) -> list[str]:
        """The ids that the round before has trained on."""
        if number == 1:
            return warmup
        record = read_json(self.folder / f"iter_{number - 1}" / "selection.json")
        ids: list[str] = record["ids"]
        return ids

    def control(self, name: str, method: Method, tokens: int) -> Trained:
        """A control at the same token budget, trained the same way."""
        folder = self.folder / "baselines" / name.replace(" ", "_")
        table = self._score({method.name: method}, {}, {}, {})
        budget = Budget(1.0, "share") if isinstance(method, Full) else Budget(tokens, "tokens")
        chosen = select(self.pool, table[method.name], budget, meta=table.meta)
        if not (folder / "selection.json").is_file():
            chosen.write(folder / "selected.jsonl")
            chosen.write_record(folder / "selection.json")
        model = self._train(chosen.pool.take(chosen.at), folder / "model", self.config.select_train.train)
        return Trained(name, folder, model, chosen.rows.tolist(), chosen.n_tokens, tokens)

    # ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────

    def controls(self, tokens: int) -> list[Trained]:
        """The configured controls, each with as many response tokens as the selections."""
        if self.config.eval is None:
            return []
        made: list[Trained] = []
        for kind in self.config.eval.baselines:
            if kind == "random":
                made += [self.control(f"random seed {s}", Random(seed=s), tokens) for s in self.config.eval.seeds]
            else:
                made.append(self.control(kind, Longest() if kind == "longest" else Full(), tokens))
        return made

    def judge(self, trained: Trained, **beside: Any) -> dict[str, Any]:
        """Held-out NLL and its paired difference to the base; ``results.json`` holds ``beside``."""
        base = self._heldout("base", self.base)
        line = self._line(trained.name, self._heldout(trained.name, trained.model), base, trained)
        found = {"suite": "heldout", "base": self.base_line(), "selection": line, **beside}
        write_json(trained.folder / "results.json", found)
        return line

    def base_line(self) -> dict[str, Any]:
        """The base model's own line."""
        base = self._heldout("base", self.base)
        return self._line("base", base, base, None)

    def _heldout(self, name: str, model: ModelRef) -> HeldOut:
        assert self.heldout is not None
        return heldout_nll(self.heldout, name, model, self.settings, self.store, log=self.log, progress=self.progress)

    def _line(self, name: str, mine: HeldOut, base: HeldOut, trained: Trained | None) -> dict[str, Any]:
        nll = bootstrap_token_mean(mine.total, mine.count)
        gain = bootstrap_token_mean(mine.total, mine.count, against=base.total)
        rows = trained.rows if trained else []
        flawed = sum(row in self.flaws for row in rows) / len(rows) if rows and self.flaws else None
        return {
            "model": name,
            "rows": len(rows) if trained else None,
            "tokens": trained.tokens if trained else None,
            "nll": nll.value,
            "nll_low": nll.low,
            "nll_high": nll.high,
            "gain": gain.value if trained else None,
            "gain_low": gain.low if trained else None,
            "gain_high": gain.high if trained else None,
            **({"flawed": flawed} if self.flaws else {}),
        }

    # ── shared steps ──────────────────────────────────────────────────────────────────────────────────────────────

    def _score(
        self,
        methods: dict[str, Method],
        models: dict[str, ModelRef],
        listed: dict[str, list[str]],
        specs: dict[str, str],
    ) -> ScoreTable:
        return score(
            self.pool,
            methods,
            {**self.models, "base": self.base, **models},
            settings=self.settings,
            store=self.store,
            listed={"warmup": [], "selected": [], **listed},
            target=self.target,
            specs=specs,
            log=self.log,
            progress=self.progress,
        )

    def _train(self, pool: Pool, output: Path, own: TrainSettings | None) -> ModelRef:
        return train(
            pool,
            self.base,
            own or self.config.train,
            self.settings,
            output,
            store=self.store,
            seed=self.config.seed,
            log=self.log,
            say=lambda told: self._event(f"trained {output.relative_to(self.folder)}", **told),
        )

    def _event(self, what: str, **facts: Any) -> None:
        """One line of ``log.jsonl``, each said once in a run folder's life, also where a kill came before it."""
        path = self.folder / "log.jsonl"
        old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        text = json.dumps({"event": what, **facts}, ensure_ascii=False)
        if text in old:
            return
        with writing(path) as aside:
            aside.write_text("".join(f"{said}\n" for said in [*old, text]), encoding="utf-8")
        self.log(what + "".join(f"  {key} {value}" for key, value in facts.items() if not isinstance(value, dict)))


def pipeline(config: PipelineConfig, *, log: Log, progress: Progress | None = None) -> Outcome:
    """Run or go on with a pipeline.

    Raises:
        ConfigError: the folder holds a run with another configuration; names the keys.
        DataError: the data has changed since the run began.
    """
    run = open_run(config, log, progress or Quiet())
    calibrated, warmup = run.warm_up()
    rounds: list[dict[str, Any]] = []
    controls: list[dict[str, Any]] = []
    for number in range(1, config.iterations + 1):
        trained = run.round(number, calibrated, warmup)
        calibrated = trained.model
        if run.heldout is not None:
            controls = controls or [run.judge(control) for control in run.controls(trained.target)]
            random = [line for line in controls if line["model"].startswith("random seed")]
            rounds.append(run.judge(trained, random=random))
    base = [run.base_line()] if run.heldout is not None else []
    stages = [json.loads(text) for text in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return Outcome(run.folder, [*base, *controls, *rounds], stages)


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
    begun = _begun(folder)
    same_config(config, folder, begun=begun)
    store, base = Store(config.store), parse_model(config.model)
    source = resolve(base, store.memo)
    every = read_pool(config, config.data, config.limit, log, folder / "rejected.jsonl")
    pool, warmup = first(every, config.score.max_samples), warmup_pool(config, every, log)
    heldout, target = heldout_pool(config, pool, log), target_pool(config, log)
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
        config, folder, pool, warmup, heldout, target, base, models, settings, store, log, progress, flaws(config)
    )


def _begun(folder: Path) -> bool:
    """Whether the folder holds results that belong to its configuration: from the first training on."""
    return (folder / "config.yaml").is_file() and any((folder / "iter_1").glob("*calibration_model*"))
