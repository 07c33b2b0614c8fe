"""Rendered conversations become tokens: the tokenizer's own of the whole text, each with what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from instdiff.rendering.chat import Closing, Draft, Writer
from instdiff.rendering.templates import Kind

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
KINDS = list(Kind)
"""Their numbers among tokens."""
NUMBER = {kind: number for number, kind in enumerate(KINDS)}


class PlacingTokenizer(Writer, Protocol):
    """A tokenizer that says where its tokens lie.

    ``stops`` are the tokens at which the model stops by its own configuration, ``specials`` all that its vocabulary
    marks as special.
    """

    stops: frozenset[int]

    @property
    def specials(self) -> frozenset[int]:
        """All tokens that the vocabulary marks as special, named or not."""

    def encode_placed(self, texts: Sequence[str]) -> list[tuple[Ids, Offsets, Offsets]]:
        """Of each text its token ids, and where each token starts and ends in it, in characters."""


def tokenise_drafts(
    drafts: Sequence[Draft], tokenizer: PlacingTokenizer, note: Callable[[str], None]
) -> list[tuple[Ids, npt.NDArray[np.uint8]]]:
    """Token ids of each draft, and the kind of each token as its place in ``KINDS``."""
    placed = tokenizer.encode_placed([draft.text for draft in drafts])
    return [
        (ids, _kinds(draft, ids, starts, ends, tokenizer, note))
        for draft, (ids, starts, ends) in zip(drafts, placed, strict=True)
    ]


def _kinds(
    draft: Draft, ids: Ids, starts: Offsets, ends: Offsets, tokenizer: PlacingTokenizer, note: Callable[[str], None]
) -> npt.NDArray[np.uint8]:
    spans = list(draft.spans)
    for closing in draft.closings:
        spans += _close(closing, draft.text, ids, starts, ends, tokenizer, note)
    out = np.zeros(len(ids), np.uint8)
    # A token that holds a character of a response is a target, whatever else it holds.
    for a, b, kind in sorted(spans, key=lambda span: span[2] is Kind.RESPONSE):
        out[np.searchsorted(ends, a, "right") : np.searchsorted(starts, b, "left")] = NUMBER[kind]
    return out


def _close(
    closing: Closing,
    text: str,
    ids: Ids,
    starts: Offsets,
    ends: Offsets,
    tokenizer: PlacingTokenizer,
    note: Callable[[str], None],
) -> list[tuple[int, int, Kind]]:
    """The end of a turn: the first token that stops the model, else the first special ones, else the usual text."""
    first, last = np.searchsorted(starts, closing.start, "left"), np.searchsorted(ends, closing.stop, "right")
    inside = ids[first:last].tolist()
    usual = text.find(closing.usual, closing.start, closing.stop) if closing.usual else -1
    # A token that the template writes within the turn, as a quotation mark in calls, does not end it.
    inner = (slice(np.searchsorted(ends, a, "right"), np.searchsorted(starts, b, "left")) for a, b in closing.inner)
    held = {token for span in inner for token in ids[span].tolist()}
    for known in (tokenizer.stops, tokenizer.specials - held):
        at = next((n for n, token in enumerate(inside) if token in known), None)
        if at is None:
            continue
        begin, last = at, first + at
        # Several special tokens may close a turn, but those that open the next one are not among them.
        while known is not tokenizer.stops and usual >= 0 and at + 1 < len(inside) and inside[at + 1] in known:
            at += 1
            if ends[first + at] <= usual + len(closing.usual):
                last = first + at
        start, end = int(starts[first + begin]), int(ends[last])
        return [(closing.start, start, closing.before), (start, end, Kind.END)]
    if usual >= 0:
        note("no_end_token")
        return [(closing.start, usual, closing.before), (usual, usual + len(closing.usual), Kind.END)]
    if closing.before is Kind.RESPONSE and closing.stop == len(text):
        return [(closing.start, closing.stop, Kind.RESPONSE)]
    return []
