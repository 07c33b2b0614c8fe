"""What an experiment reads: the rows that are scored, drawn and matched, and the suites that evaluate models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from instdiff.config.base import Config, build, canonical
from instdiff.config.commands import DataConfig, PipelineConfig, RunConfig, parse_methods
from instdiff.config.compare import CompareConfig
from instdiff.config.evaluate import EvalConfig
from instdiff.config.search import SearchConfig
from instdiff.core import Log, Method, Settings
from instdiff.data import Pool, load
from instdiff.engine.sources import find_tokenizer, tell_own_template
from instdiff.errors import ConfigError, DataError, kind_of
from instdiff.evaluation.evaluator import HELDOUT, eval_config_of
from instdiff.evaluation.subject import Suite
from instdiff.evaluation.suites import HeldOutSuite, make_suites
from instdiff.scoring.given import given_model, given_models, given_store, kept_rows, named_methods, reading_of
from instdiff.scoring.models import parse_model
from instdiff.store import Store
from instdiff.training.pairs import refuse_pairs

Named = TypeVar("Named", bound=RunConfig)
Run = TypeVar("Run", bound=RunConfig)


def builtin_heldout(data: str | list[str] | None) -> str | None:
    """The held-out rows of built-in data."""
    return "builtin:demo/heldout" if data == "builtin:demo" else None


def configured(kind: type[Run], data: Any, **options: Any) -> Run:
    """A run's configuration from what Python is given: rows of any kind, models that are loaded, methods as objects.

    A configuration is taken as it is. Options that are None are left out. Cells are made one after the other unless
    ``cells_at_once`` says otherwise, because other processes would run the user's script once more.

    Raises:
        ConfigError: an unknown key, or a value of a type that is not taken.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(data, Config):
        if not isinstance(data, kind) or given:
            raise ConfigError(
                f"give a {kind.__name__} alone, or rows with keywords; not {type(data).__name__} with {given}"
            )
        return data
    store = given_store(given.get("store"))
    values: dict[str, Any] = {"cells_at_once": 1, **reading_of(data), **given, "data": kept_rows(data, store)}
    for name in ("target", "holdout"):
        values[name] = kept_rows(values.get(name), store)
    for name in ("model", "student"):
        values |= {name: str(given_model(values[name], store))} if name in values else {}
    if isinstance(values.get("models"), Mapping):
        values["models"] = {role: str(ref) for role, ref in given_models(values["models"], store).items()}
    if isinstance(values.get("eval"), Mapping) and not isinstance(rows := values["eval"].get("data"), Mapping | None):
        values["eval"] = {**values["eval"], "data": kept_rows(rows, store)}
    for name in ("store", "output"):
        place = values.get(name)  # a path has a `root` too, which is that of the disk
        values |= {name: str(place.root if isinstance(place, Store) else place)} if place is not None else {}
    return build(kind, {name: value for name, value in values.items() if value is not None}, "the keywords")


def as_lines(methods: Any) -> Any:
    """Lines of a comparison from names, classes or instances, one or several, or a mapping; None as it is.

    Names and classes get the seeds of the comparison. A ConfigError says what is no method, of a mapping which line.
    """
    if methods is None or isinstance(methods, str):
        return methods
    if isinstance(methods, Mapping):
        return {str(name): _line(one, str(name)) for name, one in methods.items()}
    named = methods if isinstance(methods, list | tuple) else [methods]
    specs = [spec for one in named for spec in (parse_methods(one) if isinstance(one, str) else [one])]
    return {name: _line(one, name) for name, one in zip(named_methods(named), specs, strict=True)}


def _line(one: Any, name: str) -> Any:
    """The keys of a line that is a method by name, class or instance; a mapping of keys as it is."""
    if one is None or isinstance(one, Mapping):
        return one
    if isinstance(one, str) and one.strip():
        return {"method": one}
    if not (isinstance(one, Method) or (isinstance(one, type) and issubclass(one, Method))):
        taken = "a method's name, such as 'ifd', an instance, a class, or a mapping of its keys"
        raise ConfigError(f"line '{name}' is {taken}; not {kind_of(one)}")
    if not (one.origin or one.name):
        raise ConfigError(f"line '{name}' is of a class without a name; give its file, as './mine.py:Margin'")
    return {"method": one.origin or one.name, "params": one.params() if isinstance(one, Method) else {}}


Inputs = tuple[Pool, Pool, Pool | None]
"""The rows that are scored, those that warm-up subsets are drawn from, and those that targeted methods match."""


def fingerprints(inputs: Iterable[Pool | None], warmup: str) -> dict[str, str]:
    """Of each that there is, the holdout's last; ``warmup`` is what the run calls the second."""
    names = ("data", warmup, "target data", "holdout data")
    return {name: rows.fingerprint for name, rows in zip(names, inputs, strict=False) if rows is not None}


def read_rows(
    config: DataConfig,
    path: str | list[str],
    limit: int | None = None,
    log: Log | None = None,
    rejects: Path | None = None,
) -> Pool:
    """A data file, read as the configuration of a comparison or a pipeline says."""
    mapping = config.mapping()
    if isinstance(config, PipelineConfig):
        keys = ("instruction_key", "input_key", "response_key")
        own = {key: getattr(config.score, key) for key in keys if getattr(config.score, key)}
        mapping = config.model_copy(update=own).mapping()
    how = {"format": config.format, "longest_line_mb": config.longest_line_mb, **config.turns()}
    return load(path, map=mapping, limit=limit, rejects_path=rejects, log=log, **how)


Experiment = PipelineConfig | CompareConfig | SearchConfig


def read_inputs(config: Experiment, folder: Path | None, log: Log | None = None) -> Inputs:
    """The rows of an experiment; bad lines go to ``rejected.jsonl`` in the folder."""
    assert config.data
    part, rejects = config.warmup, folder / "rejected.jsonl" if folder else None
    rows = refuse_pairs(read_rows(config, config.data, config.limit, log, rejects))
    first = part.limit
    warmup = (
        refuse_pairs(read_rows(config, part.data_path, first, log)) if part.data_path else first_records(rows, first)
    )
    target = read_rows(config, config.target, None, log) if config.target else None
    return scored_rows(config, rows), warmup, target


def scored_rows(config: Experiment, rows: Pool) -> Pool:
    """The rows that are scored: in a pipeline they may be the first ones alone."""
    return first_records(rows, config.score.max_samples) if isinstance(config, PipelineConfig) else rows


def hold_out(config: SearchConfig, inputs: Inputs, known: Mapping[str, Any], log: Log) -> tuple[Inputs, Pool | None]:
    """What a search chooses from, and the rows of the data that it judges models on where no others are named.

    These are drawn by the hash of their content, so that copies stay together. ``known`` are the keys of ``eval`` that
    the run itself says. Raises a DataError where the rows are too few.
    """
    asked = {**known, **canonical(EvalConfig, config.eval, "'eval'")}
    if asked.get("data") or HELDOUT not in asked["suite"]:
        return inputs, None
    pool, warmup, target = inputs
    share = min(0.1, config.heldout / max(1, len(pool)))

    def parted(rows: Pool) -> tuple[Pool, Pool]:
        held = np.array([place_of(name, "held out") < share for name in rows.ids], bool)
        return rows.take(np.flatnonzero(~held)), rows.take(np.flatnonzero(held))

    kept, held = parted(pool)
    if not len(held):
        raise DataError(f"{len(pool)} rows are too few to hold a tenth out; name held-out rows (eval.data=FILE)")
    log(
        f"no held-out rows are named: {len(held):,} rows of the data are held out, with the flaws they have; "
        "rows that you trust are the better judge (eval.data=FILE)"
    )
    return (kept, parted(warmup)[0], target), held


def place_of(name: str, salt: str) -> float:
    """Where in [0, 1) a text falls: by its hash, apart for each salt."""
    return int.from_bytes(hashlib.blake2b(f"{salt}|{name}".encode(), digest_size=8).digest(), "big") / 2**64


def first_records(pool: Pool, records: int | None) -> Pool:
    """The rows among the first so many records of the input."""
    return pool if records is None else pool.take(range(int((pool.rows < records).sum())))


def with_template(config: Named, models: Iterable[str | None], log: Log) -> Named:
    """The configuration with a template named; the log is told of models whose own is not used then."""
    if config.template is not None:
        return config
    usual = Settings()
    for where in dict.fromkeys(where for where in models if where):
        ref = parse_model(where)
        tell_own_template(ref, usual, find_tokenizer(ref), log)
    return config.model_copy(update={"template": usual.template})


def make_suites_for(
    config: RunConfig, keys: Mapping[str, Any], store: Store, pool: Pool, log: Log, **known: Any
) -> tuple[EvalConfig, list[Suite]]:
    """The suites that evaluate the models of an experiment, and how they are asked.

    ``keys`` are those of ``instdiff eval``, which go before ``known``, what the experiment says itself. There,
    ``heldout`` are its held-out rows, where it has read them. The log is told which of them are in the ``pool`` too.
    Raises a ConfigError for an unknown suite, task or key, and for held-out rows that are not named.
    """
    heldout: Pool | None = known.pop("heldout", None)
    known["answers"] = str(Path(getattr(config, "output", None) or "") / "answers")  # one folder for all models
    asked = eval_config_of(config, keys, store, **known)
    names = [name for name in asked.suite if heldout is None or name != HELDOUT]
    if HELDOUT in names and not asked.data:
        raise ConfigError("'eval.data' is missing: which held-out rows should the models be judged on?")
    suites = make_suites(asked.model_copy(update={"suite": names})) if names or heldout is None else []
    if heldout is not None:
        held: Any = HeldOutSuite(heldout, heldout.origin)
        suites.insert(asked.suite.index(HELDOUT), held)
    for suite in suites:
        shared = set(suite.pool.ids) & set(pool.ids) if isinstance(suite, HeldOutSuite) else ()
        if shared:
            log(f"warning: {len(shared)} held-out rows are in the training pool too")
    return asked, suites


def read_flaws(config: PipelineConfig) -> dict[int, str]:
    """The planted flaws of ``builtin:demo``, by row."""
    if config.data != "builtin:demo":
        return {}
    from instdiff.data.builtin import path

    lines = (path("demo") / "flaws.jsonl").read_text(encoding="utf-8").splitlines()
    return {int(flaw["row"]): str(flaw["flaw"]) for flaw in map(json.loads, lines)}
