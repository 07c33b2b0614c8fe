"""Samples as the rows that trainers read. Reading a row again gives the same sample wherever its layout can hold it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instdiff.data import Message, Pool, Sample, Turns
from instdiff.data.formats import FORMATS
from instdiff.rendering.templates import Kind, TextTemplate, is_target, text_segments

Record = dict[str, Any]
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "call": "function_call", "tool": "observation"}
"""ShareGPT's names, as LLaMA-Factory has them by default."""


@dataclass(frozen=True)
class Layout:
    """One shape of rows, by the name that ``--layout`` gives it.

    ``make`` turns a sample into a row, or None where it cannot hold the sample; instdiff reads rows again as
    ``format``. ``blank`` has the columns that only some rows need, with what the others have there.
    """

    name: str
    make: Callable[[Sample], Record | None]
    format: str
    blank: Mapping[str, Any]

    def exact(self, sample: Sample) -> bool:
        """Whether reading the row again gives the same sample."""
        row = self.make(sample)
        try:
            return row is not None and FORMATS[self.format].parse(row) == sample
        except ValueError:
            return False


def alpaca(sample: Sample) -> Record | None:
    """``instruction``, ``input``, ``output``; earlier turns in ``history``, a system turn in ``system``."""
    messages = list(sample.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    if sample.tools or not messages or [m.role for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        return None
    *before, user, answer = messages
    row: Record = {"instruction": user.content, "input": user.input, "output": answer.content}
    if system:
        row["system"] = system
    if before:
        row["history"] = [[turn_text(q), a.content] for q, a in zip(before[::2], before[1::2], strict=True)]
    return row


def plain_alpaca(sample: Sample) -> Record | None:
    """``alpaca`` without ``system`` and ``history``, which some trainers do not know."""
    row = alpaca(sample)
    return row if row is not None and len(row) == 3 else None


def sharegpt(sample: Sample) -> Record:
    """``conversations`` of ``{from, value}``, a system turn among them; tools as JSON text."""
    turns = [{"from": SPEAKERS[m.role], "value": turn_text(m)} for m in sample.messages]
    return {"conversations": turns, **({"tools": sample.tools} if sample.tools else {})}


def messages(sample: Sample) -> Record:
    """``messages`` of ``{role, content}``, calls as ``tool_calls``; tools as JSON text."""
    return {"messages": turns_of(sample.messages), **({"tools": sample.tools} if sample.tools else {})}


def with_tool_objects(sample: Sample, targets: str | None = None) -> Record:
    """``messages`` with tools as a list of objects, as axolotl needs it; ``targets`` adds which turns are learnt."""
    learnt = None
    if targets is not None:
        learnt = [is_target(sample.messages, at, targets) for at in range(len(sample.messages))]
    row: Record = {"messages": turns_of(sample.messages, learnt)}
    if sample.tools:
        try:
            tools = json.loads(sample.tools)
        except ValueError:  # text of the user's own; the trainer will say that it wants a list
            tools = sample.tools
        row["tools"] = [tools] if isinstance(tools, dict) else tools
    return row


def prompt_completion(sample: Sample) -> Record | None:
    """``prompt`` and ``completion``, both lists of messages; the completion is the last turn."""
    turns = turns_of(sample.messages)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        return None
    tools = {"tools": sample.tools} if sample.tools else {}
    return {"prompt": turns[:-1], "completion": turns[-1:], **tools}


def render_layout(layout: TextTemplate) -> Callable[[Sample], Record | None]:
    """``prompt`` and ``completion`` as texts under a template; the completion is the last response."""

    def make(sample: Sample) -> Record | None:
        segments = text_segments(sample, layout, Turns("last"))
        at = next((i for i, s in enumerate(segments) if s.kind is Kind.RESPONSE), None)
        if at is None or not segments[at].text:
            return None
        return {"prompt": "".join(s.text or "" for s in segments[:at]), "completion": segments[at].text}

    return make


ALPACA = Layout("alpaca", alpaca, "alpaca", {"system": "", "history": []})
PLAIN_ALPACA = Layout("alpaca", plain_alpaca, "alpaca", {})
SHAREGPT = Layout("sharegpt", sharegpt, "sharegpt", {"tools": ""})
MESSAGES = Layout("messages", messages, "messages", {})
PROMPT_COMPLETION = Layout("prompt_completion", prompt_completion, "prompt_completion", {})


def turn_text(message: Message) -> str:
    """A turn's text with Alpaca's second field, for layouts that have one field."""
    return f"{message.content}\n{message.input}" if message.input else message.content


def turns_of(turns: Sequence[Message], learnt: Sequence[bool] | None = None) -> list[Record]:
    """Messages of roles that chat templates know; ``train`` says which are learnt, where that is given."""
    out: list[Record] = []
    for at, message in enumerate(turns):
        calls = tool_calls(message.content) if message.role == "call" else None
        if calls is None:
            role = "assistant" if message.role == "call" else message.role
            out.append({"role": role, "content": turn_text(message)})
        elif out and out[-1]["role"] == "assistant" and "tool_calls" not in out[-1] and out[-1]["content"]:
            out[-1]["tool_calls"] = calls  # said and called in one turn
        else:
            out.append({"role": "assistant", "content": "", "tool_calls": calls})
        if learnt is not None:
            out[-1]["train"] = bool(learnt[at] or out[-1].get("train"))
    return out


def tool_calls(text: str) -> list[Record] | None:
    """Calls as OpenAI has them, their arguments as JSON text; None where the text is no call of this kind."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(
        isinstance(c, dict) and isinstance(c.get("name"), str) and set(c) <= {"name", "arguments"} for c in calls
    ):
        return None
    return [
        {
            "type": "function",
            "function": {"name": c["name"], "arguments": json.dumps(c.get("arguments"), ensure_ascii=False)},
        }
        for c in calls
    ]


# ── a whole pool ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Laid:
    """How a pool is laid out: the shape, and all columns that some row has.

    ``changed`` rows come back as another sample: what they say is the same, how it is divided is not. ``unfit`` are
    positions of rows that the layout cannot hold. ``beside`` is another shape whose columns are added, so that rows
    come back exactly.
    """

    layout: Layout
    columns: tuple[str, ...]
    changed: int = 0
    unfit: tuple[int, ...] = ()
    beside: Layout | None = None

    def rows(self, pool: Pool) -> Iterator[Record]:
        """The rows that fit, all with the same columns."""
        for sample in pool.samples():
            row = self.layout.make(sample)
            if row is None:
                continue
            if self.beside is not None:
                row |= self.beside.make(sample) or {}
            blank = {**self.layout.blank, **(self.beside.blank if self.beside else {})}
            yield {name: row[name] if name in row else blank.get(name) for name in self.columns}


def lay(pool: Pool, layouts: Iterable[Layout], beside: Layout | None = None) -> Laid:
    """The first layout that holds every row exactly, else the last, which must hold most.

    The columns of ``beside`` are added where the last does not hold every row exactly and ``beside`` does.
    """
    found: Laid | None = None
    for layout in layouts:
        found = _measure(pool, layout)
        if not found.changed and not found.unfit:
            return found
    assert found is not None
    if beside is not None and not found.unfit and not _measure(pool, beside, stop=True).changed:
        columns = dict.fromkeys([*found.columns, *_measure(pool, beside).columns])
        return Laid(found.layout, tuple(columns), beside=beside)
    return found


def _measure(pool: Pool, layout: Layout, *, stop: bool = False) -> Laid:
    columns: dict[str, None] = {}
    changed, unfit = 0, []
    for at, sample in enumerate(pool.samples()):
        row = layout.make(sample)
        columns.update(dict.fromkeys(row or {}))
        if row is None:
            unfit.append(at)
        if row is None or not layout.exact(sample):
            changed += 1
            if stop:
                break
    return Laid(layout, tuple(columns), changed - len(unfit) if not stop else changed, tuple(unfit))


def has_calls(pool: Pool) -> bool:
    """Whether some row calls a tool."""
    return any(message.role == "call" for sample in pool.samples() for message in sample.messages)


def several_turns(pool: Pool) -> int:
    """Rows of which more than one turn is to be learnt."""
    return sum(
        sum(is_target(sample.messages, at, pool.targets) for at in range(len(sample.messages))) > 1
        for sample in pool.samples()
    )


def out_of_turn(pool: Pool) -> int:
    """Rows that LLaMA-Factory leaves out: after the system turn, question and answer must alternate to the end."""
    return sum(not _in_turn(sample) for sample in pool.samples())


def _in_turn(sample: Sample) -> bool:
    roles = [message.role for message in sample.messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    sides = {"user": 0, "tool": 0, "assistant": 1, "call": 1}
    return len(roles) % 2 == 0 and all(sides.get(role) == at % 2 for at, role in enumerate(roles))
