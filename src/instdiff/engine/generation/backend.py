"""What is asked of a backend, and what every one of them does with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from instdiff.config.evaluate import EvalConfig
from instdiff.engine.text.generate import render_chat
from instdiff.engine.text.judge import Answer
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError
from instdiff.rendering.templates import Template, TextTemplate, fill


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        n: answers to each prompt.
        first: number of the first of them.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that is drawn from.
        max_new_tokens: tokens after which an answer is cut.
        stop: texts that end an answer; they are no part of it.
        seed: of the draws; an answer depends on it, its prompt and its number alone.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 42
    first: int = 0

    @classmethod
    def of(cls, config: EvalConfig, stop: tuple[str, ...] = ()) -> Sampling:
        """As a configuration has it."""
        return cls(config.n, config.temperature, config.top_p, config.max_new_tokens, stop, config.seed)


@dataclass(frozen=True)
class Prompt:
    """What the model is asked: an instruction, put into the model's template, or with ``raw`` the text as it is.

    A model of this machine sees the ``last`` tokens alone, where a number is given, or ``ids`` in place of the text. A
    server that has its own template is sent ``chat``, a JSON object with ``messages``, in place of the text.
    """

    text: str
    system: str = ""
    raw: bool = False
    last: int | None = None
    ids: tuple[int, ...] | None = None
    chat: str | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One answer that is to be written.

    Args:
        key: hash of all that it depends on.
        prompt: as the suite has it.
        shown: what the model sees.
        seed: of its draws, from the run's seed, what is shown and the answer's number alone.
    """

    key: str
    prompt: Prompt
    prompt_text: str
    seed: int


class Backend(Protocol):
    """What writes answers and keeps none.

    ``fingerprint`` is the hash of the model and of everything else that decides its answers beside prompt and sampling.
    """

    name: str
    fingerprint: str

    def prompt_text(self, prompt: Prompt) -> str:
        """What the model sees of a prompt."""
        ...

    def write(
        self, asked: Sequence[GenerationRequest], sampling: Sampling
    ) -> Iterator[list[tuple[GenerationRequest, Answer]]]:
        """Answers as they come, in any order."""
        ...


def in_template(prompt: Prompt, layout: Template, tokenizer: HFTokenizer | None) -> str:
    """What a model sees of a prompt: the text as it is, or in a template as training has it.

    Only a chat template needs the tokenizer.

    Raises:
        ConfigError: a chat template is asked for, and the tokenizer has none.
    """
    if prompt.raw:
        return prompt.text
    if isinstance(layout, TextTemplate):
        head = fill(layout.system, system=prompt.system) if prompt.system else ""
        return head + layout.turn(prompt.text, "")
    assert tokenizer is not None
    if not (layout.jinja or tokenizer.chat_template):
        raise ConfigError(
            f"the tokenizer of '{tokenizer.hf.name_or_path}' has no chat template; "
            "give --template alpaca, plain or direct"
        )
    return render_chat(partial(tokenizer.render, jinja=layout.jinja, ask=True), prompt.text, prompt.system)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some others."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]
