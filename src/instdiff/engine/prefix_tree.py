"""Rows of a batch as a tree of shared prefixes, packed end to end without padding.

Rows that begin alike (the preamble of a template, one instruction with several responses, one demonstration before many
questions) share those tokens, which are computed once: in the order of their tokens, each row adds only what it does
not share with the row before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

LEAST_EVEN = 512
"""Tokens of a tree below which another lane does not pay."""

Ids = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


class Numbered(Protocol):
    """Rows by number: a list of them, or ``Some``."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Ids: ...


@dataclass(frozen=True)
class Some:
    """Some of many rows, each looked up when it is needed: thousands of small arrays take more than their tokens.

    ``most`` are the positions that the model has.
    """

    rows: Numbered
    which: Indices
    most: int | None = None

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, number: int, /) -> Ids:
        return without_unseen(self.rows[int(self.which[number])], self.most)


def without_unseen(row: Ids, most: int | None) -> Ids:
    """A row as the model takes it: without its last token, which no token sees, where that has no position."""
    return row[:most] if most is not None and len(row) == most + 1 else row


@dataclass(frozen=True)
class Tree:
    """A packed batch: each row's own tokens after those of the row before it, with their ``position`` in their row.

    In the order in which ``rows``, numbers of the caller, were packed, ``where`` has the packed place of each token of
    a row, and ``common`` how many of its first tokens stand in earlier rows.
    """

    ids: Indices
    position: Indices
    rows: Indices
    where: list[Indices]
    common: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of the rows, shared ones counted for each row."""
        return sum(map(len, self.where))


def in_order(rows: Numbered) -> Indices:
    """Rows sorted by their tokens, so that those that begin alike stand together."""
    keys = [np.ascontiguousarray(rows[number], ">i4").tobytes() for number in range(len(rows))]
    return np.array(sorted(range(len(rows)), key=keys.__getitem__), np.int64)


def shared_prefix(a: Ids, b: Ids) -> int:
    """How many tokens two rows share from the start."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def trees(rows: Numbered, max_tokens: int, *, share: bool = True, lanes: int = 1) -> Iterator[Tree]:
    """Trees of at most ``max_tokens`` computed tokens each; a row longer than that is a tree of its own.

    Without ``share`` equal tokens are computed for each row, since something else than tokens tells the rows apart.
    For several ``lanes`` trees are of like size and so many that all lanes end together.
    """
    order = in_order(rows).tolist()
    lengths = [len(rows[number]) for number in order]
    common = [0] * len(order)
    for at in range(1, len(order) if share else 0):
        common[at] = shared_prefix(rows[order[at - 1]], rows[order[at]])
    ends = np.cumsum(np.array(lengths, np.int64) - common)
    each = _even_size(int(ends[-1]), max_tokens, lanes) if order and lanes > 1 else max_tokens
    start, size, begun = 0, 0, 0
    for at, length in enumerate(lengths):
        own = length - common[at] if at > start else length
        if at > start and (size + own > max_tokens or (lanes > 1 and ends[at - 1] >= each * (begun + 1))):
            yield _pack(rows, order[start:at], [0, *common[start + 1 : at]])
            start, size, own, begun = at, 0, length, begun + 1
        size += own
    if order:
        yield _pack(rows, order[start:], [0, *common[start + 1 :]])


def _even_size(tokens: int, most: int, lanes: int) -> float:
    """Tokens of each of several trees of like size, a multiple of ``lanes`` where they do not become too small."""
    count = -(-tokens // most)
    return tokens / max(count, min(-(-count // lanes) * lanes, tokens // LEAST_EVEN))


def _pack(rows: Numbered, batch: list[int], common: list[int]) -> Tree:
    """Lay out sorted rows; ``common[i]`` is what row i shares with the one before it."""
    ids: list[Ids] = []
    position: list[Indices] = []
    where: list[Indices] = []
    used = 0
    for number, overlap in zip(batch, common, strict=True):
        own = np.asarray(rows[number][overlap:], np.int64)
        ids.append(own)
        position.append(np.arange(overlap, overlap + len(own)))
        places = np.arange(used, used + len(own))
        where.append(np.concatenate([where[-1][:overlap], places]) if overlap else places)
        used += len(own)
    return Tree(np.concatenate(ids), np.concatenate(position), np.array(batch, np.int64), where, common)
