"""What is asked of a backend, and what every one of them does with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from instdiff.engine.text.generate import render_chat
from instdiff.engine.text.judge import Answer
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError
from instdiff.evaluation.subject import Prompt, Sampling
from instdiff.rendering.templates import Template, TextTemplate, fill


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
