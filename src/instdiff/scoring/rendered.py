"""Rows as a pass has them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from instdiff.core import Reasons
from instdiff.core.arrays.spill import flatnonzero
from instdiff.rendering.rows import Rows
from instdiff.rendering.texts import Texts
from instdiff.store.keys import Keys


@dataclass(frozen=True)
class Rendered:
    """Rows of a view under a role, with their keys; one for each sample.

    Where a sample has several, side by side, ``starts`` says where each sample's begin, and the end of the last.
    Posed prompts have ``checks``, which say how answers to them are checked.
    """

    rows: Rows | Texts
    keys: Keys
    starts: npt.NDArray[np.int64] | None = None
    checks: Texts | None = None

    @cached_property
    def scorable(self) -> npt.NDArray[np.int64]:
        """Positions of rows that can be computed."""
        return flatnonzero(self.rows.reason == None)  # noqa: E711 - elementwise

    @property
    def tokens(self) -> Rows:
        """The rows, where a language model sees them."""
        assert isinstance(self.rows, Rows)
        return self.rows

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per row; of texts, bytes by the four."""
        return self.rows.lengths() // 4 if isinstance(self.rows, Texts) else self.rows.ids.lengths()

    def reason(self) -> Reasons:
        """Per sample the first reason of its rows."""
        if self.starts is None:
            return self.rows.reason
        first = np.full(len(self.starts) - 1, None, object)
        bad = flatnonzero(self.rows.reason != None)[::-1]  # noqa: E711 - elementwise
        first[self.samples(bad)] = self.rows.reason[bad]
        return first

    def samples(self, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The samples of the rows at these positions."""
        return at if self.starts is None else np.searchsorted(self.starts, at, "right") - 1
