"""The reference pages: help texts as the program prints them, configuration keys as its schema has them."""

from __future__ import annotations

import inspect
import re
import types
import typing
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import typer.main
from pydantic.fields import FieldInfo

from instdiff.cli import entry
from instdiff.config.base import Config
from instdiff.config.commands import (
    DataConfig,
    EvalPart,
    ExecutorConfig,
    PipelineConfig,
    RunConfig,
    SampleConfig,
    ScoreConfig,
    ScorePart,
    SelectConfig,
    SelectPart,
    SelectTrainPart,
    TrainConfig,
    WarmupPart,
)
from instdiff.config.compare import CompareConfig, Variant
from instdiff.config.evaluate import EvalConfig
from instdiff.config.selection import DiffConfig, ExplainConfig, ExportConfig
from instdiff.config.train import TrainSettings

WIDTH = 78
"""Columns of a help text in a terminal of 80."""

VERBS: dict[str, type[Config]] = {
    "sample": SampleConfig,
    "score": ScoreConfig,
    "plan": ScoreConfig,  # the page sends its readers to score
    "select": SelectConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "pipeline": PipelineConfig,
    "compare": CompareConfig,
    "explain": ExplainConfig,
    "diff": DiffConfig,
    "export": ExportConfig,
}
"""Commands that take a configuration file."""

PARTS: dict[str, type[Config]] = {
    "data": DataConfig,
    "running": RunConfig,
    "executor": ExecutorConfig,
    "settings": TrainSettings,
    "line": Variant,
    "warmup": WarmupPart,
    "score-part": ScorePart,
    "select-part": SelectPart,
    "select_train": SelectTrainPart,
    "eval-part": EvalPart,
}
"""Parts that stand once on the page, by the anchor of their heading."""

MEANINGS = {
    "data.data": "A `.jsonl`, `.json`, `.parquet` or `.csv` file, a folder of them, `hub:owner/name[:split]`, "
    "`builtin:demo`, or `-` for standard input.",
    "data.map": "Columns, as `instruction=question,response=answer` or as a mapping.",
    "data.targets": "Turns of a conversation that are scored and learnt; `all+calls` takes tool calls too.",
    "running.device": "`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.",
    "running.dtype": "Of the weights: bf16 where the hardware multiplies it faster, else fp32.",
    "running.template": "`alpaca` unless given (for `proxy`: `plain`), `chat`, `direct`, a file, or inline text.",
    "running.max_length": "Tokens of prompt and response, after which a row is cut.",
    "running.batch_tokens": "Tokens per batch; unless given, or with `auto`, the fastest is found.",
    "running.workers": "Processes that score; unless given, or with `auto`, one for each GPU.",
    "executor.executor": "`local`: this machine; `ray`: shards go to a cluster, see [scale](scale.md#ray).",
    "running.seed": "Of everything random.",
    "executor.ray_address": "Address of a running Ray cluster, with `executor: ray`.",
    "executor.gpus_per_worker": "GPUs that one worker of a cluster has.",
    "score.shared": "With `executor: ray`, a folder that all machines see: each shard reads its own rows, and its file "
    "goes there.",
    "instruction_key": "Column of the instruction; the published way to write `map`.",
    "input_key": "Column of the input; the published way to write `map`.",
    "response_key": "Column of the response; the published way to write `map`.",
    "max_samples": "At most so many rows.",
    "sample.max_samples": "Rows that are drawn.",
    "score.model": "Models by role; one alone is `base`. A local folder, a hub id, `builtin:tiny`, `WHERE+ADAPTER`.",
    "score.method": "Names, or a mapping from names to parameters; `./mine.py:Margin` is a method of one's own.",
    "select.model": "As for `score`, where a method is scored on the way.",
    "select.method": "As for `score`.",
    "score.warmup": "Rows of the warm-up subset, for `instructdiff.exclude_warmup`.",
    "score.cluster": "For `plan`: machines to reckon with, as `gpus=64,flops=990e12,price=2.5`.",
    "select.select_ratio": "The budget as a share, 0.1 for 10 %; `budget: tokens`, `rows` or `filtered` says of what.",
    "select.quota": "Budgets of single groups by name, with `group_by`.",
    "train.train": "See [training settings](#training-settings). The published `model_name_or_path`, `data_path` and "
    "`output_dir` may stand here too.",
    "settings.lora_r": "Rank of the adapters.",
    "settings.lora_alpha": "The adapters' scale is `lora_alpha / lora_r`.",
    "settings.lora_dropout": "Dropout before the adapters.",
    "iterations": "Rounds of scoring, selecting and training.",
    "models": "Models of roles beside the base, by role.",
    "pipeline.train": "How to train, everywhere: see [training settings](#training-settings).",
    "pipeline.warmup": "See [warmup](#warmup-of-the-pipeline).",
    "pipeline.score": "See [score](#score-of-the-pipeline).",
    "pipeline.select": "See [select](#select-of-the-pipeline).",
    "pipeline.select_train": "See [select_train](#select_train-of-the-pipeline).",
    "pipeline.eval": "See [eval](#eval-of-the-pipeline); without it nothing is evaluated.",
    "warmup.data_path": "Rows that the warm-up subset is drawn from; by default the data.",
    "warmup.sample_size": "Rows that are drawn.",
    "warmup.limit": "At most so many rows of `data_path`.",
    "warmup.train": "Training settings that differ here.",
    "score-part.max_length": "Tokens of prompt and response, for scoring alone.",
    "score-part.template": "Template for scoring alone.",
    "select-part.method": "Name, or `./mine.py:Margin`.",
    "select-part.budget": "As `--budget`; or `tokens`, `rows` or `filtered`, of which `select_ratio` is the share.",
    "select-part.grow": "What each round after the first adds to the budget.",
    "select-part.select_ratio": "The share, where `budget` is none or one of the three words.",
    "select-part.params": "The method's parameters; they may also stand beside `method`.",
    "select_train.train": "Training settings that differ from the pipeline's `train`.",
    "eval-part.baselines": "Controls that are trained at the same token budget.",
    "eval-part.seeds": "Seeds of the random control.",
    "compare.warmup": "Rows of methods that need a calibrated model: see [warmup](#warmup-of-the-pipeline).",
    "compare.method": "By name; each is a [line](#a-line-of-a-comparison).",
}
"""What keys mean that are neither options nor described in their class; `PART.KEY` goes before `KEY`."""


@cache
def commands() -> str:
    """Each help text under a heading, in a terminal of 80 columns."""
    out = []
    for words in [[], *paths()]:
        name = " ".join(["instdiff", *words])
        out.append(f"## {name}\n\n```text\n{helped(words)}\n```" if words else f"```text\n{helped(words)}\n```")
    return "\n\n".join(out)


def paths() -> list[list[str]]:
    """All commands, those of `store` under it."""
    out: list[list[str]] = []
    for name, one in tree().items():
        below = getattr(one, "commands", None)
        out += [[name], *([name, inner] for inner in below or ())]
    return out


def tree() -> dict[str, Any]:
    return dict(typer.main.get_command(entry.app).commands)  # type: ignore[attr-defined]


def helped(words: list[str]) -> str:
    one = typer.main.get_command(entry.app)
    context = one.make_context("instdiff", [], resilient_parsing=True, terminal_width=WIDTH)
    for word in words:
        one = one.commands[word]  # type: ignore[attr-defined]
        context = one.make_context(word, [], parent=context, resilient_parsing=True)
    return "\n".join(line.rstrip() for line in one.get_help(context).rstrip().splitlines())


def keys(name: str) -> str:
    """The table of a part, or of the keys that a command has for itself."""
    kind = PARTS[name] if name in PARTS else VERBS[name]
    inherited = {} if name in PARTS else shared(kind)
    heads = "| key | type | default | meaning |\n|---|---|---|---|"
    rows = [
        f"| `{key}` | {typed(field)} | {default(field)} | {meaning(name, kind, key)} |"
        for key, field in kind.model_fields.items()
        if key not in inherited
    ]
    said = [heads + "\n" + "\n".join(rows)] if rows else []
    also = [f"[{label}](#{label})" for label in dict.fromkeys(inherited.values())]
    if also:
        said.append(f"{'Also' if rows else 'All'} keys of {' and '.join(also)}.")
    names: dict[str, list[str]] = {}
    for other, key in kind.aliases().items():
        names.setdefault(key, []).append(f"`{other}`")
    if names:
        said.append("Other names: " + "; ".join(f"{', '.join(names[key])} for `{key}`" for key in names) + ".")
    return "\n\n".join(said)


def shared(kind: type[Config]) -> dict[str, str]:
    """Keys that stand in a table of their own, by its heading; those that a class says anew do not."""
    out = {}
    for label, base in (("data", DataConfig), ("running", RunConfig), ("executor", ExecutorConfig)):
        if issubclass(kind, base):
            out |= {key: label for key, field in base.model_fields.items() if same(field, kind.model_fields[key])}
    return out


def same(one: FieldInfo, other: FieldInfo) -> bool:
    return (typed(one), default(one)) == (typed(other), default(other))


def meaning(name: str, kind: type[Config], key: str) -> str:
    """From the class, the table above, or the option of the same name."""
    known = MEANINGS.get(f"{name}.{key}") or described(kind).get(key) or option(name, key) or MEANINGS.get(key)
    if not known:
        raise SystemExit(f"{kind.__name__}.{key} is not described: add it to its docstring or to MEANINGS")
    return known.replace("``", "`").replace("|", "\\|")


def described(kind: type[Config]) -> dict[str, str]:
    """The arguments that docstrings tell of."""
    out: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("\nArgs:\n")[2] if issubclass(base, Config) else ""
        for found in re.finditer(r"^    (\w+): (.*?)(?=^    \w|^\S|\Z)", text, re.S | re.M):
            said = " ".join(found[2].split())
            out[found[1]] = said[0].upper() + said[1:]
    return out


def option(name: str, key: str) -> str | None:
    """Its help, by the command itself or by one that has it too."""
    for verb in [name, *tree()]:
        for param in tree()[verb].params if verb in tree() else ():
            if f"--{key.replace('_', '-')}" in param.opts and param.help:
                return str(param.help)
    return None


def typed(field: FieldInfo) -> str:
    """A type in words, with its limits."""
    marks = [f"{sign} {value:g}" for m in field.metadata for sign, value in limits(m)]
    return ", ".join([said(field.annotation), *marks])


def limits(mark: Any) -> list[tuple[str, float]]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return [(sign, getattr(mark, name)) for name, sign in signs.items() if getattr(mark, name, None) is not None]


def said(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(said(part) for part in inner if part is not type(None)))
    if origin is typing.Annotated:
        return ", ".join([said(inner[0]), *(f"{sign} {value:g}" for m in inner[1:] for sign, value in limits(m))])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (list, tuple):
        return f"list of {said(inner[0])}"
    if origin is dict:
        return "mapping"
    if inspect.isclass(kind) and issubclass(kind, Config):
        return "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}.get(kind, "any")


def default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or value in ({}, [], ()) or isinstance(value, Config):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
