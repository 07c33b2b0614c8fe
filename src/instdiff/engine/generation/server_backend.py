"""Answers of a model behind an OpenAI-compatible server; none is paid for twice."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from instdiff.core import Log
from instdiff.core.files import fingerprint
from instdiff.engine.generation.backend import GenerationRequest, Prompt, Sampling, cut_at_stop, in_template
from instdiff.engine.text.endpoint import Endpoint
from instdiff.engine.text.judge import Answer, JudgeRef, Question
from instdiff.rendering.templates import ChatTemplate, template

WAYS = 1
LARGEST_SEED = 2**31
REFUSABLE: dict[str, tuple[str, int]] = {
    "tokens": (r"max_completion_tokens", 2),
    "temperature": (r"temperature.*support|support.*temperature", 2),
    "top_p": (r"top_p", 2),
    "seed": (r"\bseed\b", 2),
    "stop": (r"\bstop\b", 2),
}
"""What a server may refuse: how its message names it, and how many ways there are to ask."""


class Writing:
    """A model is asked for one answer, in a chat or as the continuation of a text."""

    who = "the model's server"
    ways = REFUSABLE

    def __init__(self, asked: Sequence[GenerationRequest], sampling: Sampling, chat: bool) -> None:
        self.asked, self.sampling = asked, sampling
        self.path = "/chat/completions" if chat else "/completions"
        self.chat = chat

    def body(self, question: Question, text: str, system: str, ways: dict[str, int]) -> dict[str, Any]:
        """What is shown, and how the answer is drawn."""
        told = {**json.loads(text), **self._how(ways, self.sampling.max_new_tokens)}
        if self.sampling.temperature > 0 and ways["seed"] == 0:
            told["seed"] = self.asked[question.row].seed % LARGEST_SEED
        if self.sampling.stop and ways["stop"] == 0:
            told["stop"] = list(self.sampling.stop)
        return told

    def probe(self, ways: dict[str, int]) -> dict[str, Any]:
        """The shortest question."""
        shown = {"messages": [{"role": "user", "content": "Say yes."}]} if self.chat else {"prompt": "Yes"}
        return {**shown, **self._how(ways, 16)}

    def read(self, body: dict[str, Any]) -> Any:
        """What the message says, or the text that follows."""
        first = body["choices"][0]
        return first["message"].get("content") if self.chat else first["text"]

    def enough(self, text: str) -> bool:
        """Never: all of it is the answer."""
        return False

    def _how(self, ways: dict[str, int], tokens: int) -> dict[str, Any]:
        # Chats have a newer name for it, which some servers insist on.
        names = ("max_tokens", "max_completion_tokens" if self.chat else "max_tokens")
        how: dict[str, Any] = {names[ways["tokens"]]: tokens}
        if ways["temperature"] == 0:
            how["temperature"] = self.sampling.temperature
        if self.sampling.temperature > 0 and self.sampling.top_p < 1 and ways["top_p"] == 0:
            how["top_p"] = self.sampling.top_p
        return how


class Server:
    """Writes through ``POST URL/chat/completions``, where the server has its own template.

    With a text template, and for raw prompts, the text goes to ``POST URL/completions`` as the model is to see it.

    Args:
        ref: model and address; the address is no part of what answers are kept by.
        layout: a template's name; None and ``chat`` leave it to the server.
        log: is told what happens.
        concurrency: calls at once.
        calls: see ``Endpoint``, as all that follow.
    """

    def __init__(self, ref: JudgeRef, layout: str | None, log: Log, *, concurrency: int = 8, **calls: Any) -> None:
        self.ref, self.log, self.name = ref, log, f"{ref.model}@{ref.url}"
        self.layout = template(layout or "chat")
        self.fingerprint = fingerprint("server", WAYS, ref.model)
        self._calls = {"concurrency": concurrency, **calls}

    def prompt_text(self, prompt: Prompt) -> str:
        """The part of the call that holds the prompt."""
        if prompt.chat is not None:
            return prompt.chat
        if prompt.raw or not isinstance(self.layout, ChatTemplate):
            return json.dumps({"prompt": in_template(prompt, self.layout, None)})
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return json.dumps({"messages": [*system, {"role": "user", "content": prompt.text}]})

    def write(
        self, asked: Sequence[GenerationRequest], sampling: Sampling
    ) -> Iterator[list[tuple[GenerationRequest, Answer]]]:
        """Answers as they come.

        Raises:
            EngineError: the server is away, or refuses the key or the model; what it answered was yielded before.
        """
        for chat in (True, False):
            some = [one for one in asked if one.prompt_text.startswith('{"messages"') == chat]
            if not some:
                continue
            endpoint = Endpoint(self.ref, self.log, form=Writing(some, sampling, chat), **self._calls)
            work = deque(Question(row) for row in range(len(some)))
            began = time.monotonic()
            for got in endpoint.answers(work, lambda question, some=some: some[question.row].prompt_text, ""):  # type: ignore[misc]
                seconds, began = (time.monotonic() - began) / len(got), time.monotonic()
                done = []
                for question, answer in got:
                    text = None if answer.text is None else cut_at_stop(answer.text, sampling.stop)
                    numbers = answer.prompt_tokens, answer.completion_tokens, seconds
                    cut = text == answer.text and answer.completion_tokens >= sampling.max_new_tokens
                    done.append((some[question.row], Answer(text, answer.reason, *numbers, cut)))
                yield done
