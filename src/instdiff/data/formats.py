"""The shapes that instruction data comes in, each a function from a row to a sample.

A function raises ``ValueError`` with a reason for a person to read when a row does not fit. Texts stay as they are. The
keys of a row decide which shape it has; a null is a missing key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from instdiff.data.notes import Notes
from instdiff.data.sample import Message, Sample
from instdiff.data.turns import USUAL, TurnKeys, calls_in, in_order, turns
from instdiff.data.values import (
    Record,
    first_key,
    has,
    kind,
    optional_text,
    refuse_unusable,
    require,
    text,
    unpack,
    unpack_if_whole,
)
from instdiff.errors import ConfigError, did_you_mean

Parse = Callable[[Record, Notes], Sample]
_BESIDE = ("system", "tools", "chat_template_kwargs")
_MEDIA = ("images", "videos", "audios", "image", "video", "audio")


@dataclass(frozen=True, slots=True)
class Format:
    """One known shape, by the name that ``--format`` has for it.

    A row of this shape has one key of each group of ``required``; ``columns`` are all keys that are read, in the order
    in which the log names them. One that is ``asked`` is taken only where the user names it, never by its keys.
    """

    name: str
    build: Parse
    required: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    asked: bool = False

    def parse(self, row: Record, notes: Notes | None = None) -> Sample:
        """The sample that a row is; a ValueError says why it is none."""
        return self.build(row, Notes() if notes is None else notes)

    def fits(self, keys: Collection[str]) -> bool:
        """Whether a row that has these keys, nulls not counted, has this shape."""
        return all(any(key in keys for key in group) for group in self.required)

    def keys_used(self, keys: Collection[str]) -> list[str]:
        """Those of a row's keys that are read."""
        return [key for key in self.columns if key in keys and not (key == "context" and "input" in keys)]


# ── what every shape has beside its messages ──────────────────────────────────────────────────────────────────────────


def sample_of(
    row: Record, messages: list[Message], notes: Notes, system: str = "system", tools: str = "tools"
) -> Sample:
    """The messages with what stands beside them: system text, tools, values for the template."""
    if row.get(system) is not None:
        messages = system_turn(row, system) + messages
    for key in _MEDIA:
        if row.get(key):
            notes.see(Notes.MEDIA, key)
    return Sample(in_order(messages), tools_text(row, tools), _template_values(row))


def system_turn(row: Record, key: str) -> list[Message]:
    """The system turn, unless the text is missing, null or empty."""
    content = optional_text(row, key)
    return [Message("system", content)] if content else []


def tools_text(row: Record, key: str = "tools") -> str:
    """The tools on offer as JSON text in one spelling; text that is no list and no object stays as it is."""
    value = row.get(key)
    if isinstance(value, str):
        value = unpack_if_whole(value)
        if isinstance(value, str):
            refuse_unusable(value, f"'{key}'")
            return "" if value.strip() in ("", "null") else value
    if value is None or value in ([], {}):
        return ""
    return json.dumps(
        [unpack_if_whole(tool) for tool in value] if isinstance(value, list) else value, ensure_ascii=False
    )


def _template_values(row: Record) -> str:
    value = row.get("chat_template_kwargs")
    if value is None or value == "":
        return ""
    value = unpack(value, "'chat_template_kwargs'")
    if not isinstance(value, Mapping):
        raise ValueError(f"'chat_template_kwargs' is {kind(value)}, an object is expected")
    return json.dumps(value, ensure_ascii=False) if value else ""


def talk(row: Record, key: str, notes: Notes, role: str, keys: TurnKeys = USUAL) -> list[Message]:
    """What stands under a key: a list of turns, one turn, or the text of a ``role``."""
    value = require(row, key)
    if isinstance(value, str):
        found = unpack_if_whole(value)
        inside = found if isinstance(found, list) else [found]
        if not (inside and all(isinstance(turn, dict) and keys.find(turn)[0] for turn in inside)):
            return [Message(role, value)]
        value = found
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"'{key}' is {kind(value)}, text is expected")
    return turns(value, key, notes, keys)


def not_learnt(messages: Iterable[Message]) -> list[Message]:
    """The messages with the word that none of their answers is learnt."""
    return [replace(m, learn=False) if m.role == "assistant" else m for m in messages]


# ── the shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def conversation(row: Record, notes: Notes, *, at: tuple[str, ...], keys: TurnKeys = USUAL, **names: str) -> Sample:
    """A conversation under the first of these keys that is there, or the text of one prompt, as in LIMA's test set.

    ``names`` are those of ``sample_of``.
    """
    key = first_key(row, at) or next((key for key in at if key in row), at[0])
    value = unpack(require(row, key), f"'{key}'")
    if isinstance(value, str) and key != "messages":
        return sample_of(row, [Message("user", value)], notes, **names)
    return sample_of(row, turns(value, key, notes, keys), notes, **names)


def alpaca(row: Record, notes: Notes) -> Sample:
    """``instruction``, perhaps ``input``, and ``output`` or ``response``; also ``history`` of pairs.

    Where there is no ``input``, Dolly's ``context`` takes its place.
    """
    second = first_key(row, ("input", "context")) or "input"
    prefer = "output" if row.get("output") or row.get("response") is None else "response"
    if prefer not in row:
        raise ValueError(f"missing key 'output' (or 'response'); {has(row)}")
    messages = history(row, "history")
    messages.append(Message("user", text(row, "instruction"), optional_text(row, second)))
    messages.append(Message("assistant", text(row, prefer)))
    return sample_of(row, messages, notes)


def history(row: Record, key: str) -> list[Message]:
    """Earlier exchanges, as pairs of texts."""
    pairs = unpack(row.get(key), f"'{key}'") or []
    if not isinstance(pairs, list):
        raise ValueError(f"'{key}' is {kind(pairs)}, a list of pairs is expected")
    messages = []
    for i, pair in enumerate(pairs, 1):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(side, str) for side in pair)):
            raise ValueError(f"entry {i} of '{key}' is not a pair of texts")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


def prompt_completion(row: Record, notes: Notes) -> Sample:
    """``prompt``, of which nothing is learnt, and ``completion``, each a text or a list of turns."""
    prompt = not_learnt(talk(row, "prompt", notes, "user"))
    return sample_of(row, prompt + talk(row, "completion", notes, "assistant"), notes)


def preference(row: Record, notes: Notes) -> Sample:
    """``chosen`` and ``rejected`` are two responses to ``prompt``, ``question`` or ``conversations``."""
    key = first_key(row, ("prompt", "question", "conversations", "conversation"))
    before = talk(row, key, notes, "user") if key else []
    return pair(row, notes, before, "chosen", "rejected")


def pair(row: Record, notes: Notes, before: list[Message], chosen: str, rejected: str, **how: Any) -> Sample:
    """The messages before two responses, and both.

    Where one of them is the whole conversation, what it begins with is the prompt: of two, all that they share. No turn
    of a prompt is learnt.
    """
    keys: TurnKeys = how.pop("keys", USUAL)
    good, bad = talk(row, chosen, notes, "assistant", keys), talk(row, rejected, Notes(), "assistant", keys)
    wholes = [said for said in (good, bad) if said[0].role != "assistant"]
    if not wholes and not before:
        if isinstance(row[chosen], str):
            raise ValueError(
                f"'{chosen}' and '{rejected}': two whole conversations as plain text, with no prompt beside them"
            )
        raise ValueError(f"no user turn before the assistant's in '{chosen}'")
    if wholes and (good in wholes or not before):
        before = wholes[0][: min(_shared(*wholes), *map(_last_answer, wholes))]
    good, bad = (_reply(said, before) for said in (good, bad))
    if not (good and bad):
        raise ValueError(f"'{chosen}' and '{rejected}' are no two answers to one prompt")
    notes.see(Notes.PAIR)
    sample = sample_of(row, not_learnt(before) + good, notes, **how)
    return replace(sample, rejected=(*sample.messages[: -len(good)], *bad))


def _shared(one: list[Message], other: list[Message] | None = None) -> int:
    """How many turns two conversations begin with; all, where there is one."""
    if other is None:
        return len(one)
    return next((at for at, (m, n) in enumerate(zip(one, other, strict=False)) if m != n), min(len(one), len(other)))


def _reply(said: list[Message], before: list[Message]) -> list[Message]:
    """What follows a prompt; nothing where another one stands there, or no answer follows."""
    if said[0].role != "assistant":
        said = said[len(before) :] if said[: len(before)] == before else []
    return said if said and said[0].role == "assistant" else []


def _last_answer(said: list[Message]) -> int:
    """The place of the last answer, behind the end where there is none."""
    return max((at for at, m in enumerate(said) if m.role == "assistant"), default=len(said))


def xlam(row: Record, notes: Notes) -> Sample:
    """``query`` and ``answers``, which are calls of ``tools``."""
    answers = require(row, "answers")
    calls = calls_in(answers)
    if not calls and not isinstance(answers, str):
        raise ValueError(f"'answers' is {kind(answers)} of something else than calls")
    said = "" if calls or answers.strip() == "[]" else answers
    return sample_of(row, [Message("user", text(row, "query")), Message("assistant", said, calls=calls)], notes)


def question_answer(row: Record, notes: Notes) -> Sample:
    """``question`` and ``answer``."""
    return sample_of(row, [Message("user", text(row, "question")), Message("assistant", text(row, "answer"))], notes)


def medmcqa(row: Record, notes: Notes, *, explained: bool = False) -> Sample:
    """MedMCQA: ``question`` with its lettered options; the answer is the letter and the text that ``cop`` points to.

    Where it is ``explained``, the explanation ``exp`` follows the answer, where there is one.
    """
    options = [f"{letter}. {text(row, key)}" for letter, key in _OPTIONS.items()]
    asked = "\n".join([text(row, "question"), *options])
    answer = options[_answer(row)]
    reason = optional_text(row, "exp") if explained else ""
    answer += f"\n\n{reason}" if reason.strip() else ""
    return sample_of(row, [Message("user", asked), Message("assistant", answer)], notes)


_OPTIONS = {"A": "opa", "B": "opb", "C": "opc", "D": "opd"}
_MEDMCQA = ("question", *_OPTIONS.values(), "cop")


def _answer(row: Record) -> int:
    """Place of the right option; CSV has it as text."""
    value = require(row, "cop")
    shown = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if shown in ("0", "1", "2", "3"):
        return int(shown)
    if shown == "-1":
        raise ValueError("'cop' is -1: the row does not say which option is right")
    hint = "; a file that counts from 1 must be shifted" if shown == "4" else ""
    raise ValueError(f"'cop' is {shown or kind(value)}, one of 0 (opa) to 3 (opd) is expected{hint}")


def prompt_alone(row: Record, notes: Notes) -> Sample:
    """A prompt without a response, under the first of ``PROMPTS`` that is there: a text or a list of turns."""
    key = first_key(row, PROMPTS) or PROMPTS[0]
    messages = talk(row, key, notes, "user")
    if key == "instruction" and (second := optional_text(row, "input")):
        messages = [replace(messages[0], input=second), *messages[1:]]
    return sample_of(row, messages, notes)


PROMPTS = ("prompt", "problem", "question", "instruction", "messages")
_TALKS = ("conversations", "conversation")
_PAIR = (("chosen",), ("rejected",))
FORMATS = {
    form.name: form
    for form in (
        Format("messages", partial(conversation, at=("messages",)), (("messages",),), ("messages", *_BESIDE)),
        Format(
            "preference",
            preference,
            (*_PAIR, ("prompt", "question", *_TALKS)),
            ("system", "prompt", "question", *_TALKS, "chosen", "rejected", *_BESIDE[1:]),
        ),
        Format("sharegpt", partial(conversation, at=_TALKS), (_TALKS,), (*_TALKS, *_BESIDE)),
        Format(
            "alpaca",
            alpaca,
            (("instruction",), ("output", "response")),
            ("system", "history", "instruction", "input", "context", "output", "response", *_BESIDE[1:]),
        ),
        Format(
            "prompt_completion",
            prompt_completion,
            (("prompt",), ("completion",)),
            ("system", "prompt", "completion", *_BESIDE[1:]),
        ),
        Format("xlam", xlam, (("query",), ("answers",), ("tools",)), ("system", "query", "answers", *_BESIDE[1:])),
        Format("medmcqa", medmcqa, tuple((key,) for key in _MEDMCQA), (*_MEDMCQA, *_BESIDE)),
        Format(
            "medmcqa+exp",
            partial(medmcqa, explained=True),
            tuple((key,) for key in _MEDMCQA),
            (*_MEDMCQA, "exp", *_BESIDE),
            asked=True,
        ),
        Format("prompt", prompt_alone, (PROMPTS,), ("system", *PROMPTS, "input", *_BESIDE[1:]), asked=True),
        Format("question_answer", question_answer, (("question",), ("answer",)), ("question", "answer", *_BESIDE)),
    )
}
_WHOLE_PAIRS = replace(FORMATS["preference"], required=_PAIR)


# ── which shape a row has: said by the user, or by its keys ───────────────────────────────────────────────────────────


def requested_format(format: str | None) -> Format | None:
    """The shape that the user asked for, if any; a ConfigError for an unknown name."""
    if format is None:
        return None
    if format not in FORMATS:
        raise ConfigError(f"unknown format '{format}'{did_you_mean(format, FORMATS)}")
    return FORMATS[format]


def format_of(keys: Collection[str]) -> Format | None:
    """The first shape that a row with these keys, nulls not counted, has."""
    return next((form for form in (*FORMATS.values(), _WHOLE_PAIRS) if not form.asked and form.fits(keys)), None)


def misfit(row: Record) -> str:
    """Why a row has none of the shapes: what the nearest one misses."""
    there = {key for key, value in row.items() if value is not None}

    def near(form: Format) -> float:
        found = [0.0 if there.isdisjoint(group) else 1.0 for group in form.required]
        nulls = [0.5 for group in form.required if there.isdisjoint(group) and any(key in row for key in group)]
        return (sum(found) + sum(nulls)) / len(form.required)

    nearest = max((form for form in FORMATS.values() if not form.asked), key=near)
    if near(nearest):
        try:
            nearest.parse(row)
        except ValueError as error:
            return str(error)
    return f"fits no known format; {has(row)}"


def known_formats() -> str:
    """All shapes with the keys that they need, for messages."""
    return "; ".join(
        f"{name} ({', '.join(' or '.join(group) for group in form.required)})" for name, form in FORMATS.items()
    )
