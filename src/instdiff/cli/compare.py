"""``instdiff compare``: methods x seeds at equal budgets, with confidence intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instdiff.cli.app import command
from instdiff.cli.common import write_page
from instdiff.cli.console import Console, table

if TYPE_CHECKING:
    from instdiff.config.compare import CompareConfig


@command(
    "compare",
    "compare.CompareConfig",
    "config data! model! method budget per near_duplicates headroom records output limit format map targets reasoning "
    "system target template template_date max_length dtype device batch_tokens workers store strict quiet json",
    "Examples:\n"
    "  instdiff compare --config configs/compare/tiny.yaml\n"
    "  instdiff compare --data my.jsonl --model Qwen/Qwen2.5-0.5B --method ifd,instructdiff --budget '10% tokens' \\\n"
    "                   --output runs/compare eval.suite=heldout eval.data=heldout.jsonl",
)
def compare(settings: CompareConfig, console: Console) -> None:
    """Compare methods with controls, equal budgets. These are random, longest, full and the base.

    Give the same command again to go on.
    """
    from instdiff.experiments.compare import compare as run

    found = run(settings, log=console.log, progress=console)
    write_page(settings.output or "", console)
    where = f"the comparison is in {settings.output}: comparison.json, comparison.md, report.html"
    console.result(found, "\n".join([*tables(found), where]))


def tables(found: dict[str, Any]) -> list[str]:
    """A table for each task, and below them the terms, how to read them, and what is left out."""
    from instdiff.experiments.tables import by_task, footer, header, rows_of, tell_headroom

    parts: list[str] = []
    for title, lines in by_task(found["lines"]).items():
        parts += [title, table(header(found, lines), rows_of(lines)), *tell_headroom(lines, found["against"]), ""]
    return [
        *parts,
        *leak_parts(found),
        *footer(found),
        *(f"left out: {one['cell']}: {one['error']}" for one in found["failed"]),
    ]


def leak_parts(found: dict[str, Any]) -> list[str]:
    """The section on rows that overlap items of the evaluation, where that was looked for."""
    from instdiff.experiments.tables import LEAKS, leak_rows, tell_leaks

    if not found.get("leaks"):
        return []
    heads, rows = leak_rows(found["leaks"])
    return [*([LEAKS, table(heads, rows)] if rows else []), *tell_leaks(found["leaks"]), ""]
