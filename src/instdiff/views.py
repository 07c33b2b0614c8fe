"""Views beyond a sample's own prompt and response: questions about it, noise on it, other rows before it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from instdiff.core import Asked, Joint, Noisy, Prompted, Reasons, ResponseOnly, View
from instdiff.data import Message, Sample
from instdiff.questions import questions
from instdiff.ragged import Ragged, offsets_of
from instdiff.rows import Counts, Filling, Marks, Noise, Rows
from instdiff.templates import Kind, Segment, Template, TextTemplate, fill, is_target, text_segments
from instdiff.tokenised import KINDS, Tokenised, Tokenizer, instruction_texts

Ids = npt.NDArray[np.int32]

_BLANK = "\0"
"""Stands for what a user says, where only the template is of interest."""
_AT_ONCE = 1 << 10
"""Rows put together before they are handed on."""


# ── the prompt, and questions ─────────────────────────────────────────────────────────────────────────────────────────


def prompt_only(texts: Tokenised, layout: Template, limit: int) -> Rows:
    """Prompts up to where the first response starts; what is longer loses its end.

    Marked is what the prompt does not share with the same template around nothing, at its beginning and at its end:
    the instruction and its input, and whatever stands between them. The first token is never marked. No response is
    needed.
    """
    parts = texts.parts(layout)
    bos = texts.tokenizer.bos if isinstance(layout, TextTemplate) else None
    lead = np.array([] if bos is None else [bos], np.int32)
    frames: dict[bool, Ids] = {}
    said = KINDS.index(Kind.RESPONSE)
    out = _Built()
    for row, sample in enumerate(texts.pool.samples()):
        a, b = parts.rows[row : row + 2]
        answers = np.flatnonzero(parts.kinds[a:b] == said)
        if not any(text.strip() for text in instruction_texts(sample)):
            out.add(why="empty_instruction")
            continue
        if len(answers):
            edges = parts.ids.offsets[[a, a + answers[0]]]
            own = parts.ids.values[edges[0] : edges[1]]
        else:
            found = None if parts.why[row] else _before(texts.tokenizer, layout, _answered(sample, texts.pool.targets))
            own = np.array(found or [], np.int32)
        if len(own) == 0:
            out.add(why=parts.why[row] or "unrenderable")
            continue
        extra = bool(sample.input)
        if extra not in frames:
            frames[extra] = _frame(texts.tokenizer, layout, extra)
        mark = _between(own, frames[extra])
        ids, mark = np.concatenate([lead, own])[:limit], np.concatenate([np.zeros(len(lead), bool), mark])[:limit]
        mark[:1] = False
        cut = len(lead) + len(own) > limit
        if mark.any():
            out.add(ids, mark, cut)
        else:
            out.add(cut=cut, why="too_long" if cut else "too_short")
    return out.rows()


def _answered(sample: Sample, targets: str) -> Sample:
    """What stands before the first turn that is to be learnt, or everything, with a response in its place."""
    turns = sample.messages
    end = next((at for at in range(len(turns)) if is_target(turns, at, targets)), len(turns))
    return Sample((*turns[:end], Message("assistant", "1")), sample.tools)


def _frame(tokenizer: Tokenizer, layout: Template, extra: bool) -> Ids:
    """Token ids of a template's prompt around nothing."""
    messages = (Message("user", _BLANK, _BLANK if extra else ""), Message("assistant", "1"))
    found = _before(tokenizer, layout, Sample(messages))
    return np.array([] if found is None else found, np.int32)


def _before(tokenizer: Tokenizer, layout: Template, sample: Sample) -> list[int] | None:
    """Token ids of all that stands before the last response of a sample; None where it cannot be rendered."""
    try:
        segments: list[Segment] = (
            text_segments(sample, layout, "last")
            if isinstance(layout, TextTemplate)
            else tokenizer.chat(sample, layout, "last")
        )
    except ValueError:
        return None
    if not any(segment.kind is Kind.RESPONSE for segment in segments):
        return None
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    first = list(takewhile(lambda segment: segment.kind is not Kind.RESPONSE, segments))
    rows = tokenizer.encode([segment.text or "" for segment in first])
    return [token for s, ids in zip(first, rows, strict=True) for token in (end if s.text is None else ids)]


def _between(own: npt.NDArray[np.int32], frame: Ids) -> Marks:
    """Which tokens lie between the longest beginning and the longest end that are the frame's too."""
    most = min(len(own), len(frame))
    alike = own[:most] == frame[:most]
    head = most if alike.all() else int(np.argmin(alike))
    most -= head
    alike = own[len(own) - most :][::-1] == frame[len(frame) - most :][::-1]
    tail = most if alike.all() else int(np.argmin(alike))
    mark = np.zeros(len(own), bool)
    mark[head : len(own) - tail] = True
    return mark


def asked(texts: Tokenised, view: Asked, layout: Template, limit: int) -> Rows:
    """Questions about samples, each followed by one token that stands for the answer and is the only target.

    Under a chat template the question is a user's turn. Under any other it is plain text after the start token, if the
    tokenizer adds one: the template of a sample's prompt has no place for it. Which token stands for the answer does
    not matter, since only what is predicted in its place is read. Nothing is cut, since the question's end asks it.
    """
    asks, tokenizer = questions(view.prompt), texts.tokenizer
    chat = not isinstance(layout, TextTemplate)
    dummy = next(token for token in (tokenizer.start, tokenizer.eos, 0) if token is not None)
    lead = [] if chat or tokenizer.bos is None else [tokenizer.bos]

    def plain(text: str) -> str:
        before = fill(TextTemplate("", "{instruction}").system, system=asks.system) if asks.system else ""
        return before + text

    def turn(text: str) -> Sample:
        system = (Message("system", asks.system),) if asks.system else ()
        return Sample((*system, Message("user", text), Message("assistant", "1")))

    out = _Built()
    for samples in texts.chunks():
        said = [asks.ask(view.number, sample) if sample.response else "" for sample in samples]
        found: Sequence[list[int] | None]
        if chat:
            found = [_before(tokenizer, layout, turn(text)) if text else [] for text in said]
        else:
            found = tokenizer.encode([plain(text) for text in said])
        for sample, ids in zip(samples, found, strict=True):
            if not sample.response:
                out.add(why="empty_response")
            elif ids is None:
                out.add(why="unrenderable")
            elif len(lead) + len(ids) + 1 > limit:
                out.add(why="too_long")
            else:
                row = np.array([*lead, *ids, dummy], np.int32)
                out.add(row, np.arange(len(row)) == len(row) - 1)
    return out.rows()


# ── noise ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def prompted(view: View) -> View:
    """The view by whose tokens noise is sized: the response with its prompt."""
    if isinstance(view, ResponseOnly):
        return Prompted()
    return replace(view, alone=None, slack=0) if isinstance(view, Joint) else view


def first_address(view: View, tokenizer: Tokenizer) -> int | str | None:
    """See ``Noise.first``."""
    if isinstance(view, ResponseOnly):
        return 0 if (tokenizer.start if view.context else tokenizer.bos) is None else None
    if isinstance(view, Joint) and view.alone == "":
        return 0 if tokenizer.bos is None else None
    return "prompted"


def noisy(rows: Rows, counterpart: Rows, view: Noisy, names: Sequence[str], first: int | str | None) -> Rows:
    """Rows with noise, sized by the tokens of their counterparts.

    Rows of equal content get equal noise, so that neither order nor copies change a number.
    """
    tail = f"|{view.seed}|{view.draw}".encode()
    digests = b"".join(hashlib.blake2b(name.encode() + tail, digest_size=8, key=b"noise").digest() for name in names)
    tokens = np.maximum(counterpart.ids.lengths(), 1)
    return replace(rows, noise=Noise(view.alpha, np.frombuffer(digests, "<i8").astype(np.int64), tokens, first))


# ── other rows before a row ───────────────────────────────────────────────────────────────────────────────────────────


def demonstrated(
    rows: Rows, neighbours: Counts, whole: Rows, join_ids: Sequence[int], limit: int, *, lead: int | None = None
) -> Rows:
    """Rows after demonstrations, the farthest first and the nearest last; targets are the rows' own, unchanged.

    A row itself is kept whole, so the context loses its beginning where both do not fit; a row that leaves no room for
    any is ``too_long``, and one that has no demonstration ``no_neighbour``.

    Args:
        rows: the prompted view.
        neighbours: [rows, shots] row numbers, nearest first, -1 for none.
        whole: what demonstrates: the prompted view with end tokens.
        join_ids: what stands after each demonstration.
        limit: tokens of a row with its context.
        lead: the token that starts a row, taken off all but the first.
    """
    out = _Built()
    joint = np.array(join_ids, np.int32)
    target = Ragged(rows.target, rows.ids.offsets)
    for row, near in enumerate(neighbours.tolist()):
        shown = [other for other in reversed(near) if other >= 0 and len(whole.ids[other])]
        if rows.why[row] is not None or not shown:
            out.add(why=rows.why[row] or "no_neighbour")
            continue
        context = np.concatenate([part for other in shown for part in (_bare(whole.ids[other], lead), joint)])
        out.after(context, rows.ids[row], target[row], bool(rows.truncated[row]), limit, lead)
    return out.rows()


def anchors_of(rows: Rows, limit: int) -> Marks:
    """Rows that can be anchors: cut to ``limit`` tokens they still have a target."""
    target = Ragged(rows.target, rows.ids.offsets)
    first = [int(np.argmax(marks)) if len(marks := target[row]) else limit for row in range(len(rows))]
    return np.array(first, np.int64) < limit


def alone(rows: Rows, anchors: Counts, limit: int) -> Rows:
    """The anchors by themselves, cut to ``limit`` tokens: a row for each.

    Raises:
        ValueError: an anchor has no target within the limit.
    """
    few = rows.take(np.asarray(anchors, np.int64))
    if not anchors_of(few, limit).all():
        raise ValueError(f"an anchor has no target within its first {limit} tokens; see anchors_of")
    target = Ragged(few.target, few.ids.offsets)
    out = _Built()
    for row in range(len(few)):
        out.add(few.ids[row][:limit], target[row][:limit], len(few.ids[row]) > limit)
    return out.rows()


def anchored(
    rows: Rows,
    whole: Rows,
    anchors: Counts,
    limit: int,
    *,
    most: int,
    join_ids: Sequence[int] = (),
    lead: int | None = None,
) -> Rows:
    """Every row as the demonstration before each anchor; the rows of a sample stand together, in the anchors' order.

    Targets are those of ``alone``, so that both tell of the same tokens. An anchor is also shown to itself.

    Args:
        rows: the prompted view.
        whole: what demonstrates: the prompted view with end tokens.
        anchors: row numbers.
        limit: tokens of an anchor; see ``anchors_of``.
        most: tokens of a demonstration with an anchor; what is longer loses its beginning.
        join_ids: what stands after a demonstration.
        lead: the token that starts a row, taken off all but the first.

    Raises:
        ValueError: an anchor has no target within its limit.
    """
    few = alone(rows, anchors, limit)
    target = Ragged(few.target, few.ids.offsets)
    joint = np.array(join_ids, np.int32)
    out = _Built()
    for row in range(len(rows)):
        shown = _bare(whole.ids[row], lead)
        context = np.concatenate([shown, joint]) if len(shown) else shown
        for anchor in range(len(few)):
            if len(shown):
                out.after(context, few.ids[anchor], target[anchor], bool(few.truncated[anchor]), most, lead)
            else:
                out.add(why=whole.why[row] or "no_context")
    return out.rows()


def _bare(ids: Ids, lead: int | None) -> Ids:
    return ids[1:] if lead is not None and len(ids) and ids[0] == lead else ids


class _Built:
    """Rows made one by one."""

    def __init__(self) -> None:
        self._out = Filling()
        self._parts: list[tuple[Ids, Marks, bool, str | None]] = []

    def add(
        self, ids: Ids | None = None, target: Marks | None = None, cut: bool = False, why: str | None = None
    ) -> None:
        """Append a row, or the reason why there is none."""
        nothing = np.zeros(0, np.int32)
        self._parts.append(
            (nothing if ids is None else ids, nothing.astype(bool) if target is None else target, cut, why)
        )
        if len(self._parts) == _AT_ONCE:
            self._hand_on()

    def after(self, context: Ids, ids: Ids, target: Marks, cut: bool, limit: int, lead: int | None) -> None:
        """Append a row behind as much of the end of a context as fits."""
        own = _bare(ids, lead)
        head = ids[: len(ids) - len(own)]
        room = limit - len(ids)
        if room <= 0:
            self.add(cut=True, why="too_long")
            return
        shown = context[-room:]
        marks = np.concatenate([np.zeros(len(head) + len(shown), bool), target[len(head) :]])
        self.add(np.concatenate([head, shown, own]), marks, cut or len(shown) < len(context))

    def rows(self) -> Rows:
        """All that were added."""
        self._hand_on()
        return self._out.rows()

    def _hand_on(self) -> None:
        parts, self._parts = self._parts, []
        if parts:
            ids, target, cut, why = zip(*parts, strict=True)
            words: Reasons = np.array([*why, None], object)[:-1]
            sizes = offsets_of([len(row) for row in ids])
            self._out.add(Ragged(np.concatenate(ids), sizes), np.concatenate(target), np.array(cut, bool), words)
