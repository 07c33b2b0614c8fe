"""The texts of a pool under one tokenizer: each is tokenised once, whatever is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from instdiff.core import Reasons
from instdiff.core.arrays.ragged import Ragged, offsets_of
from instdiff.core.arrays.spill import SpillingArray
from instdiff.core.columns import compact_reasons, concat_reasons
from instdiff.data import Pool, Sample, Turns
from instdiff.rendering.chat import ChatRenderer, Draft, Unscorable
from instdiff.rendering.chat_notes import said_of
from instdiff.rendering.chat_tokens import NUMBER, PlacingTokenizer, Run, tokenise_drafts
from instdiff.rendering.templates import (
    ChatTemplate,
    Kind,
    Segment,
    Template,
    TextTemplate,
    learns_answer,
    said,
    text_segments,
    thought_in,
    why_nothing,
)

CHUNK, CHUNK_CHARACTERS = 256, 1 << 22
"""Samples tokenised in one call: enough for the tokenizer to work in parallel, and few, since their many small objects
leave memory in pieces."""


class Tokenizer(PlacingTokenizer, Protocol):
    """What rendering needs of a tokenizer.

    ``bos`` is the start token that the tokenizer adds by itself, None where it adds none; ``start`` the one to put
    where a context is needed: BOS, or the end token of tokenizers without BOS. ``max_length`` is the model's context,
    ``longest`` the characters of its longest token.
    """

    bos: int | None
    start: int | None
    eos: int | None
    max_length: int | None

    @property
    def longest(self) -> int:
        """Characters of the longest token."""

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of each text; with ``special`` the tokenizer adds its own start and end tokens."""


@dataclass(frozen=True)
class Parts:
    """Tokenised segments, end to end: ``ids`` has a row for each, ``kinds`` what it is, as its place in ``KINDS``.

    ``rows`` says where each sample's segments start, and the end of the last; a sample that could not be rendered has a
    ``reason`` and no segments.
    """

    ids: Ragged
    kinds: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int64]
    reason: Reasons

    def counts(self) -> npt.NDArray[np.int64]:
        """Tokens per sample."""
        return np.diff(self.ids.offsets[self.rows])


Cut = Callable[[Sample], list[Segment]]
"""Makes segments of a sample."""


class Tokenised:
    """What has been tokenised of a pool stays here, so that all views and lengths are made of the same tokens.

    Responses are tokenised on their own, so they are the same under every text template.
    """

    def __init__(self, pool: Pool, tokenizer: Tokenizer) -> None:
        self.pool, self.tokenizer = pool, tokenizer
        self._layouts: dict[str, Parts] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self.notes: list[str] = []
        self._thinking: list[int] | None = None
        self._renderers: dict[tuple[str, Turns], ChatRenderer] = {}

    def parts(self, layout: Template, limit: int) -> Parts:
        """The segments of all samples under a template; those whose prompt cannot fit in ``limit`` have none."""
        how = self.pool.turns
        if isinstance(layout, TextTemplate):
            place = repr(layout)
            if place not in self._layouts:
                self._layouts[place] = self._collect(lambda sample: text_segments(sample, layout, how), self.responses)
                self._note_tools()
        else:
            place = f"{layout!r} {limit}"
            if place not in self._layouts:
                self._layouts[place] = self._collect_chats(ChatRenderer(self.tokenizer, layout, how), limit)
        return self._layouts[place]

    @cached_property
    def responses(self) -> Parts:
        """What is to be learnt of all samples: a segment per turn."""
        how = self.pool.turns
        return self._collect(
            lambda sample: [Segment(text, Kind.RESPONSE) for text in response_texts(sample, how)], None
        )

    def counts(
        self, name: str, texts_of: Callable[[Sample], list[str]], *, special: bool = False
    ) -> npt.NDArray[np.int64]:
        """Tokens of some texts of each sample; ``name`` tells them apart."""
        if name not in self._counts:
            found = []
            for samples in self.chunks():
                rows = [texts_of(sample) for sample in samples]
                sizes = [len(ids) for ids in self.tokenizer.encode(list(chain(*rows)), special=special)]
                found.append(Ragged(np.array(sizes, np.int64), offsets_of([len(row) for row in rows])).sum())
            self._counts[name] = np.concatenate([np.zeros(0), *found]).astype(np.int64)
        return self._counts[name]

    @property
    def thinking(self) -> list[int]:
        """The rows that have a thought."""
        if self._thinking is None:
            for _ in self.chunks():
                pass
        return self._thinking or []

    def chunks(self) -> Iterator[list[Sample]]:
        """All samples in order, as many at once as are tokenised in one call."""
        part: list[Sample] = []
        characters, thinking = 0, list[int]()
        for row, sample in enumerate(self.pool.samples()):
            if self._thinking is None and thinks(sample):
                thinking.append(row)
            part.append(sample)
            characters += sum(len(message.content) + len(message.input) for message in sample.messages)
            if len(part) == CHUNK or characters >= CHUNK_CHARACTERS:
                yield part
                part, characters = [], 0
        self._thinking = thinking if self._thinking is None else self._thinking
        if part:
            yield part

    def before(self, layout: Template, samples: Sequence[Sample]) -> list[list[int] | None]:
        """Token ids of all that stands before the last response of each sample; None where it cannot be rendered."""
        if isinstance(layout, TextTemplate):
            how = replace(self.pool.turns, targets="last")
            return [self._text_before(text_segments(sample, layout, how)) for sample in samples]
        context = NUMBER[Kind.CONTEXT]
        out: list[list[int] | None] = []
        for runs in self.talks(layout, samples, targets="last"):
            learnt = next((at for at, (_, kind) in enumerate(runs) if kind != context), None)
            out.append(None if learnt is None else [token for ids, _ in runs[:learnt] for token in ids])
        return out

    def talks(self, layout: ChatTemplate, samples: Sequence[Sample], targets: str | None = None) -> list[list[Run]]:
        """Tokens of samples that are not the pool's own, in runs of one kind; none of those that have no row."""
        how = self.pool.turns if targets is None else replace(self.pool.turns, targets=targets)
        if (repr(layout), how) not in self._renderers:
            self._renderers[repr(layout), how] = ChatRenderer(self.tokenizer, layout, how)
        renderer, drafts = self._renderers[repr(layout), how], dict[int, Draft]()
        for number, sample in enumerate(samples):
            with suppress(Unscorable):
                drafts[number] = renderer.draft(sample)
        found = dict(zip(drafts, tokenise_drafts(list(drafts.values()), self.tokenizer, renderer.note), strict=True))
        return [found.get(number, []) for number in range(len(samples))]

    def _text_before(self, segments: list[Segment]) -> list[int] | None:
        if not any(segment.kind is Kind.RESPONSE for segment in segments):
            return None
        end = [] if self.tokenizer.eos is None else [self.tokenizer.eos]
        first = list(takewhile(lambda segment: segment.kind is not Kind.RESPONSE, segments))
        rows = self.tokenizer.encode([segment.text or "" for segment in first])
        return [token for s, ids in zip(first, rows, strict=True) for token in (end if s.text is None else ids)]

    def _collect(self, cut: Cut, responses: Parts | None) -> Parts:
        """Tokenise the segments that ``cut`` makes, but for responses that are there already."""
        out = _PartsBuilder()
        end = [] if self.tokenizer.eos is None else [self.tokenizer.eos]
        known, targets = 0, self.pool.turns.targets
        for samples in self.chunks():
            rows = [cut(sample) for sample in samples]
            segments = [segment for row in rows for segment in row]
            there = [responses is not None and segment.kind is Kind.RESPONSE for segment in segments]
            new = [s.text for s, old in zip(segments, there, strict=True) if s.text is not None and not old]
            encoded = iter(self.tokenizer.encode(new))
            ids: list[Sequence[int]] = []
            for segment, old in zip(segments, there, strict=True):
                if old and responses is not None:
                    ids.append(responses.ids[known].tolist())
                    known += 1
                else:
                    ids.append(end if segment.text is None else next(encoded))
            reasons = [why_nothing(sample, targets) for sample in samples]
            out.add(ids, [NUMBER[segment.kind] for segment in segments], [len(row) for row in rows], reasons)
        return out.parts()

    def _collect_chats(self, renderer: ChatRenderer, limit: int) -> Parts:
        out, most = _PartsBuilder(), limit * self.tokenizer.longest
        for samples in self.chunks():
            drafts, reasons = list[Draft](), list[str | None]()
            for sample in samples:
                try:
                    drafts.append(renderer.draft(sample))
                    first = min((start for start, _, _ in drafts[-1].spans), default=0)
                    reasons.append("too_long" if first > most else None)
                    if first > most:
                        drafts.pop()
                except Unscorable as error:
                    reasons.append(error.reason)
                    if error.said or error.reason == "unrenderable":
                        renderer.note(error.reason, error.said)
            found = iter(tokenise_drafts(drafts, self.tokenizer, renderer.note))
            ids, kinds, counts = list[Sequence[int]](), list[int](), list[int]()
            for reason in reasons:
                runs = [] if reason else next(found)
                ids += [part for part, _ in runs]
                kinds += [kind for _, kind in runs]
                counts.append(len(runs))
            out.add(ids, kinds, counts, reasons)
        self.notes += said_of(renderer.notes)
        return out.parts()

    def _note_tools(self) -> None:
        shown = sum(bool(sample.tools) for sample in self.pool.samples())
        if shown:
            self.notes.append(f"{shown:,} rows have tools, which a text template does not show")


class _PartsBuilder:
    """Parts as they are made."""

    def __init__(self) -> None:
        self.values, self.sizes, self.kinds = SpillingArray(np.int32), SpillingArray(np.int64), SpillingArray(np.uint8)
        self.counts, self.reason = SpillingArray(np.int64), list[Reasons]()

    def add(self, ids: list[Sequence[int]], kinds: list[int], counts: list[int], reasons: Sequence[str | None]) -> None:
        """Append the segments of some samples."""
        lengths = [len(part) for part in ids]
        self.values.extend(np.fromiter(chain.from_iterable(ids), np.int32, sum(lengths)))
        self.sizes.extend(lengths)
        self.kinds.extend(kinds)
        self.counts.extend(counts)
        self.reason.append(compact_reasons(np.array([*reasons, None], object)[:-1]))

    def parts(self) -> Parts:
        """All that were added."""
        every = Ragged(self.values.array(), offsets_of(self.sizes.array()))
        return Parts(every, self.kinds.array(), offsets_of(self.counts.array()), concat_reasons(self.reason))


def response_texts(sample: Sample, how: Turns) -> list[str]:
    """What is to be learnt of a sample, in parts as ``text_segments`` has them."""
    turns = [at for at, message in enumerate(sample.messages) if message.role == "assistant"]
    return [part.text for at in turns for part in said(sample.messages, at, how) if part.learnt]


def thought_texts(sample: Sample, how: Turns) -> list[str]:
    """The thought of each turn that is learnt; empty where it has none."""
    return [thought for thought, _ in thoughts_and_answers(sample, how)]


def answer_texts(sample: Sample, how: Turns) -> list[str]:
    """What each turn that is learnt says beside its thought."""
    return [answer for _, answer in thoughts_and_answers(sample, how)]


def thoughts_and_answers(sample: Sample, how: Turns) -> list[tuple[str, str]]:
    """Thought and answer of each turn that is learnt, without marks and without white space at their edges."""
    out = []
    for at, turn in enumerate(sample.messages):
        if turn.role == "assistant" and learns_answer(sample.messages, at, how.targets):
            block = thought_in(turn.content)
            thought = turn.reasoning or (block[1] if block else "")
            out.append((thought.strip(), turn.content[block.end() if block else 0 :].strip()))
    return out


def thinks(sample: Sample) -> bool:
    """Whether a turn has a thought."""
    return any(turn.reasoning or "</think>" in turn.content for turn in sample.messages if turn.role == "assistant")


def instruction_texts(sample: Sample) -> list[str]:
    """The user's turns, each with its input."""
    return [m.content + ("\n" + m.input if m.input else "") for m in sample.messages if m.role == "user"]
