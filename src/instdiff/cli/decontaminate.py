"""``decontaminate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instdiff.cli.app import command
from instdiff.cli.common import data_options, load_pool
from instdiff.cli.console import Console, table

if TYPE_CHECKING:
    from instdiff.config.decontaminate import DecontaminateConfig
    from instdiff.evaluation.decontaminator import Decontamination

SHOWN, TEXT = 20, 70
"""Rows of the table, and characters of an item's text."""


@command(
    "decontaminate",
    "decontaminate.DecontaminateConfig",
    "config data! suite task data_dir against n threshold fields near_duplicates near cosine model output clean limit "
    "format map targets reasoning system store quiet json",
    "Examples:\n"
    "  instdiff decontaminate --data my.jsonl --suite math,code --data-dir data --output leaks.json\n"
    "  instdiff decontaminate --data my.jsonl --against heldout.jsonl --near pool --clean clean.jsonl",
)
def decontaminate(settings: DecontaminateConfig, console: Console) -> None:
    """Find rows that overlap benchmarks or other rows."""
    from instdiff.evaluation.decontaminator import examine, read_against, write
    from instdiff.scoring.models import bind
    from instdiff.store import Store

    pool = load_pool(settings, console, settings.clean or settings.output)
    console.stage("comparing rows with items")
    how = read_against(settings), bind(settings.model), Store(settings.store)
    found = examine(pool, settings, *how, log=console.log, progress=console)
    write(found, settings)
    console.result({**found.report(), "output": settings.output, "clean": settings.clean}, _told(found, settings))
    if settings.output and (rows := data_options(settings)) and len(found.kept) < len(pool):
        sets = [f"then.first={{decontaminate: {{report: {settings.output}}}}}", "then.keep=100%", "then.second=longest"]
        words = [word for one in sets for word in ("--set", one)]
        console.next("select", *rows, "--method", "then", *words, "--budget", "10%", "--output", "selected.jsonl")


def _told(found: Decontamination, settings: DecontaminateConfig) -> str:
    """Tasks, the rows of highest coverage, and what comes of it."""
    parts = []
    if tasks := found.tasks():
        parts.append(table(list(tasks[0]), [list(one.values()) for one in tasks]))
    order = sorted(found.best.items(), key=lambda one: (-one[1].coverage, -one[1].jaccard, one[0]))
    if order:
        parts.append(table(["row", "task", "item", "coverage", "jaccard", "what the item asks"], _rows(found, order)))
        parts[-1] += f"\nand {len(order) - SHOWN:,} more" * (len(order) > SHOWN)
    if alike := found.alike():
        lines = [[int(found.pool.rows[at]), one.task, one.id, cosine, _cut(one.text)] for at, cosine, one in alike]
        parts.append(table(["row", "task", "item", "cosine", "what the item asks"], lines[:SHOWN]))
    return "\n\n".join([*parts, "\n".join(_ends(found, settings))])


def _rows(found: Decontamination, order: list[Any]) -> list[list[Any]]:
    rows, items = found.pool.rows, found.overlaps.items
    return [
        [int(rows[at]), items[one.item].task, items[one.item].id, one.coverage, one.jaccard, _cut(items[one.item].text)]
        for at, one in order[:SHOWN]
    ]


def _ends(found: Decontamination, settings: DecontaminateConfig) -> list[str]:
    total = len(found.pool)
    lines = []
    if found.overlaps.items:
        lines.append(f"{len(found.best):,} of {total:,} rows overlap an item")
    if settings.near == "pool":
        lines.append(f"{int((found.copies >= 0).sum()):,} of {total:,} rows are near copies of another row that stays")
    if found.overlaps.common:
        task, text, count = found.overlaps.common[0]
        lines.append(
            f"{len(found.overlaps.common):,} runs of words are left out because many items have them, such as "
            f"'{_cut(text)}' in {count:,} items of {task}"
        )
    if settings.cosine is not None:
        lines.append(
            f"{len(found.alike()):,} rows have a cosine of {settings.cosine:g} or more; they count as no overlap"
        )
    if settings.output:
        lines.append(f"Report: {settings.output}")
    if settings.clean:
        lines.append(f"Wrote {len(found.kept):,} rows -> {settings.clean}")
    return lines


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT else f"{line[: TEXT - 1]}…"
