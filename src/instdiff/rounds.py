"""The whole way: warm-up, calibration, score, select, train, evaluate, and again (InstructDiff, Algorithm 1).

Every stage leaves a file or folder that is whole; a stage whose result is there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from instdiff.artifact import environment, read_json, write_json, writing
from instdiff.budget import configured_budget
from instdiff.config.methods import make_method, short_name
from instdiff.config.train import TrainSettings
from instdiff.config.verbs import PipelineConfig
from instdiff.core import Budget, Log, Method, ModelRef, Settings
from instdiff.data import Pool, load
from instdiff.engine.load import resolve
from instdiff.errors import ConfigError, DataError
from instdiff.heldout import HeldOut, heldout_nll
from instdiff.methods import Full, Longest, Random
from instdiff.progress import Progress, Quiet
from instdiff.scoring import parse_model, score
from instdiff.selection import Selection, sample_rows, select
from instdiff.stats import bootstrap_token_mean
from instdiff.store import Store
from instdiff.table import ScoreTable, read_scores
from instdiff.training import train

OPERATIONAL = ("store", "device", "batch_tokens", "executor")
"""Keys that may change when a run goes on: they change no result."""


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
    """A run folder with everything that its stages share."""

    config: PipelineConfig
    folder: Path
    pool: Pool
    heldout: Pool | None
    base: ModelRef
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
        source = read_pool(self.config, part.data_path, None, self.log) if part.data_path else self.pool
        subset = source.take(sample_rows(len(source), part.sample_size, self.config.seed, part.limit))
        if not path.is_file():
            subset.to_jsonl(path)
        self._event("warm-up", rows=len(subset), of=len(source))
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
        part = self.config.select
        name = short_name(part.method)
        if not path.is_file():
            method = make_method(part.method, part.params)
            self._score({name: method}, {"calibrated": calibrated}, warmup, {name: part.method}).write(path)
        table = read_scores(path)
        chosen = select(self.pool, table[name], self.budget(), meta=table.meta)
        if not (folder / "selection.json").is_file():
            chosen.write(folder / "selected.jsonl")
            chosen.write_record(folder / "selection.json")
        return chosen

    def budget(self) -> Budget:
        """The configured budget; ``select_ratio`` of the response tokens by default."""
        part = self.config.select
        return configured_budget(part.budget, part.select_ratio)

    def control(self, name: str, method: Method, tokens: int) -> Trained:
        """A control at the same token budget, trained the same way."""
        folder = self.folder / "baselines" / name.replace(" ", "_")
        table = self._score({"control": method}, {}, [], {"control": method.name})
        budget = Budget(1.0, "share") if isinstance(method, Full) else Budget(tokens, "tokens")
        chosen = select(self.pool, table["control"], budget, meta=table.meta)
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

    def judge(self, trained: Trained) -> dict[str, Any]:
        """Held-out NLL of a trained model and its paired difference to the base; also in ``results.json``."""
        base = self._heldout("base", self.base)
        line = self._line(trained.name, self._heldout(trained.name, trained.model), base, trained)
        found = {"suite": "heldout", "base": self.base_line(), "selection": line}
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
        self, methods: dict[str, Method], models: dict[str, ModelRef], warmup: list[str], specs: dict[str, str]
    ) -> ScoreTable:
        return score(
            self.pool,
            methods,
            {"base": self.base, **models},
            settings=self.settings,
            store=self.store,
            listed={"warmup": warmup},
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
        """One line of ``log.jsonl``, each said once in a run folder's life."""
        line = {"event": what, **facts}
        path = self.folder / "log.jsonl"
        old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        text = json.dumps(line, ensure_ascii=False)
        if text not in old:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
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
            rounds.append(run.judge(trained))
            add_to_results(trained.folder, [line for line in controls if line["model"].startswith("random")])
    base = [run.base_line()] if run.heldout is not None else []
    stages = [json.loads(text) for text in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return Outcome(run.folder, [*base, *controls, *rounds], stages)


def add_to_results(folder: Path, random: list[dict[str, Any]]) -> None:
    """Put the random controls beside a selection's result."""
    path = folder / "results.json"
    write_json(path, {**read_json(path), "random": random})


def open_run(config: PipelineConfig, log: Log, progress: Progress) -> Run:
    """A run folder for this configuration: a new one, or the same one again."""
    for key, option in (("data", "data_path"), ("model", "base_model"), ("output", "output_dir")):
        if not getattr(config, key):
            raise ConfigError(f"the pipeline needs '{option}'")
    assert config.data and config.model and config.output
    folder = Path(config.output)
    settings = Settings(
        max_length=config.score.max_length or config.max_length,
        dtype=config.dtype,
        device=config.device,
        batch_tokens=config.batch_tokens,
        templates={"*": config.score.template or config.template or "alpaca"},
    )
    _same_config(config, folder)
    store, base = Store(config.store), parse_model(config.model)
    pool = read_pool(config, config.data, config.score.max_samples or config.limit, log, folder / "rejected.jsonl")
    heldout = _heldout_pool(config, pool, log)
    run = Run(config, folder, pool, heldout, base, settings, store, log, progress, _flaws(config))
    _same_inputs(run, resolve(base, store.memo).fingerprint)
    return run


def read_pool(config: PipelineConfig, path: str, limit: int | None, log: Log, rejects: Path | None = None) -> Pool:
    """A data file, read as the configuration says."""
    return load(
        path,
        format=config.format,
        map=_mapping(config),
        targets=config.targets,
        limit=limit,
        rejects_path=rejects,
        log=log,
    )


def _heldout_pool(config: PipelineConfig, pool: Pool, log: Log) -> Pool | None:
    if config.eval is None:
        return None
    path = config.eval.data_path or ("builtin:demo/heldout" if config.data == "builtin:demo" else None)
    if path is None:
        raise ConfigError("'eval.data_path' is missing: which held-out rows should the models be judged on?")
    heldout = read_pool(config, path, config.eval.limit, log)
    shared = set(heldout.ids) & set(pool.ids)
    if shared:
        log(f"warning: {len(shared)} held-out rows are in the training pool too")
    return heldout


def _flaws(config: PipelineConfig) -> dict[int, str]:
    """The planted flaws of ``builtin:demo``, by row."""
    if config.data != "builtin:demo":
        return {}
    from instdiff.builtin import path

    lines = (path("demo") / "flaws.jsonl").read_text(encoding="utf-8").splitlines()
    return {int(flaw["row"]): str(flaw["flaw"]) for flaw in map(json.loads, lines)}


def _mapping(config: PipelineConfig) -> dict[str, str] | None:
    keys = ("instruction_key", "input_key", "response_key")
    own = {key: getattr(config.score, key) for key in keys if getattr(config.score, key)}
    return config.model_copy(update=own).mapping()


def _plain(config: PipelineConfig) -> dict[str, Any]:
    return dict(config.model_dump(mode="json"))


def _same_config(config: PipelineConfig, folder: Path) -> None:
    """Write the resolved configuration, or check it against the one that is there."""
    path = folder / "config.yaml"
    mine = _plain(config)
    if not path.is_file():
        with writing(path) as aside:
            aside.write_text(yaml.safe_dump(mine, sort_keys=False, allow_unicode=True), encoding="utf-8")
        write_json(folder / "environment.json", environment())
        return
    theirs = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = [d for d in _differences(mine, theirs, "") if d[0].split(".")[0] not in OPERATIONAL]
    if changed:
        key, new, old = changed[0]
        more = f" (and {len(changed) - 1} more: {', '.join(c[0] for c in changed[1:])})" if len(changed) > 1 else ""
        raise ConfigError(
            f"'{folder}' holds a run with {key}={old!r}, now it is {new!r}{more}; "
            "give another output_dir, or the same configuration to go on"
        )


def _differences(a: Any, b: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = list(dict.fromkeys([*a, *b]))
        return [d for k in keys for d in _differences(a.get(k), b.get(k), f"{key}.{k}" if key else k)]
    return [] if a == b else [(key, a, b)]


def _same_inputs(run: Run, model: str) -> None:
    """Data and base model are those that the run began with."""
    path = run.folder / "environment.json"
    known = read_json(path)
    mine = {"data": run.pool.fingerprint, "base_model": model}
    if "inputs" not in known:
        write_json(path, {**known, "inputs": mine})
        return
    for key, value in mine.items():
        if known["inputs"].get(key) != value:
            what = run.config.data if key == "data" else run.config.model
            raise DataError(
                f"{key} '{what}' has changed since the run in '{run.folder}' began; give another output_dir"
            )
