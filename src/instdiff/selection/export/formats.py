"""The formats: one function for each trainer, and the rows as they are."""

from __future__ import annotations

from collections.abc import Callable

from instdiff.errors import ConfigError
from instdiff.selection.export.asked import Asked, Exported
from instdiff.selection.export.axolotl import axolotl
from instdiff.selection.export.llamafactory import llamafactory
from instdiff.selection.export.prompts import grpo, verl
from instdiff.selection.export.tabular import write_parquet
from instdiff.selection.export.trl import trl


def jsonl(asked: Asked) -> Exported:
    """The input's own rows; a ConfigError where a layout is asked for."""
    _own_layout(asked, "jsonl")
    path = asked.free(f"{asked.name}.jsonl")
    asked.pool.to_jsonl(path)
    return Exported([path], len(asked.pool), "own", f"{path} has the rows as they are in the input")


def parquet(asked: Asked, name: str | None = None) -> Exported:
    """The input's own rows, or messages where parquet would change them; a ConfigError where a layout is asked for."""
    _own_layout(asked, "parquet")
    path = asked.free(name or f"{asked.name}.parquet")
    layout, changed = write_parquet(asked.pool, path)
    if layout != "own":
        asked.log("parquet has one type for each column, which would change these rows: they are written as messages")
    if changed:
        asked.log(f"{changed:,} rows say the same but are divided otherwise, so instdiff gives them other ids")
    how = "as they are in the input" if layout == "own" else "as messages"
    return Exported([path], len(asked.pool), layout, f"{path} has the rows {how}", None, changed)


def _own_layout(asked: Asked, format: str) -> None:
    if asked.layout not in ("auto", "own"):
        raise ConfigError(f"format '{format}' keeps the rows as they are; --layout '{asked.layout}' is for trainers")


OF_PROMPTS = ("grpo", "verl")
"""Formats of prompts with their pass rates."""
TRAINERS: dict[str, Callable[[Asked], Exported]] = {
    "llamafactory": llamafactory,
    "axolotl": axolotl,
    "trl": trl,
    "grpo": grpo,
    "verl": verl,
    "jsonl": jsonl,
    "parquet": parquet,
}
