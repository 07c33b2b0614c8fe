"""Rows: exactly what a model sees, and what makes their noise their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Reasons
from instdiff.core.arrays.ragged import AT_ONCE, Ragged, offsets_of
from instdiff.core.arrays.spill import SpillingArray
from instdiff.core.columns import compact_reasons, concat_reasons

Indices = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Noise:
    """Noise on the input embeddings of rows; see ``core.Noisy``.

    Its size is ``alpha`` divided by sqrt(tokens x embedding size), with ``tokens`` those of the row's prompted view;
    the 64 bits in ``row`` make its noise its own. ``first`` is the address of a row's first token, when it stands
    before the response alone: None for a start token, which gets no noise; 0 where that token is the response's first.
    ``prompted`` where a prompt stands there.
    """

    alpha: float
    row: Indices
    tokens: Indices
    first: int | str | None = "prompted"

    def addresses(self, target: Marks) -> tuple[Indices, Marks]:
        """Address of each token of a row with these targets, and which tokens get noise.

        Response tokens have their number in the response, prompt tokens a negative one.
        """
        said = np.cumsum(target) - 1
        noisy = np.ones(len(target), bool)
        if self.first == 0:
            return np.arange(len(target)), noisy
        if self.first is None:
            noisy[0] = False
        return np.where(target, said, -1 - np.arange(len(target))), noisy

    def take(self, rows: Indices) -> Noise:
        """That of the rows named."""
        return replace(self, row=self.row[rows], tokens=self.tokens[rows])

    def marks(self) -> Iterator[bytes]:
        """Per row what tells its noise from any other."""
        head = f"{self.alpha!r} {self.first!r}".encode()
        for row, tokens in zip(self.row.tolist(), self.tokens.tolist(), strict=True):
            yield head + row.to_bytes(8, "little", signed=True) + tokens.to_bytes(8, "little")


@dataclass(frozen=True)
class Rows:
    """What the model sees, one entry per sample in pool order.

    ``target`` marks which of the token ids are targets; never the first, which nothing predicts. A row is ``truncated``
    where it was cut at the length limit. One that has no target has a ``reason``, and no ids. Of rows to train on,
    ``ended`` are those whose last target turn has its end.
    """

    ids: Ragged
    target: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    reason: Reasons
    noise: Noise | None = None
    ended: Marks | None = None
    _digests: list[npt.NDArray[np.bytes_]] = field(default_factory=list, repr=False, compare=False)
    """Known hashes of ids and targets, which noise does not change."""

    def __len__(self) -> int:
        return len(self.ids)

    def n_targets(self) -> Indices:
        """Targets per row."""
        out = SpillingArray(np.int64)
        for span in self.ids.spans():
            marks = self.target[self.ids.offsets[span.start] : self.ids.offsets[span.stop]]
            ends = np.concatenate([[0], np.cumsum(marks)])
            out.extend(np.diff(ends[self.ids.offsets[span.start : span.stop + 1] - self.ids.offsets[span.start]]))
        return out.array()

    def keys(self) -> npt.NDArray[np.bytes_]:
        """16 bytes per row: the hash of its ids and targets, hence of everything that can change its numbers."""
        if not self._digests:
            self._digests.append(self._plain_digests())
        digests = self._digests[0]
        if self.noise is None:
            return digests
        noised, marks = SpillingArray("S16"), self.noise.marks()
        for at in range(0, len(digests), AT_ONCE):
            plain = memoryview(digests[at : at + AT_ONCE].tobytes())
            both = zip((plain[a : a + 16] for a in range(0, len(plain), 16)), marks, strict=False)
            here = b"".join(hashlib.blake2b(b"".join(one), digest_size=16, key=b"noise").digest() for one in both)
            noised.extend(np.frombuffer(here, "S16"))
        return noised.array()

    def _plain_digests(self) -> npt.NDArray[np.bytes_]:
        out = SpillingArray("S16")
        start = hashlib.blake2b(digest_size=16, key=b"row")
        for span in self.ids.spans():
            digests = bytearray()
            offsets = self.ids.offsets[span.start : span.stop + 1]
            ids = memoryview(self.ids.values[offsets[0] : offsets[-1]].astype("<i4").tobytes())
            bits, ends = _pack_bits(self.target[offsets[0] : offsets[-1]], offsets - offsets[0])
            places = (4 * (offsets - offsets[0])).tolist()
            for a, b, c, d in zip(places, places[1:], ends, ends[1:], strict=False):
                digest = start.copy()
                digest.update(ids[a:b])
                digest.update(bits[c:d])
                digests += digest.digest()
            out.extend(np.frombuffer(bytes(digests), "S16"))
        return out.array()

    def take(self, rows: Indices) -> Rows:
        """The rows named, in that order."""
        if len(rows) == len(self) and all(
            np.array_equal(rows[at : at + AT_ONCE], np.arange(at, min(at + AT_ONCE, len(rows))))
            for at in range(0, len(rows), AT_ONCE)
        ):
            return self
        ids = self.ids.take(rows)
        target = Ragged(self.target, self.ids.offsets).take(rows).values
        noise = None if self.noise is None else self.noise.take(rows)
        ended = None if self.ended is None else self.ended[rows]
        return Rows(ids, target, self.truncated[rows], self.reason[rows], noise, ended)


def _pack_bits(target: Marks, offsets: Indices) -> tuple[memoryview, list[int]]:
    """Targets as bits, each row from a byte of its own; and where the rows' bytes start."""
    sizes = np.diff(offsets)
    ends = offsets_of((sizes + 7) // 8)
    room = np.zeros(8 * ends[-1], bool)
    room[np.repeat(8 * ends[:-1] - offsets[:-1], sizes) + np.arange(len(target))] = target
    return memoryview(np.packbits(room).tobytes()), ends.tolist()


Ids = npt.NDArray[np.int32]
_ROWS_AT_ONCE = 1 << 10
"""Rows that come one by one are put together before they are kept."""


class RowsBuilder:
    """Rows as they are made, a span at a time or one by one."""

    def __init__(self) -> None:
        self.ids, self.target, self.sizes = SpillingArray(np.int32), SpillingArray(np.bool_), SpillingArray(np.int64)
        self.truncated = SpillingArray(np.bool_)
        self.reason: list[Reasons] = []
        self._single: list[tuple[Ids, Marks, bool, str | None]] = []

    def add(self, ids: Ragged, target: Marks, truncated: Marks, reason: Reasons) -> None:
        """Append rows."""
        self.ids.extend(ids.values)
        self.target.extend(target)
        self.sizes.extend(ids.lengths())
        self.truncated.extend(truncated)
        self.reason.append(compact_reasons(reason))

    def add_row(
        self, ids: Ids | None = None, target: Marks | None = None, cut: bool = False, reason: str | None = None
    ) -> None:
        """Append a row, or the reason why there is none."""
        nothing = np.zeros(0, np.int32)
        self._single.append(
            (nothing if ids is None else ids, nothing.astype(bool) if target is None else target, cut, reason)
        )
        if len(self._single) == _ROWS_AT_ONCE:
            self._add_single()

    def add_after(self, context: Ids, ids: Ids, target: Marks, cut: bool, limit: int, prefix_token: int | None) -> None:
        """Append a row behind as much of the end of a context as fits."""
        own = without_prefix_token(ids, prefix_token)
        head = ids[: len(ids) - len(own)]
        room = limit - len(ids)
        if room <= 0:
            self.add_row(cut=True, reason="too_long")
            return
        shown = context[-room:]
        marks = np.concatenate([np.zeros(len(head) + len(shown), bool), target[len(head) :]])
        self.add_row(np.concatenate([head, shown, own]), marks, cut or len(shown) < len(context))

    def rows(self) -> Rows:
        """All that were added."""
        self._add_single()
        ids = Ragged(self.ids.array(), offsets_of(self.sizes.array()))
        return Rows(ids, self.target.array(), self.truncated.array(), concat_reasons(self.reason))

    def _add_single(self) -> None:
        if self._single:
            ids, target, cut, reason = zip(*self._single, strict=True)
            words: Reasons = np.array([*reason, None], object)[:-1]
            sizes = offsets_of([len(row) for row in ids])
            self.add(Ragged(np.concatenate(ids), sizes), np.concatenate(target), np.array(cut, bool), words)
        self._single = []


def without_prefix_token(ids: Ids, prefix_token: int | None) -> Ids:
    """A row without the token that starts it, where it has one."""
    return ids[1:] if prefix_token is not None and len(ids) and ids[0] == prefix_token else ids


def truncate(values: Values, sizes: Indices, keep: Indices) -> Values:
    """The first ``keep`` values of each row."""
    at = np.arange(len(values)) - np.repeat(offsets_of(sizes)[:-1], sizes)
    return values[at < np.repeat(keep, sizes)]


def prepend(values: Values, sizes: Indices, lead: Marks, first: int | bool) -> Values:
    """The rows with ``first`` before those that ``lead`` names."""
    return np.insert(values, offsets_of(sizes)[:-1][lead], first)
