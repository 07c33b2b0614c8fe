"""``train`` and ``pipeline``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instdiff.cli.app import command
from instdiff.cli.common import load_pool, write_page
from instdiff.cli.compare import tables
from instdiff.cli.console import Console, table

if TYPE_CHECKING:
    from instdiff.config.commands import PipelineConfig, TrainConfig
    from instdiff.experiments.pipeline import PipelineResult


@command(
    "train",
    "commands.TrainConfig",
    "config data! model! output! limit format map targets reasoning system template template_date device store seed "
    "print_launch nodes gpus_per_node strict quiet json",
    "Examples:  instdiff train --config configs/med/train_med_100.yaml\n"
    "          instdiff train --config configs/med/train_med_100.yaml --print-launch launch",
)
def train(settings: TrainConfig, console: Console) -> None:
    """Fine-tune a model on a data set. All parameters, or LoRA with train.use_lora=true."""
    from instdiff.training.launch import write_launch

    main = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    if not main:
        console = Console(quiet=True, as_json=console.as_json)
    if settings.print_launch:
        launch = write_launch(settings, Path(settings.print_launch))
        console.result({"files": [str(file) for file in launch.files], "commands": launch.commands}, launch.as_text())
        return
    facts = _fit(settings, console)
    if main:
        console.result(facts, f"Trained on {facts['rows']:,} rows -> {facts['output']}")


def _fit(settings: TrainConfig, console: Console) -> dict[str, Any]:
    from instdiff.config.train import TrainSettings
    from instdiff.scoring.models import parse_model, settings_of
    from instdiff.store import Store
    from instdiff.training.pairs import refuse_pairs
    from instdiff.training.sft import train as fit

    assert settings.model and settings.output
    pool = refuse_pairs(load_pool(settings, console, settings.output))
    fields = {key: getattr(settings.train, key) for key in TrainSettings.model_fields}
    trained = fit(
        pool,
        parse_model(settings.model),
        TrainSettings(**fields, **(settings.train.model_extra or {})),
        settings_of(settings),
        Path(settings.output),
        strict=settings.strict,
        store=Store(settings.store),
        seed=settings.seed,
        log=console.log,
    )
    return {"output": settings.output, "model": str(trained), "rows": len(pool)}


@command(
    "pipeline",
    "commands.PipelineConfig",
    "config data! model! method budget per near_duplicates weights output! limit format map targets reasoning system "
    "template template_date max_length dtype device batch_tokens workers store seed strict quiet json",
    "Example:  instdiff pipeline --config configs/demo.yaml",
)
def pipeline(settings: PipelineConfig, console: Console) -> None:
    """Score, select, train and evaluate in rounds. Give the same command again to go on."""
    from instdiff.experiments.pipeline import pipeline as run

    outcome = run(settings, log=console.log, progress=console)
    write_page(outcome.folder, console, outcome.lines)
    facts = {"folder": str(outcome.folder), "models": outcome.lines, "stages": outcome.stages, "suites": outcome.suites}
    console.result(facts, _outcome_text(outcome))


def _outcome_text(outcome: PipelineResult) -> str:
    """The stages and the models of a run, as tables."""
    counted = [s for s in outcome.stages if s["event"].startswith(("warm-up", "round"))]
    stages = [
        [
            s["event"],
            s.get("pool_rows", s.get("of")),
            s.get("scorable_rows"),
            s.get("eligible_rows"),
            s.get("selected_rows", s.get("rows")),
            s.get("selected_tokens"),
        ]
        for s in counted
    ]
    parts = [table(["stage", "rows", "scorable", "eligible", "selected", "tokens"], stages)]
    if outcome.lines:
        flawed = ["flawed"] if "flawed" in outcome.lines[0] else []
        header = ["model", "rows", "tokens", "held-out NLL", "95 % interval", "against base", *flawed]
        parts += ["", table(header, [_row(line) for line in outcome.lines])]
    if outcome.suites:
        parts += ["", *tables(outcome.suites)]
    return "\n".join([*parts, "", f"the run is in {outcome.folder}; its page is {outcome.folder / 'report.html'}"])


def _row(line: dict[str, Any]) -> list[Any]:
    gain = "-" if line["gain"] is None else f"{line['gain']:+.3f} [{line['gain_low']:+.3f}, {line['gain_high']:+.3f}]"
    share = [] if "flawed" not in line else ["-" if line["flawed"] is None else f"{100 * line['flawed']:.0f} %"]
    interval = f"{line['nll_low']:.3f} to {line['nll_high']:.3f}"
    return [line["model"], line["rows"], line["tokens"], f"{line['nll']:.3f}", interval, gain, *share]
