"""LLaMA-Factory's own templates: it renders rows by them, and never by the tokenizer's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from instdiff.engine.tokenizer import HFTokenizer
from instdiff.selection.export.models import RENDER_ERRORS


@dataclass(frozen=True)
class Written:
    """What one of its templates writes around a turn's text, which stands for ``{}``.

    ``default`` is the system text of rows that have none. With ``inside`` the system text is a part of the first user
    turn. ``[bos]`` and ``[eos]`` are the tokenizer's tokens. One that ``thinks`` puts an empty thought before answers
    that have none. ``mark`` is text of chat templates that tells it from another of the same turns.
    """

    user: str
    assistant: str = "{}[eos]"
    system: str = "{}"
    prefix: str = ""
    default: str = ""
    inside: bool = False
    thinks: bool = False
    mark: str = ""

    @property
    def bare_user(self) -> str:
        """A user turn without the tokenizer's tokens around it."""
        return self.user.replace("{}", "Ask.").replace("[bos]", "").replace("[eos]", "").strip()

    def text(self, turns: Sequence[tuple[str, str]], bos: str, eos: str) -> str:
        """A conversation of roles and texts."""
        system, said = (turns[0][1], turns[1:]) if turns[0][0] == "system" else (self.default, turns)
        head = self.system.replace("{}", system) if system else ""
        out = [self.prefix] if self.inside else [self.prefix, head]
        for at, (role, content) in enumerate(said):
            if role == "user":
                out.append(self.user.replace("{}", head + content if self.inside and not at else content))
                continue
            empty = "<think>\n\n</think>\n\n" if self.thinks and "<think>" not in content else ""
            out.append(self.assistant.replace("{}", empty + content))
        return "".join(out).replace("[bos]", bos).replace("[eos]", eos)


def _chatml(default: str = "", *, prefix: str = "", thinks: bool = False, mark: str = "") -> Written:
    user = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\n{}<|im_end|>\n"
    return Written(user, "{}<|im_end|>\n", system, prefix, default, thinks=thinks, mark=mark)


_GEMMA = Written(
    "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "{}<end_of_turn>\n",
    "{}\n\n",
    "[bos]",
    inside=True,
)
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_HEADER_4 = "<|header_start|>{}<|header_end|>\n\n"
_COHERE = "<|START_OF_TURN_TOKEN|>"

WRITTEN = {
    "qwen3_nothink": _chatml(mark="<tool_call>"),
    "qwen3": _chatml(thinks=True, mark="<think>"),
    "chatml": _chatml(),
    "qwen": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face."),
    "falcon_h1": _chatml(prefix="[bos]"),
    "llama3": Written(
        f"{_HEADER.format('user')}{{}}<|eot_id|>{_HEADER.format('assistant')}",
        "{}<|eot_id|>",
        f"{_HEADER.format('system')}{{}}<|eot_id|>",
        "[bos]",
    ),
    "llama4": Written(
        f"{_HEADER_4.format('user')}{{}}<|eot|>{_HEADER_4.format('assistant')}",
        "{}<|eot|>",
        f"{_HEADER_4.format('system')}{{}}<|eot|>",
        "[bos]",
    ),
    "llama2": Written("[bos][INST] {} [/INST]", system="<<SYS>>\n{}\n<</SYS>>\n\n", inside=True),
    "gemma3": replace(_GEMMA, mark="first_user_prefix"),
    "gemma": _GEMMA,
    "mistral": Written("[INST] {}[/INST]", " {}[eos]", "{}\n\n", "[bos]", inside=True),
    "ministral": Written("[INST]{}[/INST]", system="{}\n\n", prefix="[bos]", inside=True),
    "mistral_small": Written("[INST]{}[/INST]", system="[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", prefix="[bos]"),
    "phi": Written("<|user|>\n{}<|end|>\n<|assistant|>\n", "{}<|end|>\n", "<|system|>\n{}<|end|>\n"),
    "phi4": Written(
        "<|im_start|>user<|im_sep|>{}<|im_end|><|im_start|>assistant<|im_sep|>",
        "{}<|im_end|>",
        "<|im_start|>system<|im_sep|>{}<|im_end|>",
    ),
    "deepseek3": Written("<｜User｜>{}<｜Assistant｜>", prefix="[bos]"),
    "deepseekr1": Written("<｜User｜>{}<｜Assistant｜>", prefix="[bos]", thinks=True),
    "cohere": Written(
        f"{_COHERE}<|USER_TOKEN|>{{}}<|END_OF_TURN_TOKEN|>{_COHERE}<|CHATBOT_TOKEN|>",
        system=f"{_COHERE}<|SYSTEM_TOKEN|>{{}}<|END_OF_TURN_TOKEN|>",
        prefix="[bos]",
    ),
    "granite3": Written(
        "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "{}<|end_of_text|>\n",
        "<|start_of_role|>system<|end_of_role|>{}<|end_of_text|>\n",
    ),
    "glm4_moe": Written("<|user|>\n{}<|assistant|>", "\n{}", "<|system|>\n{}", "[gMASK]<sop>", mark="enable_thinking"),
    "glm4": Written("<|user|>\n{}<|assistant|>", "\n{}", "<|system|>\n{}", "[gMASK]<sop>"),
    "gpt_oss": Written(
        "<|start|>user<|message|>{}<|end|><|start|>assistant",
        "{}<|end|>",
        "<|start|>system<|message|>{}<|end|>",
        default="You are ChatGPT, a large language model trained by OpenAI.",
    ),
    "zephyr": Written(
        "<|user|>\n{}[eos]<|assistant|>\n", system="<|system|>\n{}[eos]", default="You are Zephyr, a helpful assistant."
    ),
}
"""By its name, the first of those that write the same text first."""


@dataclass(frozen=True)
class Encoder:
    """Makes ids as LLaMA-Factory does: every part of a turn alone.

    Where it ``learns_empty`` thoughts they are part of the answer, else of the question.
    """

    written: Written
    tokenizer: HFTokenizer
    learns_empty: bool

    def pairs(self, turns: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """The ids of each question and its answer, in a conversation of roles and texts."""
        written = self.written
        system, said = (turns[0][1], turns[1:]) if turns[0][0] == "system" else (written.default, turns)
        pairs = []
        for at in range(0, len(said), 2):
            question, answer, source = said[at][1], said[at + 1][1], list[int]()
            if at == 0:
                source += self._ids(written.prefix)
                if system and not written.inside:
                    source += self._ids(written.system, system)
                elif system:
                    question = written.system.replace("{}", system) + question
            source += self._ids(written.user, question)
            target = self._ids(written.assistant, answer)
            if written.thinks and "<think>" not in answer:
                empty = self._ids("<think>\n\n</think>\n\n")
                source, target = (source, empty + target) if self.learns_empty else (source + empty, target)
            pairs.append((source, target))
        return pairs

    def _ids(self, slot: str, content: str = "") -> list[int]:
        named = {"[bos]": self.tokenizer.hf.bos_token_id, "[eos]": self.tokenizer.hf.eos_token_id}
        out: list[int] = []
        for part in re.split(r"(\[bos\]|\[eos\])", slot):
            if part in named:
                out += [] if named[part] is None else [named[part]]
            elif part:
                out += self.tokenizer.encode([part.replace("{}", content)])[0]
        return out


_ONE = [("user", "Ask."), ("assistant", "Answer.")]
_SYSTEM = ("system", "Rule.")


@dataclass(frozen=True)
class Match:
    """The template of the same text, or else the nearest: ``exact`` says whether it writes one exchange alike."""

    name: str
    exact: bool


def match_template(tokenizer: HFTokenizer, jinja: str | None, *, system: bool) -> Match | None:
    """Its template for a chat template; None where not even the user's turns look alike.

    ``system`` says whether some row has a system turn.
    """
    source = jinja or str(tokenizer.hf.chat_template)
    asked = [_ONE, [_SYSTEM, *_ONE]] if system else [_ONE]
    fit = {name: written for name, written in WRITTEN.items() if written.mark in source}
    for name, written in fit.items():
        if all(_same(tokenizer, jinja, written, turns) for turns in asked):
            return Match(name, True)
    text, tokens = _rendered(tokenizer, jinja, _ONE) or "", _tokens(tokenizer)
    near = [name for name, written in fit.items() if written.bare_user in text]
    alike = {name: SequenceMatcher(None, text, fit[name].text(_ONE, *tokens)).ratio() for name in near}
    return Match(max(alike, key=lambda name: alike[name]), False) if alike else None


def _tokens(tokenizer: HFTokenizer) -> tuple[str, str]:
    return str(tokenizer.hf.bos_token or ""), str(tokenizer.hf.eos_token or "")


def _same(tokenizer: HFTokenizer, jinja: str | None, written: Written, turns: Sequence[tuple[str, str]]) -> bool:
    text = _rendered(tokenizer, jinja, turns)
    if text is None and written.inside and turns[0][0] == "system":  # what `system: fold` scores
        text = _rendered(tokenizer, jinja, [("user", f"{turns[0][1]}\n\n{turns[1][1]}"), *turns[2:]])
    # What follows the last answer is not learnt.
    return text is not None and text.startswith(written.text(turns, *_tokens(tokenizer)).rstrip())


def _rendered(tokenizer: HFTokenizer, jinja: str | None, turns: Sequence[tuple[str, str]]) -> str | None:
    said = [{"role": role, "content": content} for role, content in turns]
    try:
        return tokenizer.render(said, jinja=jinja)
    except RENDER_ERRORS:
        return None
