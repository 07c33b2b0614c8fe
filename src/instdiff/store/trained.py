"""Models that were trained for scores: what the store holds of them, and dropping what nobody needs."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instdiff.store.column import alone
from instdiff.store.store import Store, drop, is_old, sizes


@dataclass(frozen=True)
class TrainedFacts:
    """A model that was trained on so many rows from a base, or without rows what a kill left half made."""

    folder: str
    base: str
    rows: int
    bytes: int
    used: float


def trained_folder(store: Store) -> Path:
    """Where models lie that were trained for scores."""
    return store.root / "trained"


def lock_of(model: Path) -> Path:
    """What is locked while a model is trained: one file for its folder, the half made one and damaged ones."""
    return model.with_name(f".{model.name.strip('.').partition('.')[0]}.lock")


def hold_trained(store: Store, model: Path) -> None:
    """Keep such a model from being dropped as long as the store object is there; of any other nothing is known."""
    folder, home = model.expanduser().resolve(), trained_folder(store).resolve()
    if home in folder.parents:  # a save lies in the folder of its training
        store.hold(next(place for place in (folder, *folder.parents) if place.parent == home))


def trained(store: Store) -> list[TrainedFacts]:
    """All of them, the largest first."""
    found = list[TrainedFacts]()
    for folder in trained_folder(store).glob("*"):
        with suppress(FileNotFoundError):  # dropped meanwhile
            if folder.is_dir():
                found.append(_facts(folder))
    return sorted(found, key=lambda one: (-one.bytes, one.folder))


def _facts(folder: Path) -> TrainedFacts:
    about: dict[str, Any] = {"base": "unfinished", "rows": 0}
    with suppress(OSError, ValueError, TypeError):
        about |= json.loads((folder / "training.json").read_bytes())
    return TrainedFacts(str(folder), about["base"], about["rows"], sum(sizes(folder)), folder.stat().st_mtime)


def collect_trained(
    store: Store, keep: set[str], older_than_s: float | None, *, dry: bool = False
) -> list[TrainedFacts]:
    """Drop models that are not in ``keep`` (by folder), as ``collect`` does columns; none that is used or trained."""
    gone = list[TrainedFacts]()
    for one in trained(store):
        folder = Path(one.folder)
        if str(folder.resolve()) not in keep and is_old(one.used, older_than_s):
            with alone(lock_of(folder)) as free:
                gone += [one] * (free and drop(store, folder, dry=dry))
    return gone
