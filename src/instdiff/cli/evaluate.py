"""``eval``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from instdiff.cli import options as o
from instdiff.cli.app import command
from instdiff.cli.console import Console, table

if TYPE_CHECKING:
    from instdiff.evaluation.results import SuiteResult

Suite = Annotated[
    list[str] | None,
    typer.Option("--suite", help="Comma-separated: heldout, math, med, openllm, code, general, skills."),
]
Task = Annotated[list[str] | None, typer.Option("--task", help="Tasks of the suites (default: all), comma-separated.")]
EvalData = Annotated[str | None, typer.Option("--data", help="Rows of the suite heldout.")]
DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Folder with the tasks' files, in place of the hub.", metavar="DIR")
]
Number = Annotated[int | None, typer.Option("--n", help="Answers to each problem (default 1).")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="0 (default) takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Share of the probability drawn from (default 1).")]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Tokens of an answer (default 512).")]
Shots = Annotated[int | None, typer.Option("--shots", help="Worked examples before each problem.")]
Writer = Annotated[str | None, typer.Option("--generator", help="hf (default), vllm, openai:MODEL@http://host/v1.")]
Concurrency = Annotated[int | None, typer.Option("--concurrency", help="Calls at once to a server (default 8).")]
Judge = Annotated[str | None, typer.Option("--judge", help="Compares answers: openai:MODEL@http://host/v1.")]
JudgeConcurrency = Annotated[
    int | None, typer.Option("--judge-concurrency", help="Calls at once to the judge (default: --concurrency).")
]
Reference = Annotated[str | None, typer.Option("--reference", help="A model's answers to compare with.")]
Answers = Annotated[
    str | None, typer.Option("--answers", help="Folder that keeps answers and judgements.", metavar="DIR")
]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="Run written code without full isolation.")]


@command(
    "eval",
    "Example:  instdiff eval --model runs/mine --suite math --task gsm8k --data-dir data --output results.json",
)
def evaluate(
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    model: o.Model = None,
    suite: Suite = None,
    task: Task = None,
    data: EvalData = None,
    format: o.Format = None,
    map: o.Map = None,
    targets: o.Targets = None,
    data_dir: DataDir = None,
    limit: o.Limit = None,
    output: o.Output = None,
    n: Number = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_new_tokens: NewTokens = None,
    shots: Shots = None,
    generator: Writer = None,
    concurrency: Concurrency = None,
    judge: Judge = None,
    judge_concurrency: JudgeConcurrency = None,
    reference: Reference = None,
    answers: Answers = None,
    unsafe: Unsafe = False,
    template: o.Template = None,
    max_length: o.MaxLength = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    batch_tokens: o.BatchTokens = None,
    workers: o.Workers = None,
    executor: o.Executor = None,
    store: o.Store = None,
    seed: o.Seed = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Evaluate a model on suites; give the same command again to go on after an interruption."""
    from instdiff.config.base import load as load_config
    from instdiff.config.evaluate import EvalConfig
    from instdiff.evaluation.evaluator import evaluate as run

    console = Console(quiet=quiet, as_json=json)
    given = o.options_given(
        model=model,
        suite=suite,
        task=task,
        data=data,
        format=format,
        map=map,
        targets=targets,
        data_dir=data_dir,
        limit=limit,
        output=output,
        n=n,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        shots=shots,
        generator=generator,
        concurrency=concurrency,
        judge=judge,
        reference=reference,
        answers=answers,
        unsafe=unsafe,
        template=template,
        max_length=max_length,
        dtype=dtype,
        device=device,
        batch_tokens=batch_tokens,
        workers=workers,
        executor=executor,
        store=store,
        seed=seed,
        judge_concurrency=judge_concurrency,
    )
    settings = load_config(EvalConfig, config, given, overrides or [])
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
