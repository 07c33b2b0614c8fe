"""The shapes that instruction data comes in, each a function from a row to a sample.

A function raises ``ValueError`` with a reason for a person to read when a row does not fit. Texts stay as they are.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from instdiff.data.sample import Call, Message, Sample
from instdiff.errors import ConfigError, DataError, did_you_mean

Record = Mapping[str, Any]

_SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}


@dataclass(frozen=True, slots=True)
class Format:
    """One known shape, by the name that ``--format`` has for it.

    A row of this shape has one key of each group of ``required``; ``columns`` are all keys that are read, in the order
    in which the log names them. One that is ``asked`` is taken only where the user names it, never by its keys.
    """

    name: str
    parse: Callable[[Record], Sample]
    required: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    asked: bool = False

    def fits(self, row: Record) -> bool:
        """Whether the row has this shape's keys."""
        return all(any(key in row for key in group) for group in self.required)

    def keys_used(self, rows: Iterable[Record]) -> list[str]:
        """The keys that are read and that at least one of the rows has."""
        seen = {key for row in rows for key in row}
        return [key for key in self.columns if key in seen and not (key == "context" and "input" in seen)]


def alpaca(row: Record) -> Sample:
    """``instruction``, perhaps ``input``, and ``output`` or ``response``; also ``system`` and ``history``.

    Where there is no ``input``, Dolly's ``context`` takes its place.
    """
    second = "input" if "input" in row else "context"
    prefer = "output" if row.get("output") or "response" not in row else "response"
    if prefer not in row:
        raise ValueError(f"missing key 'output' (or 'response'); {_has(row)}")
    messages = system_turn(row, "system")
    messages += _history(row.get("history"))
    messages.append(Message("user", text(row, "instruction"), optional_text(row, second)))
    messages.append(Message("assistant", text(row, prefer)))
    return Sample(tuple(messages))


def prompt_completion(row: Record) -> Sample:
    """``prompt`` and ``completion``, each a text or a list of messages."""
    messages = system_turn(row, "system")
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = require(row, key)
        messages += turns(value, key) if isinstance(value, list) else [Message(role, text(row, key))]
    return Sample(in_order(messages), tools_text(row))


def question_answer(row: Record) -> Sample:
    """``question`` and ``answer``."""
    return Sample((Message("user", text(row, "question")), Message("assistant", text(row, "answer"))))


def medmcqa(row: Record) -> Sample:
    """MedMCQA: ``question`` with its lettered options; the answer is the letter and the text that ``cop`` points to."""
    options = [f"{letter}. {text(row, key)}" for letter, key in _OPTIONS.items()]
    asked = "\n".join([text(row, "question"), *options])
    return Sample((Message("user", asked), Message("assistant", options[_answer(row)])))


def medmcqa_explained(row: Record) -> Sample:
    """``medmcqa`` whose answer is followed by the explanation ``exp``, where there is one."""
    asked, answer = medmcqa(row).messages
    reason = optional_text(row, "exp")
    return Sample((asked, Message("assistant", f"{answer.content}\n\n{reason}" if reason.strip() else answer.content)))


_OPTIONS = {"A": "opa", "B": "opb", "C": "opc", "D": "opd"}
_MEDMCQA = ("question", *_OPTIONS.values(), "cop")


def conversation(row: Record, key: str) -> Sample:
    """A conversation under one key, with ``system`` and ``tools`` beside it.

    Its turns are ``{role, content}``, ``{from, value}``, or plain strings of user and assistant in turn.
    """
    value = _json_list(require(row, key))
    if isinstance(value, str):
        # LIMA's test set: one prompt and no list around it.
        said = [Message("user", value)] if key == "conversations" else turns(value, key)
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        said = [Message("assistant" if i % 2 else "user", item) for i, item in enumerate(value)]
    else:
        said = turns(value, key)
    return Sample(in_order(system_turn(row, "system") + said), tools_text(row))


def turns(value: Any, key: str) -> list[Message]:
    """The messages in a list of ``{role, content}`` or ``{from, value}``."""
    if not isinstance(value, list):
        raise ValueError(f"'{key}' is {_kind(value)}, a list of turns is expected")
    if not value:
        raise ValueError(f"'{key}' is empty")
    return [message for i, turn in enumerate(value, 1) for message in _turn(turn, f"turn {i} of '{key}'")]


def in_order(messages: list[Message]) -> tuple[Message, ...]:
    """The messages, of which the first that is no system turn must be the user's."""
    first = next((m.role for m in messages if m.role != "system"), "")
    if not first:
        raise ValueError("no user turn")
    if first != "user":
        raise ValueError(f"no user turn before the {first}'s")
    return tuple(messages)


def require(row: Record, key: str) -> Any:
    """The value of a key that must be there."""
    if key not in row:
        raise ValueError(f"missing key '{key}'; {_has(row)}")
    return row[key]


def text(row: Record, key: str) -> str:
    """The text of a key that must be there."""
    value = require(row, key)
    if not isinstance(value, str):
        raise ValueError(f"'{key}' is {_kind(value)}, text is expected")
    return value


def optional_text(row: Record, key: str) -> str:
    """The text of a key that may be missing or null."""
    return "" if row.get(key) is None else text(row, key)


def system_turn(row: Record, key: str) -> list[Message]:
    """The system turn, unless the text is missing, null or empty."""
    content = optional_text(row, key)
    return [Message("system", content)] if content else []


def tools_text(row: Record) -> str:
    """The tools on offer as JSON text in one spelling, whether they came as a list or as text."""
    value = row.get("tools")
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            return str(value)
    elif not isinstance(value, list | dict | None):
        raise ValueError(f"'tools' is {_kind(value)}, a list or JSON text is expected")
    return json.dumps(value, ensure_ascii=False) if value else ""


def _turn(turn: Any, where: str) -> list[Message]:
    if not isinstance(turn, dict):
        raise ValueError(f"{where} is {_kind(turn)}, an object is expected")
    speaker_key, content_key = ("from", "value") if "from" in turn else ("role", "content")
    if speaker_key not in turn:
        raise ValueError(f"{where} has neither 'role' nor 'from'; {_has(turn)}")
    speaker = turn[speaker_key]
    role = _SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"unknown speaker {json.dumps(speaker, ensure_ascii=False)} in {where}")
    calls = _calls(turn, where)
    if calls and turn.get(content_key) in (None, "", []):
        return [Message(role, "", calls=calls)]
    if content_key not in turn:
        raise ValueError(f"{where} has no '{content_key}'; {_has(turn)}")
    content = _content(turn[content_key], f"'{content_key}' in {where}")
    if speaker in ("function_call", "tool_call") and (said := calls_in(content)):
        return [Message(role, "", calls=said)]
    return [Message(role, content, calls=calls)]


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_kind(value)}, text is expected")
    parts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else _kind(part)
        # LLaMA-Factory's v1 files say `value` where OpenAI says `text`.
        piece = part.get("text", part.get("value")) if isinstance(part, dict) else None
        if kind != "text" or not isinstance(piece, str):
            raise ValueError(f"{where} has a part that is not text ({kind})")
        parts.append(piece)
    return "".join(parts)


def _calls(turn: Record, where: str) -> tuple[Call, ...]:
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"'tool_calls' in {where} is not a list of objects")
    return tuple(map(_call, calls))


def calls_in(said: str) -> tuple[Call, ...]:
    """The calls in a turn's JSON text; none where it is no such text."""
    try:
        value = json.loads(said)
    except ValueError:
        return ()
    calls = value if isinstance(value, list) else [value]
    known = all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls)
    return tuple(map(_call, calls)) if known else ()


def _call(call: Record) -> Call:
    inner = call.get("function")
    function = inner if isinstance(inner, dict) else call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            found = json.loads(arguments)
            arguments = found if isinstance(found, dict) else arguments
    return Call(str(function.get("name")), {} if arguments is None else arguments, str(call.get("id") or ""))


def _history(value: Any) -> list[Message]:
    pairs = _json_list(value) or []
    if not isinstance(pairs, list):
        raise ValueError(f"'history' is {_kind(pairs)}, a list of pairs is expected")
    messages = []
    for i, pair in enumerate(pairs, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, str) for side in pair)):
            raise ValueError(f"entry {i} of 'history' is not a pair of texts")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


def _answer(row: Record) -> int:
    """Place of the right option; CSV has it as text."""
    value = require(row, "cop")
    shown = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if shown in ("0", "1", "2", "3"):
        return int(shown)
    if shown == "-1":
        raise ValueError("'cop' is -1: the row does not say which option is right")
    hint = "; a file that counts from 1 must be shifted" if shown == "4" else ""
    raise ValueError(f"'cop' is {shown or _kind(value)}, one of 0 (opa) to 3 (opd) is expected{hint}")


def _json_list(value: Any) -> Any:
    """CSV has only texts: a list that lies in one is unpacked."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if isinstance(found, list) else value
    return value


def _has(row: Record) -> str:
    return f"it has: {', '.join(map(str, row)) or 'nothing'}"


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


FORMATS = {
    form.name: form
    for form in (
        *(
            Format(name, partial(conversation, key=key), ((key,),), (key, "system", "tools"))
            for name, key in (("messages", "messages"), ("sharegpt", "conversations"))
        ),
        Format(
            "alpaca",
            alpaca,
            (("instruction",), ("output", "response")),
            ("system", "history", "instruction", "input", "context", "output", "response"),
        ),
        Format(
            "prompt_completion",
            prompt_completion,
            (("prompt",), ("completion",)),
            ("system", "prompt", "completion", "tools"),
        ),
        Format("medmcqa", medmcqa, tuple((key,) for key in _MEDMCQA), _MEDMCQA),
        Format("medmcqa+exp", medmcqa_explained, tuple((key,) for key in _MEDMCQA), (*_MEDMCQA, "exp"), asked=True),
        Format("question_answer", question_answer, (("question",), ("answer",)), ("question", "answer")),
    )
}


# ── which shape the rows have: said by the user, or by a vote of the first rows ───────────────────────────────────────

MAP_KEYS = ("instruction", "input", "response", "system", "messages")


def requested_format(format: str | None, map: Mapping[str, str] | None) -> Format | None:
    """The shape that the user asked for, if any; a ConfigError for an unknown name or a mapping without a sample."""
    if map:
        if format is not None:
            raise ConfigError("give a format or a map, not both")
        return _mapping_format(dict(map))
    if format is None:
        return None
    if format not in FORMATS:
        raise ConfigError(f"unknown format '{format}'{did_you_mean(format, FORMATS)}")
    return FORMATS[format]


def vote(rows: Sequence[Record]) -> Format | None:
    """The shape whose keys most rows have; None where no row has those of any."""
    open_ = {name: form for name, form in FORMATS.items() if not form.asked}
    counts = Counter(
        name for row in rows for name in [next((n for n, form in open_.items() if form.fits(row)), None)] if name
    )
    # A tie goes to the shape that stands first in the table, not to the row that came first.
    return FORMATS[max(FORMATS, key=lambda name: counts[name])] if counts else None


def known_formats() -> str:
    """All shapes with the keys that they need, for messages."""
    return "; ".join(
        f"{name} ({', '.join(' or '.join(group) for group in form.required)})" for name, form in FORMATS.items()
    )


def check_columns(map: Mapping[str, str], keys: Iterable[str], origin: str) -> None:
    """Raise a DataError that names a mapped column which is in no row, and those there are."""
    there = list(keys)
    for key, column in map.items():
        if column not in there:
            raise DataError(
                f"{origin}: map {key}={column}: no row has a column '{column}'"
                f"{did_you_mean(column, there)}; columns: {', '.join(there)}"
            )


def _mapping_format(map: dict[str, str]) -> Format:
    for key in map:
        if key not in MAP_KEYS:
            raise ConfigError(f"unknown map key '{key}'{did_you_mean(key, MAP_KEYS)}")
    if "messages" in map:
        clash = sorted(set(map) - {"messages", "system"})
        if clash:
            raise ConfigError(f"map: messages holds the whole conversation, '{clash[0]}' cannot stand beside it")
        return Format("map", lambda row: _whole_sample(row, map), ((map["messages"],),), tuple(map.values()))
    for key in ("instruction", "response"):
        if key not in map:
            raise ConfigError(f"map lacks '{key}': give instruction=COLUMN,response=COLUMN or messages=COLUMN")
    required = ((map["instruction"],), (map["response"],))
    return Format("map", lambda row: _single(row, map), required, tuple(map.values()))


def _whole_sample(row: Record, map: Mapping[str, str]) -> Sample:
    renamed: dict[str, Any] = {"tools": row.get("tools")}
    if map["messages"] in row:
        renamed[map["messages"]] = row[map["messages"]]
    if "system" in map:
        renamed["system"] = row.get(map["system"])
    return conversation(renamed if map["messages"] in row else row, map["messages"])


def _single(row: Record, map: Mapping[str, str]) -> Sample:
    messages = system_turn(row, map["system"]) if "system" in map else []
    second = optional_text(row, map["input"]) if "input" in map else ""
    messages.append(Message("user", text(row, map["instruction"]), second))
    messages.append(Message("assistant", text(row, map["response"])))
    return Sample(tuple(messages))
