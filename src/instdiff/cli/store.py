"""``store info``, ``store gc`` and ``store check``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instdiff.cli.app import Group, app, command
from instdiff.cli.console import Console, size, table

if TYPE_CHECKING:
    from instdiff.config.commands import StoreConfig
    from instdiff.store.store import ColumnFacts
    from instdiff.store.trained import TrainedFacts

place = Group("store", help="Inspect and clean the cache of computed columns", no_args_is_help=True)
app.add_command(place)

SECONDS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}


@command("info", "commands.StoreConfig", "store json", "Example:  instdiff store info", on=place)
def info(settings: StoreConfig, console: Console) -> None:
    """List the columns and trained models of the store."""
    from dataclasses import asdict

    from instdiff.store import Store, trained
    from instdiff.store import info as columns

    store = Store(settings.store)
    found, models = columns(store), trained(store)
    rows = [
        [
            ", ".join(c.where) or c.model[:12],
            ", ".join(c.views),
            _measure(c.measure),
            c.dtype,
            c.rows,
            size(c.bytes),
            _day(c.used),
        ]
        for c in found
    ]
    shown = [[one.folder, one.base, one.rows, size(one.bytes), _day(one.used)] for one in models]
    tables = [
        table(heads, some)
        for heads, some in (
            (["model", "views", "measure", "dtype", "rows", "size", "last used"], rows),
            (["trained for scores", "from", "rows", "size", "last used"], shown),
        )
        if some
    ]
    console.result(
        {"store": str(store.root), "columns": [asdict(c) for c in found], "trained": [asdict(one) for one in models]},
        "\n\n".join([*tables, f"{_count(found, models)}, {_bytes(found, models)} in {store.root}"]),
    )


@command(
    "gc",
    "commands.StoreConfig",
    "keep older_than dry_run store json",
    "Example:  instdiff store gc --keep Qwen/Qwen2.5-0.5B --older-than 30d",
    on=place,
)
def gc(settings: StoreConfig, console: Console) -> None:
    """Drop columns and trained models that are not needed."""
    from dataclasses import asdict

    from instdiff.engine.sources import resolve
    from instdiff.errors import ConfigError
    from instdiff.scoring.models import parse_model
    from instdiff.store import Store, collect, collect_trained

    keep, age, dry = settings.keep, settings.older_than, settings.dry_run
    if not keep and age is None:
        raise ConfigError("nothing says what may go; give --keep WHERE, --older-than 30d, or both")
    root = Store(settings.store)
    models = [parse_model(where) for where in keep]
    kept = {resolve(model, root.memo).fingerprint for model in models}
    kept |= {str(Path(model.adapter or model.where).expanduser().resolve()) for model in models}
    seconds = None if age is None else _seconds(age)
    gone, trained = collect(root, kept, seconds, dry=dry), collect_trained(root, kept, seconds, dry=dry)
    word = "would be dropped" if dry else "dropped"
    console.result(
        {"dropped": [asdict(facts) for facts in gone], "trained": [asdict(one) for one in trained], "dry_run": dry},
        f"{_count(gone, trained)} {word}, {_bytes(gone, trained)}, of {Path(root.root)}",
    )


@command("check", "commands.StoreConfig", "repair store json", "Example:  instdiff store check --repair", on=place)
def check(settings: StoreConfig, console: Console) -> None:
    """Read every byte of the store, and list what is damaged."""
    from instdiff.errors import StoreError
    from instdiff.store import Store
    from instdiff.store import check as read_all

    store = Store(settings.store)
    found = read_all(store, repair=settings.repair)
    lines = [f"{one.reason}{_lost(one.rows)}{f'; {one.mended}' if one.mended else ''}" for one in found.damaged]
    read = f"{found.files:,} files with {found.rows:,} rows are whole in {store.root}"
    console.result(
        {
            "store": str(store.root),
            "files": found.files,
            "rows": found.rows,
            "damaged": [
                {"path": str(one.path), "reason": one.reason, "rows": one.rows, "mended": one.mended}
                for one in found.damaged
            ],
        },
        "\n".join([*lines, read]),
    )
    if lines and not settings.repair:
        raise StoreError(f"{len(lines)} files are damaged; give --repair to set them aside, and score again")


def _count(columns: Sequence[ColumnFacts], models: Sequence[TrainedFacts]) -> str:
    more = f" and {len(models)} trained model{'s' * (len(models) != 1)}" if models else ""
    return f"{len(columns)} column{'s' * (len(columns) != 1)}{more}"


def _bytes(*found: Sequence[ColumnFacts | TrainedFacts]) -> str:
    return size(sum(one.bytes for some in found for one in some))


def _measure(name: str) -> str:
    """As tables and pages call it."""
    return {"Nll()": "NLL", "MeanNll()": "mean NLL", "Entropy()": "entropy"}.get(name, name.removesuffix("()"))


def _lost(rows: int | None) -> str:
    return "" if rows == 0 else "; its rows cannot be counted" if rows is None else f"; {rows:,} rows"


def _seconds(text: str) -> float:
    from instdiff.errors import ConfigError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if found is None:
        raise ConfigError(f"--older-than '{text}' is not understood; write 12h, 30d or 8w")
    return float(found[1]) * SECONDS[found[2]]


def _day(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
