"""``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from instdiff.cli.app import command
from instdiff.cli.common import write_page
from instdiff.cli.console import Console, table

if TYPE_CHECKING:
    from instdiff.config.compare import DemoConfig

SETTINGS = {
    **{"data": "builtin:demo", "limit": 600, "model": "builtin:tiny", "template": "plain", "max_length": 256},
    **{"method": {"ifd": {}}, "baselines": ["random", "longest"], "budgets": ["10% tokens"], "seeds": [0, 1, 2]},
    "train": {"num_train_epochs": 1, "learning_rate": 1e-3, "global_batch_size": 8, "model_max_length": 256},
    "eval": {"suite": ["heldout"], "limit": 100},
}
"""What the demo compares, on what terms."""


@command("demo", "compare.DemoConfig", "output device quiet json", "Example:  instdiff demo --output demo")
def demo(settings: DemoConfig, console: Console) -> None:
    """Try it in a minute: embedded rows and model. Needs no download.

    A third of the 600 rows is flawed. Scores them, trains the model on a tenth of the response tokens by each method,
    and compares the held-out loss with that of random rows. Give the same command again to go on.
    """
    from instdiff.config.base import build
    from instdiff.config.compare import CompareConfig
    from instdiff.experiments.compare import compare
    from instdiff.experiments.run_folder import BASE
    from instdiff.experiments.tables import difference, interval

    config = build(CompareConfig, {**SETTINGS, **settings.model_dump()}, "the demo")
    found = compare(config, log=console.log, progress=console)
    write_page(settings.output, console)
    rows = []
    for line in found["lines"]:
        name = "nothing: the base" if line["name"] == BASE else line["name"]
        counts = line["rows"], line["tokens"], f"{line['value']:.3f}"
        rows.append([name, *counts, interval(line), difference(line), line.get("verdict")])
    heads = ["trained on", "rows", "tokens", "held-out NLL", "95 % interval", "against random", "verdict"]
    page = Path(settings.output) / "report.html"
    console.result(found, "\n".join([table(heads, rows), "", f"page: {page}"]))
    console.log("your data: instdiff score --data my.jsonl --model base=WHERE --method ifd --output scores.parquet")
