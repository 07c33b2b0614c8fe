"""The reference pages: help texts as the program prints them, configuration keys as its schema has them."""

from __future__ import annotations

import datetime
import inspect
import types
import typing
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from instdiff.cli.app import Verb
from instdiff.cli.entry import app
from instdiff.config.base import Config
from instdiff.config.commands import DataConfig, ExecutorConfig, RunConfig, TemplateConfig
from instdiff.config.compare import Variant
from instdiff.config.pipeline import EvalPart, ScorePart, SelectPart, SelectTrainPart, WarmupPart
from instdiff.config.train import TrainSettings

WIDTH = 78
"""Columns of a help text in a terminal of 80."""

PARTS: dict[str, type[Config]] = {
    "data": DataConfig,
    "rendering": TemplateConfig,
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


def configured() -> dict[str, type[Config]]:
    """The classes of commands that take a configuration file."""
    return {name: one.kind() for name, one in app.commands.items() if isinstance(one, Verb) and "config" in one.keys}


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
    for name, one in app.commands.items():
        out += [[name], *([name, inner] for inner in getattr(one, "commands", ()))]
    return out


def helped(words: list[str]) -> str:
    one: Any = app
    context = app.make_context("instdiff", [], resilient_parsing=True, terminal_width=WIDTH)
    for word in words:
        one = one.commands[word]
        context = one.make_context(word, [], parent=context, resilient_parsing=True)
    return "\n".join(line.rstrip() for line in click.unstyle(one.get_help(context)).rstrip().splitlines())


def keys(name: str) -> str:
    """The table of a part, or of the keys that a command has for itself."""
    kind = PARTS[name] if name in PARTS else configured()[name]
    inherited = {} if name in PARTS else shared(kind)
    heads = "| key | type | default | meaning |\n|---|---|---|---|"
    rows = [
        f"| `{key}` | {typed(field)} | {default(field)} | {meaning(kind, key)} |"
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
    for label in ("data", "running", "rendering", "executor"):
        base = PARTS[label]
        if issubclass(kind, base):
            fields = base.model_fields.items()
            out |= {key: label for key, field in fields if key not in out and same(field, kind.model_fields[key])}
    return out


def same(one: FieldInfo, other: FieldInfo) -> bool:
    return (typed(one), default(one), one.description) == (typed(other), default(other), other.description)


def meaning(kind: type[Config], key: str) -> str:
    """As the class says it."""
    said = kind.model_fields[key].description
    if not said:
        raise SystemExit(f"{kind.__name__}.{key} is not described: make it with `key`")
    return said.replace("|", "\\|")


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
    return {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", datetime.date: "date"}.get(
        kind, "any"
    )


def default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or value in ({}, [], ()) or isinstance(value, Config):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
