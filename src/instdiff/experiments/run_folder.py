"""The run folder: its names and patterns, which no other file knows, and whose configuration and inputs it holds."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from instdiff.config.base import OPERATIONAL, Config
from instdiff.core import Log, ModelRef
from instdiff.core.files import (
    ASIDE,
    environment,
    lock_folder,
    make_folder,
    read_json,
    read_whole,
    unwritable,
    with_sum,
    without_sum,
    write_record,
    writing,
)
from instdiff.errors import ConfigError, DataError, StoreError
from instdiff.evaluation.results import SuiteResult
from instdiff.selection.record import read_selection

BASE = "base"
CELL, ERROR, TRAINING = "cell.json", "error.json", "training.json"
ROUND_MODEL, CONTROL_MODEL = "selected_train_model", "model"
"""In the folders of a pipeline's rounds and controls."""
CONFIG_SUM = b"# crc32 of what is above: "
MODEL_FILES = ("config.json", "adapter_config.json")
"""A folder without either is no model."""
_CLAIMED: ContextVar[list[int] | None] = ContextVar("_CLAIMED", default=None)
"""Handles on the folders that were claimed within ``alone``."""


@contextmanager
def alone() -> Iterator[None]:
    """Keep other processes out of the run folders that are claimed meanwhile; also a decorator."""
    handles: list[int] = []
    token = _CLAIMED.set(handles)
    try:
        yield
    finally:
        _CLAIMED.reset(token)
        for handle in handles:
            os.close(handle)


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


def slug(text: str) -> str:
    """A name as a comparison's folders have it."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text.replace("%", "pct"))


@dataclass(frozen=True)
class CellResult:
    """What became of a cell: facts of its selection and training, its results, or why there are none."""

    cell: Cell
    facts: dict[str, Any] = field(default_factory=dict)
    results: list[SuiteResult] = field(default_factory=list)
    error: str | None = None


class RunFolder:
    """The folder of a run: it goes on with one configuration and one set of inputs, and refuses others."""

    given_up: tuple[Path, ...] = ()
    """Files that a run may leave before it has begun, and that are of no use to the next."""

    def __init__(self, path: Path) -> None:
        self.path, self.config, self.log = path, path / "config.yaml", path / "log.jsonl"
        names = ("comparison.json", "items.parquet", "scores/cost.json", "environment.json")
        self.comparison, self.items, self.cost, self.environment = (path / name for name in names)
        self.search, self.search_items = path / "search.json", path / "search.items.parquet"

    @property
    def begun(self) -> bool:
        """Whether it holds results that belong to its configuration."""
        return self.config.is_file()

    def read_config(self) -> str:
        """The text of the configuration; a StoreError where it is not what its last line is the sum of."""
        raw = self.config.read_bytes()
        whole, _, last = raw.removesuffix(b"\n").rpartition(b"\n")
        try:
            if last.startswith(b"#") and last != CONFIG_SUM + _sum_of(whole + b"\n"):
                raise ValueError("its sum is of another text")
            yaml.safe_load(text := raw.decode())
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise StoreError(
                f"'{self.config}' was changed since the run began ({str(error).splitlines()[0]}); "
                "if that was you, delete its last line; else take a copy, or give another output_dir"
            ) from None
        return text

    def check_config(self, config: Config, free: tuple[str, ...] = OPERATIONAL) -> None:
        """Check a configuration against the one that the folder holds, if it has begun.

        Raises a ConfigError that names the key in which they differ, if it is not among the ``free`` ones.
        """
        if not self.begun:
            return
        theirs, mine = yaml.safe_load(self.read_config()), config.model_dump(mode="json")
        changed = [d for d in differences(mine, theirs) if d[0] not in free and d[0].split(".")[0] not in free]
        if changed:
            key, new, old = changed[0]
            more = f" (and {len(changed) - 1} more: {', '.join(c[0] for c in changed[1:])})" if len(changed) > 1 else ""
            raise ConfigError(
                f"'{self.path}' holds a run with {key}={old!r}, now it is {new!r}{more}; "
                "give another output_dir, or the same configuration to go on"
            )

    def claim(self, config: Config, inputs: Mapping[str, str]) -> None:
        """Write configuration and environment of a new run, or check that data and models are still those of the run.

        Files that a killed process was writing are removed; half-built folders are gone on with. Raises a StoreError
        where another process works in the folder, and a DataError that names the input that has changed.
        """
        self._lock()
        for path in () if self.begun else self.given_up:
            path.unlink(missing_ok=True)
        if self.begun:
            known = read_facts(self.environment).get("inputs", {})
            for key, value in inputs.items():
                if known.get(key) != value:
                    raise DataError(
                        f"the {key} has changed since the run in '{self.path}' began; give another output_dir"
                    )
        else:
            write_record(self.environment, {**environment(), "inputs": dict(inputs)})
            raw = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).encode()
            with writing(self.config) as aside:
                aside.write_bytes(raw + CONFIG_SUM + _sum_of(raw) + b"\n")
        for path in self.path.rglob(".*.partial"):
            if path.is_file():
                path.unlink()

    def _lock(self) -> None:
        """Have the folder alone until ``alone`` ends; outside of it nobody is kept out."""
        try:
            make_folder(self.path)
            handle = lock_folder(self.path, exclusive=True)
        except BlockingIOError:
            wait = "wait until it has ended, or give another output"
            raise StoreError(f"another process works in '{self.path}'; {wait}") from None
        except OSError as error:
            raise unwritable(self.path, error) from error
        if handle is not None and (handles := _CLAIMED.get()) is not None:
            handles.append(handle)
        elif handle is not None:
            os.close(handle)

    def events(self) -> list[dict[str, Any]]:
        """The lines of the log."""
        events = []
        for text in self.log.read_text("utf-8", "replace").splitlines() if self.log.is_file() else []:
            try:
                events.append(without_sum(json.loads(text)))
            except ValueError:
                events.append({"event": text})
        return [event for event in events if isinstance(event, dict)]

    def add_event(self, name: str, facts: Mapping[str, Any]) -> bool:
        """Add a line to the log: of each event the first, since done again it would find everything there."""
        events = self.events()
        if name in [event["event"] for event in events]:
            return False
        lines = [json.dumps(with_sum(event), ensure_ascii=False) for event in (*events, {"event": name, **facts})]
        with writing(self.log) as aside:
            aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return True

    def name_model(self, place: Path, model: Path, log: Log) -> None:
        """Write the name of the model that is trained on a selection beside the selection's record."""
        name = {"model": model.relative_to(self.path).as_posix()}
        if read_whole(place / "model.json", log) != name:
            write_record(place / "model.json", name)

    def trainings(self) -> dict[Path, dict[str, Any]]:
        """The record of every finished training, by the folder of its model."""
        paths = [path for path in sorted(self.path.rglob(TRAINING)) if not path.parent.name.endswith(ASIDE)]
        return {path.parent: read_json(path) for path in paths}


def _sum_of(raw: bytes) -> bytes:
    return f"{zlib.crc32(raw):08x}".encode()


def differences(a: Any, b: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """The keys in which two values differ, dotted, with what each has there."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = list(dict.fromkeys([*a, *b]))
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{key}.{k}" if key else k)]
    return [] if a == b else [(key, a, b)]


def read_facts(path: Path) -> dict[str, Any]:
    """What a file says; nothing where it is not there."""
    return dict(read_json(path)) if path.is_file() else {}


class PipelineFolder(RunFolder):
    """``iter_N/`` for each round, ``baselines/`` for the controls."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.warmup_rows = path / "iter_1" / "warmup_subset.jsonl"
        self.given_up = (self.log, self.warmup_rows)
        self.calibration_model = path / "iter_1" / "calibration_model"

    @property
    def begun(self) -> bool:
        """From the first training on."""
        return super().begun and any((self.path / "iter_1").glob("*calibration_model*"))

    def round(self, number: int) -> Path:
        """A round's folder."""
        return self.path / f"iter_{number}"

    def trained(self, role: str) -> Path:
        """Where a model lies that rows are scored by and that was trained for it, such as that of a fold."""
        return self.path / "crossfit" / role.replace("/", "_")

    def repeat(self, number: int, seed: int) -> Path:
        """The folder of a round's selection as it is trained with another seed."""
        return self.round(number) / f"seed_{seed}"

    def rounds(self) -> dict[int, Path]:
        """The folders of all rounds that have begun, by number."""
        numbers = (int(p.name[5:]) for p in self.path.glob("iter_*") if p.name[5:].isdigit())
        return {number: self.round(number) for number in sorted(numbers)}

    def control(self, name: str) -> Path:
        """A control's folder."""
        return self.path / "baselines" / name.replace(" ", "_")

    def controls(self) -> dict[str, Path]:
        """The folders of all controls by name."""
        return {path.name.replace("_", " "): path for path in sorted((self.path / "baselines").glob("*"))}

    def named_trainings(self) -> dict[str, dict[str, Any]]:
        """The record of every training by what its model is."""
        named = {}
        for place, record in self.trainings().items():
            name = str(place.relative_to(self.path)).replace("iter_", "round ").replace("_", " ").replace("/", ", ")
            named[name.removeprefix("baselines, ").removesuffix(", model")] = record
        return {name: record for name, record in named.items() if record.get("losses")}


class ComparisonFolder(RunFolder):
    """``cells/LINE/BUDGET/seed_N/round_N/``, ``scores/``, and ``models/`` by what they are made of."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.models, self.lines = path / "models", path / "lines.json"

    def claim_lines(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what the cells of each line are made of; it is the same as long as the folder has one of them.

        Raises a ConfigError that names a line and the key in which it differs, or two lines of one folder.
        """
        mine, known, folders = json.loads(json.dumps(lines)), read_facts(self.lines), dict[str, str]()
        for name in mine:
            if (other := folders.setdefault(slug(name), name)) != name:
                raise ConfigError(
                    f"the lines '{other}' and '{name}' have one folder, '{slug(name)}'; rename one of them"
                )
            if not any((self.path / "cells" / slug(name)).rglob("*.json")):
                continue
            for key, new, old in differences(mine[name], known.get(name, mine[name]))[:1]:
                raise ConfigError(
                    f"line '{name}' of '{self.path}' was made with {key}={old!r}, now it is {new!r}; "
                    "give the line another name, or another output_dir"
                )
        if known | mine != known:
            write_record(self.lines, known | mine)

    @property
    def begun(self) -> bool:
        """From the first cell on."""
        return super().begun and (self.path / "cells").is_dir()

    def cell(self, cell: Cell) -> Path:
        """A cell's folder."""
        return self.path / "cells" / cell.place

    def round(self, cell: Cell, number: int) -> Path:
        """The folder of a cell's round."""
        return self.cell(cell) / f"round_{number}"

    def scores(self, kind: str, seed: int) -> Path:
        """The score table of all variants of a kind, with a seed."""
        return self.path / "scores" / f"{kind}_seed_{seed}.parquet"

    def count_made(self) -> int | None:
        """How many cells are done; None where there are none and have never been any."""
        return len([*self.path.glob(f"cells/*/*/*/{CELL}")]) if (self.path / "cells").is_dir() else None

    def first_scores(self) -> tuple[str, list[Path], bool]:
        """The first seed, its score tables, and whether there are other seeds."""
        seeds: dict[str, list[Path]] = {}
        for path in sorted(self.path.glob("scores/*.parquet")):
            seeds.setdefault(path.stem.rpartition("seed_")[2], []).append(path)
        first = min(seeds, key=lambda seed: (not seed.isdigit(), int(seed) if seed.isdigit() else 0), default="")
        return first, seeds.get(first, []), len(seeds) > 1

    def places(self, lines: list[dict[str, Any]]) -> list[Place]:
        """Every cell that chose rows, seed by seed, in the order of the comparison's lines and budgets."""
        names, budgets = (list(dict.fromkeys(str(line.get(key)) for line in lines)) for key in ("name", "budget"))
        named = {slug(name): name for name in (*names, *budgets)}
        places = []
        for path in self.path.glob("cells/*/*/seed_*"):
            line, budget, seed = path.parts[-3:]
            record = read_selection(path)
            if record is not None and seed[5:].lstrip("-").isdigit():
                places.append(Place(path, named.get(line, line), named.get(budget, budget), int(seed[5:]), record))

        def at(name: str, names: list[str]) -> tuple[int, str]:
            return names.index(name) if name in names else len(names), name

        return sorted(places, key=lambda one: (one.seed, at(one.line, names), at(one.budget, budgets)))

    def named_trainings(self, places: list[Place]) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """The record of every training by what it is of, and the names of those that stand for their lines.

        Cells with the same rows share a model. A model that no selection names is a warm-up, unless a selection of an
        earlier version names none. One training stands for each line, at its first budget and seed, and the warm-ups
        of the first seed.
        """
        records = {place: record for place, record in self.trainings().items() if record.get("losses")}
        named, leading, warm, word = dict[str, dict[str, Any]](), dict[str, str](), dict(records), "warm-up"
        for place in places:
            rounds, first = sorted(place.folder.glob("round_*"), key=lambda path: int(path.name[6:])), ""
            for part in rounds:
                model = self.path / read_facts(part / "model.json").get("model", "")
                word = "a model" if model == self.path else word
                name = str(place) if part is rounds[-1] else place.name(f" round {part.name[6:]}")
                if model in records:
                    named[name], first = records[model], name
                    warm.pop(model, None)
            if first:
                leading.setdefault(place.line, first)
        lowest = min((record["seed"] for record in warm.values()), default=0)
        drawn = list(leading.values())
        for model, record in warm.items():
            name = f"{word}, {record['rows']:,} rows, seed {record['seed']}"
            name = f"{name} ({model.name})" if name in named else name
            named[name] = record
            drawn += [name] if record["seed"] == lowest else []
        return named, drawn


@dataclass(frozen=True)
class Place:
    """A cell that chose rows, and what its record says."""

    folder: Path
    line: str
    budget: str
    seed: int
    record: dict[str, Any]

    def name(self, part: str = "") -> str:
        """What a report calls it, or a part of it."""
        return f"{self.line}{part}, {self.budget}, seed {self.seed}"

    __str__ = name


def first_seed(places: list[Place]) -> dict[str, dict[str, Place]]:
    """By budget the cell of each line that stands for it: that of its first seed.

    Lines with one budget of their own, such as all rows, stand beside those of every budget.
    """
    cells: dict[str, dict[str, Place]] = {}
    for one in places:  # seeds come in order
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


# ── trained models ────────────────────────────────────────────────────────────────────────────────────────────────────


def model_folder(model: ModelRef) -> Path:
    """Where a trained model lies: for LoRA its adapter."""
    return Path(model.adapter or model.where)


def drop_model(place: Path) -> None:
    """Remove a trained model from the disk; the record of its training stays, so that it is known to be done."""
    if (place / TRAINING).is_file():
        for name in MODEL_FILES:  # first, so that half a model is none
            (place / name).unlink(missing_ok=True)
        for path in place.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != TRAINING:
                path.unlink()


def is_dropped(place: Path) -> bool:
    """Whether a training is known to be done, and its model is gone."""
    return (place / TRAINING).is_file() and not any((place / name).is_file() for name in MODEL_FILES)
