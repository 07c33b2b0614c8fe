"""Samples as the rows that trainers read. Reading a row again gives the same sample wherever its layout can hold it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instdiff.data import Call, Message, Pool, Sample, Turns
from instdiff.data.formats import FORMATS
from instdiff.rendering.templates import Kind, TextTemplate, calls_text, is_target, text_segments, thought_in

Record = dict[str, Any]
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
"""ShareGPT's names, as LLaMA-Factory has them by default; a call is ``function_call``."""


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


# ── layouts with one field for what is said ───────────────────────────────────────────────────────────────────────────


def alpaca(sample: Sample) -> Record | None:
    """``instruction``, ``input``, ``output``; earlier turns in ``history``, a system turn in ``system``."""
    messages = list(sample.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    roles = [m.role for m in messages]
    if beside(sample) or not messages or roles != ["user", "assistant"] * (len(messages) // 2):
        return None
    if any(m.calls for m in messages):
        return None
    *before, user, answer = messages
    row: Record = {"instruction": user.content, "input": user.input, "output": answer_text(answer)}
    if system:
        row["system"] = system
    if before:
        row["history"] = [[turn_text(q), answer_text(a)] for q, a in zip(before[::2], before[1::2], strict=True)]
    return row


def plain_alpaca(sample: Sample) -> Record | None:
    """``alpaca`` without ``system`` and ``history``, which some trainers do not know."""
    row = alpaca(sample)
    return row if row is not None and len(row) == 3 else None


def sharegpt(sample: Sample) -> Record:
    """``conversations`` of ``{from, value}``, thoughts and calls as text, tools as JSON text."""
    turns = [turn for message in sample.messages for turn in _spoken(message)]
    return {"conversations": turns, **beside(sample)}


def _spoken(message: Message) -> Iterator[Record]:
    if not message.calls:
        text = answer_text(message) if message.role == "assistant" else turn_text(message)
        yield {"from": SPEAKERS[message.role], "value": text}
        return
    if message.content:
        yield {"from": SPEAKERS["assistant"], "value": answer_text(message)}
    thought = "" if message.content else thought_text(message)
    yield {"from": "function_call", "value": thought + calls_text(message.calls)}


def turn_text(message: Message) -> str:
    """A turn's text with Alpaca's second field, for layouts that have one field."""
    return f"{message.content}\n{message.input}" if message.input else message.content


def thought_text(message: Message) -> str:
    """The thought that stands beside the content as text; empty where there is none."""
    return f"<think>\n{message.reasoning}\n</think>\n\n" if message.reasoning else ""


def answer_text(message: Message) -> str:
    """An answer with its thought before it."""
    return thought_text(message) + message.content


# ── layouts with messages ─────────────────────────────────────────────────────────────────────────────────────────────


def messages(sample: Sample) -> Record:
    """``messages`` with all that a turn has; tools as JSON text."""
    return {"messages": turns_of(sample.messages), **beside(sample)}


def prompt_completion(sample: Sample) -> Record | None:
    """``prompt`` and ``completion``, both lists of messages; the completion is the last turn."""
    turns = turns_of(sample.messages)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        return None
    return {"prompt": turns[:-1], "completion": turns[-1:], **beside(sample)}


def with_tool_objects(sample: Sample, targets: str, *, text: bool = False) -> Record:
    """``messages`` with tools as a list of objects, as axolotl needs it.

    ``train`` is false in the assistant's turns that are not learnt under ``targets``. With ``text`` the arguments of
    calls are JSON text, since a column has one type.
    """
    turns = turns_of(sample.messages)
    for at, turn in enumerate(turns):
        if turn["role"] == "assistant" and not is_target(sample.messages, at, targets):
            turn["train"] = False
        for call in turn.get("tool_calls", ()) if text else ():
            call["function"]["arguments"] = _json(call["function"]["arguments"])
    row = {"messages": turns, **beside(sample)}
    if sample.tools:
        try:
            tools = json.loads(sample.tools)
        except ValueError:  # text of the user's own; the trainer will say that it wants a list
            tools = sample.tools
        row["tools"] = [tools] if isinstance(tools, dict) else tools
    return row


def beside(sample: Sample) -> Record:
    """What stands beside the turns: tools as JSON text, and the values for the chat template."""
    row: Record = {"tools": sample.tools} if sample.tools else {}
    return row | ({"chat_template_kwargs": json.loads(sample.template_values)} if sample.template_values else {})


def turns_of(turns: Sequence[Message]) -> list[Record]:
    """Messages in the roles and keys that chat templates know; ``train`` where the row says it."""
    return [_turn(message) for message in turns]


def _turn(message: Message) -> Record:
    turn: Record = {"role": message.role, "content": turn_text(message)}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.calls:
        turn["tool_calls"] = [_call(call) for call in message.calls]
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    if message.name:
        turn["name"] = message.name
    if message.learn is not None:
        turn["train"] = message.learn
    return turn


def _call(call: Call) -> Record:
    named = {"id": call.id} if call.id else {}
    return {**named, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ── preference pairs ──────────────────────────────────────────────────────────────────────────────────────────────────

PAIR = ("prompt", "chosen", "rejected")


def parts_of_pair(sample: Sample) -> tuple[tuple[Message, ...], ...]:
    """The turns of the prompt, of the chosen answer and of the rejected one."""
    at = sample.shared_turns
    prompt = tuple(replace(m, learn=None) if m.role == "assistant" else m for m in sample.messages[:at])
    return prompt, sample.messages[at:], sample.rejected[at:]


def pair_of_messages(sample: Sample, how: Turns | None = None) -> Record:
    """``prompt``, ``chosen`` and ``rejected``, each a list of messages."""
    parts = parts_of_pair(shown_sides(sample, how or Turns()))
    return dict(zip(PAIR, map(turns_of, parts), strict=True)) | beside(sample)


def shown_sides(sample: Sample, how: Turns) -> Sample:
    """What a model is shown of both sides."""
    other = shown(sample.side("rejected"), how).messages
    return replace(shown(sample, how), rejected=other)


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def render_layout(
    layout: TextTemplate, how: Turns, start: str = "", end: str = ""
) -> Callable[[Sample], Record | None]:
    """``prompt`` and ``completion`` as texts under a template; the completion is the last response that is learnt.

    ``start`` and ``end`` are the texts of the tokens that open and close a row, for trainers that add none.
    """

    def make(sample: Sample) -> Record | None:
        segments = text_segments(sample, layout, how)
        at = max((i for i, s in enumerate(segments) if s.kind is Kind.RESPONSE and s.text), default=None)
        if at is None:
            return None
        before = "".join(end if s.text is None else s.text for s in segments[:at])
        return {"prompt": start + before, "completion": f"{segments[at].text}{end}"}

    return make


ALPACA = Layout("alpaca", alpaca, "alpaca", {"system": "", "history": []})
PLAIN_ALPACA = Layout("alpaca", plain_alpaca, "alpaca", {})
SHAREGPT = Layout("sharegpt", sharegpt, "sharegpt", {"tools": ""})
MESSAGES = Layout("messages", messages, "messages", {})
PROMPT_COMPLETION = Layout("prompt_completion", prompt_completion, "prompt_completion", {})


# ── a whole pool ──────────────────────────────────────────────────────────────────────────────────────────────────────

Pieces = Callable[[Sample], Sequence[Sample]]
"""What becomes of a sample: itself, one that shows less, several that end at a turn each, or nothing."""


def whole(sample: Sample) -> Sequence[Sample]:
    """A sample as it is."""
    return (sample,)


@dataclass(frozen=True)
class Laid:
    """How a pool is laid out: the shape, and all columns that some row has.

    ``changed`` rows come back as another sample: what they say is the same, how it is divided is not. ``unfit`` are
    positions of rows that the layout cannot hold. ``beside`` is another shape whose columns are added, so that rows
    come back exactly. ``pieces`` says what of a sample is laid out.
    """

    layout: Layout
    columns: tuple[str, ...]
    changed: int = 0
    unfit: tuple[int, ...] = ()
    beside: Layout | None = None
    pieces: Pieces = whole

    def rows(self, pool: Pool) -> Iterator[Record]:
        """The rows that fit, all with the same columns."""
        blank = {**self.layout.blank, **(self.beside.blank if self.beside else {})}
        for sample in pool.samples():
            for piece in self.pieces(sample):
                row = self.layout.make(piece)
                if row is None:
                    continue
                if self.beside is not None:
                    row |= self.beside.make(sample) or {}
                yield {name: row[name] if name in row else blank.get(name) for name in self.columns}


def lay(pool: Pool, layouts: Iterable[Layout], beside: Layout | None = None, pieces: Pieces = whole) -> Laid:
    """The first layout that holds every row exactly, else the last, which must hold most.

    The columns of ``beside`` are added where the last does not hold every row exactly and ``beside`` does.
    """
    found: Laid | None = None
    for layout in layouts:
        found = _measure(pool, layout, pieces)
        if not found.changed and not found.unfit:
            return found
    assert found is not None
    if beside is not None and not found.unfit and not _measure(pool, beside, pieces, stop=True).changed:
        columns = dict.fromkeys([*found.columns, *_measure(pool, beside, pieces).columns])
        return replace(found, columns=tuple(columns), changed=0, beside=beside)
    return found


def _measure(pool: Pool, layout: Layout, pieces: Pieces, *, stop: bool = False) -> Laid:
    columns: dict[str, None] = {}
    changed, unfit = 0, []
    for at, sample in enumerate(pool.samples()):
        parts = pieces(sample)
        rows = [row for part in parts if (row := layout.make(part)) is not None]
        for row in rows:
            columns.update(dict.fromkeys(row))
        if not rows:
            unfit.append(at)
        if len(rows) != 1 or parts[0] != sample or not layout.exact(sample):
            changed += 1
            if stop:
                break
    return Laid(layout, tuple(columns), changed - len(unfit) if not stop else changed, tuple(unfit), pieces=pieces)


def shown(sample: Sample, how: Turns) -> Sample:
    """What a model is shown of a sample: all of it, or all but the thoughts."""
    if how.reasoning != "drop":
        return sample
    return replace(sample, messages=tuple(_without_thought(m) if m.role == "assistant" else m for m in sample.messages))


def _without_thought(message: Message) -> Message:
    block = thought_in(message.content)
    return replace(message, reasoning="", content=message.content[block.end() :] if block else message.content)


def learnt_turns(sample: Sample, how: Turns) -> list[int]:
    """The turns of which something is learnt."""
    return [at for at in range(len(sample.messages)) if is_target(sample.messages, at, how.targets)]


def several_turns(pool: Pool) -> int:
    """Rows of which more than one turn is to be learnt."""
    return sum(len(learnt_turns(sample, pool.turns)) > 1 for sample in pool.samples())
