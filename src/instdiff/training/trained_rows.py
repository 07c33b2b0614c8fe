"""Which rows a model was trained on: a file beside its weights, which tells whether it may judge a row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from instdiff.core import ModelRef

TRAINED_ROWS = "trained_rows.tsv"


@dataclass(frozen=True)
class TrainedRows:
    """The ids of rows, and the groups of their prompts (see ``prompt_groups``)."""

    ids: frozenset[str]
    groups: frozenset[str]


def text_of(ids: Iterable[str], groups: Iterable[str], reason: Iterable[str | None]) -> str:
    """The file: a line for each row that has no reason to be left out, without repetitions."""
    rows = zip(ids, groups, reason, strict=True)
    return "".join(sorted({f"{name}\t{group}\n" for name, group, why in rows if why is None}))


def trained_rows(model: ModelRef) -> TrainedRows | None:
    """What a model was trained on; None where nothing says so."""
    path = Path(model.adapter or model.where).expanduser() / TRAINED_ROWS
    if not path.is_file():
        return None
    pairs = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return TrainedRows(frozenset(pair[0] for pair in pairs), frozenset(pair[-1] for pair in pairs))
