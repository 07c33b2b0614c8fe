"""The cells of a comparison by what they are called: line, budget, seed, and which of them stands for its line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instdiff.artifact import fingerprint, read_json
from instdiff.errors import InstDiffError

RECORD = "training.json"


@dataclass(frozen=True)
class Place:
    """A cell's folder and what it is; ``round`` is 0 for the cell as a whole."""

    folder: Path
    line: str
    budget: str
    seed: int
    round: int = 0

    def __str__(self) -> str:
        rounds = f" round {self.round}" if self.round else ""
        return f"{self.line}{rounds}, {self.budget}, seed {self.seed}"

    @property
    def selection(self) -> Path:
        """Its record of the chosen rows."""
        return self.folder / (f"round_{self.round}" if self.round else "") / "selection.json"


def places(folder: Path, lines: list[dict[str, Any]]) -> list[Place]:
    """Every cell that chose rows, seed by seed, in the order of the comparison's lines and budgets."""
    named = {slug(str(line[key])): str(line[key]) for line in lines for key in ("name", "budget") if line.get(key)}
    order, budgets = (
        {name: place for place, name in enumerate(dict.fromkeys(str(line.get(key)) for line in lines))}
        for key in ("name", "budget")
    )
    found = []
    for path in folder.glob("cells/*/*/seed_*/selection.json"):
        line, budget, seed = path.parts[-4:-1]
        if seed[5:].lstrip("-").isdigit():
            found.append(Place(path.parent, named.get(line, line), named.get(budget, budget), int(seed[5:])))
    last = len(lines)
    return sorted(
        found,
        key=lambda one: (one.seed, order.get(one.line, last), one.line, budgets.get(one.budget, last), one.budget),
    )


def slug(text: str) -> str:
    """A name as a comparison's folders have it."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text.replace("%", "pct"))


def first(found: list[Place]) -> dict[str, dict[str, Place]]:
    """By budget the cell of each line that stands for it: that of its first seed.

    Lines with one budget of their own, such as all rows, stand beside those of every budget.
    """
    cells: dict[str, dict[str, Place]] = {}
    for one in found:  # seeds come in order
        cells.setdefault(one.line, {}).setdefault(one.budget, one)
    counts: dict[str, int] = {}
    for one in (one for mine in cells.values() for one in mine.values()):
        counts[one.budget] = counts.get(one.budget, 0) + 1
    shared = [budget for budget, count in counts.items() if count > 1] or list(counts)[:1]
    out: dict[str, dict[str, Place]] = {budget: {} for budget in shared}
    for line, mine in cells.items():
        for budget, some in out.items():
            if budget in mine:
                some[line] = mine[budget]
            elif len(mine) == 1 and not set(mine) & set(shared):
                ((own, place),) = mine.items()
                some[f"{line} ({own})"] = place
    return out


# ── trainings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def trainings(folder: Path, found: list[Place]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The record of every training by name, and the names of those that stand for their lines.

    A cell names its model's folder. That is called by a hash of what it was made of, so that the same hash of what a
    cell says finds the models of earlier rounds. Cells with the same rows share a model.
    """
    records = {path.parent.name: read_json(path) for path in sorted(folder.glob(f"models/*/{RECORD}"))}
    named = {str(one): read_json(one.folder / RECORD) for one in found if (one.folder / RECORD).is_file()}
    hows = list({fingerprint(record["settings"]): record["settings"] for record in records.values()}.values())
    starts, output = _starts(folder)
    used = set[str]()
    for one in found:
        before = list(starts)
        rounds = list(_rounds(one))
        for part in rounds:
            ids = read_json(part.selection)["ids"]
            marks = (fingerprint(ids, start, how, one.seed)[:16] for start in before for how in hows)
            said = _facts(one).get("model") if part is rounds[-1] else None
            mark = said if said in records else next((mark for mark in marks if mark in records), None)
            if mark is not None:
                used.add(mark)
                named.setdefault(str(one if part is rounds[-1] else part), records[mark])
                before = [*starts, f"{output}/models/{mark}", *(f"{start}+{output}/models/{mark}" for start in starts)]
    for mark, record in records.items():
        if mark not in used:
            _other(named, record, mark)
    named = {name: record for name, record in named.items() if record.get("losses")}
    return named, _leading(named, found)


def _facts(one: Place) -> dict[str, Any]:
    path = one.folder / "cell.json"
    return read_json(path) if path.is_file() else {}


def _rounds(one: Place) -> Iterator[Place]:
    numbers = sorted(int(p.parent.name[6:]) for p in one.folder.glob("round_*/selection.json"))
    yield from (replace(one, round=number) for number in numbers)


def _starts(folder: Path) -> tuple[list[str], str]:
    """The models that a training may have begun with, as they were written, and the run folder as it was given."""
    import yaml

    try:
        known: Mapping[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        known = {}
    if not isinstance(known, Mapping):
        known = {}
    lines = known.get("method")
    own = [line.get("models") for line in lines.values() if isinstance(line, dict)] if isinstance(lines, dict) else []
    given = [known.get("student"), known.get("model"), *(models.get("base") for models in own if models)]
    return list(dict.fromkeys(_said(str(where)) for where in given if where)), str(known.get("output") or folder)


def _said(where: str) -> str:
    """A model as the code writes it."""
    from instdiff.scoring import parse_model

    try:
        return str(parse_model(where))
    except InstDiffError:
        return where


def _other(named: dict[str, dict[str, Any]], record: dict[str, Any], mark: str) -> None:
    """A model that no cell was judged by: a warm-up, whose rows are in no selection."""
    name = f"warm-up, {record['rows']:,} rows, seed {record['seed']}"
    named[f"{name} ({mark})" if name in named else name] = record


def _leading(named: Mapping[str, Any], found: list[Place]) -> list[str]:
    """One training for each line, at its first budget and seed, and the warm-ups of the first seed."""
    out: dict[str, str] = {}
    for one in found:
        options = [str(one), *(str(part) for part in reversed(list(_rounds(one))))]
        name = next((option for option in options if option in named), None)
        if name is not None:
            out.setdefault(one.line, name)
    warm = [name for name in named if name.startswith("warm-up, ")]
    lowest = min((named[name]["seed"] for name in warm), default=0)
    return [*out.values(), *(name for name in warm if named[name]["seed"] == lowest)]
