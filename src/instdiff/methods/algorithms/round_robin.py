"""Rows nearest to queries: in turns (RDS+, Ivison et al., arXiv:2503.01807, section 3), or by the mean of each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core.caps import Caps, Room
from instdiff.methods.algorithms.vectors import Indices, Matrix, blocks, count, matrix, nearest_rows, top_k, unit

_FLOATS = 1 << 26
"""Similarities held at once: 256 MB."""


def robin(x: npt.NDArray[Any], queries: npt.NDArray[Any], k: int, caps: Caps | None = None) -> Indices:
    """Each query in turn takes the row of highest cosine that nobody has, until ``k`` are taken.

    A query never looks further than its ``k`` best rows, so these are all that is kept of the similarities: 8 q k
    bytes, beside 256 MB and one copy of ``x``. With ``caps`` it looks past the rows of values that are full, at most as
    many as the ``k`` largest values have. Ties go to the lowest index, exactly for equal rows. A ValueError where
    ``k`` exceeds the rows, there is no query, a width differs, or a row is not finite.
    """
    x, queries = _check(x, queries, k)
    vectors, asked = unit(x), unit(queries)
    lists, depth = [], k if caps is None else caps.depth(k)
    for part in blocks(len(asked), max(1, _FLOATS // max(1, len(x)))):
        scores = asked[part] @ vectors.T
        lists += [nearest_rows(asked[part.start + at], vectors, row, depth) for at, row in enumerate(scores)]
    return take_turns(lists, k, Room(caps, len(x)))


def robin_tasks(x: npt.NDArray[Any], tasks: Sequence[npt.NDArray[Any]], k: int, caps: Caps | None = None) -> Indices:
    """Each task in turn takes the row of highest ``max over its queries of the cosine`` that nobody has.

    ``x`` is read once per task, in blocks. ``caps`` are those of ``robin``. Ties go to the lowest index; cosines
    are float32.
    """
    if not tasks:
        raise ValueError("there is no task")
    lists, depth = [], k if caps is None else caps.depth(k)
    for queries in tasks:
        rows, asked = _check(x, queries, k)
        asked = unit(asked)
        size = min(8192, max(1, _FLOATS // len(asked)))
        similar = [(unit(rows[part]) @ asked.T).max(1) for part in blocks(len(rows), size)]
        lists.append(top_k(np.concatenate([np.zeros(0, np.float32), *similar]), depth))
    return take_turns(lists, k, Room(caps, len(x)))


def likeness(
    x: npt.NDArray[Any], tasks: Sequence[npt.NDArray[Any]], how: Literal["max", "mean"]
) -> npt.NDArray[np.float64]:
    """Per row the largest, or the mean, over tasks of its mean cosine with a task's queries: LESS, section 3.2."""
    centres = np.stack([unit(_check(x, queries, 0)[1]).mean(0, dtype=np.float64) for queries in tasks])
    parts = blocks(len(x), max(1, _FLOATS // max(centres.shape)))
    found = [unit(matrix(x[part])).astype(np.float64) @ centres.T for part in parts]
    of_tasks = [each.max(1) if how == "max" else each.mean(1) for each in found]
    # Rounded, so that how a product is summed tells no equal rows apart.
    return np.concatenate([np.zeros(0), *of_tasks]).astype(np.float32).astype(np.float64)


def take_turns(lists: Sequence[Indices], k: int, room: Room) -> Indices:
    """``k`` rows, if there are so many: each list, best first, gives its first that can be taken, in turn."""
    out: list[int] = []
    taken: set[int] = set()
    turns = [iter(rows.tolist()) for rows in lists]
    while turns and len(out) < k:
        still = []
        for turn in turns:
            row = next((row for row in turn if row not in taken and not room.shut[row]), None)
            if row is None:
                continue
            still.append(turn)
            taken.add(row)
            room.take(row)
            out.append(row)
            if len(out) == k:
                return np.array(out, np.int64)
        turns = still
    return np.array(out[:k], np.int64)


def _check(x: npt.NDArray[Any], queries: npt.NDArray[Any], k: int) -> tuple[Matrix, Matrix]:
    x, queries = matrix(x), matrix(queries, "queries")
    count(k, len(x))
    if len(queries) == 0 or queries.shape[1] != x.shape[1]:
        raise ValueError(f"queries have shape {queries.shape}; expected one or more rows of width {x.shape[1]}")
    return x, queries
