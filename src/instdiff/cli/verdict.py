"""``verdict``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from instdiff.cli.app import command
from instdiff.cli.console import Console

if TYPE_CHECKING:
    from instdiff.config.commands import VerdictConfig

STYLES = {"better": "green", "worse": "red", "too few seeds": "yellow"}


@command(
    "verdict",
    "commands.VerdictConfig",
    "data output limit format map targets reasoning system store quiet json",
    "Examples:\n"
    "  instdiff verdict runs/compare\n"
    "  instdiff verdict runs/compare --output verdict.svg --output verdict.md",
    click.Argument(["run"], metavar="RUN", help="A run folder, or a score file."),
)
def verdict(settings: VerdictConfig, console: Console, run: str) -> None:
    """Say on one card whether a run beats random rows."""
    from instdiff.reporting.card import check_ending, text, write_card
    from instdiff.reporting.verdict import read_verdict
    from instdiff.selection.record import Reading

    for path in settings.output:
        check_ending(path)
    found = read_verdict(
        run,
        data=settings.data,
        store=settings.store,
        reading=Reading(**settings.reading()),
        limit=settings.limit,
        log=console.log,
    )
    for path in settings.output:
        write_card(found, path)
    word, _, rest = text(found).rstrip("\n").partition("\n")
    if sys.stdout.isatty() and not console.as_json:
        click.secho(word, bold=True, fg=STYLES.get(found.kind))
        console.result({}, rest)
    else:
        console.result(asdict(found), f"{word}\n{rest}")
    for path in settings.output:
        console.log(f"card -> {path}")
