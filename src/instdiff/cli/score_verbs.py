"""``methods``, ``plan`` and ``score``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from instdiff.cli import options as o
from instdiff.cli.app import command
from instdiff.cli.common import built, configured, load_pool, needed, run_score, run_settings, target_rows
from instdiff.cli.console import Console, clock, table


@command("methods", "Example:  instdiff methods ifd")
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with all that is to say about it.")] = None,
    json: o.Json = False,
) -> None:
    """List the methods: paper, model roles, signals, defaults."""
    from instdiff.describe import describe, describe_all

    console = Console(as_json=json)
    if name is not None:
        facts = describe(name)
        lines = [f"{facts['name']}  ({facts['paper']})", "", str(facts["doc"]), "", "signals:"]
        lines += [f"  {key}: {value}" for key, value in facts["signals"].items()] or ["  none"]
        lines += ["", "defaults:"] + ([f"  {key}={value!r}" for key, value in facts["defaults"].items()] or ["  none"])
        console.result(facts, "\n".join(lines))
        return
    every = describe_all()
    rows = [
        [m["name"], m["paper"], ", ".join(m["roles"]) or "-", ", ".join(f"{k}={v}" for k, v in m["defaults"].items())]
        for m in every
    ]
    console.result({"methods": every}, table(["method", "paper", "roles", "defaults"], rows))


@command(
    "plan",
    "Example:  instdiff plan --data my.jsonl --model base=Qwen/Qwen2.5-0.5B --method ifd,perplexity,longest",
)
def plan(
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    data: o.Data = None,
    model: o.Models = None,
    method: o.Methods = None,
    set: o.Set = None,
    limit: o.Limit = None,
    format: o.Format = None,
    map: o.Map = None,
    targets: o.Targets = None,
    template: o.Template = None,
    max_length: o.MaxLength = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    store: o.Store = None,
    target: o.Target = None,
    seed: o.Seed = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Show what scoring would cost; spends nothing."""
    from instdiff.bill import bill
    from instdiff.config.verbs import ScoreConfig
    from instdiff.scoring import workbench
    from instdiff.store import Store

    console = Console(quiet=quiet, as_json=json)
    given = o.given(
        data=data, model=model, method=method, limit=limit, format=format, map=map, targets=targets,
        template=template, max_length=max_length, dtype=dtype, device=device, store=store, target=target, seed=seed,
    )  # fmt: skip
    settings = configured(ScoreConfig, config, given, [*o.method_sets(set), *(overrides or [])])
    named, _ = built(settings)
    pool = load_pool(settings, console, None)
    bench = workbench(
        pool, named, settings.model, run_settings(settings), Store(settings.store),
        target=target_rows(settings), log=console.log,
    )  # fmt: skip
    costs = bill(bench, named)
    facts = costs.to_dict()
    header = ["wave", "role", "view", "measures", "rows", "tokens", "cached", "to do", "tokens to do", "GFLOP"]
    rows = [
        [p.wave, p.role, p.view, "+".join(p.measures), p.rows, p.tokens, p.cached_rows, p.todo_rows, p.todo_tokens,
         round(p.flops / 1e9)]
        for p in costs.passes
    ]  # fmt: skip
    total, alone = facts["total"], facts["alone"]
    assert isinstance(total, dict) and isinstance(alone, dict)
    lines = [
        table(header, rows) if rows else "no model pass is needed",
        "",
        f"{total['passes']} passes over {total['tokens']:,} tokens; "
        f"the methods one by one: {alone['passes']} passes over {alone['tokens']:,} tokens",
        f"to do: {total['todo_rows']:,} rows, {total['todo_tokens']:,} tokens, of which {total['shared_tokens']:,} are "
        f"shared beginnings and not computed again, {total['model_loads']} model loads, "
        f"about {clock(total['seconds'])} on {bench.device} in {str(bench.dtype).removeprefix('torch.')}",
    ]
    console.result(facts, "\n".join(lines))


@command(
    "score",
    "Example:  instdiff score --data my.jsonl --model base=Qwen/Qwen2.5-0.5B --method ifd --output scores.parquet",
)
def score(
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    data: o.Data = None,
    model: o.Models = None,
    method: o.Methods = None,
    set: o.Set = None,
    output: o.Output = None,
    limit: o.Limit = None,
    format: o.Format = None,
    map: o.Map = None,
    targets: o.Targets = None,
    template: o.Template = None,
    max_length: o.MaxLength = None,
    dtype: o.Dtype = None,
    device: o.Device = None,
    batch_tokens: o.BatchTokens = None,
    workers: o.Workers = None,
    executor: o.Executor = None,
    store: o.Store = None,
    warmup: o.Warmup = None,
    target: o.Target = None,
    seed: o.Seed = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 when a row could not be scored.")] = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Score a data set with one or more methods; one row out for each row in."""
    from instdiff.config.verbs import ScoreConfig
    from instdiff.errors import ConfigError

    console = Console(quiet=quiet, as_json=json)
    given = o.given(
        data=data, model=model, method=method, output=output, limit=limit, format=format, map=map, targets=targets,
        template=template, max_length=max_length, dtype=dtype, device=device, batch_tokens=batch_tokens,
        workers=workers, executor=executor, store=store, warmup=warmup, target=target, seed=seed, strict=strict,
    )  # fmt: skip
    settings = configured(ScoreConfig, config, given, [*o.method_sets(set), *(overrides or [])])
    out = needed(settings.output)
    if Path(out).suffix not in (".parquet", ".jsonl", ".csv"):  # before hours are spent
        raise ConfigError(f"scores go to .parquet, .jsonl or .csv, not to '{out}'")
    pool = load_pool(settings, console, out)
    scores = run_score(settings, pool, console)
    scores.write(out)
    reasons = scores.reasons()
    rows = [
        [name, int(scores[name].eligible.sum()), ", ".join(f"{n} {word}" for word, n in reasons[name].items()) or "-"]
        for name in scores
    ]
    facts = {
        "output": out,
        "rows": len(scores),
        "truncated": int(scores.truncated.sum()),
        "methods": {
            name: {"eligible": row[1], "excluded": reasons[name]} for name, row in zip(scores, rows, strict=True)
        },
    }
    text = table(["method", "eligible", "not eligible"], rows)
    console.result(facts, f"{text}\n\n{len(scores):,} rows ({facts['truncated']} truncated) in {out}")
    if settings.strict and any(not scores[name].scorable.all() for name in scores):
        print("error: --strict, and some rows could not be scored (see above)", file=sys.stderr)
        raise typer.Exit(3)
