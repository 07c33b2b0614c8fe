"""``instdiff compare``: methods x seeds at equal budgets, with confidence intervals."""

from __future__ import annotations

from typing import Any

from instdiff.cli import options as o
from instdiff.cli.app import command
from instdiff.cli.console import Console, table


@command(
    "compare",
    "Examples:\n"
    "  instdiff compare --config configs/compare/tiny.yaml\n"
    "  instdiff compare --data my.jsonl --model Qwen/Qwen2.5-0.5B --method ifd,instructdiff --budget '10% tokens' \\\n"
    "                   --output runs/compare eval.suite=heldout eval.data=heldout.jsonl",
)
def compare(
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    data: o.Data = None,
    model: o.Model = None,
    method: o.Methods = None,
    budget: o.Budgets = None,
    output: o.Output = None,
    limit: o.Limit = None,
    format: o.Format = None,
    map: o.Map = None,
    targets: o.Targets = None,
    target: o.Target = None,
    template: o.Template = None,
    max_length: o.MaxLength = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    batch_tokens: o.BatchTokens = None,
    workers: o.Workers = None,
    store: o.Store = None,
    strict: o.Strict = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Compare methods with random, longest, full and the base; give the same command again to go on."""
    from instdiff.cli.common import write_page
    from instdiff.config.base import load as load_config
    from instdiff.config.compare import CompareConfig
    from instdiff.experiments.compare import compare as run

    console = Console(quiet=quiet, as_json=json)
    given = o.options_given(
        data=data,
        model=model,
        method=method,
        budget=budget,
        output=output,
        limit=limit,
        format=format,
        map=map,
        targets=targets,
        target=target,
        template=template,
        max_length=max_length,
        dtype=dtype,
        device=device,
        batch_tokens=batch_tokens,
        workers=workers,
        store=store,
        strict=strict,
    )
    settings = load_config(CompareConfig, config, given, overrides or [])
    found = run(settings, log=console.log, progress=console)
    write_page(settings.output or "", console)
    where = f"the comparison is in {settings.output}: comparison.json, comparison.md, report.html"
    console.result(found, "\n".join([*tables(found), where]))


def tables(found: dict[str, Any]) -> list[str]:
    """A table for each task, and below them the terms, how to read them, and what is left out."""
    from instdiff.experiments.tables import by_task, footer, header, rows_of

    parts: list[str] = []
    for title, lines in by_task(found["lines"]).items():
        parts += [title, table(header(found), rows_of(lines)), ""]
    return [*parts, *footer(found), *(f"left out: {one['cell']}: {one['error']}" for one in found["failed"])]
