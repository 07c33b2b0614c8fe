"""Rows to rehearse between rows to learn, so that their share of a budget holds all along."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.caps import Caps, Room

Indices = npt.NDArray[np.int64]


def in_rounds(order: Indices, labels: npt.NDArray[Any]) -> Indices:
    """The same rows, one of each label before a second of any."""
    seen = Counter[str]()
    turn = np.zeros(len(order), np.int64)
    for at, label in enumerate(map(str, labels[order])):
        turn[at] = seen[label]
        seen[label] += 1
    return order[np.argsort(turn, kind="stable")]


def merge(best: Indices, known: Indices, cost: Indices, share: float, caps: Caps | None = None) -> Indices:
    """Both lists as one, in which ``known`` has the ``share`` of the ``cost`` [rows] all along; ``best`` goes first.

    The key of a row is the cost of its list up to it, over the list's share: here times the other one, so that equal
    keys are equal numbers. What ``caps`` pass over costs nothing.
    """
    part = Fraction(share).limit_denominator(10**6)
    times = part.numerator, part.denominator - part.numerator
    if caps is None:
        keys = [np.cumsum(cost[rows]) * factor for rows, factor in zip((best, known), times, strict=True)]
        return np.concatenate([best, known])[np.argsort(np.concatenate(keys), kind="stable")]
    room, lists = Room(caps, len(cost)), [best.tolist()[::-1], known.tolist()[::-1]]
    out, spent = list[int](), [0, 0]
    while True:
        for rows in lists:
            while rows and room.shut[rows[-1]]:
                rows.pop()
        keys_now = [(spent[at] + cost[rows[-1]]) * times[at] if rows else np.inf for at, rows in enumerate(lists)]
        if not any(lists):
            return np.array(out, np.int64)
        at = int(keys_now[1] < keys_now[0])
        row = lists[at].pop()
        spent[at] += int(cost[row])
        room.take(row)
        out.append(row)
