"""Keys of 16 bytes: what the model saw, as integers that sort like the bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.bytes_]
"""Sixteen bytes each."""


Halves = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


KEYS_AT_ONCE = 1 << 16
"""Keys looked up at once."""


def halves(keys: Keys) -> Halves:
    """Keys as pairs of integers in the order of their bytes."""
    pairs = np.frombuffer(keys.astype("S16").tobytes(), ">u8").reshape(-1, 2)
    return pairs[:, 0].astype(np.uint64), pairs[:, 1].astype(np.uint64)


def among(keys: Keys, wanted: Keys) -> npt.NDArray[np.bool_]:
    """Which keys are one of those wanted; beside a sorted copy of these memory holds a block of keys at a time."""
    known, out = np.sort(wanted), np.zeros(len(keys), bool)
    for begin in range(0, len(keys) if len(known) else 0, KEYS_AT_ONCE):
        some = keys[begin : begin + KEYS_AT_ONCE]
        place = np.minimum(np.searchsorted(known, some), len(known) - 1)
        out[begin : begin + KEYS_AT_ONCE] = known[place] == some
    return out


def first_of_each(keys: Keys) -> npt.NDArray[np.bool_]:
    """Which keys no earlier one equals; a part of all keys is sorted at a time."""
    out = np.zeros(len(keys), bool)
    parts = -(-len(keys) // KEYS_AT_ONCE)
    for part in range(parts):
        mine = [
            begin + np.flatnonzero(_heads(keys[begin : begin + KEYS_AT_ONCE]) % parts == part)
            for begin in range(0, len(keys), KEYS_AT_ONCE)
        ]
        at = np.concatenate(mine)
        out[at[np.unique(keys[at], return_index=True)[1]]] = True
    return out


def _heads(keys: Keys) -> npt.NDArray[np.uint32]:
    """The first four bytes of each key."""
    return np.frombuffer(keys.astype("S16").tobytes(), np.uint32).reshape(-1, 4)[:, 0]
