"""Rendered conversations become tokens: the tokenizer's own of the whole text, each with what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from instdiff.rendering.chat import Closing, Draft, Writer
from instdiff.rendering.templates import Kind

KINDS = list(Kind)
"""Their numbers among tokens."""
NUMBER = {kind: number for number, kind in enumerate(KINDS)}
Run = tuple[list[int], int]
"""Token ids that stand together, and the number of their kind."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A text's tokens, and where each starts and ends in it: in bytes of UTF-8, or in characters."""

    ids: list[int]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    in_bytes: bool


class PlacingTokenizer(Writer, Protocol):
    """A tokenizer that says where its tokens lie. ``stops`` are those at which the model stops by its configuration."""

    stops: frozenset[int]

    @property
    def specials(self) -> frozenset[int]:
        """All tokens that the vocabulary marks as special, named or not."""

    def encode_placed(self, texts: Sequence[str]) -> list[Placed]:
        """The tokens of each text and their places."""


def tokenise_drafts(
    drafts: Sequence[Draft], tokenizer: PlacingTokenizer, note: Callable[[str], None]
) -> list[list[Run]]:
    """The tokens of each draft, in runs of one kind."""
    placed = tokenizer.encode_placed([draft.text for draft in drafts])
    return [
        _Tokens(draft.text, tokens, tokenizer, note).runs(draft) for draft, tokens in zip(drafts, placed, strict=True)
    ]


class _Tokens:
    """The tokens of one text."""

    def __init__(self, text: str, placed: Placed, tokenizer: PlacingTokenizer, note: Callable[[str], None]) -> None:
        self.text, self.ids, self.placed, self.tokenizer, self.note = text, placed.ids, placed, tokenizer, note
        self.in_bytes = placed.in_bytes and not text.isascii()

    def runs(self, draft: Draft) -> list[Run]:
        spans = list(draft.spans)
        for closing in draft.closings:
            spans += self._close(closing)
        kinds, edges = bytearray(len(self.ids)), {0, len(self.ids)}
        # A token that holds a character of a response is a target, whatever else it holds.
        for a, b, kind in sorted(spans, key=lambda span: span[2] is Kind.RESPONSE):
            within = self._holding(a, b)
            if within:
                kinds[within.start : within.stop] = bytes([NUMBER[kind]]) * len(within)
                edges |= {within.start, within.stop}
        out: list[Run] = []
        for a, b in pairwise(sorted(edges)):
            if out and out[-1][1] == kinds[a]:
                out[-1][0].extend(self.ids[a:b])
            else:
                out.append((self.ids[a:b], kinds[a]))
        return out

    def _at(self, place: int) -> int:
        """A place in characters as the tokens' places count."""
        return len(self.text[:place].encode()) if self.in_bytes else place

    def _back(self, place: int) -> int:
        return len(self.text.encode()[:place].decode(errors="ignore")) if self.in_bytes else place

    def _holding(self, a: int, b: int) -> range:
        """The tokens that hold at least one of these characters."""
        first = self.placed.ends.searchsorted(self._at(a), "right")
        return range(int(first), int(self.placed.starts.searchsorted(self._at(b), "left")))

    def _close(self, closing: Closing) -> list[tuple[int, int, Kind]]:
        """The end of a turn: the first token that stops the model, else the first special ones, else the usual text."""
        first = int(self.placed.starts.searchsorted(self._at(closing.start), "left"))
        inside = self.ids[first : int(self.placed.ends.searchsorted(self._at(closing.stop), "right"))]
        usual = self.text.find(closing.usual, closing.start, closing.stop) if closing.usual else -1
        found = next((n for n, token in enumerate(inside) if token in self.tokenizer.stops), None)
        if found is not None:
            return self._end(closing, first + found, first + found)
        # A token that the template writes within the turn, as a quotation mark in calls, does not end it.
        held = {token for span in closing.inner for at in self._holding(*span) for token in [self.ids[at]]}
        special = self.tokenizer.specials - held if held else self.tokenizer.specials
        found = next((n for n, token in enumerate(inside) if token in special), None)
        if found is not None:
            last = found
            # Several special tokens may close a turn, but those that open the next one are not among them.
            for at in range(found + 1, len(inside)) if usual >= 0 else ():
                if inside[at] not in special or self.placed.ends[first + at] > self._at(usual + len(closing.usual)):
                    break
                last = at
            return self._end(closing, first + found, first + last)
        if usual >= 0:
            self.note("no_end_token")
            return [(closing.start, usual, closing.before), (usual, usual + len(closing.usual), Kind.END)]
        if closing.before is Kind.RESPONSE and closing.stop == len(self.text):
            return [(closing.start, closing.stop, Kind.RESPONSE)]
        return []

    def _end(self, closing: Closing, first: int, last: int) -> list[tuple[int, int, Kind]]:
        start, end = (self._back(int(place)) for place in (self.placed.starts[first], self.placed.ends[last]))
        return [(closing.start, start, closing.before), (start, end, Kind.END)]
