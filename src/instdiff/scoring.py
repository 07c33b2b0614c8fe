"""Methods in, one table out: where plan, rendering, engine and store meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.artifact import environment, fingerprint
from instdiff.core import (
    Column,
    Length,
    Listed,
    Log,
    Measure,
    Method,
    ModelRef,
    Prompted,
    Scored,
    Settings,
    Signal,
    Signals,
    View,
)
from instdiff.data import Pool
from instdiff.engine.load import Resident, Source, load_tokenizer, pick_device, pick_dtype, resolve
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import DataError, PlanError
from instdiff.execute import run_pass
from instdiff.planner import Pass, plan
from instdiff.progress import Progress, Quiet
from instdiff.ragged import Ragged
from instdiff.render import Rows, render, text_lengths
from instdiff.segment import Keys
from instdiff.store import ColumnId, Store, check_writable
from instdiff.table import ScoreTable
from instdiff.templates import ROLE_TEMPLATES, Template, template
from instdiff.version import __version__

Columns = dict[str, Ragged | npt.NDArray[Any]]


@dataclass(frozen=True)
class Rendered:
    """Rows of a view under a role, with their keys."""

    rows: Rows
    keys: Keys

    @cached_property
    def scorable(self) -> npt.NDArray[np.int64]:
        """Positions of rows that have a target."""
        return np.flatnonzero([why is None for why in self.rows.why])


class Workbench:
    """A pool with models bound to roles: renders rows, knows what the store lacks, runs passes.

    Args:
        pool: the rows.
        models: what each role is bound to.
        settings: what all passes share.
        store: where columns are kept.
        listed: named lists of ids, such as ``warmup``.
        resident: models already in memory, shared between rounds.
    """

    def __init__(
        self,
        pool: Pool,
        models: Mapping[str, ModelRef],
        settings: Settings,
        store: Store,
        *,
        listed: Mapping[str, Iterable[str]] | None = None,
        resident: Resident | None = None,
        log: Log = print,
    ) -> None:
        self.pool, self.models, self.settings, self.store, self.log = pool, dict(models), settings, store, log
        self.listed = {name: set(ids) for name, ids in (listed or {}).items()}
        self.device = pick_device(settings.device)
        self.dtype = pick_dtype(settings.dtype, self.device)
        self.resident = resident or Resident(self.device, self.dtype)
        self._sources: dict[str, Source] = {}
        self._tokenizers: dict[str, HFTokenizer] = {}
        self._rendered: dict[tuple[str, str, View], Rendered] = {}

    # ── what a role is ────────────────────────────────────────────────────────────────────────────────────────────

    def source(self, role: str) -> Source:
        """The files of a role's model."""
        if role not in self._sources:
            self._sources[role] = resolve(self.models[role], self.store.memo)
        return self._sources[role]

    def tokenizer(self, role: str) -> HFTokenizer:
        """A role's tokenizer."""
        source = self.source(role)
        place = f"{source.folder}+{source.adapter}"
        if place not in self._tokenizers:
            self._tokenizers[place] = load_tokenizer(source)
        return self._tokenizers[place]

    def template_name(self, role: str) -> str:
        """The name of the template that renders rows for a role."""
        named = self.models[role].template if role in self.models else None
        return named or self.settings.templates.get(role) or ROLE_TEMPLATES.get(role) or self.settings.templates["*"]

    def template(self, role: str) -> Template:
        """The template that renders rows for a role."""
        return template(self.template_name(role))

    def column(self, role: str, measure: Measure) -> ColumnId:
        """Where the store keeps a measure of a role's model."""
        return ColumnId(self.source(role).fingerprint, str(self.dtype).removeprefix("torch."), measure)

    # ── rows and passes ───────────────────────────────────────────────────────────────────────────────────────────

    def rendered(self, role: str, view: View) -> Rendered:
        """Rows of a view; roles with the same tokenizer and template share them."""
        tokenizer = self.tokenizer(role)
        layout = self.template(role)
        place = (_tokenizer_mark(tokenizer), repr(layout), view)
        if place not in self._rendered:
            rows = render(view, self.pool, tokenizer, layout, self.settings.max_length)
            self._rendered[place] = Rendered(rows, rows.keys())
        return self._rendered[place]

    def lacking(self, step: Pass) -> npt.NDArray[np.int64]:
        """Positions of the rows that a pass has to compute: scorable, not in the store, equal rows once."""
        rendered = self.rendered(step.model, step.view)
        keys = rendered.keys[rendered.scorable]
        lack = np.zeros(len(keys), bool)
        for measure in step.measures:
            lack |= self.store.missing(self.column(step.model, measure), keys)
        _, once = np.unique(keys, return_index=True)
        return rendered.scorable[np.sort(once[lack[once]])]

    def run(self, step: Pass, progress: Progress) -> None:
        """Compute what the store lacks for a pass."""
        rendered = self.rendered(step.model, step.view)
        todo = self.lacking(step)
        if len(todo) == 0:
            return
        rows = rendered.rows.take(todo)
        label = f"{'+'.join(type(m).__name__.lower() for m in step.measures)} of {view_name(step.view)} by {step.model}"
        cached = len(rendered.scorable) - int(np.isin(rendered.keys[rendered.scorable], rendered.keys[todo]).sum())
        with (
            progress.task(label, rows=len(todo), tokens=int(rows.ids.lengths().sum()), cached=cached) as advance,
            self.resident.use(self.source(step.model)) as model,
        ):
            bad = run_pass(
                model,
                rows,
                rendered.keys[todo],
                {measure: self.column(step.model, measure) for measure in step.measures},
                self.store,
                log=self.log,
                advance=advance,
                batch_tokens=self.settings.batch_tokens,
            )
        if bad:
            self.log(f"warning: {len(bad)} rows of {view_name(step.view)} by {step.model} came out non-finite")

    def ordered(self, wave: Sequence[Pass]) -> list[Pass]:
        """The passes of a wave so that each base model is loaded once."""
        return sorted(wave, key=lambda p: (self.source(p.model).base_key, p.model, repr(p.view)))

    # ── columns for methods ───────────────────────────────────────────────────────────────────────────────────────

    def signals(self, method: Method) -> Signals:
        """What a method asked for, with the reason for every row that some column lacks."""
        columns: Columns = {}
        why = np.full(len(self.pool), None, object)
        for name, signal in method.signals().items():
            columns[name], reason = self._read(signal)
            why = np.where(why == None, reason, why)  # noqa: E711 - elementwise
        return Signals(columns, self.pool.ids, why)

    def _read(self, signal: Signal) -> tuple[Ragged | npt.NDArray[Any], npt.NDArray[np.object_]]:
        none = np.full(len(self.pool), None, object)
        match signal.measure:
            case Length(part=part, unit=unit):
                tokenizer = self.tokenizer(signal.model) if signal.model in self.models else None
                if unit == "tokens" and tokenizer is None:
                    self.log(f"no {signal.model} model is given, so {part} lengths are in characters, not tokens")
                lengths = text_lengths(self.pool, part, unit, tokenizer)
                if part == "response":
                    none[lengths == 0] = "empty_response"
                return lengths, none
            case Column(name=name):
                return np.array([str(v) for v in self.pool.column(name)], object), none
            case Listed(name=name):
                if name not in self.listed:
                    raise PlanError(
                        f"no list '{name}' of rows is given; with --{name} FILE it is read from a jsonl file"
                    )
                return np.array([i in self.listed[name] for i in self.pool.ids], bool), none
        rendered = self.rendered(signal.model, signal.view)
        values = self.store.read(self.column(signal.model, signal.measure), rendered.keys)
        reason = rendered.rows.why.copy()
        for row in np.flatnonzero((values.lengths() == 0) & (reason == None)):  # noqa: E711 - elementwise
            reason[row] = "non_finite"
        return values, reason


def view_name(view: View) -> str:
    """A view for people."""
    return type(view).__name__.lower()


def _tokenizer_mark(tokenizer: HFTokenizer) -> str:
    hf = tokenizer.hf
    backend = hf.backend_tokenizer.to_str() if hasattr(hf, "backend_tokenizer") else repr(hf)
    return fingerprint(
        backend, str(hf.chat_template), tokenizer.bos, tokenizer.start, tokenizer.eos, tokenizer.max_length
    )


def bind(models: str | ModelRef | Mapping[str, str | ModelRef]) -> dict[str, ModelRef]:
    """Roles to references; a bare model is ``base``."""
    if isinstance(models, (str, ModelRef)):
        models = {"base": models}
    return {role: parse_model(where) if isinstance(where, str) else where for role, where in models.items()}


def parse_model(where: str) -> ModelRef:
    """``WHERE``, ``NAME@REVISION``, ``WHERE+ADAPTER``."""
    from pathlib import Path

    if Path(where).is_dir():
        return ModelRef(where)
    base, plus, adapter = where.partition("+")
    name, at, revision = base.partition("@")
    if at and not Path(base).is_dir():
        return ModelRef(name, revision, adapter if plus else None)
    return ModelRef(base, None, adapter if plus else None)


def check_roles(methods: Mapping[str, Method], models: Mapping[str, ModelRef]) -> None:
    """Every role that a method needs is bound.

    Raises:
        PlanError: a role is not.
    """
    for name, method in methods.items():
        for signal in method.signals().values():
            if signal.measure.needs_model and signal.model not in models:
                hint = " or let `instdiff pipeline` train it" if signal.model == "calibrated" else ""
                raise PlanError(
                    f"{name} needs a model for role '{signal.model}'; give --model {signal.model}=WHERE{hint}"
                )


def score(
    pool: Pool,
    methods: Sequence[Method] | Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None = None,
    *,
    settings: Settings | None = None,
    store: Store | None = None,
    listed: Mapping[str, Iterable[str]] | None = None,
    specs: Mapping[str, str] | None = None,
    resident: Resident | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
) -> ScoreTable:
    """Score every row of a pool by several methods, computing only what the store lacks.

    Args:
        pool: the rows.
        methods: instances, or a mapping from column names to instances.
        models: what each role is bound to; a bare path or id is ``base``.
        settings: lengths, precision, device, templates.
        store: where columns are kept; the user's cache folder by default.
        listed: named lists of row ids that methods may ask for, such as ``warmup``.
        specs: how each method was named, for the record; by default its own name.
        resident: models already in memory.
        log: is told what happens.
        progress: shows it.

    Raises:
        PlanError: a role that a method needs is not bound.
        EngineError: a model cannot be loaded or run.
    """
    named = by_name(methods)
    if len(pool) == 0:
        raise DataError(f"{pool.origin} has no rows to score")
    bench = workbench(pool, named, models, settings, store, listed=listed, resident=resident, log=log)
    shown = progress or Quiet()
    for wave in plan(signal for method in named.values() for signal in method.signals().values()):
        for step in bench.ordered(wave):
            bench.run(step, shown)
    return tabulate(bench, named, specs or {})


def by_name(methods: Sequence[Method] | Mapping[str, Method]) -> dict[str, Method]:
    """Methods by the names of their columns."""
    if isinstance(methods, Mapping):
        return dict(methods)
    return {method.name or type(method).__name__.lower(): method for method in methods}


def workbench(
    pool: Pool,
    methods: Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None,
    settings: Settings | None,
    store: Store | None,
    *,
    listed: Mapping[str, Iterable[str]] | None = None,
    resident: Resident | None = None,
    log: Log | None = None,
) -> Workbench:
    """Check roles and store, and bind everything that scoring or planning needs."""
    bound = bind(models or {})
    check_roles(methods, bound)
    store = store or Store()
    check_writable(store.root)
    return Workbench(
        pool, bound, settings or Settings(), store, listed=listed, resident=resident, log=log or (lambda line: None)
    )


def tabulate(bench: Workbench, methods: Mapping[str, Method], specs: Mapping[str, str]) -> ScoreTable:
    """Compute every method's scores from the columns that are there."""
    pool = bench.pool
    n_tokens, truncated = _tokens(bench, methods)
    scored = {}
    for name, method in methods.items():
        signals = bench.signals(method)
        scores = method.score(signals).explained(signals)
        scored[name] = Scored(name, method, scores.value, scores.why, scores.details, pool.ids, n_tokens)
    return ScoreTable(pool.rows, pool.ids, n_tokens, truncated, scored, _meta(bench, methods, specs))


def _tokens(bench: Workbench, methods: Mapping[str, Method]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Scored response tokens and truncation in the view of the first method that has one."""
    for method in methods.values():
        for signal in method.signals().values():
            if signal.measure.needs_model:
                rows = bench.rendered(signal.model, signal.view).rows
                return rows.n_targets(), rows.truncated
    if "base" in bench.models:
        rows = bench.rendered("base", Prompted()).rows
        return rows.n_targets(), rows.truncated
    return np.full(len(bench.pool), -1), np.zeros(len(bench.pool), bool)


def _meta(bench: Workbench, methods: Mapping[str, Method], specs: Mapping[str, str]) -> dict[str, Any]:
    used = sorted({s.model for m in methods.values() for s in m.signals().values() if s.model in bench.models})
    return {
        "instdiff": __version__,
        "data": {"origin": bench.pool.origin, "fingerprint": bench.pool.fingerprint, "rows": len(bench.pool)},
        "methods": {
            name: {"spec": specs.get(name, method.name or name), "params": method.params()}
            for name, method in methods.items()
        },
        "models": {
            role: {
                "where": str(bench.models[role]),
                "fingerprint": bench.source(role).fingerprint,
                "commit": bench.source(role).commit,
                "tokenizer": _tokenizer_mark(bench.tokenizer(role)),
                "template": bench.template_name(role),
                "template_fingerprint": fingerprint(repr(bench.template(role))),
            }
            for role in used
        },
        "settings": {
            "dtype": str(bench.dtype).removeprefix("torch."),
            "max_length": bench.settings.max_length,
            "targets": bench.pool.targets,
        },
        "store": str(bench.store.root),
        "packages": environment()["packages"],
    }
