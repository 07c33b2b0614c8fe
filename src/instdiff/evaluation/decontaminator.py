"""Rows that overlap benchmarks, held-out rows or other files; and near copies within the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.config.base import build
from instdiff.config.commands import DataConfig
from instdiff.config.decontaminate import DecontaminateConfig
from instdiff.config.evaluate import EvalConfig
from instdiff.core import Embedding, Floats, Log, ModelRef, Settings, Signal, Words, vectors
from instdiff.core.display import Shown
from instdiff.core.files import write_record
from instdiff.core.progress import Progress, Quiet
from instdiff.data import Pool
from instdiff.data.load import as_pool, load
from instdiff.errors import ConfigError
from instdiff.evaluation.leakage import NEAR, LeakRule, Overlap, Overlaps, find_overlaps, suite_items
from instdiff.evaluation.results import distinct
from instdiff.evaluation.subject import BenchmarkItem, Suite
from instdiff.evaluation.suites import make_suites
from instdiff.methods.algorithms.near_copies import near_copies
from instdiff.methods.algorithms.vectors import unit
from instdiff.rendering.texts import words
from instdiff.rendering.vocabulary import Vocabulary
from instdiff.scoring.given import given_models, given_store
from instdiff.scoring.planner import Pass
from instdiff.scoring.workbench import Workbench
from instdiff.store import Store
from instdiff.version import __version__

NO_JUDGE = "openai:none@http://localhost/v1"
"""Stands for a judge: a suite that needs one is not asked anything here."""
READING = {*DataConfig.model_fields} - {"data"}
"""Keys that say which rows are read, and how."""
UNKNOWN = -1
AT_ONCE = 1 << 10
"""Rows whose cosines with all items are in memory together."""


@dataclass(frozen=True)
class Decontamination(Shown):
    """What was found of a pool.

    ``copies`` has for each row the position of the row that stays in its place, where it is a near copy within the
    pool, else -1. ``cosines`` are of each row with the item that is most like it, whose number is in ``nearest``; both
    are empty where ``cosine`` is off.
    """

    pool: Pool
    overlaps: Overlaps
    settings: dict[str, Any]
    copies: npt.NDArray[np.int64]
    cosines: Floats
    nearest: npt.NDArray[np.int64]

    def __repr__(self) -> str:
        return f"<Decontamination: {len(self.best):,} of {len(self.pool):,} rows overlap an item>"

    @cached_property
    def best(self) -> dict[int, Overlap]:
        """By position each row that overlaps, with the item of highest coverage."""
        return self.overlaps.best()

    @property
    def clean(self) -> Pool:
        """The rows that overlap nothing, and are no near copies within the pool where those were asked for."""
        return self.pool.take(self.kept)

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """Their positions."""
        out = self.copies < 0
        out[list(self.best)] = False
        return np.flatnonzero(out)

    def report(self) -> dict[str, Any]:
        """What the report file says: by task, and by row."""
        rows, ids = self.pool.rows.tolist(), self.pool.ids
        return {
            "instdiff": __version__,
            "data": {"origin": self.pool.source, "fingerprint": self.pool.fingerprint, "rows": len(self.pool)},
            "settings": self.settings,
            "counts": {"contaminated": len(self.best), "near_duplicate": int((self.copies >= 0).sum())},
            "tasks": self.tasks(),
            "common": [dict(zip(("task", "words", "items"), one, strict=True)) for one in self.overlaps.common],
            "rows": [{"row": rows[at], "id": ids[at], **self._about(one)} for at, one in sorted(self.best.items())],
            "copies": [
                {"row": rows[at], "id": ids[at], "of": rows[self.copies[at]], "of_id": ids[self.copies[at]]}
                for at in np.flatnonzero(self.copies >= 0).tolist()
            ],
            "alike": [
                {"row": rows[at], "id": ids[at], "task": item.task, "item": item.id, "cosine": round(cosine, 6)}
                for at, cosine, item in self.alike()
            ],
        }

    def alike(self) -> list[tuple[int, float, BenchmarkItem]]:
        """Rows of which the embedder warns, the most alike first: position, cosine, item."""
        least = self.settings["cosine"]
        at = [] if least is None else np.flatnonzero(self.cosines >= least).tolist()
        found = [(row, float(self.cosines[row]), self.overlaps.items[int(self.nearest[row])]) for row in at]
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def tasks(self) -> list[dict[str, Any]]:
        """Of each task how many items it has, how many are too short, and how many items and rows overlap."""
        items, pairs = self.overlaps.items, self.overlaps.pairs
        counts = Counter(item.task for item in items)
        short = Counter(items[at].task for at in np.flatnonzero(self.overlaps.too_short).tolist())
        hit = Counter(items[at].task for at in {one.item for one in pairs})
        rows = Counter(task for task, _ in {(items[one.item].task, one.row) for one in pairs})
        return [
            {"task": task, "items": count, "too_short": short[task], "items_hit": hit[task], "rows_hit": rows[task]}
            for task, count in counts.items()
        ]

    def _about(self, one: Overlap) -> dict[str, Any]:
        item = self.overlaps.items[one.item]
        shares = {"coverage": round(one.coverage, 6), "jaccard": round(one.jaccard, 6)}
        return {"task": item.task, "item": item.id, **shares, "text": item.text}


def decontaminate(
    data: Any,
    *,
    against: Any = None,
    model: Any = None,
    store: Store | str | Path | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Decontamination:
    """Find the rows that overlap items of suites or rows of other files.

    Args:
        data: the rows, or what ``load`` reads.
        against: other rows, such as held-out ones, or what ``load`` reads; a list for several files or pools.
        model: the embedder, for ``cosine``, as ``{"embedder": WHERE}``.
        store: where its vectors are kept.
        log: is told what happens.
        progress: shows it.
        options: keys of the configuration, such as ``suite=["math"]``, ``data_dir``, ``n`` and ``near="pool"``; with
            ``output`` and ``clean`` the report and the rows that overlap nothing are written. ``limit`` is of ``data``
            alone, ``map`` and all else that says how rows are read also of the files in ``against``.

    Raises:
        ConfigError: nothing to compare with, an unknown key, suite or task, or one on reading for a pool.
        DataError: a file cannot be read.
        StoreError: the report or the rows cannot be written.
    """
    several = isinstance(against, list | tuple) and not any(isinstance(one, Mapping) for one in against)
    files = against if several else [] if against is None else [against]
    config = build(DecontaminateConfig, options, "the keywords")
    reads = config.model_dump(exclude_defaults=True, include=READING)
    if reads and _is_read(data):
        raise ConfigError(f"'{next(iter(reads))}' says how rows are read, and these are; give it to instdiff.load")
    found = as_pool(data) if _is_read(data) else load(data, limit=config.limit, log=log, **_how(config))
    others, kept = [as_pool(one) if _is_read(one) else load(one, **_how(config)) for one in files], given_store(store)
    told = examine(found, config, others, given_models(model or {}, kept), kept, log=log, progress=progress)
    write(told, config)
    return told


def _is_read(rows: Any) -> bool:
    return isinstance(rows, Pool) or hasattr(rows, "to_pool")


def _how(config: DecontaminateConfig) -> dict[str, Any]:
    """How all files are read."""
    limits = {"format": config.format, "longest_line_mb": config.longest_line_mb}
    return {"map": config.mapping(), **limits, **config.turns()}


def read_against(config: DecontaminateConfig) -> list[Pool]:
    """The other files, each by itself, read as the data is."""
    files = [config.against] if isinstance(config.against, str) else config.against or []
    return [load(file, **_how(config)) for file in files]


def write(found: Decontamination, config: DecontaminateConfig) -> None:
    """The report, and the rows that overlap nothing, where the configuration says."""
    if config.output:
        write_record(config.output, found.report())
    if config.clean:
        found.pool.write(config.clean, found.kept)


def examine(
    pool: Pool,
    config: DecontaminateConfig,
    others: Sequence[Pool],
    models: Mapping[str, ModelRef],
    store: Store,
    *,
    log: Log | None = None,
    progress: Progress | None = None,
) -> Decontamination:
    """The same of what is read and checked."""
    say = log or (lambda line: None)
    items = [*suite_items(_suites(config), say), *(item for one in others for item in _rows_as_items(one, config))]
    if not items and config.near != "pool":
        raise ConfigError(
            "there is nothing to compare the rows with; give --suite NAME, --against FILE, or --near pool for near "
            "copies within the data"
        )
    rule = LeakRule(config.n, config.threshold, config.near_duplicates)
    overlaps = find_overlaps((words(one, config.fields, pool.turns) for one in pool.samples()), items, rule)
    copies = np.full(len(pool), UNKNOWN)
    if config.near == "pool":
        copies = _copies(pool, config.fields, NEAR if rule.near_duplicates is None else rule.near_duplicates)
    cosines, nearest = np.zeros(0), np.zeros(0, np.int64)
    if config.cosine is not None and items:
        cosines, nearest = _cosines(pool, items, models, store, say, progress or Quiet())
    keys = ("suite", "task", "n", "threshold", "fields", "near_duplicates", "near", "cosine")
    settings = {key: getattr(config, key) for key in keys} | {"against": [one.origin for one in others]}
    return Decontamination(pool, overlaps, settings, copies, cosines, nearest)


def _suites(config: DecontaminateConfig) -> list[Suite]:
    if "heldout" in config.suite:
        raise ConfigError("the suite 'heldout' is rows of a file; give --against FILE")
    if not config.suite:
        return []
    keys = {key: getattr(config, key) for key in ("suite", "task", "data_dir", "task_data")}
    return make_suites(build(EvalConfig, {**keys, "judge": NO_JUDGE}, "the suites"))


def _rows_as_items(other: Pool, config: DecontaminateConfig) -> list[BenchmarkItem]:
    """Rows of another file, of which the same part is looked at."""
    samples = zip(distinct(other.ids), other.samples(), strict=True)
    return [BenchmarkItem(other.origin, name, words(one, config.fields, other.turns)) for name, one in samples]


def _copies(pool: Pool, fields: str, alike: float) -> npt.NDArray[np.int64]:
    """Of each row the position of the row that stays, the first by its id; -1 where that is the row itself."""
    order = np.array(sorted(range(len(pool)), key=lambda at: (pool.ids[at], at)), np.int64)
    texts = [words(one, fields, pool.turns) for one in pool.samples()]
    found = near_copies(Vocabulary().column(texts[at] for at in order), alike)
    out = np.full(len(pool), UNKNOWN)
    out[order] = np.where(found < 0, UNKNOWN, order[found])
    return out


def _cosines(
    pool: Pool,
    items: Sequence[BenchmarkItem],
    models: Mapping[str, ModelRef],
    store: Store,
    log: Log,
    progress: Progress,
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Of each row the highest cosine with an item, and which; NaN where the row has no vector."""
    target = load([{"instruction": item.text or "-", "output": "-"} for item in items])
    signal = Signal(Embedding(), Words("instruction"), "embedder")
    with closing(Workbench(pool, models, Settings(), store, target=target, log=log)) as bench:
        for which in ("target", "pool"):
            bench.run(Pass("embedder", signal.view, (signal.measure,), which), progress)
        (rows, known), (asked, some) = (vectors(bench.vectors(signal, which)) for which in ("pool", "target"))
    rows, asked = unit(rows), unit(asked)
    found, nearest = np.full(len(pool), np.nan), np.zeros(len(pool), np.int64)
    at, number = np.flatnonzero(known), np.flatnonzero(some)
    for start in range(0, len(at), AT_ONCE):
        part = at[start : start + AT_ONCE]
        cosine = rows[start : start + AT_ONCE] @ asked.T
        nearest[part], found[part] = number[cosine.argmax(1)], cosine.max(1)
    return found, nearest
