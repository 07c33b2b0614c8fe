"""``report``."""

from __future__ import annotations

from typing import Annotated

import typer

from instdiff.cli import options as o
from instdiff.cli.app import command
from instdiff.cli.console import Console


@command("report", "Example:  instdiff report scores.parquet --data my.jsonl --output report.html")
def report(
    where: Annotated[str, typer.Argument(help="A run folder, or a score file.", metavar="RUN_OR_SCORES")],
    data: o.Data = None,
    output: o.Output = None,
    store: o.Store = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Show what was chosen and why: one page that needs no network, and the same facts as JSON."""
    from instdiff.reporting import report as write

    console = Console(quiet=quiet, as_json=json)
    page = write(where, data=data, output=output, store=store, log=console.log)
    facts = page.with_suffix(".json")
    console.result({"page": str(page), "facts": str(facts)}, f"the page is {page}; its facts are {facts}")
