"""Methods in, one table out: where plan, rendering, engine and store meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Demonstrated,
    Entropy,
    Joint,
    Judged,
    Log,
    MeanNll,
    Method,
    ModelRef,
    Nll,
    Noisy,
    Prompted,
    ResponseOnly,
    Scored,
    Settings,
    Side,
    Signal,
    Signals,
    Top1,
    WholeText,
)
from instdiff.core.files import environment, fingerprint
from instdiff.core.progress import Progress, Quiet
from instdiff.core.signals import Solved
from instdiff.data import Pool
from instdiff.data.load import as_pool, load
from instdiff.errors import ConfigError, DataError, PlanError
from instdiff.rendering.steps import thought_tokens
from instdiff.scoring.crossfit import bind_trained, check_leaks
from instdiff.scoring.given import Methods, given_models, given_settings, given_store, named_methods
from instdiff.scoring.models import bind, check_extras, check_roles, recorded
from instdiff.scoring.planner import plan
from instdiff.scoring.precision import noise, reverted, settle_precision, tell_emulated, tell_losses
from instdiff.scoring.table import ScoreTable
from instdiff.scoring.workbench import Workbench
from instdiff.store import Store
from instdiff.version import __version__

if TYPE_CHECKING:
    from instdiff.config.train import TrainSettings
    from instdiff.engine.distributed.hosts import ModelHost

BY_TOKEN = (Nll, Entropy, Top1, MeanNll)
OF_RESPONSE = (Prompted, Side, ResponseOnly, WholeText, Joint, Noisy, Demonstrated)
"""What is counted as a row's scored tokens."""


def score(
    pool: Any,
    methods: Methods,
    models: Any = None,
    *,
    model: Any = None,
    settings: Settings | None = None,
    store: Store | str | Path | None = None,
    listed: Mapping[str, Iterable[str]] | None = None,
    target: Any = None,
    holdout: Any = None,
    crossfit: TrainSettings | None = None,
    seed: int = 42,
    specs: Mapping[str, str] | None = None,
    resident: ModelHost | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
    **over: Any,
) -> ScoreTable:
    """Score every row of a pool by one or several methods, computing only what the store lacks.

    ``pool`` are the rows, or what ``load`` reads; so are ``target``, which methods match, and ``holdout``, on which the
    model of that role is trained. ``methods`` are names or instances, one or several, or a mapping from column names
    to these. ``models`` binds roles; a bare path or id is ``base``, so is ``model``; ``(model, tokenizer)`` is loaded.

    ``settings`` are lengths, precision, device and templates; ``over`` them go single ones, as ``template="chat"``.
    ``store`` is where columns are kept, by default in the user's cache. ``listed`` are row ids that methods may ask
    for, such as ``warmup``. ``crossfit`` is how models of a holdout and of folds are trained. ``seed`` is of methods
    that are named, and of the training of the first. ``specs`` is how each method was named, for the record.
    ``resident`` are models in memory. ``log`` is told what happens; ``progress`` shows it.

    Raises:
        PlanError: a role that a method needs is not bound, or a fold's model does not say what it was trained on.
        ConfigError: a value of a type that is not taken, or a fold's model was trained on rows of its own fold.
        EngineError: a model cannot be loaded or run.
    """
    pool, named, store = as_pool(pool), named_methods(methods, seed), given_store(store)
    if model is not None and models is not None:
        raise ConfigError("'model' and 'models' are two names of one thing; give one of them")
    bound, how = given_models(models if model is None else model, store), given_settings(settings, **over)
    given = {of: None if rows is None else as_pool(rows) for of, rows in (("target", target), ("holdout", holdout))}
    if len(pool) == 0:
        raise DataError(f"{pool.origin} has no rows to score")
    shared: dict[str, Any] = {"settings": how, "store": store, "crossfit": crossfit, "seed": seed, **given}
    best = partial(_rank, pool, bound, **shared, resident=resident, log=log, progress=progress)
    bound = bind_trained(named.values(), bound, pool, best=best, **shared, log=log or (lambda line: None))
    bench = workbench(pool, named, bound, how, store, listed=listed, target=given["target"], resident=resident, log=log)
    with closing(bench):
        _compute(bench, named, progress or Quiet())
        return tabulate(bench, named, specs or {}, measured=True)


def _rank(pool: Pool, models: Mapping[str, ModelRef], before: Method, **how: Any) -> npt.NDArray[np.int64]:
    """Rows by a method whose best ones models of another are trained on, best first."""
    return score(pool, {"before": before}, models, **how)["before"].best()


def _compute(bench: Workbench, methods: Mapping[str, Method], progress: Progress) -> None:
    """Run all passes, wave by wave, with models that may be asked."""
    check_leaks(bench, methods.values())
    waves = plan(signal for method in methods.values() for signal in method.signals().values())
    count, at = sum(map(len, waves)), 0
    for wave in waves:
        for step in bench.order(wave):
            at += 1
            bench.run(step, progress, f"[{at}/{count}] " if count > 1 else "")


def workbench(
    pool: Pool,
    methods: Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None,
    settings: Settings | None,
    store: Store | None,
    *,
    listed: Mapping[str, Iterable[str]] | None = None,
    target: Pool | None = None,
    resident: ModelHost | None = None,
    log: Log | None = None,
) -> Workbench:
    """Check roles and store, and bind everything that scoring or planning needs."""
    bound = bind(models or {})
    check_pairs(pool, methods)
    check_roles(methods, bound)
    check_extras(methods)
    store = store or Store()
    said = log or (lambda line: None)
    if log is not None:
        store.log = log
    how = settle_precision(settings or Settings(), list(methods.values()), bound)
    bench = Workbench(pool, bound, how, store, listed=listed, target=target, resident=resident, log=said)
    if how.device not in ("auto", "cpu"):
        bench.device  # noqa: B018 - one that is not there must be known at once
    if any(signal.measure.needs_model for method in methods.values() for signal in method.signals().values()):
        tell_emulated(bench, said)
        bench.reverted = reverted(bench, methods)
        tell_losses(bench, said)
    return bench


def check_pairs(pool: Pool, methods: Mapping[str, Method]) -> None:
    """Methods that compare the sides of pairs get pairs, else a DataError."""
    for name, method in methods.items():
        if any(isinstance(signal.view, Side) for signal in method.signals().values()) and not pool.pairs.any():
            raise DataError(
                f"{name} compares the two sides of preference pairs, and {pool.origin} has none; "
                "such rows have 'chosen' and 'rejected', or --map chosen=COLUMN,rejected=COLUMN names them"
            )


def tabulate(
    bench: Workbench, methods: Mapping[str, Method], specs: Mapping[str, str], *, measured: bool = False
) -> ScoreTable:
    """Compute every method's scores from the columns that are there.

    With ``measured`` models may run once more, to say how far a coarse precision is off.
    """
    pool = bench.pool
    n_tokens, truncated, n_thought = _tokens(bench, methods)
    scored = {}
    for name, method in methods.items():
        signals = bench.signals(method)
        scores = method.score(signals).with_reasons(signals)
        again = partial(bench.signals, method)
        found = scores.value, scores.reason, scores.details
        scored[name] = Scored(name, method, *found, pool.ids, n_tokens, again, n_thought=n_thought)
    meta = meta_of(bench, methods, specs)
    if differences := noise(bench, methods, measured=measured):
        meta["precision"] = {"reverted": bench.reverted, "differences": differences}
    return ScoreTable(pool.rows, pool.ids, n_tokens, truncated, scored, meta, n_thought)


def recalling(
    scored: Scored,
    meta: Mapping[str, Any],
    pool: Pool,
    *,
    store: str | None = None,
    listed: Mapping[str, Iterable[str]] | None = None,
    log: Log | None = None,
) -> Scored:
    """Scores of a file, with what they were made of within reach: it is read from the store when a method asks for it.

    ``meta`` is the file's metadata, which names models, settings and store; ``store`` says where that is now, by
    default where it was. ``pool`` are the rows that were scored, and ``listed`` named lists of row ids, as when they
    were.
    """

    def again() -> Signals:
        models, settings = recorded(meta)
        origin = meta.get("target", {}).get("origin")
        target = load(origin, **asdict(pool.turns)) if origin else None
        kept = Store(store or meta.get("store"))
        bench = Workbench(pool, models, settings, kept, listed=listed, target=target, log=log or (lambda line: None))
        signals = bench.signals(scored.method)
        lost = int((scored.takeable & (signals.reason != None)).sum())  # noqa: E711 - elementwise
        if lost:
            raise PlanError(
                f"{scored.name} needs columns that the store '{kept.root}' lacks for {lost} rows; give the folder with "
                "--store, or run `instdiff score` again"
            )
        return signals

    return replace(scored, recall=again)


Counts = npt.NDArray[np.int64]


def _tokens(bench: Workbench, methods: Mapping[str, Method]) -> tuple[Counts, npt.NDArray[np.bool_], Counts | None]:
    """Scored response tokens, truncation, and tokens of thoughts, as the base reads them where it is there to ask.

    Whatever the order of the methods: another model's counts, or another view's, would be another budget.
    """
    asked = [signal for _, method in sorted(methods.items()) for signal in method.signals().values()]
    mine = [s for s in asked if isinstance(s.measure, BY_TOKEN) and isinstance(s.view, OF_RESPONSE) and s.of == "pool"]
    mine.sort(key=lambda one: (one.model != "base", one.model, one.view != Prompted()))
    if "base" in bench.models and not bench.models["base"].served and not (mine and mine[0].model == "base"):
        mine = [Signal(Nll())]
    if mine:
        return _counted(bench, mine[0])
    return np.full(len(bench.pool), -1), np.zeros(len(bench.pool), bool), None


def _counted(bench: Workbench, signal: Signal) -> tuple[Counts, npt.NDArray[np.bool_], Counts | None]:
    rows = bench.render(signal.model, signal.view).tokens
    n_tokens, thought = rows.n_targets(), None
    if len(thinking := bench.renderer(signal.model).tokenised.thinking):
        said = bench.render(signal.model, Prompted()).tokens
        thought = thought_tokens(said, bench.pool, thinking, bench.tokenizer(signal.model).locate)
        thought = np.minimum(thought, n_tokens)
    cut = rows.truncated
    if isinstance(signal.view, Side):
        cut = cut | bench.render(signal.model, Side("rejected")).tokens.truncated
    return n_tokens, cut, thought


def meta_of(bench: Workbench, methods: Mapping[str, Method], specs: Mapping[str, str]) -> dict[str, Any]:
    """What a score file says of data, methods, models and settings."""
    asked = [signal for method in methods.values() for s in method.signals().values() for signal in (*s.needs(), s)]
    models: dict[str, dict[str, Any]] = {}
    for signal in sorted(asked, key=lambda one: one.measure.needs_model):
        if signal.model in bench.models and (signal.measure.needs_model or signal.model != "embedder"):
            models[signal.model] = _about(bench, signal)
        for role in signal.measure.also:
            fingerprint_of = bench.text_model(role, Judged(0, 1)).fingerprint
            models[role] = {"where": str(bench.models[role]), "fingerprint": fingerprint_of}
    target = bench.target
    return {
        "instdiff": __version__,
        "data": {"origin": bench.pool.source, "fingerprint": bench.pool.fingerprint, "rows": len(bench.pool)},
        **({"target": {"origin": target.source, "fingerprint": target.fingerprint}} if target is not None else {}),
        "methods": {
            name: {"spec": specs.get(name, method.origin or method.name or name), "params": method.params()}
            for name, method in methods.items()
        },
        "models": dict(sorted(models.items())),
        "settings": {
            "dtype": bench.precision,
            "max_length": bench.settings.max_length,
            **asdict(bench.pool.turns),
            "template_date": bench.settings.template_date.isoformat(),
        },
        "store": str(bench.store.root),
        "packages": environment()["packages"],
    }


def _about(bench: Workbench, signal: Signal) -> dict[str, Any]:
    """A role's model, for the record; its weights only where something was asked of them."""
    role = signal.model
    where = {"where": str(bench.models[role])}
    if isinstance(signal.measure, Solved) and (solver := bench.solver(role, signal.measure)).endpoint:
        return {**where, "fingerprint": solver.fingerprint, "template": solver.template}
    if signal.measure.of_text and not isinstance(signal.measure, Solved):
        return {**where, "fingerprint": bench.text_model(role, signal.measure).fingerprint}
    weights = {"fingerprint": bench.source(role).fingerprint} if signal.measure.needs_model else {}
    return {
        **where,
        **weights,
        "commit": bench.source(role).commit,
        "tokenizer": bench.tokenizer(role).fingerprint,
        "start_token": bench.tokenizer(role).start_text,
        "template": bench.template_name(role),
        "template_fingerprint": fingerprint(repr(bench.template(role))),
    }
