"""Longest responses (Zhao et al., ICML 2024, "Long is more for alignment", arXiv:2402.04833)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Length, Method, Scores, Signal, Signals


@dataclass(frozen=True)
class Longest(Method):
    """Rows by length of the response (as in the paper), of the instruction, or by their ratio.

    ``of="ratio"`` is instruction length over response length (the Inst/Resp baselines of the InstructDiff paper).
    Tokens are the base tokenizer's; without a base model they become characters, and the log says so.
    """

    name: ClassVar[str] = "longest"
    paper: ClassVar[str] = "arXiv:2402.04833"

    of: Literal["response", "instruction", "ratio"] = "response"
    direction: Literal["max", "min"] = "max"
    unit: Literal["tokens", "chars", "words"] = "tokens"

    def signals(self) -> dict[str, Signal]:
        """Lengths before truncation."""
        return {
            "response": Signal(Length("response", self.unit)),
            "instruction": Signal(Length("instruction", self.unit)),
        }

    def score(self, s: Signals) -> Scores:
        """The length, or minus the length for the shortest first."""
        with np.errstate(divide="ignore", invalid="ignore"):
            length = {
                "response": s.response,
                "instruction": s.instruction,
                "ratio": np.where(s.response > 0, s.instruction / s.response, np.nan),
            }[self.of]
        return Scores(length if self.direction == "max" else -length, length=length)
