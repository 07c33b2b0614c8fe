"""A run folder belongs to one configuration and one set of inputs: it goes on with these, and refuses others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from instdiff.config.base import OPERATIONAL, Config
from instdiff.config.train import TrainSettings
from instdiff.core import Log, ModelRef
from instdiff.core.files import environment, fingerprint, read_json, write_json, writing
from instdiff.errors import ConfigError, DataError, InstDiffError
from instdiff.evaluation.results import SuiteResult
from instdiff.scoring.models import parse_model

LEFT_BEHIND = (".*.partial",)
"""Files that a killed process was writing."""


def same_config(config: Config, folder: Path, *, begun: bool, free: tuple[str, ...] = OPERATIONAL) -> None:
    """Check the configuration against the one that the folder holds, if any.

    Args:
        config: of now.
        folder: of the run.
        begun: whether the folder holds results that belong to its configuration.
        free: keys that may change.

    Raises:
        ConfigError: they differ; names the key.
    """
    if not begun:
        return
    theirs = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    mine = config.model_dump(mode="json")
    changed = [d for d in _differences(mine, theirs, "") if d[0] not in free and d[0].split(".")[0] not in free]
    if changed:
        key, new, old = changed[0]
        more = f" (and {len(changed) - 1} more: {', '.join(c[0] for c in changed[1:])})" if len(changed) > 1 else ""
        raise ConfigError(
            f"'{folder}' holds a run with {key}={old!r}, now it is {new!r}{more}; "
            "give another output_dir, or the same configuration to go on"
        )


def _differences(a: Any, b: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = list(dict.fromkeys([*a, *b]))
        return [d for k in keys for d in _differences(a.get(k), b.get(k), f"{key}.{k}" if key else k)]
    return [] if a == b else [(key, a, b)]


def same_inputs(config: Config, folder: Path, inputs: Mapping[str, str], *, begun: bool) -> None:
    """Write configuration and environment of a new run, or check that its data and models are still the same.

    Raises:
        DataError: they are not; names what has changed.
    """
    if not begun:
        write_json(folder / "environment.json", {**environment(), "inputs": dict(inputs)})
        with writing(folder / "config.yaml") as aside:
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            aside.write_text(text, encoding="utf-8")
        return
    known = read_json(folder / "environment.json").get("inputs", {})
    for key, value in inputs.items():
        if known.get(key) != value:
            raise DataError(f"the {key} has changed since the run in '{folder}' began; give another output_dir")


def sweep_up(folder: Path) -> None:
    """Remove files that a killed process was writing; half-built folders are gone on with."""
    for pattern in LEFT_BEHIND:
        for path in folder.rglob(pattern):
            if path.is_file():
                path.unlink()


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


def first_seed(found: list[Place]) -> dict[str, dict[str, Place]]:
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
    return list(dict.fromkeys(_canonical_model(str(where)) for where in given if where)), str(
        known.get("output") or folder
    )


def _canonical_model(where: str) -> str:
    """A model as the code writes it."""
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


MODEL_FILES = ("config.json", "adapter_config.json")
"""A folder without either is no model."""


def trained_model(start: ModelRef, how: TrainSettings, place: Path) -> ModelRef:
    """What a finished training has made."""
    if how.use_lora:
        return ModelRef(start.where, start.revision, str(place), start.template)
    return ModelRef(str(place), template=start.template)


def drop_model(place: Path) -> None:
    """Remove a trained model from the disk; the record of its training stays, so that it is known to be done."""
    if (place / RECORD).is_file():
        for name in MODEL_FILES:  # first, so that half a model is none
            (place / name).unlink(missing_ok=True)
        for path in place.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != RECORD:
                path.unlink()


def is_dropped(place: Path) -> bool:
    """Whether a training is known to be done, and its model is gone."""
    return (place / RECORD).is_file() and not any((place / name).is_file() for name in MODEL_FILES)


def whole(model: ModelRef, makers: Mapping[Path, Callable[[], ModelRef]], log: Log) -> ModelRef:
    """A model with its weights: one that was dropped is trained once more."""
    place = Path(model.adapter or model.where)
    if place in makers and is_dropped(place):
        log(f"{place} was dropped (keep_models: false) and is needed again; it is trained once more")
        shutil.rmtree(place)
        makers[place]()
    return model


BASE = "base"


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation: a line at a budget with a seed; the base model has neither."""

    line: str
    budget: str = ""
    seed: int | None = None

    @property
    def place(self) -> Path:
        """Its folder below ``cells``."""
        return Path(slug(self.line), slug(self.budget) or "any", "any" if self.seed is None else f"seed_{self.seed}")

    def __str__(self) -> str:
        return " ".join([self.line, *([self.budget, f"seed {self.seed}"] if self.budget else [])])


@dataclass(frozen=True)
class CellResult:
    """What a cell found: facts of its selection and training, its results, or why there are none."""

    cell: Cell
    facts: dict[str, Any] = field(default_factory=dict)
    results: list[SuiteResult] = field(default_factory=list)
    error: str | None = None
