"""Prompts with their pass rates for trainers that draw answers themselves, and rows that the model answered itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from instdiff.data import Message, Pool, Sample, load
from instdiff.data.formats import FORMATS
from instdiff.data.write import write_jsonl, write_rows
from instdiff.errors import ConfigError
from instdiff.rendering.posed import prompt
from instdiff.selection.export.asked import Asked, Exported
from instdiff.selection.export.layouts import messages, turns_of

if TYPE_CHECKING:
    from instdiff.scoring.drawn import Drawn

RESPONSES = ("first", "shortest")
ABILITIES = {"math": "math", "code": "code"}


def grpo(asked: Asked) -> Exported:
    """``prompt``, ``answer`` and ``pass_rate`` for TRL's GRPO: what stands beside the prompt goes to the reward."""
    path = asked.free(f"{asked.name}.jsonl")

    def row(at: int, turns: list[dict[str, Any]], one: Drawn, own: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": turns, "answer": truth(one), "pass_rate": one.rate}

    rows, left = _rows(asked, row)
    write_jsonl(path, (json.dumps(one, ensure_ascii=False) for one in rows))
    say = f"{path} is a data set for trl.GRPOTrainer; your reward function is given 'answer' and 'pass_rate'"
    return Exported([path], len(rows), "prompts", say, left_out=left)


def verl(asked: Asked) -> Exported:
    """Parquet as verl reads it: ``data_source``, ``prompt``, ``ability``, ``reward_model``, ``extra_info``."""
    path = asked.free(f"{asked.name}.parquet")

    def row(at: int, turns: list[dict[str, Any]], one: Drawn, own: dict[str, Any]) -> dict[str, Any]:
        style = "model" if one.check.how == "judge" else "rule"
        about = {"split": "train", "index": at, "pass_rate": one.rate, "drawn": one.drawn}
        return {
            "data_source": str(own.get("data_source") or asked.name),
            "prompt": turns,
            "ability": ABILITIES.get(one.check.how, "text"),
            "reward_model": {"style": style, "ground_truth": truth(one)},
            "extra_info": about,
        }

    rows, left = _rows(asked, row)
    write_rows(path, lambda: (json.dumps(one, ensure_ascii=False) for one in rows), {})
    say = (
        f"train with data.train_files={path.as_posix()}; verl chooses the reward by 'data_source', which is the rows' "
        "own where they have one, else the name of this export"
    )
    return Exported([path], len(rows), "prompts", say, left_out=left)


def truth(one: Drawn) -> str:
    """What an answer is held against: the right one, or the tests of a program."""
    return one.check.tests or one.check.gold


def _rows(
    asked: Asked, make: Callable[[int, list[dict[str, Any]], Drawn, dict[str, Any]], dict[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """The rows that have a rate, and how many have none."""
    if asked.layout not in ("auto", "prompts"):
        raise ConfigError(f"prompts have one layout, and --layout is '{asked.layout}'; leave it out")
    assert asked.drawn is not None
    known = [at for at, one in enumerate(asked.drawn) if one.drawn]
    some = asked.pool.take(known)
    rows = zip(some.rows.tolist(), some.samples(), known, some.source_rows(), strict=True)
    out = [
        make(number, turns_of(prompt(sample, some.targets).messages), asked.drawn[at], own)
        for number, sample, at, own in rows
    ]
    return out, len(asked.pool) - len(out)


def answered(pool: Pool, drawn: Sequence[Drawn], which: str) -> Pool:
    """The rows with a right answer that the model drew in the place of the response, as messages.

    Rows without one are left out; a ConfigError where none has one.
    """
    parts = {column for name in pool.format.split("+") if name in FORMATS for column in FORMATS[name].columns}
    rows = []
    for sample, own, one in zip(pool.samples(), pool.source_rows(), drawn, strict=True):
        said = one.pick(which)
        if said is None:
            continue
        before = prompt(sample, pool.targets)
        turns = tuple(replace(m, learn=False) if m.role == "assistant" else m for m in before.messages)
        made = Sample((*turns, Message("assistant", said)), before.tools, before.template_values)
        rows.append({**messages(made), **{name: value for name, value in own.items() if name not in parts}})
    if not rows:
        raise ConfigError(f"none of the {len(pool):,} rows has a right answer among those that were drawn")
    return load(rows, format="messages", **asdict(pool.turns))
