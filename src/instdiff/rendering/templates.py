"""Prompt templates as typed values: how a row's turns become text, and which text is a response.

A text template turns a sample into segments, and every segment is tokenised on its own. So the response's token ids
are the same whatever stands before them, in every view and in training. ``chat`` renders chat templates.
"""

from __future__ import annotations

import dataclasses
import json
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from instdiff.data import Call, Message, Sample, Turns
from instdiff.errors import ConfigError, did_you_mean


class Kind(Enum):
    """What a segment of a row is."""

    CONTEXT = "context"
    RESPONSE = "response"
    END = "end"  # closes a response: learnt in training, scored only on request
    HEAD = "head"  # what a chat template wants written before an answer: as the end


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text that is tokenised on its own; None is the tokenizer's end token."""

    text: str | None
    kind: Kind


END = Segment(None, Kind.END)


@dataclass(frozen=True)
class TextTemplate:
    """A plain-text template.

    ``prompt`` needs ``{instruction}``. Where it has no ``{input}`` and there is no ``prompt_with_input``, a row's
    input follows its instruction on a new line, so that nothing of a row is lost. ``later`` is the prompt of all turns
    but the first, after ``separator``. ``system`` stands before everything where a row has a system message.
    """

    name: str
    prompt: str
    prompt_with_input: str | None = None
    later: str | None = None
    separator: str = "\n\n"
    system: str = "{system}\n\n"
    ignore_input: bool = False

    def __post_init__(self) -> None:
        for part, needed in (
            ("prompt", {"instruction"}),
            ("prompt_with_input", {"instruction", "input"}),
            ("later", {"instruction"}),
            ("system", {"system"}),
        ):
            text = getattr(self, part)
            if text is None:
                continue
            have = placeholders(text, f"template '{self.name}', '{part}'")
            allowed = needed | ({"input"} if part in ("prompt", "later") else set())
            for lacking in sorted(needed - have):
                raise ConfigError(
                    f"template '{self.name}': '{part}' has no {{{lacking}}}, so the model would not see it"
                )
            for unknown in sorted(have - allowed):
                raise ConfigError(f"template '{self.name}': '{part}' has {{{unknown}}}{did_you_mean(unknown, allowed)}")

    def turn(self, instruction: str, text: str, *, first: bool = True) -> str:
        """The prompt of one turn."""
        prompt = self.prompt if first or self.later is None else self.later
        if text and not self.ignore_input:
            if first and self.prompt_with_input is not None:
                prompt = self.prompt_with_input
            elif "{input}" not in prompt:
                instruction = f"{instruction}\n{text}"
        return fill(prompt, instruction=instruction, input=text)


def placeholders(text: str, where: str) -> set[str]:
    """Names in braces; a doubled brace stands for itself."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; write a literal brace twice, as '{{{{'") from None


def fill(text: str, **values: str) -> str:
    """Put values into the braces; values are never parsed themselves."""
    return "".join(
        literal + (values[name] if name is not None else "") for literal, name, _, _ in string.Formatter().parse(text)
    )


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's own chat template, or a Jinja file in its place."""

    name: str = "chat"
    jinja: str | None = None


Template = TextTemplate | ChatTemplate

_INSTRUCTION = "### Instruction:\n{instruction}\n\n### Response:"
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)

TEMPLATES: dict[str, Template] = {
    "alpaca": TextTemplate("alpaca", _ALPACA + _INSTRUCTION, _ALPACA_INPUT, later=_INSTRUCTION),
    "alpaca_no_input": TextTemplate("alpaca_no_input", _ALPACA + _INSTRUCTION, later=_INSTRUCTION, ignore_input=True),
    "plain": TextTemplate("plain", "{instruction}\n", "{instruction}\n{input}\n", separator="\n"),
    "direct": TextTemplate("direct", "{instruction}", separator="\n"),
    "chat": ChatTemplate(),
}
# Names that the published configurations use; their code took them for the prompt's text itself.
PUBLISHED = {"DEFAULT_PROMPT": "alpaca", "DIRECT_PROMPT": "direct"}

ROLE_TEMPLATES = {"proxy": "plain"}
"""Templates of the roles that do not follow the run's."""


def template(spec: str) -> Template:
    """A template by name, file (.yaml, .json, .txt, .jinja), or text with ``{instruction}``; else a ConfigError."""
    spec = PUBLISHED.get(spec, spec)
    if spec in TEMPLATES:
        return TEMPLATES[spec]
    if "{instruction}" in spec:
        return TextTemplate("inline", spec)
    path = Path(spec)
    if path.suffix in (".yaml", ".yml", ".json", ".txt", ".jinja"):
        return _from_file(path)
    if "{" in spec or "\n" in spec or " " in spec:
        raise ConfigError(f"template {spec[:60]!r} has no {{instruction}}, so the model would not see the instruction")
    raise ConfigError(f"unknown template '{spec}'{did_you_mean(spec, [*TEMPLATES, *PUBLISHED])}")


def _from_file(path: Path) -> Template:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"template file '{path}': {error.strerror}") from None
    if path.suffix == ".jinja":
        return ChatTemplate(path.stem, text)
    if path.suffix == ".txt":
        return TextTemplate(path.stem, text)
    import yaml

    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"template file '{path}': {error}") from None
    known = {f.name: f for f in dataclasses.fields(TextTemplate)}
    if not isinstance(fields, dict) or "prompt" not in fields:
        raise ConfigError(f"template file '{path}': needs a mapping with 'prompt'; known fields: {', '.join(known)}")
    for key, value in fields.items():
        if key not in known:
            raise ConfigError(f"template file '{path}': unknown field '{key}'{did_you_mean(str(key), known)}")
        expected = bool if key == "ignore_input" else str
        if not isinstance(value, expected):
            raise ConfigError(f"template file '{path}': '{key}' must be {expected.__name__}, not {value!r}")
    return TextTemplate(**{"name": path.stem, **fields})


# ── which turns are learnt, and how a text template shows them ────────────────────────────────────────────────────────


def learns_answer(messages: Sequence[Message], at: int, targets: str) -> bool:
    """Whether the answer of turn ``at`` is learnt, and the thought before it."""
    turn = messages[at]
    if turn.role != "assistant" or turn.only_calls or turn.learn is False:
        return False
    return targets != "last" or not any(m.role == "assistant" and not m.only_calls for m in messages[at + 1 :])


def learns_calls(messages: Sequence[Message], at: int, targets: str) -> bool:
    """Whether the calls of turn ``at`` are learnt."""
    return targets == "all+calls" and bool(messages[at].calls) and messages[at].learn is not False


def is_target(messages: Sequence[Message], at: int, targets: str) -> bool:
    """Whether anything of turn ``at`` is learnt."""
    return learns_answer(messages, at, targets) or learns_calls(messages, at, targets)


_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def thought_in(content: str) -> re.Match[str] | None:
    """A ``<think>`` block at the head of an answer, with the white space around it; its group 1 is the thought."""
    return _THOUGHT.match(content)


@dataclass(frozen=True, slots=True)
class Said:
    """A part of an assistant turn as a text template shows it: ``thought`` is context, ``text`` the response."""

    text: str
    learnt: bool
    thought: str = ""


def said(messages: Sequence[Message], at: int, how: Turns) -> list[Said]:
    """The parts of an assistant turn: what it answers with its thought before it, and its calls as JSON text."""
    turn = messages[at]
    thought, content = f"<think>\n{turn.reasoning}\n</think>\n\n" if turn.reasoning else "", turn.content
    if how.reasoning != "learn" and (block := thought_in(content)):
        thought, content = thought + block[0], content[block.end() :]
    if how.reasoning == "drop":
        thought = ""
    elif how.reasoning == "learn":
        thought, content = "", thought + content
    parts = []
    if content.strip() or thought or not turn.calls:
        answer = learns_calls if turn.only_calls else learns_answer
        parts.append(Said(content, answer(messages, at, how.targets), thought))
    if turn.calls:
        parts.append(Said(calls_text(turn.calls), learns_calls(messages, at, how.targets)))
    return parts


def calls_text(calls: Sequence[Call]) -> str:
    """Calls as JSON text: an object, or a list where there are several; without ids."""
    plain = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return json.dumps(plain[0] if len(plain) == 1 else plain, ensure_ascii=False)


def text_segments(sample: Sample, layout: TextTemplate, how: Turns) -> list[Segment]:
    """The segments of a sample under a text template.

    User turns, observations and system text are context; each part of an assistant turn follows the prompt made of what
    came since the last one, and is closed by an end token.
    """
    segments: list[Segment] = []
    pending: list[str] = []
    extra = ""
    head = "".join(
        fill(layout.system, system=message.content) for message in sample.messages if message.role == "system"
    )
    for at, message in enumerate(sample.messages):
        if message.role in ("user", "tool"):
            pending.append(message.content)
            extra = message.input or extra
        elif message.role == "assistant":
            for part in said(sample.messages, at, how):
                first = not segments
                prompt = layout.turn("\n".join(pending), extra, first=first) if pending else ""
                segments.append(Segment((head if first else layout.separator) + prompt + part.thought, Kind.CONTEXT))
                segments += [
                    Segment(part.text, Kind.RESPONSE if part.learnt else Kind.CONTEXT),
                    END if part.learnt else _QUIET_END,
                ]
                pending, extra = [], ""
    return segments


_QUIET_END = Segment(None, Kind.CONTEXT)


def why_nothing(sample: Sample, targets: str) -> str | None:
    """Why a sample has nothing to learn: its target turns say nothing, or it has no target turn."""
    turns = [m for at, m in enumerate(sample.messages) if is_target(sample.messages, at, targets)]
    if not turns:
        return "no_target"
    return None if any(m.content or m.reasoning or m.calls for m in turns) else "empty_response"
