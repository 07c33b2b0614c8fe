"""Rows of a batch as a tree of shared prefixes, packed end to end without padding.

Rows that begin alike (the preamble of a template, one instruction with several responses, one demonstration before many
questions) share a node, and a node's tokens are computed once. Nodes are laid out depth first, so that all tokens below
a node follow it without a gap: a node's keys and values are seen by one contiguous range of queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

LEAST_SHARED = 8
"""Tokens that rows must share for a node of their own: a node costs two more attention calls for each layer."""


@dataclass(frozen=True)
class Node:
    """Packed tokens ``start`` to ``stop`` are the node's own; those from ``stop`` to ``end`` come below it."""

    start: int
    stop: int
    end: int


@dataclass(frozen=True)
class Tree:
    """A packed batch.

    Args:
        ids: token ids, nodes depth first.
        position: position of each token in its row.
        nodes: every node with own tokens, parents before children.
        rows: the rows, as numbers of the caller, in the order in which they were packed.
        where: per row, in that order, the packed place of each of its tokens.
    """

    ids: Places
    position: Places
    nodes: list[Node]
    rows: Places
    where: list[Places]

    @property
    def tokens(self) -> int:
        """Tokens of the rows, shared ones counted for each row."""
        return sum(map(len, self.where))


def in_order(rows: list[Ids]) -> Places:
    """Rows sorted by their tokens, so that those that begin alike stand together."""
    keys = [np.ascontiguousarray(row, ">i4").tobytes() for row in rows]
    return np.array(sorted(range(len(rows)), key=keys.__getitem__), np.int64)


def shared(a: Ids, b: Ids) -> int:
    """How many tokens two rows share from the start."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def trees(rows: list[Ids], max_tokens: int) -> Iterator[Tree]:
    """Trees of at most ``max_tokens`` computed tokens each; a row longer than that is a tree of its own."""
    order = in_order(rows)
    batch: list[int] = []
    common: list[int] = []
    size = 0
    for number in order:
        row = rows[int(number)]
        overlap = shared(rows[batch[-1]], row) if batch else 0
        overlap = overlap if overlap >= LEAST_SHARED else 0
        # A node is not cut for less than LEAST_SHARED tokens, so that many less one may be computed again.
        cost = len(row) - max(0, overlap - LEAST_SHARED + 1)
        if batch and size + cost > max_tokens:
            yield _grow(rows, batch, common)
            batch, common, size, overlap, cost = [], [], 0, 0, len(row)
        batch.append(int(number))
        common.append(overlap)
        size += cost
    if batch:
        yield _grow(rows, batch, common)


def _grow(rows: list[Ids], batch: list[int], common: list[int]) -> Tree:
    """Build the tree of sorted rows; ``common[i]`` is what row i shares with the one before it."""
    ids: list[Ids] = []
    position: list[Places] = []
    nodes: list[Node] = []
    where: list[Places] = [np.zeros(0, np.int64)] * len(batch)
    used = 0

    def put(row: Ids, start: int, stop: int) -> Places:
        nonlocal used
        ids.append(np.asarray(row[start:stop], np.int64))
        position.append(np.arange(start, stop))
        used += stop - start
        return np.arange(used - (stop - start), used)

    # Each entry: rows low to high share ``depth`` tokens, which lie at ``above``. A closing entry ends its node.
    work: list[tuple[int, int, int, Places, int]] = [(0, len(batch), 0, np.zeros(0, np.int64), -1)]
    while work:
        low, high, depth, above, closes = work.pop()
        if closes >= 0:
            nodes[closes] = Node(nodes[closes].start, nodes[closes].stop, used)
            continue
        if high - low == 1:
            row = rows[batch[low]]
            mine = put(row, depth, len(row))
            if len(mine):
                nodes.append(Node(int(mine[0]), int(mine[-1]) + 1, used))
            where[low] = np.concatenate([above, mine])
            continue
        inner = np.array(common[low + 1 : high])
        least = int(inner.min())
        if least - depth >= LEAST_SHARED:
            mine = put(rows[batch[low]], depth, least)
            nodes.append(Node(int(mine[0]), int(mine[-1]) + 1, used))
            work.append((0, 0, 0, above, len(nodes) - 1))
            above, depth = np.concatenate([above, mine]), least
        cuts = [low, *(low + 1 + np.flatnonzero(inner == least)).tolist(), high]
        work += [(a, b, depth, above, -1) for a, b in zip(cuts[-2::-1], cuts[:0:-1], strict=True)]
    return Tree(np.concatenate(ids), np.concatenate(position), nodes, np.array(batch, np.int64), where)
