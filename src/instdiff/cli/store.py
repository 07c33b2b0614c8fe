"""``store info`` and ``store gc``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from instdiff.cli import options as o
from instdiff.cli.app import app, command
from instdiff.cli.console import Console, table

place = typer.Typer(help="What the store holds, and dropping what nobody needs.", no_args_is_help=True)
app.add_typer(place, name="store")

SECONDS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}


@command("info", "Example:  instdiff store info", on=place)
def info(store: o.Store = None, json: o.Json = False) -> None:
    """Show what the store holds: a line for each column."""
    from dataclasses import asdict

    from instdiff.store import Store
    from instdiff.store import info as columns

    console, place_ = Console(as_json=json), Store(store)
    found = columns(place_)
    rows = [[c.measure, c.model[:12], c.dtype, c.rows, c.values, round(c.bytes / 1e6, 1), _day(c.used)] for c in found]
    text = table(["measure", "model", "dtype", "rows", "values", "MB", "last used"], rows)
    total = sum(c.bytes for c in found) / 1e6
    console.result(
        {"store": str(place_.root), "columns": [asdict(c) for c in found]},
        f"{text}\n\n{len(found)} columns, {total:,.1f} MB in {place_.root}",
    )


@command("gc", "Example:  instdiff store gc --keep Qwen/Qwen2.5-0.5B --older-than 30d", on=place)
def gc(
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="A model whose columns stay; may repeat.", metavar="WHERE")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Only what was not used for so long: 12h, 30d, 8w.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and leave it.")] = False,
    store: o.Store = None,
    json: o.Json = False,
) -> None:
    """Drop columns that no listed model or age needs."""
    from dataclasses import asdict

    from instdiff.engine.models import resolve
    from instdiff.errors import ConfigError
    from instdiff.scoring.models import parse_model
    from instdiff.store import Store, collect

    if not keep and older_than is None:
        raise ConfigError("nothing says what may go; give --keep WHERE, --older-than 30d, or both")
    console, root = Console(as_json=json), Store(store)
    kept = {resolve(parse_model(where), root.memo).fingerprint for where in keep or []}
    gone = collect(root, kept, None if older_than is None else _seconds(older_than), dry=dry_run)
    freed = sum(facts.bytes for facts in gone) / 1e6
    word = "would be dropped" if dry_run else "dropped"
    console.result(
        {"dropped": [asdict(facts) for facts in gone], "dry_run": dry_run},
        f"{len(gone)} columns {word}, {freed:,.1f} MB, of {Path(root.root)}",
    )


def _seconds(text: str) -> float:
    from instdiff.errors import ConfigError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if found is None:
        raise ConfigError(f"--older-than '{text}' is not understood; write 12h, 30d or 8w")
    return float(found[1]) * SECONDS[found[2]]


def _day(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
