"""Views beyond a sample's own prompt and response: questions about it, noise on it, other rows before it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from instdiff.core import Asked
from instdiff.data import Message, Sample
from instdiff.rendering.questions import questions
from instdiff.rendering.rows import Ids, Marks, RowByRowBuilder, Rows
from instdiff.rendering.templates import Kind, Segment, Template, TextTemplate, fill, is_target, text_segments
from instdiff.rendering.tokenise import KINDS, Tokenised, Tokenizer, instruction_texts

_BLANK = "\0"
"""Stands for what a user says, where only the template is of interest."""


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
    out = RowByRowBuilder()
    for row, sample in enumerate(texts.pool.samples()):
        a, b = parts.rows[row : row + 2]
        answers = np.flatnonzero(parts.kinds[a:b] == said)
        if not any(text.strip() for text in instruction_texts(sample)):
            out.add(reason="empty_instruction")
            continue
        if len(answers):
            edges = parts.ids.offsets[[a, a + answers[0]]]
            own = parts.ids.values[edges[0] : edges[1]]
        else:
            found = (
                None
                if parts.reason[row]
                else _before(texts.tokenizer, layout, _with_blank_answer(sample, texts.pool.targets))
            )
            own = np.array(found or [], np.int32)
        if len(own) == 0:
            out.add(reason=parts.reason[row] or "unrenderable")
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
            out.add(cut=cut, reason="too_long" if cut else "too_short")
    return out.rows()


def _with_blank_answer(sample: Sample, targets: str) -> Sample:
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

    out = RowByRowBuilder()
    for samples in texts.chunks():
        said = [asks.ask(view.number, sample) if sample.response else "" for sample in samples]
        found: Sequence[list[int] | None]
        if chat:
            found = [_before(tokenizer, layout, turn(text)) if text else [] for text in said]
        else:
            found = tokenizer.encode([plain(text) for text in said])
        for sample, ids in zip(samples, found, strict=True):
            if not sample.response:
                out.add(reason="empty_response")
            elif ids is None:
                out.add(reason="unrenderable")
            elif len(lead) + len(ids) + 1 > limit:
                out.add(reason="too_long")
            else:
                row = np.array([*lead, *ids, dummy], np.int32)
                out.add(row, np.arange(len(row)) == len(row) - 1)
    return out.rows()


# ── noise ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


# ── other rows before a row ───────────────────────────────────────────────────────────────────────────────────────────
