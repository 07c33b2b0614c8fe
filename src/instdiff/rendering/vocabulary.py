"""The words of texts as numbers, without differences that change no meaning: case, punctuation, blanks."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ragged import Ragged
from instdiff.rendering.prompts import plain

_CHARACTER = r"\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{_CHARACTER}]|[^\s{_CHARACTER}]+")
"""Blanks divide words; scripts without blanks are cut into their characters."""


def words_of(text: str) -> list[str]:
    """The words of a text: NFKC, lower case, and blanks for punctuation."""
    return WORD.findall(plain(text))


class Vocabulary:
    """Numbers of words, which new ones get; texts are compared by those of one vocabulary."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def number(self, text: str) -> npt.NDArray[np.int64]:
        """The words of a text by their numbers."""
        known = self._known
        return np.array([known.setdefault(word, len(known)) for word in words_of(text)], np.int64)

    def column(self, texts: Iterable[str]) -> Ragged:
        """The same of each text."""
        return Ragged.of(map(self.number, texts), np.int64)
