"""Formats that the user describes: which column is which, and what the keys and speakers of turns are called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from instdiff.data.formats import Format, conversation, history, not_learnt, pair, sample_of, talk
from instdiff.data.notes import Notes
from instdiff.data.sample import Message, Sample
from instdiff.data.turns import SPEAKERS, TurnKeys, turns
from instdiff.data.values import Record, optional_text, text, unpack_if_whole
from instdiff.errors import ConfigError, DataError, did_you_mean

_COLUMNS = ("instruction", "input", "response", "chosen", "rejected", "system", "messages", "tools")
_PAIR = ("chosen", "rejected")
_TURNS = ("role", "content")
_SPEAKERS = ("user", "assistant", "tool")
MAP_KEYS = (*_COLUMNS, *_TURNS, *_SPEAKERS)
_USUAL_TALKS = ("messages", "conversations", "conversation")


def mapping_format(map: Mapping[str, str]) -> Format:
    """The format that a mapping describes; a ConfigError where it makes no sample."""
    for key in map:
        if key not in MAP_KEYS:
            raise ConfigError(f"unknown map key '{key}'{did_you_mean(key, MAP_KEYS)}")
    columns = tuple(map[key] for key in _COLUMNS if key in map)
    of_turns = sorted(set(map) & {*_TURNS, *_SPEAKERS})
    if set(map) & set(_PAIR):
        return _pair_format(map, columns)
    if "messages" in map or (of_turns and "instruction" not in map):
        clash = sorted(set(map) & {"instruction", "input", "response"})
        if clash:
            raise ConfigError(f"map: messages holds the whole conversation, '{clash[0]}' cannot stand beside it")
        at = (map["messages"],) if "messages" in map else _USUAL_TALKS
        keys = TurnKeys(map.get("role"), map.get("content"), _speakers(map)) if of_turns else TurnKeys()
        return Format("map", lambda row, notes: _talk(row, notes, map, at, keys), (at,), columns or at)
    for key in ("instruction", "response"):
        if key not in map:
            raise ConfigError(f"map lacks '{key}': give instruction=COLUMN,response=COLUMN or messages=COLUMN")
    if of_turns:
        raise ConfigError(f"map: '{of_turns[0]}' is of turns, which stand in a column of messages; add messages=COLUMN")
    return Format(
        "map", lambda row, notes: _single(row, notes, map), ((map["instruction"],), (map["response"],)), columns
    )


def _pair_format(map: Mapping[str, str], columns: tuple[str, ...]) -> Format:
    """Preference pairs: two responses to an instruction or messages, or two whole conversations."""
    if lacks := next((key for key in _PAIR if key not in map), None):
        raise ConfigError(f"map lacks '{lacks}': a pair has both, chosen=COLUMN,rejected=COLUMN")
    if "response" in map or {"instruction", "messages"} <= set(map):
        raise ConfigError(
            "map: a pair is chosen=COLUMN,rejected=COLUMN and, where these are no whole conversations, "
            "instruction=COLUMN or messages=COLUMN"
        )
    before = next((key for key in ("instruction", "messages") if key in map), None)
    keys = TurnKeys(map.get("role"), map.get("content"), _speakers(map))
    needed = tuple((map[key],) for key in (*_PAIR, *([before] if before else [])))
    return Format("map", lambda row, notes: _two(row, notes, map, before, keys), needed, columns)


def _two(row: Record, notes: Notes, map: Mapping[str, str], before: str | None, keys: TurnKeys) -> Sample:
    prompt = talk(row, map[before], notes, "user", keys) if before else []
    if prompt and "input" in map:
        prompt[-1] = replace(prompt[-1], input=optional_text(row, map["input"]))
    return pair(row, notes, prompt, map["chosen"], map["rejected"], keys=keys, **_named(map))


def check_columns(map: Mapping[str, str], keys: Iterable[str], origin: str) -> None:
    """Raise a DataError that names a mapped column which is in no row, and those there are."""
    there = list(keys)
    for key, column in map.items():
        if key in _COLUMNS and column not in there:
            raise DataError(
                f"{origin}: map {key}={column}: no row has a column '{column}'"
                f"{did_you_mean(column, there)}; columns: {', '.join(there)}"
            )


def _speakers(map: Mapping[str, str]) -> dict[str, str]:
    return {**SPEAKERS, **{map[role]: role for role in _SPEAKERS if role in map}}


def _named(at: Mapping[str, str]) -> dict[str, str]:
    return {key: at[key] for key in ("system", "tools") if key in at}


def _talk(row: Record, notes: Notes, map: Mapping[str, str], at: tuple[str, ...], keys: TurnKeys) -> Sample:
    return conversation(row, notes, at=at, keys=keys, **_named(map))


def _single(row: Record, notes: Notes, map: Mapping[str, str]) -> Sample:
    second = optional_text(row, map["input"]) if "input" in map else ""
    messages = [
        Message("user", text(row, map["instruction"]), second),
        Message("assistant", text(row, map["response"])),
    ]
    return sample_of(row, messages, notes, **_named(map))


# ── LLaMA-Factory's own description ───────────────────────────────────────────────────────────────────────────────────

_ROLE_TAGS = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "system_tag": "system"}


def llama_factory_format(entry: Mapping[str, Any]) -> Format | None:
    """The format that an entry of LLaMA-Factory's ``dataset_info.json`` describes, None where its keys decide."""
    columns = dict(entry.get("columns") or {})
    tags, ranking = dict(entry.get("tags") or {}), bool(entry.get("ranking"))
    if not (columns or tags or ranking or entry.get("formatting") or entry.get("mask_history")):
        return None
    if entry.get("formatting", "alpaca") == "alpaca":
        at = {"prompt": "instruction", "query": "input", "response": "output", **columns}
        masked = bool(entry.get("mask_history"))
        used = tuple(dict.fromkeys(at.values()))
        return Format("llamafactory", lambda row, notes: _lf_alpaca(row, notes, at, ranking, masked), (), used)
    speakers = {**SPEAKERS, **{str(tags[tag]): role for tag, role in _ROLE_TAGS.items() if tag in tags}}
    if "function_tag" in tags:
        speakers[str(tags["function_tag"])] = "call"
    keys = TurnKeys(tags.get("role_tag"), tags.get("content_tag"), speakers)
    at = {"messages": "messages" if entry["formatting"] == "openai" else "conversations", **columns}
    used = tuple(dict.fromkeys(at.values()))
    return Format("llamafactory", lambda row, notes: _lf_turns(row, notes, at, ranking, keys), (), used)


def _lf_alpaca(row: Record, notes: Notes, at: Mapping[str, str], ranking: bool, masked: bool) -> Sample:
    messages = history(row, at["history"]) if "history" in at else []
    messages = not_learnt(messages) if masked else messages
    messages.append(Message("user", text(row, at["prompt"]), optional_text(row, at["query"])))
    if ranking:
        return pair(row, notes, messages, at.get("chosen", "chosen"), at.get("rejected", "rejected"), **_named(at))
    return sample_of(row, [*messages, Message("assistant", text(row, at["response"]))], notes, **_named(at))


def _lf_turns(row: Record, notes: Notes, at: Mapping[str, str], ranking: bool, keys: TurnKeys) -> Sample:
    messages = turns(row.get(at["messages"]), at["messages"], notes, keys)
    if ranking:
        chosen, rejected = at.get("chosen", "chosen"), at.get("rejected", "rejected")
        return pair(row, notes, messages, chosen, rejected, keys=keys, **_named(at))
    return sample_of(row, messages, notes, **_named(at))


# ── a mapping for rows that no format fits ────────────────────────────────────────────────────────────────────────────

_ASKS = ("instruction", "question", "prompt", "query", "problem", "input", "user", "human", "request", "task", "text")
_ANSWERS = (
    "response",
    "answer",
    "completion",
    "output",
    "solution",
    "reply",
    "answers",
    "assistant",
    "target",
    "label",
)


def suggest_map(row: Record) -> str:
    """A mapping with which the row would be read; empty where none is to be seen."""
    for found in filter(None, (_suggest_turns(row), _suggest_pair(row))):
        with contextlib.suppress(ValueError, ConfigError):
            mapping_format(dict(part.split("=", 1) for part in found.split(","))).parse(row)
            return found
    return ""


def _suggest_pair(row: Record) -> str:
    texts = {key.lower(): key for key, value in row.items() if isinstance(value, str)}
    asks, answers = (
        next((texts[name] for wanted in names for name in texts if wanted in name.split("_")), None)
        for names in (_ASKS, _ANSWERS)
    )
    if len(texts) == 2 and not (asks and answers and asks != answers):
        asks, answers = texts.values()
    return f"instruction={asks},response={answers}" if asks and answers and asks != answers else ""


def _suggest_turns(row: Record) -> str:
    for column, value in row.items():
        found = unpack_if_whole(value)
        turn = found[0] if isinstance(found, list) and found else None
        if not isinstance(turn, Mapping):
            continue
        if column in _USUAL_TALKS and all(TurnKeys().find(turn)):
            continue
        if all(TurnKeys().find(turn)):
            return f"messages={column}"
        said = [key for key, part in turn.items() if isinstance(part, str)]
        known = [key for key in said if turn[key].lower() in SPEAKERS]
        others = [key for key in said if key not in known]
        if known and others:
            longest = max(others, key=lambda key: len(turn[key]))
            return f"messages={column},role={known[0]},content={longest}"
    return ""


def suggest_speaker(reason: str) -> str:
    """A mapping for a speaker whose name a reason calls unknown; empty where that is not the reason."""
    if not reason.startswith("unknown speaker "):
        return ""
    name = reason.removeprefix("unknown speaker ").partition(" in turn ")[0].strip('"')
    return f"messages={reason.rpartition(' of ')[2].strip(chr(39))},assistant={name}"
