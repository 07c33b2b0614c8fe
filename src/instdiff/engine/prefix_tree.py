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


def trees(rows: Numbered, max_tokens: int, *, share: bool = True) -> Iterator[Tree]:
    """Trees of at most ``max_tokens`` computed tokens each; a row longer than that is a tree of its own.

    Without ``share`` equal tokens are computed for each row, since something else than tokens tells the rows apart.
    """
    batch: list[int] = []
    common: list[int] = []
    size = 0
    for number in in_order(rows).tolist():
        row = rows[number]
        overlap = shared_prefix(rows[batch[-1]], row) if batch and share else 0
        if batch and size + len(row) - overlap > max_tokens:
            yield _pack(rows, batch, common)
            batch, common, size, overlap = [], [], 0, 0
        batch.append(number)
        common.append(overlap)
        size += len(row) - overlap
    if batch:
        yield _pack(rows, batch, common)


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
