"""Options that several commands share. Every option has a configuration key of the same name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file with the same keys.", metavar="FILE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides of configuration keys, written key.sub=value.", metavar="[KEY=VALUE]..."),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="jsonl, json, parquet, csv, a folder, hub:owner/name[:split], builtin:demo, or - for stdin."
    ),
]
Format = Annotated[str | None, typer.Option("--format", help="Data format, where it is not recognised.")]
Map = Annotated[str | None, typer.Option("--map", help="Columns, as instruction=question,response=answer.")]
Targets = Annotated[str | None, typer.Option("--targets", help="Turns to learn: all (default), last, all+calls.")]
Limit = Annotated[int | None, typer.Option("--limit", help="First N rows.", metavar="N")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="ROLE=WHERE, or WHERE for the base; may repeat. A folder, hub id, builtin:tiny."),
]
Model = Annotated[str | None, typer.Option("--model", help="Base model: a folder, hub id, builtin:tiny.")]
Methods = Annotated[
    list[str] | None, typer.Option("--method", help="Names, comma-separated or repeated; ./mine.py:Margin.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A method's parameter, as ifd.ratio=loss.", metavar="M.P=VALUE")
]
Budgets = Annotated[
    list[str] | None,
    typer.Option("--budget", help="500, 10%, '200000 tokens', '10% tokens' (default); may repeat.", metavar="BUDGET"),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first failure.")]
Output = Annotated[str | None, typer.Option("--output", help="Where the result goes.", metavar="PATH")]
Store = Annotated[
    str | None, typer.Option("--store", help="Folder of the store (default: the user's cache).", metavar="DIR")
]
Device = Annotated[str | None, typer.Option("--device", help="auto (default), cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="auto (default), float32, bfloat16, float16.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="Tokens of prompt and response (default 2048).")]
Template = Annotated[
    str | None, typer.Option("--template", help="alpaca (default), chat, plain, direct, a file, or inline text.")
]
BatchTokens = Annotated[str | None, typer.Option("--batch-tokens", help="Tokens per batch (default: auto).")]
Workers = Annotated[
    str | None, typer.Option("--workers", help="Processes that score (default: auto, one for each GPU).")
]
JudgeConcurrency = Annotated[
    int | None, typer.Option("--judge-concurrency", help="Calls at once to a judge's server (default 8).", metavar="N")
]
Executor = Annotated[str | None, typer.Option("--executor", help="local (default), ray.")]
Shards = Annotated[
    str | None, typer.Option("--shards", help="Score one of N parts of the rows; auto asks the cluster.", metavar="N")
]
ShardIndex = Annotated[
    int | None, typer.Option("--shard-index", help="Which part, from 0 (default: the cluster says).", metavar="I")
]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="What it would cost there: gpus=64,flops=990e12,price=2.5 (a GPU and hour)."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random (default 42).")]
Warmup = Annotated[
    str | None, typer.Option("--warmup", help="jsonl of warm-up rows, for exclude_warmup.", metavar="FILE")
]
Target = Annotated[
    str | None, typer.Option("--target", help="Rows that targeted methods such as rds match.", metavar="FILE")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only results and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Results and log lines as JSON.")]


def options_given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None and value != [] and value is not False}


def method_sets(values: list[str] | None) -> list[str]:
    """``--set ifd.ratio=loss`` is the override ``method.ifd.ratio=loss``."""
    return [f"method.{value}" for value in values or []]
