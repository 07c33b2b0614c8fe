"""Messages and samples: what a row of the data says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool", "call"]
"""Who speaks. ``call`` is a function call that the assistant emits, ``tool`` what came back from it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (one of ``Role``), and the text, byte for byte as in the input.

    ``input`` is Alpaca's second field; only on a user message.
    """

    role: str
    content: str
    input: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation in the form that all input formats are brought to; ``tools`` are those on offer as JSON text."""

    messages: tuple[Message, ...]
    tools: str = ""

    @property
    def instruction(self) -> str:
        """Text of the first user turn."""
        return next((m.content for m in self.messages if m.role == "user"), "")

    @property
    def input(self) -> str:
        """Alpaca's second field of the first user turn."""
        return next((m.input for m in self.messages if m.role == "user"), "")

    @property
    def response(self) -> str:
        """Text of the last assistant turn; empty where there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")

    @property
    def system(self) -> str:
        """Text of the first system turn; empty where there is none."""
        return next((m.content for m in self.messages if m.role == "system"), "")
