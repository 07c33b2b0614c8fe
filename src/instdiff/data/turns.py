"""The turns of a conversation as messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from instdiff.data.notes import Notes
from instdiff.data.sample import Call, Message
from instdiff.data.values import Record, has, kind, parse_json, unpack

SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
"""Who speaks, by the name that a row has for it; the value of a ``call`` turn is a call as JSON text."""

_PAIRS = {"from": ("value", "content"), "role": ("content", "value"), "speaker": ("text", "value", "content")}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_LEARN = ("weight", "train", "training", "trainable", "loss_mask", "loss")


@dataclass(frozen=True)
class TurnKeys:
    """What the keys of turns, and who speaks in them, are called; by default by the usual names."""

    role: str | None = None
    content: str | None = None
    speakers: Mapping[str, str] = field(default_factory=lambda: SPEAKERS)

    def find(self, turn: Record) -> tuple[str | None, str | None]:
        """The keys of a turn without nulls that say who speaks, and what."""
        role = self.role if self.role in turn else next((key for key in _PAIRS if key in turn), None)
        if self.content in turn or role is None:
            return role, self.content
        usual = _PAIRS.get(role, ("content", "value", "text"))
        return role, next((key for key in usual if key in turn), None)

    def role_of(self, speaker: Any) -> str | None:
        """The role of a speaker, None for an unknown one."""
        if not isinstance(speaker, str):
            return None
        return self.speakers.get(speaker) or self.speakers.get(speaker.lower())


USUAL = TurnKeys()


def turns(value: Any, key: str, notes: Notes, keys: TurnKeys = USUAL) -> list[Message]:
    """The messages in a list of turns, or of texts of user and assistant in turn; the list may lie in a text."""
    value = unpack(value, f"'{key}'")
    if not isinstance(value, list):
        raise ValueError(f"'{key}' is {kind(value)}, a list of turns is expected")
    if not value:
        raise ValueError(f"'{key}' is empty")
    if all(isinstance(item, str) for item in value):
        return [Message("assistant" if i % 2 else "user", item) for i, item in enumerate(value)]
    messages: list[Message] = []
    for number, turn in enumerate(value, 1):
        try:
            message = _short(turn, keys) or _turn(turn, keys, notes)
        except _TurnError as error:
            raise ValueError(str(error).format(f"turn {number} of '{key}'")) from None
        if message.role == "call":
            _put_call(messages, message)
        elif message.role != "system" or message.content:
            messages.append(message)
    return messages


def in_order(messages: list[Message]) -> tuple[Message, ...]:
    """The messages, of which the first that is no system turn must be the user's."""
    first = next((m.role for m in messages if m.role != "system"), "")
    if not first:
        raise ValueError("no user turn")
    if first != "user":
        raise ValueError(f"no user turn before the {first}'s")
    return tuple(messages)


class _TurnError(ValueError):
    """What is wrong with a turn; ``{}`` stands for its place."""


def _wrong(reason: str) -> _TurnError:
    return _TurnError(reason.replace("{", "{{").replace("}", "}}").replace("\0", "{}"))


def _short(turn: Any, keys: TurnKeys) -> Message | None:
    """A turn of nothing but a usual role and its text, which most are."""
    if keys is not USUAL or type(turn) is not dict:
        return None
    if len(turn) != 2:
        turn = {key: value for key, value in turn.items() if value is not None}
        if len(turn) != 2:
            return None
    if "role" in turn:
        speaker, content = turn["role"], turn.get("content")
    else:
        speaker, content = turn.get("from"), turn.get("value")
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    return Message(role, content) if role and role != "call" and isinstance(content, str) else None


def _turn(turn: Any, keys: TurnKeys, notes: Notes) -> Message:
    if not isinstance(turn, Mapping):
        raise _wrong(f"\0 is {kind(turn)}, an object is expected")
    given = {key: value for key, value in turn.items() if value is not None}
    role_key, content_key = keys.find(given)
    if role_key is None:
        raise _wrong(f"\0 has neither 'role' nor 'from'; {has(turn)}")
    speaker = given.pop(role_key)
    role = keys.role_of(speaker)
    if role is None:
        raise _wrong(f"unknown speaker {json.dumps(speaker, ensure_ascii=False)} in \0")
    content, thoughts = _content(given.pop(content_key, None) if content_key else None, content_key, role)
    parts: dict[str, Any] = {}
    if role in ("assistant", "call"):
        parts["reasoning"] = _reasoning(given, thoughts)
        parts["calls"] = _calls(given)
        parts["learn"] = _learn(given, notes)
    elif role == "tool":
        parts |= {name: str(given.pop(key)) for name, key in _OF_TOOLS if isinstance(given.get(key), str | int)}
    for key in given:
        notes.see(Notes.IGNORED, key)
    if content is None and not (parts.get("calls") or parts.get("reasoning")):
        raise _nothing(turn, role_key, content_key)
    message = Message(role, content or "", extra=given, **parts)
    return _called(message) if role == "call" else message


_OF_TOOLS = (("call_id", "tool_call_id"), ("name", "name"))


def _nothing(turn: Record, role_key: str, content_key: str | None) -> _TurnError:
    there = content_key or next((key for key in _PAIRS.get(role_key, ()) if key in turn), None)
    if there in turn:
        return _wrong(f"'{there}' in \0 is null, text is expected")
    return _wrong(f"\0 has no '{there or _PAIRS.get(role_key, ('content',))[0]}'; {has(turn)}")


def _content(value: Any, key: str | None, role: str) -> tuple[str | None, list[str]]:
    """The text of a turn, None where there is none, and the thoughts among its parts."""
    if value is None or isinstance(value, str):
        return value, []
    if not isinstance(value, list):
        raise _wrong(f"'{key}' in \0 is {kind(value)}, text is expected")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        # LLaMA-Factory's v1 files say `value` where OpenAI says `text`.
        of_type = (part.get("type") or "text") if isinstance(part, Mapping) else kind(part)
        said: Any = None
        if of_type == "text" and isinstance(part, Mapping):
            said = part["text"] if part.get("text") is not None else part.get("value")
        elif of_type == "thinking" and role in ("assistant", "call"):
            said = _joined(part.get("thinking"))
        if not isinstance(said, str):
            raise _wrong(f"'{key}' in \0 has a part that is not text ({of_type})")
        (thoughts if of_type == "thinking" else texts).append(said)
    return "".join(texts) if texts or not thoughts else None, thoughts


def _joined(value: Any) -> str | None:
    if isinstance(value, list):
        pieces = [part["text"] for part in value if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        return "".join(pieces) if len(pieces) == len(value) else None
    return value if isinstance(value, str) else None


def _reasoning(given: dict[str, Any], thoughts: list[str]) -> str:
    """The thought beside the content; two that differ are an error."""
    found: dict[str, str] = {"a part of the content": "".join(thoughts)} if thoughts else {}
    for key in _REASONING:
        if (thought := _joined(given.get(key))) is not None:
            found[f"'{key}'"] = thought
            del given[key]
    said = {name: value for name, value in found.items() if value}
    if len(set(said.values())) > 1:
        raise _wrong(f"{' and '.join(said)} in \0 differ; one thought is expected")
    return next(iter(said.values()), "")


def _learn(given: dict[str, Any], notes: Notes) -> bool | None:
    """The turn's own word on whether it is learnt; where keys differ, no."""
    found = []
    for key in _LEARN:
        value = given.get(key)
        if isinstance(value, bool | int | float):
            del given[key]
            if value not in (0, 1):
                notes.see(Notes.NUMBER, key)
            found.append(value > 0)
    return all(found) if found else None


def _calls(given: dict[str, Any]) -> tuple[Call, ...]:
    several, one = (_unpacked(given, key) for key in ("tool_calls", "function_call"))
    calls = several or ([one] if one else [])
    if not isinstance(calls, list):
        raise _wrong(f"'tool_calls' in \0 is {kind(calls)}, a list of objects is expected")
    return tuple(_call(call) for call in calls)


def _unpacked(given: dict[str, Any], key: str) -> Any:
    try:
        return unpack(given.pop(key, None), f"'{key}'")
    except ValueError as error:
        raise _wrong(f"in \0 {error}") from None


def _call(call: Any) -> Call:
    call = unpack(call, "a call") if isinstance(call, str) else call
    inner = call.get("function") if isinstance(call, Mapping) else None
    function = inner if isinstance(inner, Mapping) else call
    if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
        raise _wrong("a call in \0 is no object with a 'name'")
    return Call(function["name"], _arguments(function.get("arguments")), str(call.get("id") or ""))


def _arguments(value: Any) -> Mapping[str, Any] | str:
    """Arguments as an object; text that is no JSON object as it is."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str):
        return {} if value is None else json.dumps(value, ensure_ascii=False)
    try:
        found = parse_json(value) if value.strip() else {}
    except ValueError:
        return value
    return found if isinstance(found, dict) else value


def calls_in(said: Any) -> tuple[Call, ...]:
    """The calls in a list, an object or a JSON text of them; none where it is something else."""
    try:
        value = parse_json(said) if isinstance(said, str) else said
        calls = value if isinstance(value, list) else [value]
        # Some write `parameters`, which is not read: such a call stays a text.
        if any("parameters" in call and "arguments" not in call for call in calls if isinstance(call, Mapping)):
            return ()
        return tuple(map(_call, calls))
    except ValueError:
        return ()


def _called(message: Message) -> Message:
    """A turn that is a call as JSON text; one that is none stays the assistant's text."""
    calls = calls_in(message.content) if message.content else ()
    if calls or message.calls:
        kept = "" if calls else message.content
        return replace(message, content=kept, calls=(*calls, *message.calls))
    return replace(message, role="assistant")


def _put_call(messages: list[Message], call: Message) -> None:
    """A call belongs to the assistant's turn right before it, unless that one says otherwise whether it is learnt."""
    last = messages[-1] if messages else None
    if last and last.role == "assistant" and last.learn == call.learn and not call.reasoning and not call.content:
        extra = {**last.extra, **call.extra}
        messages[-1] = replace(last, calls=(*last.calls, *call.calls), extra=extra)
    else:
        messages.append(replace(call, role="assistant"))
