"""All that can be wrong with a command, found before anything is read or computed, and told at once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from instdiff.cli.console import size
from instdiff.config.base import verbs_with
from instdiff.core.display import in_one_line
from instdiff.errors import ConfigError, InstDiffError, PlanError, StoreError, all_of, lacking

REQUIRED = {
    "data": "no data is named; give --data FILE",
    "output": "no output is named; give --output PATH",
    "method": "no method is named; give --method (see `instdiff methods`)",
    "model": "no model is named; give --model WHERE",
    "scores": "no scores are named; give --scores FILE",
    "suite": "no suite is named; give --suite, one or several of heldout, math, med, openllm, code, general, skills",
    "max_samples": "no size is named; give --max-samples N",
    "format": "no trainer is named; give --format, one of llamafactory, axolotl, trl, jsonl, parquet, hub",
}
"""What is said where a required key has no value."""
SUITES = {"math": "math_verify", "openllm": "lm_eval", "med": "lm_eval"}
"""Suites with the package of the extra ``eval`` that they need."""

JUDGES = ("judge_concurrency", "judge_timeout", "judge_tries", "judge_max_tokens", "judge_batch")
UNUSED = {
    "doctor": ("cluster", "judge_price", *JUDGES),
    "train": ("batch_tokens", "workers", "dtype", "max_length", *JUDGES),
    "select": ("cluster", "judge_price"),
    "select --scores": (
        *("model", "template", "template_date", "max_length", "dtype", "device", "batch_tokens", "workers"),
        *JUDGES,
    ),
}
"""Keys without effect by verb; ``plan`` reads ``cluster`` and ``judge_price`` of every other file."""
INSTEAD = {"train dtype": "train.dtype", "train max_length": "train.model_max_length"}
"""What is meant by keys without effect that look as if they had one."""


def check(verb: str, settings: Any, required: Sequence[str]) -> None:
    """Raise one error with all that is wrong: methods, what is not named, places, packages."""
    found = [*_methods(verb, settings), *_odd_names(settings)]
    found += [ConfigError(REQUIRED[key]) for key in required if not getattr(settings, key)]
    found += _unused(verb, settings)
    found += [*_places(verb, settings), *_judges(verb, settings)]
    found += [] if found else _room(verb, settings)
    found += [
        PlanError(lacking(what, modules[0]))
        for what, *modules in dict.fromkeys(_needs(verb, settings))
        if not any(map(find_spec, modules))
    ]
    if found:
        raise all_of([*{str(one): one for one in found}.values()])


def _odd_names(settings: Any) -> Iterator[InstDiffError]:
    """Names with bytes that are no UTF-8, which records cannot hold; in a locale of ASCII so are all other letters."""
    for key in sorted(settings.model_fields_set):
        given = getattr(settings, key)
        for name in given.values() if isinstance(given, dict) else given if isinstance(given, list) else [given]:
            if isinstance(name, str) and any("\ud800" <= letter <= "\udfff" for letter in name):
                yield ConfigError(f"{key} '{in_one_line(name)}' is not UTF-8; rename it, or set LC_ALL=C.UTF-8")


def _unused(verb: str, settings: Any) -> Iterator[InstDiffError]:
    """Keys that were given and change nothing."""
    for key in UNUSED.get(verb, ()):
        if key in settings.model_fields_set:
            users = ", ".join(sorted(verbs_with(key) - {verb}))
            instead = INSTEAD.get(f"{verb} {key}")
            yield ConfigError(
                f"'{key}' has no effect in {verb}; {f'give {instead}' if instead else f'it is a key of {users}'}"
            )
    if verb == "select" and settings.scores:
        for key in UNUSED["select --scores"]:
            if key in settings.model_fields_set:
                yield ConfigError(f"'{key}' has no effect on rows that are scored; leave it out, or --scores")
    if verb == "train" and not settings.print_launch:
        for key in ("nodes", "gpus_per_node"):
            if key in settings.model_fields_set:
                yield ConfigError(f"'{key}' has an effect with --print-launch only; add it, or leave '{key}' out")


def _methods(verb: str, settings: Any) -> Iterator[InstDiffError]:
    """What is wrong with the methods that are scored, and with the roles and extras that they need."""
    from instdiff.config.commands import ScoreConfig, SelectConfig

    scores = not settings.scores if isinstance(settings, SelectConfig) else isinstance(settings, ScoreConfig)
    if verb not in ("score", "plan", "select") or not scores:
        return
    from instdiff.config.methods import make_methods, short_name
    from instdiff.scoring.crossfit import HOLDOUT, check_starts, start_of
    from instdiff.scoring.crossfit import lacking as untrained
    from instdiff.scoring.models import bind, check_extras, check_roles

    for spec, params in settings.method.items():
        try:
            named = {n: one for n, (_, one) in make_methods([spec], {short_name(spec): params}, settings.seed).items()}
            if verb != "select":
                bound = bind(settings.model)
                trained = untrained(named.values(), bound)
                check_starts(trained, bound)
                trained |= {HOLDOUT: None} if settings.holdout else {}
                starts = {role: start_of(of) for role, of in trained.items()}
                check_roles(named, {role: bound[start] for role, start in starts.items() if start in bound} | bound)
            check_extras(named)
        except InstDiffError as error:
            yield error


def _places(verb: str, settings: Any) -> Iterator[InstDiffError]:
    """Data and models that are not there, and an output that cannot be."""
    from instdiff.core.files import unwritable
    from instdiff.data.sources import find_files
    from instdiff.engine.sources import local_folder
    from instdiff.scoring.models import parse_model

    later = verb in ("export", "eval", "report", "merge") or getattr(settings, "print_launch", None)
    data = [] if later else getattr(settings, "data", None) or []
    try:
        for source in [data] if isinstance(data, str) else data:
            if source != "-" and "://" not in source and not source.startswith(("hub:", "builtin:")):
                find_files(source)
    except InstDiffError as error:
        yield error
    models = {} if verb in ("export", "eval", "merge", "select") else getattr(settings, "model", None) or {}
    for where in models.values() if isinstance(models, dict) else [models]:
        try:
            if not where.startswith("openai:"):
                local_folder(parse_model(where).where)
        except InstDiffError as error:
            yield error
    named = getattr(settings, "output", None) or "."
    for output in map(Path, named if isinstance(named, list) else [named]):
        above = next((place for place in output.parents if place.exists()), Path("."))
        if "://" not in str(named) and not above.is_dir():
            yield unwritable(output, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))


def _room(verb: str, settings: Any) -> Iterator[InstDiffError]:
    """A disk that cannot hold the models that a new run writes, each of the size of the one that it trains."""
    from instdiff.engine.sources import WEIGHTS, local_folder
    from instdiff.scoring.models import parse_model

    trains = verb in ("pipeline", "compare", "search") or (verb == "train" and not settings.print_launch)
    if not trains or settings.train.use_lora or not settings.output or Path(settings.output).exists():
        return
    where = getattr(settings, "student", None) or settings.model
    folder = local_folder(parse_model(where).where) if where else None
    if folder is None:
        return
    count = 1
    if getattr(settings, "keep_models", False) and not getattr(settings, "headroom", False):
        count = getattr(settings, "iterations", 1)
        if verb == "compare":
            count = len(settings.method) * len(settings.budgets) * len(settings.seeds)
    needed = max(count, 1) * sum(file.stat().st_size for pattern in WEIGHTS for file in folder.glob(pattern))
    above = next(place for place in Path(settings.output).absolute().parents if place.is_dir())
    free = shutil.disk_usage(above).free
    if needed > free:
        what = f"{count} models that are trained take" if count > 1 else "a model that is trained takes"
        fewer = ", give keep_models=false," if count > 1 else ""
        yield StoreError(
            f"{what} {size(needed)} or more, and '{above}' has {size(free)} free; free space{fewer} or choose another "
            "--output"
        )


def _asked(settings: Any) -> dict[str, Any]:
    """The keys of the suites of a run."""
    asked = getattr(settings, "eval", None)
    return asked if isinstance(asked, dict) else {**asked.params, "suite": asked.suite} if asked else {}


def _servers(settings: Any) -> list[str]:
    """Models behind endpoints."""
    keys = _asked(settings)
    places = [keys.get(key, getattr(settings, key, None)) for key in ("judge", "generator", "reference")]
    for named in (getattr(settings, "model", None), getattr(settings, "models", None)):
        places += named.values() if isinstance(named, dict) else [named]
    return [where for where in map(str, places) if where.startswith("openai:")]


def _judges(verb: str, settings: Any) -> Iterator[InstDiffError]:
    """Servers whose address is none, or that would refuse every call."""
    servers = _servers(settings) if verb in ("score", "select", "eval", "pipeline", "compare", "search") else []
    if not servers or find_spec("torch") is None:
        return
    from instdiff.engine.text.judge import check_judge

    for where in dict.fromkeys(servers):
        try:
            check_judge(where)
        except InstDiffError as error:
            yield error


def _needs(verb: str, settings: Any) -> Iterator[tuple[str, ...]]:
    """Who needs which module of an extra; of several one is enough."""
    if verb in ("demo", "pipeline", "compare", "search") or (verb == "train" and not settings.print_launch):
        yield "training", "trl"
    if verb in ("demo", "report"):
        yield "a report", "plotly"
    if getattr(settings, "executor", "local") == "ray":
        yield "the executor ray", "ray"
    suites = settings.suite if verb == "eval" else _asked(settings).get("suite") or []
    for suite in [suites] if isinstance(suites, str) else suites:
        if verb == "eval" or suite in SUITES:
            yield f"the suite {suite}", SUITES.get(suite, "torch")
    if _servers(settings):
        yield "a judge behind an endpoint", "httpx2", "httpx"
    data = getattr(settings, "data", None)
    if any(str(one).startswith("hub:") for one in ([data] if isinstance(data, str) else data or [])):
        yield "data of the hub", "datasets"
