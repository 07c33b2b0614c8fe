"""Open a comparison's run folder, make every cell, and write what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instdiff.config.base import OPERATIONAL
from instdiff.config.compare import CompareConfig
from instdiff.config.methods import make_method
from instdiff.core import Log, ModelRef
from instdiff.core.progress import Progress, Quiet
from instdiff.data import Pool, load
from instdiff.engine.models import resolve
from instdiff.errors import ConfigError, EngineError
from instdiff.evaluation.evaluator import eval_config_of, evaluate
from instdiff.evaluation.results import SuiteResult
from instdiff.evaluation.suites import make_suites
from instdiff.experiments.grid import Comparison, Judge
from instdiff.experiments.run_folder import same_config, same_inputs, sweep_up
from instdiff.experiments.summary import shares, summarize
from instdiff.experiments.tables import write_tally
from instdiff.scoring.models import parse_model, settings_of
from instdiff.store import Store

OPEN = (
    *(*OPERATIONAL, "judge_concurrency", "eval.concurrency", "eval.judge_concurrency"),
    *("method", "budgets", "seeds", "random_seeds", "baselines", "keep_models", "strict", "by"),
)
"""Keys that may change when a comparison goes on: they add cells, and change none that is there."""
HELDOUT = {"builtin:demo": "builtin:demo/heldout"}


def compare(config: CompareConfig, *, log: Log, progress: Progress | None = None) -> dict[str, Any]:
    """Run or go on with a comparison.

    Args:
        config: of the comparison.
        log: is told what happens.
        progress: shows it.

    Returns:
        What ``comparison.json`` holds: ``lines`` with values, intervals and differences, and the cells that failed.

    Raises:
        ConfigError: something is missing, or the folder holds another comparison.
        DataError: the data has changed since the comparison began.
        EngineError: every cell failed.
    """
    made = open_comparison(config, log, progress or Quiet())
    outcomes = made.run()
    if all(one.error is not None for one in outcomes):
        raise EngineError(f"every cell of the comparison failed, first {outcomes[0].cell}: {outcomes[0].error}")
    lines = summarize(outcomes)
    facts: dict[str, Any] = {
        "data": config.data,
        "model": config.model,
        "student": config.student or config.model,
        "terms": terms(config),
    }
    if config.by:
        facts["by"] = config.by
        facts["shares"] = shares(made.folder, [one.cell for one in outcomes], made.pool, config.by)
    return write_tally(made.folder, outcomes, lines, facts)


def terms(config: CompareConfig) -> str:
    """On what terms the lines are compared, in a sentence."""
    steps = {
        "epochs": f"{config.train.num_train_epochs:g} epoch{'s' * (config.train.num_train_epochs != 1)} each",
        "equal": "as many optimizer steps each as the first random subset of the budget takes",
    }[config.steps]
    return (
        f"Budgets {', '.join(map(str, config.budgets))}; {len(config.seeds)} seeds of draws, warm-up and training; "
        f"the same training for all: {steps}, learning rate {config.train.learning_rate:g}, "
        f"{config.train.global_batch_size} rows a step."
    )


def check_named(config: CompareConfig) -> None:
    """Check that what a comparison cannot do without is named.

    Raises:
        ConfigError: it is not.
    """
    for key in ("data", "model", "output"):
        if not getattr(config, key):
            raise ConfigError(f"the comparison needs '{key}'")
    for name, line in config.lines().items():
        make_method(line.method or name, line.params, 0)


def open_comparison(config: CompareConfig, log: Log, progress: Progress) -> Comparison:
    """A comparison's run folder for this configuration: a new one, or the same one again."""
    check_named(config)
    assert config.data and config.model and config.output
    folder = Path(config.output)
    begun = (folder / "config.yaml").is_file() and (folder / "cells").is_dir()
    same_config(config, folder, begun=begun, free=OPEN)
    store = Store(config.store)
    how = {"format": config.format, "map": config.mapping(), "targets": config.targets}
    pool = load(config.data, limit=config.limit, rejects_path=folder / "rejected.jsonl", log=log, **how)  # type: ignore[arg-type]
    target = load(config.target, **how) if config.target else None  # type: ignore[arg-type]
    part = config.warmup
    warmup = load(part.data_path, limit=part.limit, **how) if part.data_path else _first(pool, part.limit)  # type: ignore[arg-type]
    settings = settings_of(config)
    inputs = {"data": pool.fingerprint, "warm-up data": warmup.fingerprint}
    inputs |= {"target data": target.fingerprint} if target is not None else {}
    for name, where in (("model", config.model), ("student", config.student)):
        if where:
            inputs[name] = resolve(parse_model(where), store.memo).fingerprint
    same_inputs(config, folder, inputs, begun=begun)
    sweep_up(folder)
    judge = judge_of(config, pool, store, log, progress)
    return Comparison(config, folder, pool, warmup, target, settings, store, judge, log, progress)


def _first(pool: Pool, records: int | None) -> Pool:
    return pool if records is None else pool.take(range(int((pool.rows < records).sum())))


def judge_of(config: CompareConfig, pool: Pool, store: Store, log: Log, progress: Progress) -> Judge:
    """Evaluates a model as the configuration says.

    Raises:
        ConfigError: an unknown suite or key, or held-out rows that are not named.
    """
    known = {"suite": ["heldout"], "data": HELDOUT.get(config.data or ""), "targets": config.targets}
    made = eval_config_of(config, config.eval, store, model=config.model, **known)
    if "heldout" in made.suite and not made.data:
        raise ConfigError("'eval.data' is missing: which held-out rows should the models be judged on?")
    make_suites(made)  # a typo must be found before anything is trained
    if "heldout" in made.suite:
        assert made.data
        shared = set(load(made.data, limit=made.limit, map=made.mapping(), targets=made.targets).ids) & set(pool.ids)
        if shared:
            log(f"warning: {len(shared)} held-out rows are in the training pool too")

    # One folder for all cells: the answers of a reference model are written once.
    answers = made.answers or str(Path(config.output or "") / "answers")

    def judge(model: ModelRef, name: str, folder: Path) -> list[SuiteResult]:
        settled = made.model_copy(update={"model": str(model), "answers": answers, "output": None})
        return evaluate(settled, name=name, store=store, log=log, progress=progress)

    return judge
