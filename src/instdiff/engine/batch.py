"""Rows into batches: padded, longest first, under a budget of tokens; or packed as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from instdiff.engine.noise import Addressed
from instdiff.engine.prefix_tree import Indices, Tree, without_unseen

EVEN = 16
"""What sizes of products are rounded up to: for every size that it meets, a library of bf16 products compiles one."""

Row = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]
"""Token ids of a row, and which of them are targets."""

Size = TypeVar("Size", int, Indices)


def round_up(tokens: Size) -> Size:
    """Up to the next multiple of ``EVEN``."""
    return -(-tokens // EVEN) * EVEN


def batches(lengths: npt.NDArray[np.int64], max_tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions per batch, so that rows times the longest row stay within ``max_tokens``.

    Longest first: memory peaks on the first batch and estimates of the time left err on the safe side. A row longer
    than the budget is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        width = max(int(lengths[order[start]]), 1)
        size = max(1, max_tokens // width)
        yield order[start : start + size]
        start += size


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them: padded side by side, or packed end to end as a tree of shared prefixes.

    ``ids`` are [B, T] padded or [1, n] packed; ``position`` (of each packed token in its row) and ``tree`` are None
    where rows are padded. Per row, by the numbers in ``rows``, ``where`` has the places of its tokens, counted through
    ``ids`` row by row, and ``hits`` which of its tokens are targets, or marked. ``target`` is the token id of each
    target and ``noise`` what is added to the embeddings, both row by row.
    """

    rows: Indices
    ids: Indices
    position: Indices | None
    tree: Tree | None
    where: list[Indices]
    hits: list[Indices]
    target: Indices
    noise: Addressed | None = None

    @classmethod
    def pad(cls, numbers: Indices, rows: list[Row], most: int | None = None) -> Batch:
        """Pad on the right: with causal attention nothing before a pad can see it, so no mask is needed.

        The width is a multiple of ``EVEN`` where that is not above ``most``, the positions that the model has.
        """
        seen = [without_unseen(ids, most) for ids, _ in rows]
        longest = max(map(len, seen))
        width = longest if most is not None and round_up(longest) > most else round_up(longest)
        padded = np.zeros((len(rows), width), np.int64)
        for at, ids in enumerate(seen):
            padded[at, : len(ids)] = ids
        where = [at * width + np.arange(len(ids)) for at, ids in enumerate(seen)]
        return cls(numbers, padded, None, None, where, *_targets(rows))

    @classmethod
    def pack(cls, numbers: Indices, rows: list[Row], tree: Tree) -> Batch:
        """Rows in the order of the tree."""
        return cls(numbers, tree.ids[None], tree.position[None], tree, tree.where, *_targets(rows))

    @property
    def counts(self) -> Indices:
        """Targets per row."""
        return np.array([len(hit) for hit in self.hits], np.int64)

    def target_places(self) -> list[Indices]:
        """Per row the places of its marked tokens, as far as the model takes them."""
        return [where[hit[hit < len(where)]] for where, hit in zip(self.where, self.hits, strict=True)]

    def predictors(self) -> Indices:
        """Per target the place of the token that predicts it."""
        return np.concatenate([where[hit - 1] for where, hit in zip(self.where, self.hits, strict=True)])

    def longest(self) -> tuple[Indices, Indices]:
        """The ids of the longest row and the places of its tokens, for checks against the row alone."""
        where = max(self.where, key=len)
        return self.ids.reshape(-1)[where], where


def _targets(rows: list[Row]) -> tuple[list[Indices], Indices]:
    hits = [np.flatnonzero(target) for _, target in rows]
    return hits, np.concatenate([np.asarray(ids, np.int64)[hit] for (ids, _), hit in zip(rows, hits, strict=True)])
