"""Other rows before a row under a chat template: earlier turns of one conversation, which is rendered once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from instdiff.data import Message, Sample
from instdiff.rendering.chat_tokens import KINDS, Run
from instdiff.rendering.rows import Ids, Indices, Marks, Rows, RowsBuilder
from instdiff.rendering.templates import ChatTemplate, Kind
from instdiff.rendering.tokenise import CHUNK, Tokenised
from instdiff.rendering.views import cut_anchors

_RESPONSE = KINDS.index(Kind.RESPONSE)


@dataclass(frozen=True)
class _Talk:
    """A row after others, the farthest first, of whose targets so many are asked for; or a reason why there is none."""

    others: tuple[Sample, ...] = ()
    own: Sample | None = None
    targets: int = 0
    cut: bool = False
    reason: str | None = None


def converse(texts: Tokenised, layout: ChatTemplate, rows: Rows, neighbours: Indices, limit: int) -> Rows:
    """Rows of the prompted view after demonstrations, the farthest first and the nearest last.

    ``neighbours`` [rows, shots] are row numbers, nearest first, -1 for none. Where a conversation is longer than
    ``limit`` it loses its farthest demonstrations, and the last one its beginning. A row that leaves no room for any is
    ``too_long``, and one that has no demonstration ``no_neighbour``.
    """
    counts = rows.n_targets()

    def talks() -> Iterator[_Talk]:
        for row, (near, own) in enumerate(zip(neighbours.tolist(), texts.pool.samples(), strict=True)):
            shown = [other for other in reversed(near) if other >= 0 and len(rows.ids[other])]
            if rows.reason[row] is not None or not shown:
                yield _Talk(reason=rows.reason[row] or "no_neighbour")
            elif len(rows.ids[row]) >= limit:
                yield _Talk(cut=True, reason="too_long")
            else:
                others = tuple(texts.pool.sample(other) for other in shown)
                yield _Talk(others, own, int(counts[row]), bool(rows.truncated[row]))

    return _rows(texts, layout, talks(), limit)


def converse_with_anchors(
    texts: Tokenised, layout: ChatTemplate, rows: Rows, anchors: Indices, limit: int, *, most: int
) -> Rows:
    """Every row as the demonstration before each anchor; the rows of a sample stand together, in the anchors' order.

    Asked for are as many tokens as ``cut_anchors`` has targets. A conversation has at most ``most`` tokens; what is
    longer loses its beginning.
    """
    few = cut_anchors(rows, anchors, limit)
    counts, asked = few.n_targets().tolist(), [texts.pool.sample(int(row)) for row in anchors]

    def talks() -> Iterator[_Talk]:
        for row, sample in enumerate(texts.pool.samples()):
            for number, anchor in enumerate(asked):
                if rows.reason[row] is not None:
                    yield _Talk(reason=rows.reason[row])
                elif len(few.ids[number]) >= most:
                    yield _Talk(cut=True, reason="too_long")
                else:
                    yield _Talk((sample,), anchor, counts[number], bool(few.truncated[number]))

    return _rows(texts, layout, talks(), most)


def conversation(own: Sample, others: Iterable[Sample]) -> Sample:
    """One conversation: the row's system turns, the others' turns, of which none is learnt, and the row's own."""
    system = [turn for turn in own.messages if turn.role == "system"]
    before = [_unlearnt(turn) for other in others for turn in other.messages if turn.role != "system"]
    turns = [turn for turn in own.messages if turn.role != "system"]
    return replace(own, messages=(*system, *before, *turns))


def _unlearnt(turn: Message) -> Message:
    return replace(turn, learn=False) if turn.role == "assistant" else turn


def _rows(texts: Tokenised, layout: ChatTemplate, talks: Iterable[_Talk], limit: int) -> Rows:
    out = RowsBuilder()
    talks = iter(talks)
    while some := list(islice(talks, CHUNK)):
        open_ = {number: talk for number, talk in enumerate(some) if talk.own is not None}
        done: dict[int, tuple[Ids, Marks, bool]] = {}
        while open_:
            samples = [conversation(talk.own, talk.others) for talk in open_.values() if talk.own is not None]
            for number, runs in zip(list(open_), texts.talks(layout, samples), strict=True):
                talk = open_.pop(number)
                ids, marks = _until(runs, talk.targets)
                if len(ids) > limit and len(talk.others) > 1:
                    open_[number] = replace(talk, others=talk.others[1:], cut=True)
                else:
                    done[number] = ids[-limit:], marks[-limit:], talk.cut or len(ids) > limit
        for number, talk in enumerate(some):
            if number not in done:
                out.add_row(cut=talk.cut, reason=talk.reason)
            elif done[number][1].any():
                out.add_row(*done[number])
            else:
                out.add_row(cut=done[number][2], reason="unrenderable")
    return out.rows()


def _until(runs: Sequence[Run], targets: int) -> tuple[Ids, Marks]:
    """A row up to its target of this number."""
    ids = np.array([token for part, _ in runs for token in part], np.int32)
    marks = np.repeat([kind == _RESPONSE for _, kind in runs], [len(part) for part, _ in runs]).astype(bool)
    at = np.flatnonzero(marks)[:targets]
    end = at[-1] + 1 if len(at) else 0
    return ids[:end], marks[:end]
