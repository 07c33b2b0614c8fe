"""ZIP (Entropy Law, arXiv:2407.06645): greedily the rows that together compress worst.

The compression ratio of a set is the length of its joined text over its length compressed by zlib at level 9. It
depends on the zlib in use, which sees redundancy no further back than its window of 32 KB.

Every row has a state, at first its own ratio. In each round the ``k1`` rows of lowest state get a new one, the ratio of
all that is taken with that row. Of the ``k2`` lowest of these a batch of ``k3`` is taken, each time the row that keeps
the ratio of the batch lowest. Ties go to the lower row.

By default a taken row never returns, and the others stay in the pool. In the published code all ``k2`` rows leave the
pool until fewer than ``k1`` others are left; then they come back, the taken ones too, so that rows repeat. Which come
back first is not defined there, as all are marked alike; here it is the lower ones.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats
from instdiff.core.caps import Caps, Room

Indices = npt.NDArray[np.int64]

_STAMP = 1e6  # the published mark on a row that has been looked at; no ratio reaches it
_SHARE = 32  # rows that a thread takes at a time: milliseconds


def zip_greedy(
    texts: Sequence[bytes | str],
    limit: int,
    *,
    weights: npt.ArrayLike | None = None,
    k1: int = 10_000,
    k2: int = 200,
    k3: int = 100,
    official: bool = False,
    threads: int | None = None,
    caps: Caps | None = None,
) -> Indices:
    """Rows in the order taken, up to and with the one that reaches the limit, or all.

    ``texts`` are not empty. ``limit`` is in rows, or in the unit of ``weights``, of which the row that crosses it is
    included. ``official`` repeats the published code, for which ``texts`` must be ``repr`` of each row's dictionary:
    the set is written as their list, rows can repeat, and whole batches of ``k3`` are taken, beyond the limit. The
    number of ``threads`` changes no result. Rows of a value that is full by ``caps`` leave the pool. An empty text, an
    unfit number, or under ``official`` fewer than ``k1`` rows are a ValueError.
    """
    rows = [text.encode() if isinstance(text, str) else bytes(text) for text in texts]
    cost = np.ones(len(rows), np.int64) if weights is None else np.asarray(weights, np.int64)
    _check(rows, cost, (k1, k2, k3), official)
    taken: list[int] = []
    spent = 0
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        for row in _rounds(rows, (k1, k2, k3), official, pool, Room(caps, len(rows))) if limit > 0 else ():
            taken.append(row)
            spent += int(cost[row])
            if spent >= limit and not (official and len(taken) % k3):
                break
    return np.array(taken, np.int64)


def _check(rows: list[bytes], cost: Indices, stages: tuple[int, int, int], official: bool) -> None:
    k1, k2, k3 = stages
    if not k1 >= k2 >= k3 >= 1:
        raise ValueError(f"k1 >= k2 >= k3 >= 1 must hold, not {k1}, {k2}, {k3}")
    if cost.shape != (len(rows),):
        raise ValueError(f"{len(rows)} texts need as many weights, not {cost.shape}")
    if (cost < (1 if official else 0)).any():
        raise ValueError(f"row {int(cost.argmin())} has weight {int(cost.min())}")
    if not all(rows):
        raise ValueError(f"row {rows.index(b'')} has no text, so it has no ratio")
    if official and len(rows) < k1:
        raise ValueError(f"the published code needs at least k1 = {k1} rows, not {len(rows)}")


def _rounds(
    rows: list[bytes], stages: tuple[int, int, int], official: bool, pool: ThreadPoolExecutor, room: Room
) -> Iterator[int]:
    """Rows as they are taken, until the pool is empty; as published, it never is."""
    k1, k2, k3 = stages
    frame = (b"[", b", ", b"]") if official else (b"", b"\n", b"")
    whole, pooled = _Joined(frame), ~room.shut
    state = whole.ratios(rows, pool)
    while pooled.any():
        outer = _lowest(state, np.flatnonzero(pooled), k1)
        state[outer] = whole.ratios([rows[row] for row in outer], pool)
        inner = _lowest(state, outer, k2)
        for row in _batch(rows, inner, k3, frame, pool, room):
            whole.add(rows[row])
            pooled[row] = official
            pooled[room.take(row)] = False
            yield row
        if official:
            state[inner] = _STAMP


def _lowest(state: Floats, among: Indices, count: int) -> Indices:
    """The rows of lowest state, in row order."""
    among = np.sort(among)
    return np.sort(among[np.argsort(state[among], kind="stable")[:count]])


def _batch(
    rows: list[bytes],
    among: Indices,
    count: int,
    frame: tuple[bytes, bytes, bytes],
    pool: ThreadPoolExecutor,
    room: Room,
) -> Iterator[int]:
    """Up to ``count`` of these rows, each the one with which the batch so far has the lowest ratio."""
    batch, left = _Joined(frame), among.tolist()
    for _ in range(count):
        left = [row for row in left if not room.shut[row]]
        if not left:
            return
        row = left.pop(int(batch.ratios([rows[row] for row in left], pool).argmin()))
        batch.add(rows[row])
        yield row


class _Joined:
    """A set of rows as one text, compressed as far as it goes.

    What one more row would make of it is found with a copy of the compressor, which is exact, and costs the row
    instead of the whole set. The last 32 KB as a preset dictionary would not be: zlib's blocks begin elsewhere.
    """

    def __init__(self, frame: tuple[bytes, bytes, bytes]) -> None:
        start, self._between, self._end = frame
        self._zlib = zlib.compressobj(9)
        self._raw, self._out = len(start), len(self._zlib.compress(start))

    def add(self, row: bytes) -> None:
        self._raw += len(row) + len(self._between)
        self._out += len(self._zlib.compress(row + self._between))

    def ratios(self, rows: list[bytes], pool: ThreadPoolExecutor) -> Floats:
        """Ratio of the set with each of these rows, one at a time."""
        shares = (rows[at : at + _SHARE] for at in range(0, len(rows), _SHARE))
        return np.array([ratio for found in pool.map(self._share, shares) for ratio in found])

    def _share(self, rows: list[bytes]) -> list[float]:
        found = []
        for row in rows:
            further = self._zlib.copy()
            out = self._out + len(further.compress(row + self._end)) + len(further.flush())
            found.append((self._raw + len(row) + len(self._end)) / out)
        return found
