"""What a model sees of rows, and which of their tokens are learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import Any

from instdiff.core import Log, Prompted
from instdiff.data import Pool
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.pieces import pieces
from instdiff.rendering.renderer import Renderer, Rows
from instdiff.rendering.templates import Template


class Part(Enum):
    """What a stretch of a row is."""

    CONTEXT = "context"
    RESPONSE = "response"
    FRAME = "frame"  # learnt besides the response: what begins it and what ends it


@dataclass(frozen=True)
class Shown:
    """A row as a model sees it: token ``ids`` up to the last that is learnt, and which of them are, in ``target``.

    ``row`` is its place in the input. ``parts`` are its text in stretches. A row with nothing to learn has a reason in
    ``why``, and no tokens. One that was cut at the length limit is ``truncated``. ``side`` is ``chosen`` or
    ``rejected`` where the row is a preference pair, and ``side_id`` the id of that conversation alone.
    """

    row: int
    id: str
    ids: list[int]
    target: list[bool]
    parts: list[tuple[Part, str]]
    why: str | None
    truncated: bool
    side: str | None = None
    side_id: str | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(text for _, text in self.parts)

    @property
    def runs(self) -> list[tuple[bool, str]]:
        """The text in stretches that are learnt and stretches that are not."""
        runs = groupby(self.parts, key=lambda part: part[0] is not Part.CONTEXT)
        return [(learnt, "".join(text for _, text in run)) for learnt, run in runs]

    @property
    def targets(self) -> list[str]:
        """The texts that are learnt, each as long as no context stands between."""
        return [text for learnt, text in self.runs if learnt]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        facts = {"row": self.row, "id": self.id, "ids": self.ids, "target": self.target}
        facts |= {"side": self.side, "side_id": self.side_id} if self.side else {}
        return {**facts, "text": self.text, "targets": self.targets, "why": self.why}


def show(pool: Pool, tokenizer: HFTokenizer, layout: Template, max_length: int, log: Log) -> Iterator[Shown]:
    """Every row of a pool as training would see it, in order, and of a pair both sides.

    The log is told what rendering them found.
    """
    if not pool.pairs.any():
        yield from _show(pool, tokenizer, layout, max_length, log)
        return
    told = set[str]()
    sides = {name: pool.side(name) for name in ("chosen", "rejected")}
    lines = (_show(side, tokenizer, layout, max_length, _once(log, told)) for side in sides.values())
    for name, pair, *both in zip(pool.ids, pool.pairs.tolist(), *lines, strict=True):
        if not pair:
            yield both[0]
        else:
            yield from (replace(one, id=name, side=at, side_id=one.id) for at, one in zip(sides, both, strict=True))


def _once(log: Log, told: set[str]) -> Log:
    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            log(line)

    return tell


def _show(pool: Pool, tokenizer: HFTokenizer, layout: Template, max_length: int, log: Log) -> Iterator[Shown]:
    renderer = Renderer(pool, tokenizer)
    rows, scored = renderer.training_rows(layout, max_length), renderer.rows(Prompted(), layout, max_length)
    for line in renderer.report():
        log(line)
    numbers = pool.rows.tolist()
    for at, name in enumerate(pool.ids):
        ids, target, response = rows.ids[at].tolist(), _marks(rows, at), _marks(scored, at)
        # Rows of which the end is not scored are shorter.
        response += [False] * (len(ids) - len(response))
        why = rows.reason[at]
        texts = pieces(tokenizer.hf, ids)
        parts = _parts(texts, target, response)
        yield Shown(numbers[at], name, ids, target, parts, None if why is None else str(why), bool(rows.truncated[at]))


def _marks(rows: Rows, at: int) -> list[bool]:
    marks: list[bool] = rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]].tolist()
    return marks


def _parts(texts: list[str], target: list[bool], response: list[bool]) -> list[tuple[Part, str]]:
    """Neighbouring tokens of a kind together."""
    kinds = [
        Part.CONTEXT if not learnt else Part.RESPONSE if said else Part.FRAME
        for learnt, said in zip(target, response, strict=True)
    ]
    runs = groupby(zip(kinds, texts, strict=True), key=lambda one: one[0])
    return [(kind, "".join(text for _, text in run)) for kind, run in runs]
