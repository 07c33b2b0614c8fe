"""What a report is made of: a run folder or a score file, read without changing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.config.methods import short_name
from instdiff.core import Budget, Log, Scored
from instdiff.core.budget import parse_budget
from instdiff.core.caps import Caps, Per
from instdiff.core.files import read_json
from instdiff.data import Pool
from instdiff.errors import DataError, InstDiffError, did_you_mean
from instdiff.experiments.run_folder import ComparisonFolder, PipelineFolder, Place, RunFolder, read_facts
from instdiff.experiments.summary import selections
from instdiff.scoring.table import ScoreTable, read_scores
from instdiff.selection.chosen import check_same_rows
from instdiff.selection.per import caps_of, recorded_per
from instdiff.selection.record import (
    RECORD,
    Found,
    Reading,
    find,
    origins,
    read_selection,
    records_in,
    rows_beside,
    tell_changed,
)

Indices = npt.NDArray[np.int64]
ASSUMED = "10%"
"""The budget at which scores without a selection are looked at."""
SCORES = ("scores.parquet", "scores.jsonl", "scores.csv")


@dataclass(frozen=True)
class Part:
    """A score table, and what was selected by one of its methods: positions in the table, best first.

    Without a record nothing was selected yet; the head of the ranking stands in for it.
    """

    name: str
    table: ScoreTable
    method: str
    budget: Budget
    chosen: Indices
    record: Mapping[str, Any] | None = None
    caps: Mapping[str, Caps] = field(default_factory=dict)
    """By method, where rows of a value are bounded and the rows themselves are there."""

    def per(self, name: str) -> Per | None:
        """How many rows of each value a method may take."""
        return recorded_per(self.record, self.table.scored[name])

    def best(self, name: str) -> Indices:
        """The rows that a method may take, best first."""
        best, caps = self.table.scored[name].best(), self.caps.get(name)
        return best if caps is None else caps.limit(best)

    @property
    def scored(self) -> Scored:
        """The scores that decided."""
        return self.table.scored[self.method]

    def top(self, name: str) -> Indices:
        """What a method of the table takes at the same budget."""
        return self.chosen if name == self.method else head(self.table.scored[name], self.budget, self.best(name))

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Whether each row of the table is chosen."""
        out = np.zeros(len(self.table), bool)
        out[self.chosen] = True
        return out


@dataclass
class ReportSources:
    """All that is known of a run or of scores; ``notes`` say what is not.

    ``wanted`` is the method, and ``found`` the selection, that is asked for where there are several.
    """

    title: str
    kind: str
    parts: list[Part] = field(default_factory=list)
    pool: Pool | None = None
    selections: dict[str, Indices] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    comparison: list[dict[str, Any]] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    against: str = "the control"
    """The line that those of the comparison are compared with."""
    oracles: list[str] = field(default_factory=list)
    """Lines that know what no selection can know."""
    unit: str = ""
    """What the run's cost is counted in."""
    made: int | None = None
    """Of a comparison that is not finished: the cells that are done."""
    leaks: dict[str, Any] = field(default_factory=dict)
    """What the selections have in common with the items of the evaluation."""
    search: dict[str, Any] = field(default_factory=dict)
    """What a search came to."""
    paid: dict[str, Any] = field(default_factory=dict)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    leading: list[str] = field(default_factory=list)
    """The trainings whose curves are drawn; all where it is empty."""
    cells: list[Place] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    store: str | None = None
    notes: list[str] = field(default_factory=list)
    limit: int | None = None
    """The first so many rows were scored, where the data have more."""
    wanted: str | None = None
    run: list[str] = field(default_factory=list)
    """Methods in users' files that may be run, since they are named."""
    found: Found | None = None

    @property
    def last(self) -> Part | None:
        """The newest selection."""
        return self.parts[-1] if self.parts else None


def head(scored: Scored, budget: Budget, best: Indices | None = None) -> Indices:
    """The first rows of a ranking that fit a budget; of rows where tokens were not counted."""
    if budget.of_tokens and np.any(scored.n_tokens < 0):
        budget = parse_budget(ASSUMED)
    return budget.take(scored.best() if best is None else best, scored)


def gather(
    where: str | Path,
    data: str | list[str] | None = None,
    store: str | None = None,
    lines: list[dict[str, Any]] | None = None,
    log: Log = lambda line: None,
    *,
    selection: str | None = None,
    method: str | None = None,
    reading: Reading | None = None,
    limit: int | None = None,
) -> ReportSources:
    """Read everything that a report shows.

    Args:
        where: a run folder or a score file.
        data: the rows that were scored; by default where they were then.
        store: the store; by default the one that the scores name.
        lines: held-out lines, one for each model; by default those of the folder.
        log: is told what happens.
        selection: the one that is shown, where there are several: its rows, record or folder; by default the newest.
        method: that of the selection that is shown; a user's own, as ``file.py:Class``, is run.
        reading: how the rows are read, where the run does not say it.
        limit: how many of them are read; by default all that were scored.

    Raises:
        DataError: it is no such place, ``data`` are other rows, or the scores have no such selection or method.
    """
    place = Path(where)
    found = find(selection, reading, log) if selection else None
    named = [method] if method else []
    asked: dict[str, Any] = {"wanted": short_name(method) if method else None, "found": found, "run": named}
    if found and not found.record:
        raise DataError(f"no record of the selection '{selection}' is beside it; `select` writes one")
    if place.is_dir():
        sources = _read_folder(place, lines, asked)
    elif place.is_file():
        table = read_scores(place, run=named)
        sources = ReportSources("", "scores", store=table.meta.get("store"), **asked)
        sources.parts.append(_part(place.name, table, records_in(place.parent), sources))
    else:
        raise DataError(f"there is no '{place}'; give a run folder, or the score file that `instdiff score` wrote")
    _check_wanted(sources)
    sources.store = store or sources.store
    # Those of a comparison stand in its cells already.
    fresh = [part for part in sources.parts if not (sources.kind == "compare" and part.record)]
    sources.selections = {_label(part): part.table.rows[part.chosen] for part in fresh} | sources.selections
    sources.title = _title(sources)
    _texts(sources, place, data, log, reading or Reading(), limit)
    return sources


def name_alone(origin: str) -> str:
    """A file's name without its folder, since pages and cards are sent to others; addresses stay whole."""
    return origin if ":" in origin else Path(origin).name or origin


def _title(sources: ReportSources) -> str:
    """What the page is about: who chose of which data."""
    part = sources.last
    named = origins(part.table.meta) if part else []
    data = " and ".join(map(name_alone, named)) or "unnamed data"
    if sources.kind == "compare":
        count = len({line["name"] for line in selections(sources.comparison, sources.oracles)})
        what = f"{count} selections against {sources.against}"
        if not count and sources.oracles:
            what = f"What {sources.oracles[0]} gains over {sources.against}"
        what = "Search for a recipe" if sources.search else what
        return f"{what} on {data}" if part else what
    if part is None:
        return "Trained models"
    chose = f"{len(part.chosen):,} of {len(part.table):,} rows" if part.record else f"{len(part.table):,} rows scored"
    return f"{part.method if part.record else ', '.join(part.table)} on {data}: {chose}"


def _check_wanted(sources: ReportSources) -> None:
    """Raise a DataError where no scores have the method or selection that is asked for; their part goes last."""
    if sources.wanted:
        known = dict.fromkeys(name for part in sources.parts for name in part.table)
        if sources.wanted not in known:
            raise DataError(f"no scores by '{sources.wanted}' are here{did_you_mean(sources.wanted, known)}")
        sources.parts.sort(key=lambda part: part.method == sources.wanted)
    if sources.found is not None:
        mine = sources.found.record
        if not any(part.record is mine for part in sources.parts):
            raise DataError(f"the selection '{sources.found.name}' is not one of these scores")
        sources.parts.sort(key=lambda part: part.record is mine)


def _label(part: Part) -> str:
    return f"{part.method}, {part.name}" if part.record else f"{part.method}, best {part.budget}"


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_folder(folder: Path, lines: list[dict[str, Any]] | None, asked: dict[str, Any]) -> ReportSources:
    run, rounds = PipelineFolder(folder), PipelineFolder(folder).rounds()
    made = None if run.comparison.is_file() else ComparisonFolder(folder).count_made()
    kind = "pipeline" if rounds else "compare" if run.comparison.is_file() or made is not None else "scores"
    sources = ReportSources("", kind, made=made, **asked)
    for number, place in rounds.items() or [(0, folder)]:
        path = next((place / name for name in SCORES if (place / name).is_file()), None)
        if path is not None:
            name = f"round {number}" if rounds else path.name
            sources.parts.append(_part(name, read_scores(path, run=sources.run), records_in(place), sources))
    if run.comparison.is_file():
        facts = read_json(run.comparison)
        sources.comparison = [line for line in facts.get("lines", []) if isinstance(line, dict)]
        sources.against = str(facts.get("against") or sources.against)
        sources.oracles, sources.unit = list(facts.get("oracles", [])), str(facts.get("cost_unit") or "")
        sources.leaks = facts.get("leaks") or {}
        sources.terms = [str(facts[key]) for key in ("terms", "note") if facts.get(key)]
        sources.notes += [f"Left out: {one.get('cell')}: {one.get('error')}" for one in facts.get("failed", [])]
    _add_cells(ComparisonFolder(folder), sources)
    if kind != "compare":
        sources.training = run.named_trainings()
    sources.paid, sources.search = read_facts(run.cost), read_facts(run.search)
    if not sources.parts and not sources.comparison and not sources.training and made is None:
        raise DataError(f"'{folder}' is no run folder: it holds no scores, comparison or trained model")
    sources.lines = _lines([*run.controls().values(), *rounds.values()]) if lines is None else lines
    for name, place in run.controls().items():
        if (record := read_selection(place)) is not None:
            sources.selections[name] = np.asarray(record["rows"], np.int64)
    sources.log, sources.environment = run.events(), read_facts(run.environment)
    sources.config = run.read_config() if run.config.is_file() else ""
    sources.store = next((part.table.meta.get("store") for part in reversed(sources.parts)), None)
    return sources


def _add_cells(run: ComparisonFolder, sources: ReportSources) -> None:
    """The cells of a comparison, and the scores of its first seed, the table with the best line last."""
    places = run.places(sources.comparison)
    if sources.kind == "compare":
        sources.cells = places
        sources.training, sources.leading = run.named_trainings(places)
        sources.selections = {str(one): np.asarray(one.record["rows"], np.int64) for one in places}
    seed, paths, more = run.first_scores()
    best = [line["name"] for line in selections(sources.comparison, sources.oracles)[:1]]
    read = [read_scores(path, run=sources.run) for path in paths]
    tables = sorted(read, key=lambda table: ({*best} <= {*table}, len(table.scored)))
    for number, table in enumerate(tables, 1):
        name = ", ".join(table) if number < len(tables) else f"seed {seed}"
        same = [place for place in places if str(place.seed) == seed]
        sources.parts.append(_part(name, table, _first_cell(same, table, sources), sources))
    if more:
        sources.notes.append(f"Scores are those of seed {seed}; 'scores' in the folder has those of the others.")


def _first_cell(places: list[Place], table: ScoreTable, sources: ReportSources) -> list[Path]:
    """The selection of a comparison that a table's page is about: the one wanted, or the one that did best."""
    mine = [one for one in places if one.record["method"] in table.scored]
    best = [(line["name"], str(line["budget"])) for line in selections(sources.comparison, sources.oracles)]

    def order(one: Place) -> tuple[Any, ...]:
        by_model = any(s.measure.needs_model for s in table.scored[one.record["method"]].method.signals().values())
        line = (one.line, one.budget)
        place = best.index(line) if line in best else len(best)
        return one.record["method"] != sources.wanted, place, not by_model, one.seed, str(one.folder)

    first = min(mine, key=order, default=None)
    return records_in(first.folder) if first else []


def _part(name: str, table: ScoreTable, records: list[Path], sources: ReportSources) -> Part:
    """A table with the selection made from it: the newest or the one wanted; the others stand beside it."""
    found, parts = [(path, read_json(path)) for path in records], []
    mine = sources.found.record if sources.found else None
    if sources.found and mine and (sources.kind == "scores" or mine in [record for _, record in found]):
        found = [(sources.found.files[0], mine), *(one for one in found if one[1] != mine)]
    found.sort(key=lambda one: sources.wanted not in (None, one[1]["method"]))
    for path, record in found:
        place = {int(row): at for at, row in enumerate(table.rows)}
        same = [
            place[row]
            for row, name_ in zip(record["rows"], record["ids"], strict=True)
            if row in place and table.ids[place[row]] == name_
        ]
        if record["method"] in table.scored and len(same) == len(record["rows"]):
            sources.notes += [line.removeprefix("warning: ") for line in tell_changed(record, rows_beside(path))]
            chosen = np.array(same, np.int64)
            parts.append(Part(name, table, record["method"], parse_budget(record["budget"]), chosen, record))
            if len(parts) > 1:
                sources.selections[path.name.removesuffix(f".{RECORD}")] = table.rows[chosen]
        else:
            sources.notes.append(f"{path} is a selection from other scores, and is left aside.")
    method = sources.wanted if sources.wanted in table.scored else next(iter(table))
    if parts and (parts[0].method == method or sources.wanted != method):
        return parts[0]
    budget, which = parse_budget(ASSUMED), "" if sources.wanted == method else ", the first of its methods"
    sources.notes.append(f"Nothing was selected from {name} by {method} yet: 'chosen' are its best {budget}{which}.")
    return Part(name, table, method, budget, head(table.scored[method], budget))


def _lines(places: list[Path]) -> list[dict[str, Any]]:
    """Base, controls and rounds, as the pipeline tells them."""
    results = [read_json(p / "results.json") for p in places if (p / "results.json").is_file()]
    base = [results[-1]["base"]] if results and "base" in results[-1] else []
    return base + [result["selection"] for result in results if "selection" in result]


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _texts(
    sources: ReportSources, place: Path, data: str | list[str] | None, log: Log, reading: Reading, limit: int | None
) -> None:
    """The rows themselves, where they can be had."""
    table = sources.last.table if sources.last else None
    try:
        pool = _load(sources, place, data, table, log, reading, limit)
        if pool is None:
            raise DataError("nothing says where it is")
        if table is not None:
            if len(pool) > len(table):
                if len(table) and np.array_equal(pool.rows[: len(table)], table.rows):
                    sources.limit = int(table.rows[-1]) + 1
                pool = pool.take(np.flatnonzero(np.isin(pool.rows, table.rows)))
            check_same_rows(pool, table.ids)
    except (InstDiffError, OSError) as error:
        if data is not None:
            raise
        sources.notes.append(f"The rows themselves are not here ({error}); give --data FILE to see their texts.")
        for part in sources.parts:
            if part.per(part.method):
                sources.notes.append(f"Without them nothing tells which rows {part.per(part.method)} bounds together.")
        return
    sources.pool = pool
    sources.parts = [_bounded(part, pool) for part in sources.parts]


def _bounded(part: Part, pool: Pool) -> Part:
    """A part that knows which of its rows are bounded together, where it is of these rows."""
    if list(part.table.ids) != list(pool.ids):
        return part
    bounds = {name: per for name in part.table if (per := part.per(name))}
    known = {per: caps_of(pool, per) for per in set(bounds.values())}
    part = replace(part, caps={name: known[per] for name, per in bounds.items()})
    if part.record is None and part.method in part.caps:
        part = replace(part, chosen=head(part.scored, part.budget, part.best(part.method)))
    return part


def _load(
    sources: ReportSources,
    place: Path,
    data: str | list[str] | None,
    table: ScoreTable | None,
    log: Log,
    reading: Reading,
    limit: int | None,
) -> Pool | None:
    run, meta = RunFolder(place), table.meta if table else {}
    if sources.kind == "pipeline" and run.config.is_file():
        from instdiff.config.base import load as load_config
        from instdiff.config.commands import PipelineConfig
        from instdiff.experiments.inputs import read_rows, scored_rows

        settings = load_config(PipelineConfig, str(run.config), {}, [])
        path = data or settings.data
        return scored_rows(settings, read_rows(settings, path, settings.limit, log)) if path else None
    known: dict[str, Any] = {}
    if sources.config:
        import yaml

        known = yaml.safe_load(sources.config) or {}
    origin = data or known.get("data") or known.get("data_path") or meta.get("data", {}).get("origin")
    reading = replace(reading, format=reading.format or known.get("format"), map=reading.map or known.get("map"))
    limit = limit or known.get("limit")
    return reading.load(origin, meta.get("settings"), log, limit) if origin else None
