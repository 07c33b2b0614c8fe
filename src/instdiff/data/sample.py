"""Messages and samples: what a row of the data says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
"""Who speaks; ``tool`` is what came back from a call."""
TARGETS, REASONING, SYSTEM = ("all", "last", "all+calls"), ("learn", "context", "drop"), ("keep", "fold")


@dataclass(frozen=True, slots=True)
class Call:
    """A function call within an assistant turn; ``arguments`` is an object, or the row's text where that is none."""

    name: str
    arguments: Mapping[str, Any] | str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks (one of ``Role``), and the text, character for character as in the input.

    ``input`` is Alpaca's second field; only on a user turn. ``reasoning`` is a thought that stands beside the content,
    ``calls`` what an assistant turn calls. A ``tool`` turn says by ``call_id`` which call it answers and by ``name``
    which tool. ``learn`` is the row's own word on whether an assistant turn is learnt. ``extra`` holds the turn's other
    keys, which nobody reads.
    """

    role: str
    content: str
    input: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""
    name: str = ""
    learn: bool | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def only_calls(self) -> bool:
        """Whether this turn calls and gives no answer."""
        return bool(self.calls) and not self.content.strip()


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation in the form that all input formats are brought to.

    ``tools`` are those on offer as JSON text, or the row's text where that is no JSON; ``template_values`` is what the
    row hands to its chat template (``chat_template_kwargs``) as JSON text. Of a preference pair ``messages`` are the
    chosen side and ``rejected`` the whole conversation of the other; of other rows it is empty.
    """

    messages: tuple[Message, ...]
    tools: str = ""
    template_values: str = ""
    rejected: tuple[Message, ...] = ()

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
        """Text of the last assistant turn that is more than a call; empty where there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant" and not m.only_calls), "")

    def side(self, name: str) -> Sample:
        """One side of a pair, ``chosen`` or ``rejected``, as a conversation; what is no pair has one side."""
        messages = self.rejected if name == "rejected" and self.rejected else self.messages
        return replace(self, messages=messages, rejected=())

    @property
    def shared_turns(self) -> int:
        """How many turns both sides of a pair begin with: its prompt. Each side has an answer after it."""
        same = (at for at, (one, other) in enumerate(zip(self.messages, self.rejected, strict=False)) if one != other)
        ends = [
            max((at for at, m in enumerate(side) if m.role == "assistant"), default=len(side))
            for side in (self.messages, self.rejected)
        ]
        return min(next(same, len(self.messages)), *ends)

    @property
    def system(self) -> str:
        """Text of the first system turn; empty where there is none."""
        return next((m.content for m in self.messages if m.role == "system"), "")


@dataclass(frozen=True, slots=True)
class Turns:
    """How the turns of conversations are shown and learnt.

    ``targets``: the answers of ``all`` assistant turns, those of the ``last`` one that has an answer, or ``all+calls``.
    ``reasoning``: thoughts are part of the response (``learn``), shown before it (``context``), or not shown
    (``drop``). ``system``: a system turn stands where it is (``keep``), or before the first user turn's text where the
    chat template refuses it (``fold``).
    """

    targets: str = "all"
    reasoning: str = "learn"
    system: str = "keep"
