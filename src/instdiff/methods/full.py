"""The whole pool: the control that every selection must be compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Length, Method, Scores, Signal, Signals


@dataclass(frozen=True)
class Full(Method):
    """Every row that has a response, all with the same score."""

    name: ClassVar[str] = "full"
    paper: ClassVar[str] = "control"

    def signals(self) -> dict[str, Signal]:
        """Whether there is a response at all."""
        return {"length": Signal(Length(unit="chars"))}

    def score(self, s: Signals) -> Scores:
        """Zero for every row."""
        return Scores(np.zeros(len(s)))
