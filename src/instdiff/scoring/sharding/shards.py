"""One data set scored by separate jobs, each a shard of the rows, and the shards made one table again.

A shard reads its own rows and computes columns, not scores: most methods compare rows with each other, so scores are
made once, over all rows, by ``merge``. A shard leaves one file for each wave of the plan, with the columns of its rows
by key. Views that show other rows need the vectors of all rows, so that a shard goes on with the second wave when the
first is there of every shard: no job computes the vectors of another. Files are whole or absent, and each says of what
rows, models, methods and settings it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Anchored, Demonstrated, Log, Method, ModelRef, Settings, Signal
from instdiff.core.files import fingerprint
from instdiff.core.progress import Progress, Quiet
from instdiff.core.signals import Anchors, Contested, Folded
from instdiff.data.pool import Pool, concat
from instdiff.errors import ConfigError
from instdiff.scoring.crossfit import check_leaks
from instdiff.scoring.given import named_methods
from instdiff.scoring.models import bind
from instdiff.scoring.planner import Pass
from instdiff.scoring.planner import plan as waves_of
from instdiff.scoring.scorer import meta_of, tabulate, workbench
from instdiff.scoring.sharding.shard import Shard
from instdiff.scoring.sharding.shard_file import (
    TEXTS,
    complete,
    join,
    missing_files,
    record,
    same_run,
    shard_files,
    shard_path,
    write_shard,
)
from instdiff.scoring.table import ScoreTable
from instdiff.scoring.workbench import Workbench
from instdiff.store import ColumnId, Store
from instdiff.store.keys import Keys

Reads = Callable[[int, int | None], list[Pool]]
"""Reads the rows of all of so many shards, or of one alone; one after the other they are the input."""


# ── a job ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Progressed:
    """How far a shard has come: ``done`` of ``waves``; ``waits_for`` are shards without whose files it cannot go on."""

    shard: Shard
    rows: int
    waves: int
    done: int
    waits_for: list[int]


class _Whole(Workbench):
    """A workbench over the whole pool that computes the rows of one shard alone, with the models of another."""

    def __init__(self, other: Workbench, read: Reads, target: Pool | None, shard: Shard) -> None:
        parts = read(shard.count, None)
        start = sum(len(part) for part in parts[: shard.index])
        self.own = {"pool": (start, start + len(other.pool)), "target": shard.span(len(target or ()))}
        super().__init__(
            concat(parts),
            other.models,
            other.settings,
            other.store,
            target=target,
            resident=other.resident,
            log=other.log,
        )
        self.listed = other.listed

    def lacking(self, step: Pass) -> npt.NDArray[np.int64]:
        """Of what a pass has to compute, this shard's."""
        todo = super().lacking(step)
        return todo[self.mine(step, todo)]

    def mine(self, step: Pass, at: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which positions are of this shard; rows that stand side by side for a sample stay together."""
        samples, (start, stop) = self.render_for(step).samples(at), self.own[step.of]
        return np.asarray((samples >= start) & (samples < stop))


@dataclass
class _Job:
    """A shard's own rows, and, as soon as some view shows rows to each other, all rows."""

    plain: Workbench
    read: Reads
    target: Pool | None
    shard: Shard
    texts: bool

    @cached_property
    def whole(self) -> _Whole:
        return _Whole(self.plain, self.read, self.target, self.shard)

    def steps(self, wave: Sequence[Pass]) -> list[tuple[Pass, Workbench]]:
        """The passes of a wave; rows that stand alone are rendered for the shard only, others chosen among all."""
        company = (Demonstrated, Anchored, Anchors, Contested, Folded)
        asked = [step for step in self.plain.order(wave) if self.texts or not step.measures[0].of_text]
        return [(step, self.whole if isinstance(step.view, company) else self.plain) for step in asked]

    def columns(self, wave: Sequence[Pass]) -> dict[ColumnId, Keys]:
        """The shard's keys of every column of a wave, each once and sorted."""
        found: dict[ColumnId, list[Keys]] = {}
        for step, bench in self.steps(wave):
            rendered = bench.render_for(step)
            at = rendered.scorable
            if isinstance(bench, _Whole):
                at = at[bench.mine(step, at)]
            for measure in step.measures:
                found.setdefault(bench.column(step.model, measure), []).append(rendered.keys[at])
        return {column: np.unique(np.concatenate(keys)) for column, keys in found.items()}


def score_shard(
    read: Reads,
    methods: Sequence[Method] | Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None,
    shard: Shard,
    folder: str | Path,
    *,
    settings: Settings | None = None,
    store: Store | None = None,
    listed: Mapping[str, Iterable[str]] | None = None,
    target: Pool | None = None,
    specs: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    texts: bool = True,
    log: Log | None = None,
    progress: Progress | None = None,
) -> Progressed:
    """Compute a shard's columns, wave after wave, as far as other shards' files allow.

    ``read`` reads the shard's rows and, where rows are shown to each other, those of the others too; arguments that are
    not named here are as in ``score``. The files of all shards go to ``folder``, which all jobs see, while the
    ``store``, where columns are kept meanwhile, need not be shared. ``config`` is for the record, so that the folder
    alone says what to merge. Without ``texts`` no embedder or judge runs: their columns lie in the folder already. A
    folder that holds shards of something else is a ConfigError.
    """
    named, folder = named_methods(methods), Path(folder)
    (own,) = read(shard.count, shard.index)
    own_target = target.part(*shard.span(len(target))) if target is not None else None
    plain = workbench(own, named, models, settings, store, listed=listed, target=own_target, log=log)
    job = _Job(plain, read, target, shard, texts)
    about = _about(plain, named, specs or {}, target, shard.count)
    _belongs(folder, shard, about)
    waves = _waves(named)
    rows = {"count": len(own), "fingerprint": own.fingerprint}
    facts = {"about": about, "rows": rows, "waves": len(waves), "config": dict(config or {})}
    with closing(plain):
        for number, wave in enumerate(waves, 1):
            path = shard_path(folder, shard.index, shard.count, number)
            if path.is_file():
                continue
            if waits := missing_files(folder, shard.count, range(1, number)):
                return Progressed(shard, len(own), len(waves), number - 1, sorted({index for index, _ in waits}))
            _fetch(folder, shard.count, number, wave, plain, about)
            for step, bench in job.steps(wave):
                bench.run(step, progress or Quiet())
            write_shard(path, facts, job.columns(wave), plain.store)
    return Progressed(shard, len(own), len(waves), len(waves), [])


def score_texts(
    bench: Workbench, methods: Mapping[str, Method], specs: Mapping[str, str], folder: Path, count: int, show: Progress
) -> None:
    """Compute what embedders and judges say of all rows, and leave it where all shards find it."""
    steps = [step for wave in _waves(methods) for step in wave if step.measures[0].of_text]
    columns: dict[ColumnId, Keys] = {}
    for step in steps:
        bench.run(step, show)
        rendered = bench.render_for(step)
        columns |= {bench.column(step.model, m): np.unique(rendered.keys[rendered.scorable]) for m in step.measures}
    if columns:
        write_shard(folder / TEXTS, {"about": _about(bench, methods, specs, bench.target, count)}, columns, bench.store)


def _waves(methods: Mapping[str, Method]) -> list[list[Pass]]:
    """The plan; where no model is needed, one wave without a pass."""
    return waves_of(signal for method in methods.values() for signal in method.signals().values()) or [[]]


def _fetch(folder: Path, count: int, number: int, wave: Sequence[Pass], bench: Workbench, about: Any) -> None:
    """Take over from all shards what this wave's views are made of."""
    needed = [need for step in wave for need in Signal(step.measures[0], step.view).needs()]
    columns = {bench.column(need.model, need.measure) for need in needed}
    if columns:
        files = [shard_path(folder, index, count, w) for w in range(1, number) for index in range(count)]
        join([*files, *folder.glob(TEXTS)], about, columns, bench.store)


# ── what belongs together ─────────────────────────────────────────────────────────────────────────────────────────────


def _about(
    bench: Workbench, methods: Mapping[str, Method], specs: Mapping[str, str], target: Pool | None, count: int
) -> dict[str, Any]:
    """What must be the same in all shards: whatever changes a number, and no place on a disk."""
    facts = meta_of(bench, methods, specs)
    aside = ("where", "commit", "template")
    return dict(
        json.loads(
            json.dumps(
                {
                    **{key: facts[key] for key in ("instdiff", "methods", "settings")},
                    "data": {"size": bench.pool.size},
                    **({"target": {"fingerprint": target.fingerprint}} if target is not None else {}),
                    "models": {role: _without(about, aside) for role, about in facts["models"].items()},
                    "listed": {name: fingerprint(sorted(ids)) for name, ids in bench.listed.items()},
                    "shards": count,
                }
            )
        )
    )


def _without(facts: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in keys}


def _belongs(folder: Path, shard: Shard, about: Any) -> None:
    """Check one's own files, and one of another shard."""
    found = sorted(shard_files(folder).items())
    own = [path for (index, count, _), path in found if (index, count) == (shard.index, shard.count)]
    for path in [*own, *[path for _, path in found[:1]]]:
        same_run(path, record(path)["about"], about, f"{shard} that is run now")


def _check_rows(shards: Sequence[tuple[Path, Mapping[str, Any]]], pool: Pool) -> None:
    """Shards' own rows, one after the other, must be those of the file; a ConfigError names the first that differs."""
    stop = 0
    for path, rows in shards:
        start, stop = stop, stop + rows["count"]
        if pool.part(start, stop).fingerprint != rows["fingerprint"]:
            raise ConfigError(
                f"'{path}' is of other rows than {start} to {stop - 1} of {pool.origin}, which are its own; delete it "
                "and run that shard again with the data of now, or give the data that were scored with --data"
            )
    if stop != len(pool):
        raise ConfigError(f"the shards have {stop:,} rows together, and {pool.origin} has {len(pool):,}")


# ── one table again ───────────────────────────────────────────────────────────────────────────────────────────────────


def merge(
    folder: str | Path,
    pool: Pool,
    methods: Sequence[Method] | Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None,
    *,
    settings: Settings | None = None,
    store: Store | None = None,
    listed: Mapping[str, Iterable[str]] | None = None,
    target: Pool | None = None,
    specs: Mapping[str, str] | None = None,
    log: Log | None = None,
) -> ScoreTable:
    """The scores of all rows, from the columns of all shards; no model is run.

    The columns go into the store, where what is done with the scores later finds them. Arguments are those of
    ``score_shard``. Shards that lack are a StoreError; those that do not belong together, or not to these rows, models,
    methods and settings, are a ConfigError.
    """
    folder, named = Path(folder), named_methods(methods)
    first = complete(folder)
    count = int(first["about"]["shards"])
    bench = workbench(pool, named, bind(models or {}), settings, store, listed=listed, target=target, log=log)
    check_leaks(bench, named.values())
    about = _about(bench, named, specs or {}, target, count)
    files = sorted(shard_files(folder).items(), key=lambda item: (item[0][2], item[0][0]))
    same_run(files[0][1], first["about"], about, "the data, models and settings of now")
    _check_rows([(path, record(path)["rows"]) for (_, _, wave), path in files if wave == 1], pool)
    columns = {bench.column(step.model, m) for wave in _waves(named) for step in wave for m in step.measures}
    join([*(path for _, path in files), *folder.glob(TEXTS)], about, columns, bench.store)
    return tabulate(bench, named, specs or {})
