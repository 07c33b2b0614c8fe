"""``instdiff search``: the recipe for a pool, a model and a budget, judged by short trainings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instdiff.cli.app import command
from instdiff.cli.common import write_page
from instdiff.cli.compare import leak_parts
from instdiff.cli.console import Console, table

if TYPE_CHECKING:
    from instdiff.config.search import SearchConfig


@command(
    "search",
    "search.SearchConfig",
    "config data! model! budget per trainings output limit format map targets reasoning system target template "
    "template_date max_length dtype device batch_tokens workers store seed strict quiet json",
    "Examples:\n"
    "  instdiff search --config configs/search/tiny.yaml\n"
    "  instdiff search --data my.jsonl --model Qwen/Qwen2.5-0.5B --budget '10% tokens' --output runs/search \\\n"
    "                  eval.data=heldout.jsonl",
)
def search(settings: SearchConfig, console: Console) -> None:
    """Find the best recipe by short trainings. Give the same command again to go on."""
    from instdiff.experiments.search import search as run
    from instdiff.experiments.tables import bracket_rows

    found = run(settings, log=console.log, progress=console)
    write_page(settings.output or "", console)
    where = f"the search is in {settings.output}: search.json, comparison.md, report.html"
    console.result(found, "\n".join([table(*bracket_rows(found)), "", *leak_parts(found), *found["told"], where]))
