"""What a report is made of: a run folder or a score file, read without changing anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Budget, Log, Scored
from instdiff.core.budget import parse_budget
from instdiff.core.files import read_json
from instdiff.data import Pool, load
from instdiff.errors import DataError, InstDiffError
from instdiff.experiments.run_folder import Place, places, trainings
from instdiff.scoring.table import ScoreTable, read_scores
from instdiff.selection.selector import check_same_rows

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

    @property
    def scored(self) -> Scored:
        """The scores that decided."""
        return self.table.scored[self.method]

    def top(self, name: str) -> Indices:
        """What a method of the table takes at the same budget."""
        return self.chosen if name == self.method else head(self.table.scored[name], self.budget)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Whether each row of the table is chosen."""
        out = np.zeros(len(self.table), bool)
        out[self.chosen] = True
        return out


@dataclass
class ReportSources:
    """All that is known of a run or of scores; ``notes`` say what is not."""

    title: str
    kind: str
    parts: list[Part] = field(default_factory=list)
    pool: Pool | None = None
    selections: dict[str, Indices] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    comparison: list[dict[str, Any]] = field(default_factory=list)
    terms: list[str] = field(default_factory=list)
    against: str = "random"
    """The line that those of the comparison are compared with."""
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

    @property
    def last(self) -> Part | None:
        """The newest selection."""
        return self.parts[-1] if self.parts else None


def head(scored: Scored, budget: Budget) -> Indices:
    """The first rows of a ranking that fit a budget; of rows where tokens were not counted."""
    if budget.of_tokens and np.any(scored.n_tokens < 0):
        budget = parse_budget(ASSUMED)
    return budget.take(scored.best(), scored)


def gather(
    where: str | Path,
    data: str | None = None,
    store: str | None = None,
    lines: list[dict[str, Any]] | None = None,
    log: Log = lambda line: None,
) -> ReportSources:
    """Read everything that a report shows.

    Args:
        where: a run folder or a score file.
        data: the rows that were scored; by default where they were then.
        store: the store; by default the one that the scores name.
        lines: held-out lines, one for each model; by default those of the folder.
        log: is told what happens.

    Raises:
        DataError: it is no such place, or ``data`` are other rows.
    """
    place = Path(where)
    if place.is_dir():
        found = _folder(place, lines)
    elif place.is_file():
        table = read_scores(place)
        found = ReportSources(f"Scores {place.name}", "scores", store=table.meta.get("store"))
        found.parts.append(_part(place.name, table, place.parent / "selection.json", found))
    else:
        raise DataError(f"there is no '{place}'; give a run folder, or the score file that `instdiff score` wrote")
    found.store = store or found.store
    # Those of a comparison stand in its cells already.
    fresh = [part for part in found.parts if not (found.kind == "compare" and part.record)]
    made = {_label(part): part.table.rows[part.chosen] for part in fresh}
    found.selections = made | found.selections
    _texts(found, place, data, log)
    return found


def _label(part: Part) -> str:
    return f"{part.method}, {part.name}" if part.record else f"{part.method}, best {part.budget}"


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _folder(folder: Path, lines: list[dict[str, Any]] | None) -> ReportSources:
    rounds = sorted((p for p in folder.glob("iter_*") if p.name[5:].isdigit()), key=lambda p: int(p.name[5:]))
    kind = "pipeline" if rounds else "compare" if (folder / "comparison.json").is_file() else "scores"
    found = ReportSources(f"{'Scores' if kind == 'scores' else 'Run'} {folder.resolve().name}", kind)
    for place in rounds or [folder]:
        path = next((place / name for name in SCORES if (place / name).is_file()), None)
        if path is not None:
            name = f"round {place.name[5:]}" if rounds else path.name
            found.parts.append(_part(name, read_scores(path), place / "selection.json", found))
    _first_seed(folder, found)
    if kind != "compare":
        found.training = _training(folder)
    if (folder / "comparison.json").is_file():
        said = read_json(folder / "comparison.json")
        found.comparison = [line for line in said.get("lines", []) if isinstance(line, dict)]
        found.against = str(said.get("against") or found.against)
        found.terms = [str(said[key]) for key in ("terms", "note") if said.get(key)]
        found.notes += [f"Left out: {one.get('cell')}: {one.get('error')}" for one in said.get("failed", [])]
    if kind == "compare":
        found.cells = places(folder, found.comparison)
        found.training, found.leading = trainings(folder, found.cells)
        found.selections = {str(one): np.asarray(read_json(one.selection)["rows"], np.int64) for one in found.cells}
    if (folder / "scores" / "cost.json").is_file():
        found.paid = read_json(folder / "scores" / "cost.json")
    if not found.parts and not found.comparison and not found.training:
        raise DataError(f"'{folder}' is no run folder: it holds no scores, comparison or trained model")
    found.lines = _lines(folder, rounds) if lines is None else lines
    for path in sorted(folder.glob("baselines/*/selection.json")):
        found.selections[path.parent.name.replace("_", " ")] = np.asarray(read_json(path)["rows"], np.int64)
    found.log = _log(folder / "log.jsonl")
    config, environment = folder / "config.yaml", folder / "environment.json"
    found.config = config.read_text(encoding="utf-8") if config.is_file() else ""
    found.environment = read_json(environment) if environment.is_file() else {}
    found.store = next((part.table.meta.get("store") for part in reversed(found.parts)), None)
    return found


def _first_seed(folder: Path, found: ReportSources) -> None:
    """The scores of a comparison: those of its first seed, the table with the most lines last."""
    paths = sorted(folder.glob("scores/*.parquet"))
    seeds = {path: path.stem.rpartition("seed_")[2] for path in paths}
    first = min(seeds.values(), key=lambda seed: (not seed.isdigit(), int(seed) if seed.isdigit() else 0), default="")
    tables = sorted((read_scores(path) for path in paths if seeds[path] == first), key=lambda one: len(one.scored))
    for number, table in enumerate(tables, 1):
        name = ", ".join(table) if number < len(tables) else f"seed {first}"
        found.parts.append(_part(name, table, _cell(folder, table), found))
    if len(set(seeds.values())) > 1:
        found.notes.append(f"Scores are those of seed {first}; 'scores' in the folder has those of the others.")


def _cell(folder: Path, table: ScoreTable) -> Path:
    """The first selection of a comparison that was made from a table; rather one that looks at the rows."""
    paths = sorted(folder.glob("cells/*/*/*/selection.json"))
    mine = [path for path in paths if read_json(path)["method"] in table.scored]
    plain = ("random", "longest", "full")
    return min(mine, key=lambda path: (path.parts[-4] in plain, str(path)), default=folder / "selection.json")


def _part(name: str, table: ScoreTable, path: Path, found: ReportSources) -> Part:
    record = read_json(path) if path.is_file() else None
    if record is not None:
        place = {int(row): at for at, row in enumerate(table.rows)}
        same = [
            place[row]
            for row, name_ in zip(record["rows"], record["ids"], strict=True)
            if row in place and table.ids[place[row]] == name_
        ]
        if record["method"] in table.scored and len(same) == len(record["rows"]):
            chosen = np.array(same, np.int64)
            return Part(name, table, record["method"], parse_budget(record["budget"]), chosen, record)
        found.notes.append(f"{path} is a selection from other scores, and is left aside.")
    method, budget = next(iter(table)), parse_budget(ASSUMED)
    found.notes.append(
        f"Nothing was selected from {name} yet: 'chosen' are the best {budget} by {method}, the first of its methods."
    )
    return Part(name, table, method, budget, head(table.scored[method], budget))


def _training(folder: Path) -> dict[str, dict[str, Any]]:
    out = {}
    for path in sorted(folder.rglob("training.json")):
        record = read_json(path)
        if record.get("losses"):
            name = str(path.parent.relative_to(folder)).replace("iter_", "round ").replace("_", " ").replace("/", ", ")
            out[name.removeprefix("baselines, ").removesuffix(", model")] = record
    return out


def _lines(folder: Path, rounds: list[Path]) -> list[dict[str, Any]]:
    """Base, controls and rounds, as the pipeline tells them."""
    places = [*sorted((folder / "baselines").glob("*")), *rounds]
    results = [read_json(p / "results.json") for p in places if (p / "results.json").is_file()]
    base = [results[-1]["base"]] if results and "base" in results[-1] else []
    return base + [found["selection"] for found in results if "selection" in found]


def _log(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    said = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            said.append(json.loads(text))
        except ValueError:
            said.append({"event": text})
    return [line for line in said if isinstance(line, dict)]


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _texts(found: ReportSources, place: Path, data: str | None, log: Log) -> None:
    """The rows themselves, where they can be had."""
    table = found.last.table if found.last else None
    try:
        pool = _load(found, place, data, table, log)
        if pool is None:
            raise DataError("nothing says where it is")
        if table is not None:
            if len(pool) > len(table):
                pool = pool.take(np.flatnonzero(np.isin(pool.rows, table.rows)))
            check_same_rows(pool, table.ids)
    except (InstDiffError, OSError) as error:
        if data is not None:
            raise
        found.notes.append(f"The rows themselves are not here ({error}); give --data FILE to see their texts.")
        return
    found.pool = pool


def _load(found: ReportSources, place: Path, data: str | None, table: ScoreTable | None, log: Log) -> Pool | None:
    config = place / "config.yaml"
    meta = table.meta if table else {}
    if found.kind == "pipeline" and config.is_file():
        from instdiff.config.base import load as load_config
        from instdiff.config.commands import PipelineConfig
        from instdiff.experiments.inputs import first_records, read_pool

        settings = load_config(PipelineConfig, str(config), {}, [])
        path = data or settings.data
        return (
            first_records(read_pool(settings, path, settings.limit, log), settings.score.max_samples) if path else None
        )
    if not data and config.is_file():
        import yaml

        known = yaml.safe_load(found.config) or {}
        data = known.get("data") or known.get("data_path")
    origin = data or meta.get("data", {}).get("origin")
    return load(origin, targets=meta.get("settings", {}).get("targets", "all"), log=log) if origin else None
