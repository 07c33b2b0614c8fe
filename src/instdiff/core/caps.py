"""At most so many rows of each value of a column: as people write it, and as what takes rows keeps to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.errors import ConfigError

Indices = npt.NDArray[np.int64]
PROMPT = "prompt"
"""Stands for the prompt where a column is named."""
_EXAMPLES = "write a column and a number, as 'source 3', or 'prompt 1' for the best answer to each prompt"


@dataclass(frozen=True)
class Per:
    """At most ``most`` rows of each value of the column ``by``; ``prompt`` tells rows apart by their prompts."""

    by: str
    most: int

    def __str__(self) -> str:
        return f"{self.by} {self.most}"

    @property
    def text(self) -> str:
        """For a sentence."""
        name = self.by if self.by == PROMPT else f"'{self.by}'"
        return f"at most {self.most:,} of each {name}"


def parse_per(given: str | Per | Sequence[Any] | None) -> Per | None:
    """``prompt 1`` or ``("prompt", 1)``; a ConfigError where it is neither."""
    if given is None or isinstance(given, Per):
        return given
    parts = given.rsplit(maxsplit=1) if isinstance(given, str) else list(given) if isinstance(given, Iterable) else []
    count = str(parts[1]) if len(parts) == 2 else ""
    if not (count.isdecimal() and int(count) > 0 and str(parts[0]).strip()):
        said = given if isinstance(given, str) else " ".join(map(str, parts)) or given
        raise ConfigError(f"per '{said}' is not understood; {_EXAMPLES}")
    return Per(str(parts[0]).strip(), int(count))


@dataclass(frozen=True)
class Caps:
    """How many rows of each value may be taken.

    ``codes`` [rows] number the values from 0; ``room`` [values] is how many rows of each may still be taken.
    """

    codes: Indices
    room: Indices

    @classmethod
    def of(cls, values: Iterable[Any], most: int) -> Caps:
        """From the values of the rows, which are told apart by their text; each None is one of its own."""
        seen: dict[str | int, int] = {}
        names = (row if value is None else str(value) for row, value in enumerate(values))
        codes = np.array([seen.setdefault(name, len(seen)) for name in names], np.int64)
        return cls(codes, np.full(len(seen), most, np.int64))

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: Indices) -> Caps:
        """The same for these rows, in that order."""
        return Caps(self.codes[rows], self.room)

    def after(self, rows: Indices) -> Caps:
        """What is left when these rows are taken."""
        return Caps(self.codes, np.maximum(self.room - np.bincount(self.codes[rows], minlength=len(self.room)), 0))

    def limit(self, order: Indices) -> Indices:
        """The same order without the rows before which their value is full."""
        codes = self.codes[order]
        by_value = np.argsort(codes, kind="stable")
        sizes = np.bincount(codes, minlength=len(self.room))
        place = np.empty(len(order), np.int64)
        place[by_value] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return order[place < self.room[codes]]

    def binds(self, order: Indices) -> bool:
        """Whether these rows are more than may be taken."""
        return len(self.limit(order)) < len(order)

    @property
    def open(self) -> npt.NDArray[np.bool_]:
        """Per row whether its value has room."""
        return self.room[self.codes] > 0

    @cached_property
    def sizes(self) -> Indices:
        """How many rows each value has."""
        return np.bincount(self.codes, minlength=len(self.room))

    @property
    def most(self) -> int:
        """How many rows can be taken in all."""
        return int(np.minimum(self.sizes, self.room).sum())

    def depth(self, count: int) -> int:
        """Among how many rows one can surely be taken, while fewer than ``count`` are."""
        return int(np.sort(self.sizes)[::-1][:count].sum())


class Room:
    """The room that a walk over rows has left, which takes one after the other; without ``caps`` it never ends.

    ``shut`` [rows] marks the rows of values that are full.
    """

    def __init__(self, caps: Caps | None, rows: int) -> None:
        self.shut = np.zeros(rows, bool) if caps is None else ~caps.open
        self._caps = caps
        if caps is not None:
            self._left, self._by_value = caps.room.copy(), np.argsort(caps.codes, kind="stable")
            self._start = np.concatenate([[0], np.cumsum(caps.sizes)])

    def take(self, row: int) -> Indices:
        """Take a row: the rows, itself among them, that can no longer be taken, since their value is full by it."""
        if self._caps is None:
            return np.zeros(0, np.int64)
        code = int(self._caps.codes[row])
        self._left[code] -= 1
        if self._left[code] > 0:
            return np.zeros(0, np.int64)
        full = self._by_value[self._start[code] : self._start[code + 1]]
        self.shut[full] = True
        return full
