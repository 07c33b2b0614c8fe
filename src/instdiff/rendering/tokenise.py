"""The texts of a pool under one tokenizer: each is tokenised once, whatever is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt

from instdiff.core import Reasons
from instdiff.core.arrays.ragged import Ragged, offsets_of
from instdiff.core.arrays.spill import SpillingArray
from instdiff.core.columns import compact_reasons, concat_reasons
from instdiff.data import Pool, Sample, Turns
from instdiff.rendering.templates import ChatTemplate, Kind, Segment, Template, TextTemplate, said, text_segments

CHUNK, CHUNK_CHARACTERS = 256, 1 << 22
"""Samples tokenised in one call: enough for the tokenizer to work in parallel, and few, since their many small objects
leave memory in pieces."""
KINDS = list(Kind)
"""Their numbers in ``Parts.kinds``."""


class Tokenizer(Protocol):
    """What rendering needs of a tokenizer.

    ``bos`` is the start token that the tokenizer adds by itself, None where it adds none; ``start`` the one to put
    where a context is needed: BOS, or the end token of tokenizers without BOS. ``max_length`` is the model's context.
    """

    bos: int | None
    start: int | None
    eos: int | None
    max_length: int | None

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of each text; with ``special`` the tokenizer adds its own start and end tokens."""

    def chat(self, sample: Sample, layout: ChatTemplate, how: Turns) -> list[Segment]:
        """The segments of a sample under a chat template; a ValueError says in one word why there are none."""


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


Cut = Callable[[Sample], list[Segment] | str]
"""Makes segments of a sample, or says why there are none."""


class Tokenised:
    """What has been tokenised of a pool stays here, so that all views and lengths are made of the same tokens.

    Responses are tokenised on their own, so they are the same under every text template.
    """

    def __init__(self, pool: Pool, tokenizer: Tokenizer) -> None:
        self.pool, self.tokenizer = pool, tokenizer
        self._layouts: dict[str, Parts] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}

    def parts(self, layout: Template) -> Parts:
        """The segments of all samples under a template."""
        place, how = repr(layout), self.pool.turns
        if place not in self._layouts:
            if isinstance(layout, TextTemplate):
                parts = self._collect(lambda sample: text_segments(sample, layout, how), self.responses)
            else:
                parts = self._collect(lambda sample: self._chat(sample, layout), None)
            self._layouts[place] = parts
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

    def chunks(self) -> Iterator[list[Sample]]:
        """All samples in order, as many at once as are tokenised in one call."""
        part: list[Sample] = []
        characters = 0
        for sample in self.pool.samples():
            part.append(sample)
            characters += sum(len(message.content) + len(message.input) for message in sample.messages)
            if len(part) == CHUNK or characters >= CHUNK_CHARACTERS:
                yield part
                part, characters = [], 0
        if part:
            yield part

    def _chat(self, sample: Sample, layout: ChatTemplate) -> list[Segment] | str:
        try:
            return self.tokenizer.chat(sample, layout, self.pool.turns)
        except ValueError as error:
            return str(error)

    def _collect(self, cut: Cut, responses: Parts | None) -> Parts:
        """Tokenise the segments that ``cut`` makes, but for responses that are there already."""
        values, sizes, kinds = SpillingArray(np.int32), SpillingArray(np.int64), SpillingArray(np.uint8)
        counts, reason = SpillingArray(np.int64), list[Reasons]()
        end = [] if self.tokenizer.eos is None else [self.tokenizer.eos]
        known = 0
        for samples in self.chunks():
            rows = [cut(sample) for sample in samples]
            segments = [segment for row in rows if not isinstance(row, str) for segment in row]
            there = [responses is not None and segment.kind is Kind.RESPONSE for segment in segments]
            new = [s.text for s, old in zip(segments, there, strict=True) if s.text is not None and not old]
            encoded = iter(self.tokenizer.encode(new))
            ids: list[list[int]] = []
            for segment, old in zip(segments, there, strict=True):
                if old and responses is not None:
                    ids.append(responses.ids[known].tolist())
                    known += 1
                else:
                    ids.append(end if segment.text is None else next(encoded))
            lengths = [len(part) for part in ids]
            values.extend(np.fromiter(chain.from_iterable(ids), np.int32, sum(lengths)))
            sizes.extend(lengths)
            kinds.extend([_NUMBER[segment.kind] for segment in segments])
            counts.extend([0 if isinstance(row, str) else len(row) for row in rows])
            reason.append(compact_reasons(np.array([row if isinstance(row, str) else None for row in rows], object)))
        every = Ragged(values.array(), offsets_of(sizes.array()))
        return Parts(every, kinds.array(), offsets_of(counts.array()), concat_reasons(reason))


_NUMBER = {kind: number for number, kind in enumerate(KINDS)}


def response_texts(sample: Sample, how: Turns) -> list[str]:
    """What is to be learnt of a sample, in parts as ``text_segments`` has them."""
    turns = [at for at, message in enumerate(sample.messages) if message.role == "assistant"]
    return [part.text for at in turns for part in said(sample.messages, at, how) if part.learnt]


def instruction_texts(sample: Sample) -> list[str]:
    """The user's turns, each with its input."""
    return [m.content + ("\n" + m.input if m.input else "") for m in sample.messages if m.role == "user"]
