"""Questions about a row, for raters and judges: templates in files that a user can replace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from instdiff.core import Asked
from instdiff.data import Sample
from instdiff.errors import ConfigError, did_you_mean

_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_KNOWN = ("system", "prompts")


@dataclass(frozen=True)
class Questions:
    """The prompts of one file; ``system`` comes first where the model takes a system message.

    Templates know ``instruction``, ``input``, ``response`` and ``messages``.
    """

    name: str
    system: str
    prompts: tuple[str, ...]

    def ask(self, number: int, sample: Sample) -> str:
        """Prompt ``number`` about a sample; a ConfigError where there is none, or its template is faulty."""
        if not 0 <= number < len(self.prompts):
            raise ConfigError(f"prompt file '{self.name}' has prompts 0 to {len(self.prompts) - 1}, no number {number}")
        try:
            return _JINJA.from_string(self.prompts[number]).render(
                instruction=sample.instruction, input=sample.input, response=sample.response, messages=sample.messages
            )
        except jinja2.TemplateError as error:
            raise ConfigError(f"prompt file '{self.name}', prompt {number}: {error}") from None


def exchanges(sample: Sample) -> list[Sample]:
    """Each answer of a conversation with what was asked since the one before it."""
    ends = [at + 1 for at, m in enumerate(sample.messages) if m.role == "assistant" and m.content and not m.only_calls]
    return [Sample(sample.messages[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def asked_about(view: Asked, sample: Sample) -> Sample | None:
    """What a question is about; None where there is no response, or no such turn."""
    if view.turn is None:
        return sample if sample.response else None
    turns = exchanges(sample)
    return turns[view.turn] if view.turn < len(turns) else None


@lru_cache
def questions(name: str) -> Questions:
    """A packaged file by name, or a YAML file (``system: text``, ``prompts: [text, ...]``); else a ConfigError."""
    path = Path(name)
    if name.endswith((".yaml", ".yml")):
        if not path.is_file():
            raise ConfigError(f"prompt file '{name}' is not there")
        text = path.read_text(encoding="utf-8")
    else:
        folder = files("instdiff.rendering") / "prompts"
        known = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
        if name not in known:
            raise ConfigError(f"no prompts '{name}'{did_you_mean(name, known)}; or give a path that ends in .yaml")
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"prompt file '{name}' is no YAML: {error}") from None
    if not isinstance(found, dict) or not set(found) <= set(_KNOWN) or not isinstance(found.get("prompts"), list):
        raise ConfigError(f"prompt file '{name}' must have 'prompts', a list of texts, and may have 'system'")
    prompts = found["prompts"]
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(f"prompt file '{name}': 'prompts' must be a list of at least one text")
    return Questions(name, str(found.get("system") or ""), tuple(prompts))
