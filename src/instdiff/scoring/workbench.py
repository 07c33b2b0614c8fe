"""A pool with models bound to roles: what a method asks for is rendered, computed where it lacks, and read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Choice,
    Column,
    Demonstrated,
    Floats,
    Judged,
    Leak,
    Length,
    Listed,
    Log,
    Measure,
    Method,
    ModelRef,
    Neurons,
    Noisy,
    Number,
    Prompted,
    Reasons,
    ResponseOnly,
    Settings,
    Signal,
    Signals,
    Text,
    View,
    Windowed,
    reasons,
)
from instdiff.core.arrays.ragged import Ragged, offsets_of
from instdiff.core.arrays.spill import flatnonzero, take
from instdiff.core.columns import first_reason, no_reasons
from instdiff.core.progress import Progress, tell_skipped, telling
from instdiff.core.settings import dtype_name
from instdiff.core.signals import (
    Anchors,
    Contends,
    Contested,
    CrossFitted,
    Fold,
    Folded,
    Group,
    Labels,
    Neighbours,
    Posed,
    Race,
    Sides,
    Solved,
    Split,
    TrainedOn,
)
from instdiff.data import Pool
from instdiff.data.labels import each_label, labels_of
from instdiff.engine.sources import PACKAGED, TEXT, Source, load_tokenizer, resolve, tell_own_template
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import DataError, PlanError
from instdiff.rendering.renderer import Renderer, text_lengths
from instdiff.rendering.rows import Rows
from instdiff.rendering.steps import windowed
from instdiff.rendering.templates import ROLE_TEMPLATES, Template, template, why_nothing
from instdiff.rendering.texts import Texts, text_column, texts
from instdiff.scoring.demonstrations import anchor_rows, demonstrated_rows, neighbours
from instdiff.scoring.folds import folds_of, groups_of
from instdiff.scoring.leaks import read_leaks
from instdiff.scoring.models import template_name
from instdiff.scoring.numbers import read_numbers
from instdiff.scoring.planner import Pass, label, view_name
from instdiff.scoring.rendered import Rendered
from instdiff.scoring.run_pass import run_pass
from instdiff.store import ColumnId, Store, check_writable
from instdiff.store.keys import first_of_each
from instdiff.store.trained import hold_trained
from instdiff.training.trained_rows import trained_rows

if TYPE_CHECKING:
    import torch

    from instdiff.engine.distributed.hosts import ModelHost
    from instdiff.engine.sweep import BatchResult
    from instdiff.engine.text.models import TextModel
    from instdiff.scoring.solving import Solver

Values = Ragged | npt.NDArray[Any]

KEPT = 8
"""Columns of a method that stay in memory."""


class Workbench:
    """A pool with models bound to roles: renders rows, knows what the store lacks, runs passes.

    ``listed`` are named lists of ids, such as ``warmup``; one with the name of a role is by default what its model was
    trained on. ``target`` are the rows that targeted methods match.
    ``resident`` are models already in memory, shared between rounds; by default they go where ``settings`` say.
    """

    def __init__(
        self,
        pool: Pool,
        models: Mapping[str, ModelRef],
        settings: Settings,
        store: Store,
        *,
        listed: Mapping[str, Iterable[str]] | None = None,
        target: Pool | None = None,
        resident: ModelHost | None = None,
        log: Log = print,
    ) -> None:
        self.pool, self.models, self.settings, self.store, self.log = pool, dict(models), settings, store, log
        self.target = target
        self.listed = {name: set(ids) for name, ids in (listed or {}).items()}
        self._given = resident
        self.reverted: dict[str, float] = {}
        """By role the share of what a training has changed that the precision takes back."""
        self.models.setdefault("embedder", ModelRef(PACKAGED))
        self._text_models: dict[str, TextModel] = {}
        self._solvers: dict[tuple[str, ...], Solver] = {}
        self.sources: dict[str, Source] = {}
        """By role, found when they are asked for; a plan puts models there that are yet to be trained."""
        self._tokenizers: dict[str, HFTokenizer] = {}
        self._told: set[str] = set()
        self._renderers: dict[tuple[str, str], Renderer] = {}
        self._render: dict[tuple[str, str, View, str], Rendered] = {}
        self._contenders: dict[Race, npt.NDArray[np.bool_]] = {}
        self._numbers: dict[Number, tuple[Floats, Reasons]] = {}
        self._folds: dict[Split, npt.NDArray[np.int64]] = {}

    # ── where models compute; torch is not imported before one does ──────────────────────────────────────────────────

    @cached_property
    def device(self) -> torch.device:
        """Where models of this process compute."""
        from instdiff.engine.models import pick_device

        return pick_device(self.settings.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        from instdiff.engine.models import DTYPES, pick_dtype

        given = self._given
        return DTYPES[dtype_name(given.dtype)] if given else pick_dtype(self.settings.dtype, self.device)

    @property
    def precision(self) -> str:
        """The name of ``dtype``; as it was asked for where no model is needed."""
        return dtype_name(self.dtype) if self._given or "dtype" in vars(self) else self.settings.dtype

    @cached_property
    def resident(self) -> ModelHost:
        """The models in memory."""
        from instdiff.engine.distributed.hosts import make_model_host

        return self._given or make_model_host(self.settings, self.device, self.dtype)

    # ── what a role is ────────────────────────────────────────────────────────────────────────────────────────────

    def source(self, role: str) -> Source:
        """The files of a role's language model."""
        if role not in self.sources:
            hold_trained(self.store, Path(self.models[role].adapter or self.models[role].where))
            self.sources[role] = resolve(self.models[role], self.store.memo)
        return self.sources[role]

    def text_model(self, role: str, measure: Measure) -> TextModel:
        """The embedder or judge of a role."""
        place = f"{role} {type(measure).__name__}"
        if place not in self._text_models:
            from instdiff.engine.text.models import text_model

            where = self.models[role], measure, self.store, self.resident.local(), self.device
            self._text_models[place] = text_model(*where, self.settings)
        return self._text_models[place]

    def solver(self, role: str, measure: Measure) -> Solver:
        """What draws a role's answers and says which are right."""
        from instdiff.scoring.solving import Solver

        place = (role, *measure.also)
        if place not in self._solvers:
            self._solvers[place] = Solver(self, role, *measure.also)
        return self._solvers[place]

    def tokenizer(self, role: str) -> HFTokenizer:
        """A role's tokenizer."""
        source = self.source(role)
        place = f"{source.folder}+{source.adapter}"
        if place not in self._tokenizers:
            self._tokenizers[place] = load_tokenizer(source, self.settings.template_date, directly=True)
            self._tell_own_template(role, self._tokenizers[place])
        return self._tokenizers[place]

    def _tell_own_template(self, role: str, tokenizer: HFTokenizer) -> None:
        """Once for each tokenizer; a role with a template of its own, such as ``proxy``, does not go by --template."""
        if role not in ROLE_TEMPLATES and tokenizer.fingerprint not in self._told:
            self._told.add(tokenizer.fingerprint)
            tell_own_template(self.models[role], self.settings, tokenizer, self.log)

    def _tell_start(self, role: str, view: View) -> None:
        """Say once for each tokenizer after which token it starts the response alone, where it adds none itself."""
        alone = view.view if isinstance(view, Noisy) else view
        tokenizer = self.tokenizer(role)
        if not (isinstance(alone, ResponseOnly) and alone.context) or tokenizer.bos is not None:
            return
        if (place := f"start {tokenizer.fingerprint}") not in self._told:
            self._told.add(place)
            after = "after nothing" if tokenizer.start is None else f"after '{tokenizer.start_text}'"
            self.log(f"the tokenizer of {self.models[role]} adds no start token; the response alone stands {after}")

    def template_name(self, role: str) -> str:
        """The name of the template that renders rows for a role."""
        return template_name(role, self.models.get(role), self.settings)

    def template(self, role: str) -> Template:
        """The template that renders rows for a role."""
        return template(self.template_name(role))

    def resolve(self, role: str, measure: Measure) -> Measure:
        """A measure with what depends on the role's tokenizer filled in."""
        if isinstance(measure, Choice):
            return replace(measure, ids=self.tokenizer(role).option_ids(measure.options))
        if isinstance(measure, Neurons) and isinstance(measure.layer, float):
            return replace(measure, layer=int(measure.layer * self.source(role).depth))
        return measure

    def column(self, role: str, measure: Measure) -> ColumnId:
        """Where the store keeps a measure of a role's model."""
        if isinstance(measure, Solved):
            return ColumnId(self.solver(role, measure).fingerprint, TEXT, measure)
        if measure.of_text:
            return ColumnId(self.text_model(role, measure).fingerprint, TEXT, measure)
        return ColumnId(self.source(role).fingerprint, dtype_name(self.dtype), self.resolve(role, measure))

    # ── rows and passes ───────────────────────────────────────────────────────────────────────────────────────────

    def samples(self, of: str) -> Pool:
        """The pool, which has its labels too, or the rows that targeted methods match; a PlanError for no such rows."""
        if of in ("pool", "labels"):
            return self.pool
        if self.target is None:
            raise PlanError("no rows to match are given; --target FILE names them")
        return self.target

    def renderer(self, role: str, of: str = "pool") -> Renderer:
        """What makes rows for a role; roles with the same tokenizer share it."""
        tokenizer = self.tokenizer(role)
        place = (tokenizer.fingerprint, of)
        if place not in self._renderers:
            self._renderers[place] = Renderer(self.samples(of), tokenizer)
        return self._renderers[place]

    def render(self, role: str, view: View, of: str = "pool", *, text: bool = False) -> Rendered:
        """Rows of a view; roles with the same tokenizer and template share them."""
        if isinstance(view.view if isinstance(view, Contested) else view, Posed):
            return self._pose(role, view, of)
        if text:
            place = ("text", "", view, of)
            if place not in self._render:
                said = texts(view, self.samples(of))
                self._render[place] = Rendered(said, said.keys())
            return self._render[place]
        layout = self.template(role)
        place = (self.tokenizer(role).fingerprint, repr(layout), view, of)
        if isinstance(view, Folded) and place not in self._render:
            whole = self.render(role, view.view, of)
            other = self.folds(view.split) != view.fold
            if whole.starts is not None:
                other = np.repeat(other, np.diff(whole.starts))
            reason = first_reason(whole.tokens.reason, reasons(len(other), other_fold=other))
            self._render[place] = replace(whole, rows=replace(whole.tokens, reason=reason))
        if place not in self._render:
            self._tell_start(role, view)
            rows, starts = self._rows(role, view, layout, of)
            for line in self.renderer(role, of).report():
                self.log(line)
            self._render[place] = Rendered(rows, rows.keys(), starts)
        return self._render[place]

    def _pose(self, role: str, view: View, of: str) -> Rendered:
        """Prompts to answer: as tokens, or as requests to the server of a role."""
        place = ("posed", role, view, of)
        if place in self._render:
            return self._render[place]
        if isinstance(view, Contested):
            whole = self._pose(role, view.view, of)
            dropped = reasons(len(whole.keys), dropped=~self.contenders(view.race))
            rows = replace(whole.rows, reason=first_reason(whole.rows.reason, dropped))
            self._render[place] = replace(whole, rows=rows)
            return self._render[place]
        from instdiff.scoring.solving import pose

        assert isinstance(view, Posed)
        self._render[place] = pose(self, role, view, of)
        return self._render[place]

    def render_for(self, step: Pass | Signal) -> Rendered:
        """The rows of a pass or signal."""
        measure = step.measures[0] if isinstance(step, Pass) else step.measure
        return self.render(step.model, step.view, step.of, text=measure.of_text)

    def _rows(self, role: str, view: View, layout: Template, of: str) -> tuple[Rows, npt.NDArray[np.int64] | None]:
        """The rows of a view, and where those of each sample start, where there are several."""
        if isinstance(view, Contested):
            rows, starts = self._rows(role, view.view, layout, of)
            out = ~self.contenders(view.race)
            dropped = reasons(len(rows), dropped=out if starts is None else np.repeat(out, np.diff(starts)))
            return replace(rows, reason=first_reason(rows.reason, dropped)), starts
        renderer, limit = self.renderer(role, of), self.settings.max_length
        if isinstance(view, Windowed):
            return windowed(renderer.rows(Prompted(), layout, limit), view, self.tokenizer(role).locate)
        made = demonstrated_rows(view, renderer, layout, limit, self.samples(of), lambda by: self.vectors(by, of))
        if made is None:
            rows, per = renderer.rows(view, layout, limit), 2 if isinstance(view, Sides) else 1
        else:
            rows, per = made
        return rows, None if per == 1 else np.arange(len(rows) // per + 1) * per

    def folds(self, split: Split) -> npt.NDArray[np.int64]:
        """Per row the number of its fold."""
        if split not in self._folds:
            self._folds[split] = folds_of(self.pool, split)
        return self._folds[split]

    def contenders(self, race: Race) -> npt.NDArray[np.bool_]:
        """The rows that go on, by the columns of earlier waves."""
        if race not in self._contenders:
            found = self._contenders[race] = race.contenders(self.signals(race))
            self.log(f"{race}: {int(found.sum()):,} of {len(found):,} rows go on")
        return self._contenders[race]

    def vectors(self, signal: Signal, of: str = "pool") -> Ragged:
        """A column of vectors that an earlier wave has computed; empty rows where there is none."""
        return self._read_stored(replace(signal, of=of))

    def ready(self, step: Pass) -> bool:
        """Whether the columns that a pass's view is made of are there."""
        return self._ready_needs(Signal(step.measures[0], step.view, of=step.of))

    def _ready_needs(self, signal: Signal) -> bool:
        return all(self.ready_signal(replace(need, of=signal.of)) for need in signal.needs())

    def ready_signal(self, signal: Signal) -> bool:
        """Whether the store has a signal's column for every row that can have one."""
        if not self._ready_needs(signal):
            return False
        rendered = self.render_for(signal)
        keys = take(rendered.keys, rendered.scorable)
        return not bool(self.store.missing(self.column(signal.model, signal.measure), keys).any())

    def lacking(self, step: Pass) -> npt.NDArray[np.int64]:
        """Positions of the rows that a pass has to compute: scorable, not in the store, equal rows once."""
        return self._lacking(step)[0]

    def _lacking(self, step: Pass) -> tuple[npt.NDArray[np.int64], int]:
        """The same, and how many rows there are of which the store has everything."""
        rendered = self.render_for(step)
        keys = take(rendered.keys, rendered.scorable)
        lack = np.zeros(len(keys), bool)
        for measure in step.measures:
            lack |= self.store.missing(self.column(step.model, measure), keys)
        rows = take(rendered.scorable, flatnonzero(lack))
        return take(rows, flatnonzero(first_of_each(take(rendered.keys, rows)))), len(keys) - len(rows)

    def run(self, step: Pass, progress: Progress, place: str = "") -> None:
        """Compute what the store lacks for a pass; ``place`` stands before its label, as ``[2/3] ``."""
        rendered = self.render_for(step)
        todo, cached = self._lacking(step)
        if len(todo) == 0:
            tell_skipped(progress, f"{place}{label(step)}", len(rendered.scorable))
            return
        check_writable(self.store.root)
        keys = take(rendered.keys, todo)
        columns = {self.resolve(step.model, m): self.column(step.model, m) for m in step.measures}
        tokens = int(rendered.lengths[todo].sum())
        with (
            progress.task(f"{place}{label(step)}", rows=len(todo), tokens=tokens, cached=cached) as advance,
            closing(self._sweep(step, todo, tuple(columns))) as batches,
        ):
            bad = run_pass(telling(batches, progress), keys, columns, self.store, advance)
        for column in columns.values():
            self.store.note(column, str(self.models[step.model]), view_name(step.view))
        if bad:
            self.log(f"warning: {len(bad)} rows of {view_name(step.view)} by {step.model} came out non-finite")

    def _sweep(self, step: Pass, todo: npt.NDArray[np.int64], measures: tuple[Measure, ...]) -> Generator[BatchResult]:
        """The batches of a pass over some of its rows."""
        rendered = self.render_for(step)
        rows = rendered.rows.take(todo)
        if rendered.checks is not None:
            yield from self.solver(step.model, measures[0]).sweep(rows, rendered.checks.take(todo), measures)
            return
        if isinstance(rows, Texts):
            yield from self.text_model(step.model, measures[0]).sweep(rows, measures, self.log)
            return
        yield from self.resident.sweep(self.source(step.model), rows, measures, self.log, self.settings.batch_tokens)

    def close(self) -> None:
        """End the worker processes, where there are any."""
        if "resident" in vars(self):
            self.resident.close()

    def order(self, wave: Sequence[Pass]) -> list[Pass]:
        """The passes of a wave so that each base model is loaded once; text models, which are small, last."""
        return sorted(wave, key=lambda p: (p.measures[0].of_text, self.home(p), p.model, repr(p.view)))

    def home(self, step: Pass) -> str:
        """Equal for passes that share a model in memory."""
        return step.model if step.measures[0].of_text else self.source(step.model).base_key

    # ── columns for methods ───────────────────────────────────────────────────────────────────────────────────────

    def signals(self, method: Method | Race) -> Signals:
        """What a method asked for, with the reason for every row that some column lacks."""
        asked = method.signals()
        aside = [name for name, signal in asked.items() if signal.of != "pool" or isinstance(signal.view, Anchors)]
        reason = no_reasons(len(self.pool))
        for name, signal in asked.items():
            if name not in aside:
                reason = first_reason(reason, self._why(signal))
        return Signals(_Lazily(self._read, asked), self.pool.ids, reason, aside=aside)

    def _why(self, signal: Signal) -> Reasons:
        """Per row why a signal has no value."""
        if isinstance(signal.measure, Length) and signal.measure.part == "response":
            return self._why_no_response(np.asarray(self._read(signal)) == 0)
        if isinstance(signal.measure, Number):
            return self.numbers(signal.measure)[1]
        if not signal.measure.needs_model:
            return no_reasons(len(self.pool))
        rendered = self.render_for(signal)
        missing = self.store.missing(self.column(signal.model, signal.measure), rendered.keys)
        gone = missing if rendered.starts is None else np.logical_or.reduceat(missing, rendered.starts[:-1])
        if isinstance(signal.measure, Solved):
            if signal.optional:  # a row that is decided has no further answers
                return no_reasons(len(self.pool))
            return first_reason(rendered.reason(), reasons(len(gone), unanswered=gone))
        if signal.optional:
            unasked = gone & (rendered.reason() == None)  # noqa: E711 - elementwise
            return (
                reasons(len(gone), no_answer=unasked) if isinstance(signal.measure, Judged) else no_reasons(len(gone))
            )
        if not isinstance(signal.measure, Judged):
            return first_reason(rendered.reason(), reasons(len(gone), non_finite=gone))
        from instdiff.engine.text.judge import reasons_unanswered

        return first_reason(rendered.reason(), reasons_unanswered(self._read_stored(signal), gone))

    def numbers(self, of: Number) -> tuple[Floats, Reasons]:
        """A number for each row, and why it has none."""
        if of not in self._numbers:
            self._numbers[of] = read_numbers(self.pool, of)
        return self._numbers[of]

    def _why_no_response(self, silent: npt.NDArray[np.bool_]) -> Reasons:
        """Why rows without a response have none."""
        reason, at = no_reasons(len(self.pool)), flatnonzero(silent)
        if len(at):
            reason = reason.copy()
            words = (why_nothing(sample, self.pool.targets) for sample in self.pool.take(at).samples())
            reason[at] = [word or "empty_response" for word in words]
        return reason

    def _read_stored(self, signal: Signal) -> Ragged:
        rendered = self.render_for(signal)
        values = self.store.read(self.column(signal.model, signal.measure), rendered.keys)
        return values if rendered.starts is None else Ragged(values.values, values.offsets[rendered.starts])

    def _read(self, signal: Signal) -> Values:
        match signal.measure:
            case Length(part=part, unit=unit):
                if unit == "tokens" and signal.model in self.models:
                    return self.renderer(signal.model).lengths(part)
                if unit == "tokens" and (place := f"{signal.model} {part}") not in self._told:
                    self._told.add(place)
                    self.log(f"no {signal.model} model is given, so {part} lengths are in characters, not tokens")
                return text_lengths(self.pool, part, unit)
            case Column(name=name):
                return np.array([str(v) for v in self.samples(signal.of).column(name)], object)
            case Labels(column=name):
                found = labels_of(self.pool, name)
                return found if signal.of == "pool" else np.array(each_label(found), object)
            case Text(part=part):
                return text_column(self.samples(signal.of), part)
            case Number():
                return self.numbers(signal.measure)[0]
            case Leak():
                return read_leaks(self.pool, signal.measure)
            case TrainedOn() | Listed():
                of = signal.measure
                known = self._trained_on(of) if isinstance(of, TrainedOn) else self._list(of.name)
                return np.array([i in known for i in self.pool.ids], bool)
            case Fold(split=split):
                return self.folds(split)
            case Group():
                return groups_of(self.pool, signal.measure.column, near=signal.measure.near)
            case CrossFitted(split=split):
                return self._join_folds(signal, self.folds(split))
            case Contends() if isinstance(signal.view, Contested):
                return self.contenders(signal.view.race)
            case Neighbours() if isinstance(signal.view, Demonstrated):
                near = neighbours(signal.view, self.pool, self.render(signal.model, Prompted()).tokens, self.vectors)
                return np.where(near >= 0, self.pool.rows[near], -1)
            case Neighbours() if isinstance(signal.view, Anchors):
                chosen = anchor_rows(signal.view, self.render(signal.model, Prompted()).tokens, self.vectors)
                return np.array([self.pool.ids[row] for row in chosen.tolist()], object)
        return self._read_stored(signal)

    def _trained_on(self, measure: TrainedOn) -> Collection[str]:
        """The ids of the rows that a role's model was trained on, or would be where it is not bound."""
        given = self.pool if measure.saves.of == "pool" else self.target
        seen = trained_rows(self.models[measure.name])
        if seen is None and given is None:
            return self._list(measure.name)
        return {*(seen.ids if seen else ()), *(given.ids if given else ())}

    def _list(self, name: str) -> Collection[str]:
        """The ids of a named list of rows."""
        if name not in self.listed and name in self.models:
            if (seen := trained_rows(self.models[name])) is not None:
                return seen.ids
            if self.settings.trust_held:
                return ()
        if name not in self.listed:
            how = f"; with --{name} FILE it is read from a jsonl file" if name in ("warmup", "holdout") else ""
            raise PlanError(f"no list '{name}' of rows is given{how}")
        return self.listed[name]

    def _join_folds(self, signal: Signal, folds: npt.NDArray[np.int64]) -> Ragged:
        """One column of those of the folds; a DataError where no row of a fold has a value."""
        at, parts = [], []
        for fold, part in enumerate(signal.needs()):
            at.append(np.flatnonzero(folds == fold))
            keys = take(self.render_for(part).keys, at[-1])
            parts.append(self.store.read(self.column(part.model, part.measure), keys))
            if not parts[-1].count().any():
                raise DataError(f"none of the {len(keys):,} rows of fold {fold} can be scored; give fewer folds")
        lengths = np.concatenate([part.lengths() for part in parts])
        joined = Ragged(np.concatenate([part.values for part in parts]), offsets_of(lengths))
        return joined.take(np.argsort(np.concatenate(at), kind="stable"))


class _Lazily(Mapping[str, Values]):
    """Columns that are read when they are asked for; the last few are kept."""

    def __init__(self, read: Callable[[Signal], Values], asked: Mapping[str, Signal]) -> None:
        self._requests = asked
        self._read = lru_cache(maxsize=KEPT)(lambda name: read(asked[name]))

    def __getitem__(self, name: str) -> Values:
        if name not in self._requests:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)
