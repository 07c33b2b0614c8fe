"""Rows that together tell most about their labels, where near labels share what is told (MIG, section 3)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ragged import Ragged, offsets_of
from instdiff.core.caps import Caps, Room
from instdiff.methods.algorithms.vectors import Indices, blocks, matrix, unit

Weights = npt.NDArray[np.float64]
_POWER, _TINY = 0.8, 1e-6
_AT_ONCE = 512


@dataclass(frozen=True)
class Spread:
    """Where what a row tells of a label goes: to labels ``to`` in these ``shares``, for each label in turn."""

    to: Indices
    shares: Weights
    offsets: Indices


def spread(x: npt.NDArray[Any], threshold: float) -> Spread:
    """The shares of labels with the vectors ``x`` [labels, width]: cosines of ``threshold`` or more.

    What goes to a label sums to 1. A label is as near to itself as can be, also one whose vector is zero.
    """
    x = unit(matrix(x))
    to, near, counts = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, np.int64)]
    for part in blocks(len(x), _AT_ONCE):
        cosine = np.asarray(x[part] @ x.T, np.float64)
        own = np.arange(len(x))[part]
        cosine[np.arange(len(own)), own] = 1.0
        cosine[cosine < threshold] = 0.0
        to.append(np.nonzero(cosine)[1])
        near.append(cosine[cosine > 0])
        counts.append((cosine > 0).sum(1))
    at, weights = np.concatenate(to), np.concatenate(near)
    return Spread(at, weights / np.bincount(at, weights, len(x))[at], offsets_of(np.concatenate(counts)))


def most_information(
    labels: Ragged,
    scores: Sequence[float] | Weights,
    over: Spread,
    count: int,
    *,
    norm: bool = False,
    caps: Caps | None = None,
) -> Indices:
    """``count`` rows in the order taken: next is the row whose score, spread over its labels, adds most.

    ``labels`` are numbers of labels for each row, ``scores`` are 0 or more. A label that has x adds 0.8 x^-0.2 for each
    unit. With ``norm`` a score is shared by the row's labels. Rows of values that are full by ``caps`` are passed over.
    Ties go to the lowest index.
    """
    told, offsets = _told(labels, np.asarray(scores, np.float64), over, norm)
    at = [(told[0][a:b], told[1][a:b]) for a, b in pairwise(offsets)]
    have, room = np.zeros(len(over.offsets) - 1), Room(caps, len(at))

    def gain(row: int) -> float:
        to, amount = at[row]
        return float(amount @ (_POWER * (have[to] + _TINY) ** (_POWER - 1)))

    heap, out = [(-gain(row), row) for row in range(len(at))], list[int]()
    heapq.heapify(heap)
    while heap and len(out) < count:
        row = heapq.heappop(heap)[1]
        if room.shut[row]:
            continue
        now = (-gain(row), row)  # what a row adds never grows, so the best that is up to date is the best
        if heap and now > heap[0]:
            heapq.heappush(heap, now)
            continue
        out.append(row)
        room.take(row)
        have[at[row][0]] += at[row][1]
    return np.array(out, np.int64)


def _told(labels: Ragged, scores: Weights, over: Spread, norm: bool) -> tuple[tuple[Indices, Weights], Indices]:
    """For each row the labels that it tells of, and how much; and where each row's begin."""
    counts, own = labels.lengths(), np.asarray(labels.values, np.int64)
    row = np.repeat(np.arange(len(labels)), counts)
    weight = scores[row] / (counts[row] if norm else 1)
    sizes = np.diff(over.offsets)[own]
    start = np.repeat(over.offsets[:-1][own] - offsets_of(sizes)[:-1], sizes)
    place = start + np.arange(int(sizes.sum()))
    size = len(over.offsets) - 1
    keys, where = np.unique(np.repeat(row, sizes) * size + over.to[place], return_inverse=True)
    amount = np.asarray(np.bincount(where, np.repeat(weight, sizes) * over.shares[place], len(keys)), np.float64)
    return (keys % size, amount), offsets_of(np.bincount(keys // size, minlength=len(labels)))
