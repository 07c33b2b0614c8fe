"""How a model behind an endpoint is asked, and what of it a server may refuse."""

from __future__ import annotations

from typing import Any, Protocol

from instdiff.engine.text.judge import MAX_TOKENS, Question, scored

WARM = 0.7
"""Temperature from the second attempt on; the first is at 0."""

_SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "number"}, "reason": {"type": "string"}},
    "required": ["score", "reason"],
    "additionalProperties": False,
}
_FORMATS: tuple[dict[str, Any], ...] = (
    {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": _SCHEMA}},
    {"type": "json_object"},
)
WAYS: dict[str, tuple[str, int]] = {
    "format": (r"response_format|json_schema|json_object", len(_FORMATS) + 1),
    "tokens": (r"max_completion_tokens", 2),
    "temperature": (r"temperature.*support|support.*temperature", 2),
}
"""What a server may refuse: how its message names it, and how many ways there are to ask."""
STREAM = {"stream": (r"\bstream", 3)}
"""The same for answers piece by piece, which every form is asked for."""
_STREAMS: tuple[dict[str, Any], ...] = ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True})


class Form(Protocol):
    """How a model is asked and read.

    ``who`` is what messages call the server; ``ways`` is what it may refuse, as ``WAYS`` says it. Bodies are made
    for the ways that are still open, by the number of each.
    """

    who: str
    path: str
    ways: dict[str, tuple[str, int]]

    def body(self, question: Question, text: str, system: str, ways: dict[str, int]) -> dict[str, Any]:
        """What is sent, but for the model's name."""
        ...

    def probe(self, ways: dict[str, int]) -> dict[str, Any]:
        """The same, to see whether the server answers at all."""
        ...

    def read(self, body: dict[str, Any]) -> Any:
        """The text of a completion; other than a text where there is none."""
        ...

    def enough(self, text: str) -> bool:
        """Whether all that counts is in the beginning of an answer, so that its rest need not be waited for."""
        ...


class Judging:
    """A judge is asked for a JSON object of at most ``max_tokens``, at temperature 0 the first time."""

    who = "the judge's server"
    path = "/chat/completions"
    ways = WAYS

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self.max_tokens = max_tokens

    def body(self, question: Question, text: str, system: str, ways: dict[str, int]) -> dict[str, Any]:
        """A system turn where there is one, and the question."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        return {"messages": messages, **self._options(ways, WARM if question.attempt else 0.0)}

    def probe(self, ways: dict[str, int]) -> dict[str, Any]:
        """A question that every judge can answer."""
        told = [{"role": "user", "content": 'Answer with the JSON {"score": 1, "reason": "none"}.'}]
        return {"messages": told, **self._options(ways, 0.0)}

    def read(self, body: dict[str, Any]) -> Any:
        """What the message says."""
        return body["choices"][0]["message"].get("content")

    def enough(self, text: str) -> bool:
        """Whether an answer that began with an object has a score; thoughts, which may hold one, begin with words."""
        return text.lstrip().startswith(("{", "```")) and scored(text) is not None

    def _options(self, ways: dict[str, int], temperature: float) -> dict[str, Any]:
        asked: dict[str, Any] = {("max_tokens", "max_completion_tokens")[ways["tokens"]]: self.max_tokens}
        if ways["temperature"] == 0:
            asked["temperature"] = temperature
        if ways["format"] < len(_FORMATS):
            asked["response_format"] = _FORMATS[ways["format"]]
        return asked


def stream_options(ways: dict[str, int]) -> dict[str, Any]:
    """What asks for an answer piece by piece; nothing where the server refused it."""
    return _STREAMS[ways["stream"]] if ways["stream"] < len(_STREAMS) else {}
