"""One data set scored by separate jobs, each its stripe of the rows, and the stripes made one table again.

A shard computes columns, not scores: most methods compare rows with each other, so scores are made once, over all rows,
by ``merge``. A shard leaves one file for each wave of the plan, with the columns of its rows by key. Views that show
other rows need the vectors of all rows, so that a shard goes on with the second wave when the first is there of every
shard: no job computes the vectors of another. Files are whole or absent, and each says of what data, models, methods
and settings it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Anchored, Demonstrated, Log, Method, ModelRef, Settings, Signal
from instdiff.core.files import fingerprint
from instdiff.core.progress import Progress, Quiet
from instdiff.core.signals import Anchors
from instdiff.data import Pool
from instdiff.scoring.models import bind
from instdiff.scoring.planner import Pass
from instdiff.scoring.planner import plan as waves_of
from instdiff.scoring.scorer import by_name, meta_of, tabulate, workbench
from instdiff.scoring.sharding.shard import Shard
from instdiff.scoring.sharding.shard_file import (
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

# ── a job ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Progressed:
    """How far a shard has come: ``done`` of ``waves``; ``waits_for`` are shards without whose files it cannot go on."""

    stripe: Shard
    rows: int
    waves: int
    done: int
    waits_for: list[int]


class _Striped(Workbench):
    """A workbench over the whole pool that computes the rows of one stripe alone, with the models of another."""

    def __init__(self, other: Workbench, pool: Pool, target: Pool | None, stripe: Shard) -> None:
        super().__init__(pool, other.models, other.settings, other.store, target=target, log=other.log)
        self.listed, self.resident, self.stripe = other.listed, other.resident, stripe

    def lacking(self, step: Pass) -> npt.NDArray[np.int64]:
        """Of what a pass has to compute, this stripe's."""
        todo = super().lacking(step)
        return todo[self.mine(step, todo)]

    def mine(self, step: Pass, at: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which positions are of this stripe; rows that stand side by side for a sample stay together."""
        samples = at // self.render_for(step).per
        return np.asarray(samples % self.stripe.count == self.stripe.index)


def score_shard(
    pool: Pool,
    methods: Sequence[Method] | Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None,
    stripe: Shard,
    folder: str | Path,
    *,
    settings: Settings | None = None,
    store: Store | None = None,
    listed: Mapping[str, Iterable[str]] | None = None,
    target: Pool | None = None,
    specs: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
) -> Progressed:
    """Compute a stripe's columns, wave after wave, as far as other shards' files allow.

    ``pool`` are all rows; arguments that are not named here are as in ``score``. The files of all shards go to
    ``folder``, which all jobs see, while the ``store``, where columns are kept meanwhile, need not be shared.
    ``config`` is for the record, so that the folder alone says what to merge.

    Raises:
        ConfigError: the folder holds shards of something else.
    """
    named, folder, said = by_name(methods), Path(folder), log or (lambda line: None)
    own = pool.take(stripe.rows(len(pool)))
    own_target = target.take(stripe.rows(len(target))) if target is not None else None
    plain = workbench(own, named, models, settings, store, listed=listed, target=own_target, log=said)
    whole = _Striped(plain, pool, target, stripe)
    about = _about(whole, named, specs or {}, stripe.count)
    _belongs(folder, stripe, about)
    waves = _waves(named)
    facts = {"about": about, "waves": len(waves), "config": dict(config or {})}
    with closing(plain):
        for number, wave in enumerate(waves, 1):
            path = shard_path(folder, stripe.index, stripe.count, number)
            if path.is_file():
                continue
            if waits := missing_files(folder, stripe.count, range(1, number)):
                return Progressed(stripe, len(own), len(waves), number - 1, sorted({index for index, _ in waits}))
            _fetch(folder, stripe.count, number, wave, whole, about)
            for step in plain.order(wave):
                _bench(step, plain, whole).run(step, progress or Quiet())
            write_shard(path, facts, _columns(wave, plain, whole), whole.store)
    return Progressed(stripe, len(own), len(waves), len(waves), [])


def _waves(methods: Mapping[str, Method]) -> list[list[Pass]]:
    """The plan; where no model is needed, one wave without a pass."""
    return waves_of(signal for method in methods.values() for signal in method.signals().values()) or [[]]


def _bench(step: Pass, plain: Workbench, whole: _Striped) -> Workbench:
    """Rows that stand alone are rendered for the stripe only; those in company are chosen among all."""
    return whole if isinstance(step.view, (Demonstrated, Anchored, Anchors)) else plain


def _fetch(folder: Path, count: int, number: int, wave: Sequence[Pass], bench: Workbench, about: Any) -> None:
    """Take over from all shards what this wave's views are made of."""
    needed = [need for step in wave for need in Signal(step.measures[0], step.view).needs()]
    columns = {bench.column(need.model, need.measure) for need in needed}
    if columns:
        files = [shard_path(folder, index, count, w) for w in range(1, number) for index in range(count)]
        join(files, about, columns, bench.store)


# ── what belongs together ─────────────────────────────────────────────────────────────────────────────────────────────


def _about(bench: Workbench, methods: Mapping[str, Method], specs: Mapping[str, str], count: int) -> dict[str, Any]:
    """What must be the same in all shards: whatever changes a number, and no place on a disk."""
    facts = meta_of(bench, methods, specs)
    aside = ("origin", "where", "commit", "template")
    kept: dict[str, Any] = {
        key: facts[key] for key in ("instdiff", "data", "target", "methods", "settings") if key in facts
    }
    models = {role: _without(about, aside) for role, about in facts["models"].items()}
    lists = {name: fingerprint(sorted(ids)) for name, ids in bench.listed.items()}
    kept |= {"data": _without(kept["data"], aside), "models": models, "listed": lists, "shards": count}
    if "target" in kept:
        kept["target"] = _without(kept["target"], aside)
    return dict(json.loads(json.dumps(kept)))


def _without(facts: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in keys}


def _belongs(folder: Path, stripe: Shard, about: Any) -> None:
    """Check one's own files, and one of another shard."""
    found = sorted(shard_files(folder).items())
    own = [path for (index, count, _), path in found if (index, count) == (stripe.index, stripe.count)]
    for path in [*own, *[path for _, path in found[:1]]]:
        same_run(path, record(path)["about"], about, f"{stripe} that is run now")


def _columns(wave: Sequence[Pass], plain: Workbench, whole: _Striped) -> dict[ColumnId, Keys]:
    """The stripe's keys of every column of a wave, each once and sorted."""
    found: dict[ColumnId, list[Keys]] = {}
    for step in wave:
        bench = _bench(step, plain, whole)
        rendered = bench.render_for(step)
        at = rendered.scorable
        if bench is whole:
            at = at[whole.mine(step, at)]
        for measure in step.measures:
            found.setdefault(bench.column(step.model, measure), []).append(rendered.keys[at])
    return {column: np.unique(np.concatenate(keys)) for column, keys in found.items()}


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
    ``score_shard``.

    Raises:
        StoreError: shards lack.
        ConfigError: shards do not belong together, or not to these rows, models, methods and settings.
    """
    folder, named = Path(folder), by_name(methods)
    first = complete(folder)
    count = int(first["about"]["shards"])
    bench = workbench(pool, named, bind(models or {}), settings, store, listed=listed, target=target, log=log)
    about = _about(bench, named, specs or {}, count)
    files = sorted(shard_files(folder).items(), key=lambda item: (item[0][2], item[0][0]))
    same_run(files[0][1], first["about"], about, "the data, models and settings of now")
    columns = {bench.column(step.model, m) for wave in _waves(named) for step in wave for m in step.measures}
    join([path for _, path in files], about, columns, bench.store)
    return tabulate(bench, named, specs or {})
