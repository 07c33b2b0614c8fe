"""``eval``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instdiff.cli.app import command
from instdiff.cli.console import Console, table

if TYPE_CHECKING:
    from instdiff.config.evaluate import EvalConfig
    from instdiff.evaluation.results import SuiteResult


@command(
    "eval",
    "evaluate.EvalConfig",
    "config model suite! task data format map targets reasoning system data_dir limit output n temperature top_p "
    "max_new_tokens shots generator concurrency judge judge_concurrency judge_timeout judge_tries judge_max_tokens "
    "judge_batch reference answers unsafe template template_date max_length dtype device batch_tokens workers executor "
    "store seed quiet json",
    "Example:  instdiff eval --model runs/mine --suite math --task gsm8k --data-dir data --output results.json",
)
def evaluate(settings: EvalConfig, console: Console) -> None:
    """Evaluate a model on suites. Give the same command again to go on after an interruption."""
    from instdiff.evaluation.evaluator import evaluate as run

    results = run(settings, log=console.log, progress=console)
    facts = {"output": settings.output, "suites": {found.suite: _facts(found) for found in results}}
    console.result(facts, results_text(results))


def _facts(found: SuiteResult) -> dict[str, Any]:
    return {key: value for key, value in found.record().items() if key != "items"}


def results_text(results: list[SuiteResult]) -> str:
    """Tasks with their intervals, and each suite's mean."""
    rows: list[list[Any]] = []
    for found in results:
        for task in found.tasks:
            line = task.record()
            interval = None if line["low"] is None else f"{line['low']:.4f} to {line['high']:.4f}"
            rows.append([found.suite, task.name, task.metric, line["value"], interval, line["scored"], line["items"]])
        if len(found.tasks) > 1:
            rows.append([found.suite, "mean", "", found.record()["value"], None, None, None])
    return table(["suite", "task", "metric", "value", "95 % interval", "scored", "of"], rows)
