"""Longest responses (Zhao et al., ICML 2024, "Long is more for alignment", arXiv:2402.04833)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Length, Method, Scores, Signal, Signals


@dataclass(frozen=True)
class Longest(Method):
    """Rows by length of the response (as in the paper), of a part of it, of the instruction, or by their ratio.

    ``of="ratio"`` is instruction length over response length (the Inst/Resp baselines of the InstructDiff paper).
    ``thought`` and ``answer`` are the parts of a response with reasoning. Tokens are the base tokenizer's; without a
    base model they become characters, and the log says so. ``steps`` are sentences and lines, as of `lalp`. Details:
    ``length``, and with ``parts`` also ``thought`` and ``answer`` in that unit, and ``steps`` of the response.
    """

    name: ClassVar[str] = "longest"
    paper: ClassVar[str] = "arXiv:2402.04833"

    of: Literal["response", "thought", "answer", "instruction", "ratio"] = "response"
    direction: Literal["max", "min"] = "max"
    unit: Literal["tokens", "chars", "words", "steps"] = "tokens"
    parts: bool = False

    def signals(self) -> dict[str, Signal]:
        """Lengths before truncation."""
        more = ("thought", "answer") if self.parts else (self.of,) if self.of in ("thought", "answer") else ()
        asked = {part: Signal(Length(part, self.unit)) for part in ("response", "instruction", *more)}
        return asked | ({"steps": Signal(Length("response", "steps"))} if self.parts else {})

    def score(self, s: Signals) -> Scores:
        """The length, or minus the length for the shortest first."""
        if self.of == "ratio":
            with np.errstate(divide="ignore", invalid="ignore"):
                length = np.where(s.response > 0, s.instruction / s.response, np.nan)
        else:
            length = getattr(s, self.of)
        more = {"thought": s.thought, "answer": s.answer, "steps": s.steps} if self.parts else {}
        return Scores(length if self.direction == "max" else -length, length=length, **more)
