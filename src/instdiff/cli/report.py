"""``report``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from instdiff.cli.app import command
from instdiff.cli.console import Console

if TYPE_CHECKING:
    from instdiff.config.commands import ReportConfig


@command(
    "report",
    "commands.ReportConfig",
    "data selection method output limit format map targets reasoning system store quiet json",
    "Example:  instdiff report scores.parquet --data my.jsonl --output report.html",
    click.Argument(["where"], metavar="RUN_OR_SCORES", help="A run folder, or a score file."),
)
def report(settings: ReportConfig, console: Console, where: str) -> None:
    """Write a page: what was chosen, and why. It needs no network; the same facts stand beside it as JSON."""
    from instdiff.reporting import report as write
    from instdiff.selection.record import Reading

    page = write(
        where,
        data=settings.data,
        output=settings.output,
        store=settings.store,
        log=console.log,
        selection=settings.selection,
        method=settings.method,
        reading=Reading(**settings.reading()),
        limit=settings.limit,
    )
    facts = page.with_suffix(".json")
    console.result({"page": str(page), "facts": str(facts)}, f"the page is {page}; its facts are {facts}")
