"""Suites on a model: what it can do, item by item, with all that the scores depend on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.config.base import OPERATIONAL, build, canonical
from instdiff.config.commands import RunConfig
from instdiff.config.evaluate import EvalConfig
from instdiff.core import Log, ModelRef, Settings
from instdiff.core.files import environment
from instdiff.core.progress import Progress, Quiet
from instdiff.core.settings import dtype_name
from instdiff.engine.distributed.hosts import ModelHost, make_model_host
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.engine.generation.generator import Generator
from instdiff.engine.sources import resolve
from instdiff.engine.text.judge import parse_judge
from instdiff.errors import ConfigError
from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.evaluation.statistics import bootstrap_token_mean
from instdiff.evaluation.subject import Subject, Suite, make_generator
from instdiff.evaluation.suites import make_suites
from instdiff.scoring.given import given_model, given_store, kept_rows
from instdiff.scoring.models import parse_model, settings_of
from instdiff.scoring.precision import settle_precision, tell_rounded
from instdiff.store import Store

HELDOUT = "heldout"
ASIDE = (
    *OPERATIONAL,
    "model",
    "answers",
    "concurrency",
    "judge_concurrency",
    "judge_timeout",
    "judge_tries",
    "judge_batch",
)
"""Keys that change no score, or are said elsewhere."""


def evaluate(
    model: Any,
    *,
    name: str | None = None,
    store: Store | str | Path | None = None,
    resident: ModelHost | None = None,
    output: str | Path | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[SuiteResult]:
    """Evaluate a model on suites; what was written before is read, so that an interrupted evaluation goes on.

    Args:
        model: what is evaluated, as a name, a reference or a loaded one as ``(model, tokenizer)``, with all else in
            ``options``; or a whole configuration.
        name: what the results call the model.
        store: where scores are kept; by default the configuration's.
        resident: models already in memory.
        output: where results are written, each suite's as soon as it is done; by default the configuration's.
        log: is told what happens.
        progress: shows it.
        options: keys of the configuration, such as ``suite=["math"]``.

    Returns:
        A result for each suite, in the order they were named.

    Raises:
        ConfigError: no model, no suite, or an unknown one, or a value of a type that is not taken.
    """
    ref: ModelRef | None = None
    if isinstance(model, EvalConfig):
        config = model.model_copy(update=options)
        store = given_store(config.store if store is None else store)
    else:
        store = given_store(store)
        # An answering server has no files.
        ref = None if model is None and options.get("generator") else given_model(model, store)
        if not isinstance(options.get("data"), Mapping):
            options["data"] = kept_rows(options.get("data"), store)
        config = build(EvalConfig, {**options, "model": None if ref is None else str(ref)}, "the keywords")
    suites = make_suites(config)
    output = output or config.output
    places = result_paths(output, config.suite) if output else [None] * len(suites)
    subject = make_subject(
        ref, config, store, name=name, resident=resident, log=log or (lambda line: None), progress=progress or Quiet()
    )
    return run_suites(suites, places, subject, config)


def run_suites(
    suites: Sequence[Suite], places: Sequence[Path | None], subject: Subject, config: EvalConfig
) -> list[SuiteResult]:
    """Suites on a model, one after the other; each is written to its place as soon as it is done."""
    facts, results = _settings(config, subject), []
    for suite, place in zip(suites, places, strict=True):
        results.append(_run(suite, subject, config, facts))
        if place is not None:
            results[-1].write(place)
    return results


def eval_config_of(config: RunConfig, keys: Mapping[str, Any], store: Store, **known: Any) -> EvalConfig:
    """How a run evaluates its models: the ``eval`` keys of its configuration, over what the run itself says.

    Args:
        config: of the run.
        keys: those of ``instdiff eval``, which go before all else.
        store: of the run.
        known: what the run says beside the keys that all commands share.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    shared = {key: getattr(config, key) for key in RunConfig.model_fields}
    asked = {**shared, "store": str(store.root), **known, **canonical(EvalConfig, keys, "'eval'")}
    return build(EvalConfig, {key: value for key, value in asked.items() if value is not None}, "'eval'")


def _run(suite: Suite, subject: Subject, config: EvalConfig, facts: dict[str, Any]) -> SuiteResult:
    """One suite, with a bill of its own."""
    bill: dict[str, float] = {}
    own = replace(subject, cost=bill)
    own = replace(own, generator=_Lazy(own, config))
    began = time.monotonic()
    tasks = suite.run(own)
    bill["wall_seconds"] = round(time.monotonic() - began, 3)
    return SuiteResult(suite.name, own.name, tasks, facts, bill)


def nll_facts(mine: TaskResult, base: TaskResult | None = None) -> dict[str, float]:
    """Held-out NLL with its interval; against a base, the difference paired by rows."""
    total, *against = (np.where(np.isfinite(one.score), one.score, 0.0) * one.weights for one in (mine, base) if one)
    found = bootstrap_token_mean(total, mine.weights, against=against[0] if against else None)
    name = "gain" if base else "nll"
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def make_subject(
    model: str | ModelRef | None,
    config: EvalConfig,
    store: Store,
    *,
    name: str | None = None,
    resident: ModelHost | None = None,
    log: Log,
    progress: Progress,
) -> Subject:
    """A model as suites see it; its weights are loaded when they are needed.

    Raises:
        ConfigError: no model is named.
    """
    served = parse_judge(config.generator)
    model = model or config.model or (config.generator if served else None)
    if model is None:
        raise ConfigError("no model is named; give --model WHERE")
    ref = parse_model(model) if isinstance(model, str) else model
    if name is None and served is not None:
        name = served.model if config.model is None else config.model
    settings = subject_settings(ref, config)
    if resident is None and served is None:
        resident = make_model_host(settings)
    if resident is not None:
        tell_rounded(ref, dtype_name(resident.dtype), log)
    folder = Path(config.answers).expanduser() if config.answers else store.root / "answers"
    subject = Subject(name or str(ref), ref, settings, store, folder, None, log, progress, resident)  # type: ignore[arg-type]
    return replace(subject, generator=_Lazy(subject, config))


def subject_settings(ref: ModelRef, config: EvalConfig) -> Settings:
    """How a model is evaluated: a server's has its own chat template, a trained one keeps its precision."""
    served = parse_judge(config.generator)
    return settle_precision(settings_of(config, template="chat" if served else None), models={"model": ref})


class _Lazy:
    """A generator that is made when the first answer is asked for: many suites write none."""

    def __init__(self, subject: Subject, config: EvalConfig) -> None:
        self.name = subject.name
        self._subject, self._config = subject, config
        self._made: Generator | None = None

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        """Of each prompt its answers."""
        if self._made is None:
            config = self._config
            self._made = make_generator(config.generator, self._subject, concurrency=config.concurrency)
        return self._made.write(prompts, sampling)


def _settings(config: EvalConfig, subject: Subject) -> dict[str, Any]:
    """Everything that the scores depend on."""
    told = {key: value for key, value in config.model_dump(mode="json").items() if key not in ASIDE}
    if subject.model.where.startswith("openai:"):
        weights = None
    else:
        weights = resolve(subject.model, subject.store.memo).fingerprint
    resident = subject.resident
    dtype = dtype_name(resident.dtype) if resident is not None else subject.settings.dtype
    return {
        **told,
        "where": str(subject.model),
        "fingerprint": weights,
        "template": subject.model.template or subject.settings.template,
        "dtype": dtype,
        "packages": environment()["packages"],
    }


def result_paths(output: str | Path, suites: Sequence[str]) -> list[Path]:
    """Where each suite's results go: the file itself for one suite, ``FOLDER/SUITE.json`` for several.

    Raises:
        ConfigError: several suites and a file.
    """
    path = Path(output)
    if path.suffix == ".json":
        if len(suites) > 1:
            raise ConfigError(f"'{output}' is one file, but {len(suites)} suites are named; give --output FOLDER")
        return [path]
    return [path / "results.json"] if len(suites) == 1 else [path / f"{suite}.json" for suite in suites]
