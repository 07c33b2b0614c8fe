"""Views beyond a sample's own prompt and response: the prompt alone, questions about it, other rows before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from instdiff.core import Asked
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import Message, Sample
from instdiff.rendering.chat_tokens import KINDS
from instdiff.rendering.questions import asked_about, questions
from instdiff.rendering.rows import Ids, Indices, Marks, Rows, RowsBuilder, without_prefix_token
from instdiff.rendering.templates import Kind, Template, TextTemplate, fill, is_target
from instdiff.rendering.tokenise import Tokenised, instruction_texts

_BLANK = "\0"
"""Stands for what a user says, where only the template is of interest."""
_NOTHING_LEARNT = ("empty_response", "no_target")
"""Reasons that do not keep a prompt from being shown."""


# ── the prompt, and questions ─────────────────────────────────────────────────────────────────────────────────────────


def prompt_only(texts: Tokenised, layout: Template, limit: int) -> Rows:
    """Prompts up to where the first response starts; what is longer loses its end.

    Marked is what the prompt does not share with the same template around nothing, at its beginning and at its end:
    the instruction and its input, and whatever stands between them. The first token is never marked. No response is
    needed.
    """
    parts = texts.parts(layout, limit)
    bos = texts.tokenizer.bos if isinstance(layout, TextTemplate) else None
    lead = np.array([] if bos is None else [bos], np.int32)
    frames: dict[bool, Ids] = {}
    context = KINDS.index(Kind.CONTEXT)
    out = RowsBuilder()
    for row, sample in enumerate(texts.pool.samples()):
        a, b = parts.rows[row : row + 2]
        answers = np.flatnonzero(parts.kinds[a:b] != context)
        if not any(text.strip() for text in instruction_texts(sample)):
            out.add_row(reason="empty_instruction")
            continue
        if len(answers):
            edges = parts.ids.offsets[[a, a + answers[0]]]
            own = parts.ids.values[edges[0] : edges[1]]
        else:
            found = None
            if parts.reason[row] in (None, *_NOTHING_LEARNT):
                (found,) = texts.before(layout, [_with_blank_answer(sample, texts.pool.targets)])
            own = np.array(found or [], np.int32)
        if len(own) == 0:
            reason = parts.reason[row]
            out.add_row(reason="unrenderable" if reason in (None, *_NOTHING_LEARNT) else reason)
            continue
        extra = bool(sample.input)
        if extra not in frames:
            frames[extra] = _frame(texts, layout, extra)
        mark = _between(own, frames[extra])
        ids, mark = np.concatenate([lead, own])[:limit], np.concatenate([np.zeros(len(lead), bool), mark])[:limit]
        mark[:1] = False
        cut = len(lead) + len(own) > limit
        if mark.any():
            out.add_row(ids, mark, cut)
        else:
            out.add_row(cut=cut, reason="too_long" if cut else "too_short")
    return out.rows()


def _with_blank_answer(sample: Sample, targets: str) -> Sample:
    """What stands before the first turn that is to be learnt, or everything, with a response in its place."""
    turns = sample.messages
    end = next((at for at in range(len(turns)) if is_target(turns, at, targets)), len(turns))
    return Sample((*turns[:end], Message("assistant", "1")), sample.tools)


def _frame(texts: Tokenised, layout: Template, extra: bool) -> Ids:
    """Token ids of a template's prompt around nothing."""
    messages = (Message("user", _BLANK, _BLANK if extra else ""), Message("assistant", "1"))
    (found,) = texts.before(layout, [Sample(messages)])
    return np.array([] if found is None else found, np.int32)


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


def ask_questions(texts: Tokenised, view: Asked, layout: Template, limit: int) -> Rows:
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

    out = RowsBuilder()
    for samples in texts.chunks():
        about = [asked_about(view, sample) for sample in samples]
        said = [asks.ask(view.number, one) if one else "" for one in about]
        found: Sequence[list[int] | None]
        if chat:
            asked = iter(texts.before(layout, [turn(text) for text in said if text]))
            found = [next(asked) if text else [] for text in said]
        else:
            found = tokenizer.encode([plain(text) for text in said])
        for one, ids in zip(about, found, strict=True):
            if not one:
                out.add_row(reason="empty_response")
            elif ids is None:
                out.add_row(reason="unrenderable")
            elif len(lead) + len(ids) + 1 > limit:
                out.add_row(reason="too_long")
            else:
                row = np.array([*lead, *ids, dummy], np.int32)
                out.add_row(row, np.arange(len(row)) == len(row) - 1)
    return out.rows()


# ── other rows before a row ───────────────────────────────────────────────────────────────────────────────────────────


def put_demonstrations(
    rows: Rows,
    neighbours: Indices,
    whole: Rows,
    join_ids: Sequence[int],
    limit: int,
    *,
    prefix_token: int | None = None,
) -> Rows:
    """Rows of the prompted view after demonstrations, the farthest first and the nearest last; targets are unchanged.

    A row itself is kept whole, so the context loses its beginning where both do not fit in ``limit``; a row that leaves
    no room for any is ``too_long``, and one that has no demonstration ``no_neighbour``. ``neighbours`` [rows, shots]
    are row numbers, nearest first, -1 for none; ``whole`` is the prompted view with end tokens, of which
    ``prefix_token``, the token that starts a row, is taken off. ``join_ids`` stand after each demonstration.
    """
    out = RowsBuilder()
    joint = np.array(join_ids, np.int32)
    target = Ragged(rows.target, rows.ids.offsets)
    for row, near in enumerate(neighbours.tolist()):
        shown = [other for other in reversed(near) if other >= 0 and len(whole.ids[other])]
        if rows.reason[row] is not None or not shown:
            out.add_row(reason=rows.reason[row] or "no_neighbour")
            continue
        context = np.concatenate(
            [part for other in shown for part in (without_prefix_token(whole.ids[other], prefix_token), joint)]
        )
        out.add_after(context, rows.ids[row], target[row], bool(rows.truncated[row]), limit, prefix_token)
    return out.rows()


def anchors_of(rows: Rows, limit: int) -> Marks:
    """Rows that can be anchors: cut to ``limit`` tokens they still have a target."""
    target = Ragged(rows.target, rows.ids.offsets)
    first = [int(np.argmax(marks)) if len(marks := target[row]) else limit for row in range(len(rows))]
    return np.array(first, np.int64) < limit


def cut_anchors(rows: Rows, anchors: Indices, limit: int) -> Rows:
    """The anchors by themselves, a row for each, cut to ``limit`` tokens; a ValueError where no target is left."""
    few = rows.take(np.asarray(anchors, np.int64))
    if not anchors_of(few, limit).all():
        raise ValueError(f"an anchor has no target within its first {limit} tokens; see anchors_of")
    target = Ragged(few.target, few.ids.offsets)
    out = RowsBuilder()
    for row in range(len(few)):
        out.add_row(few.ids[row][:limit], target[row][:limit], len(few.ids[row]) > limit)
    return out.rows()


def put_before_anchors(
    rows: Rows,
    whole: Rows,
    anchors: Indices,
    limit: int,
    *,
    most: int,
    join_ids: Sequence[int] = (),
    prefix_token: int | None = None,
) -> Rows:
    """Every row as the demonstration before each anchor; the rows of a sample stand together, in the anchors' order.

    Targets are those of ``cut_anchors``, so that both tell of the same tokens. An anchor is also shown to itself. A
    demonstration and an anchor have ``most`` tokens; what is longer loses its beginning. The others are as of
    ``put_demonstrations``. An anchor that has no target within its limit is a ValueError.
    """
    few = cut_anchors(rows, anchors, limit)
    target = Ragged(few.target, few.ids.offsets)
    joint = np.array(join_ids, np.int32)
    out = RowsBuilder()
    for row in range(len(rows)):
        shown = without_prefix_token(whole.ids[row], prefix_token)
        context = np.concatenate([shown, joint]) if len(shown) else shown
        for anchor in range(len(few)):
            if len(shown):
                out.add_after(context, few.ids[anchor], target[anchor], bool(few.truncated[anchor]), most, prefix_token)
            else:
                out.add_row(reason=whole.reason[row] or "no_context")
    return out.rows()
