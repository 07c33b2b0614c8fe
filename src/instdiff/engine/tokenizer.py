"""A Hugging Face tokenizer behind the protocol that rendering needs."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from instdiff.core import TEMPLATE_DATE
from instdiff.core.files import fingerprint
from instdiff.data import Sample, Turns
from instdiff.errors import ConfigError, EngineError
from instdiff.rendering.templates import ChatTemplate, Kind, Segment, is_target

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class HFTokenizer:
    """See ``tokenised.Tokenizer``. ``hf`` is the wrapped tokenizer."""

    def __init__(self, hf: Any, max_length: int | None, template_date: datetime.date = TEMPLATE_DATE) -> None:
        self.hf, self.max_length, self.template_date = hf, max_length, template_date
        hf.model_max_length = int(1e12)  # lengths are ours to watch; the library only warns
        probe = hf("a")["input_ids"]
        self.eos: int | None = hf.eos_token_id
        self.bos: int | None = hf.bos_token_id if probe and probe[0] == hf.bos_token_id else None
        self._direct: dict[bool, bool] = {}
        self.start: int | None = hf.bos_token_id if hf.bos_token_id is not None else hf.eos_token_id

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides how texts become tokens."""
        backend = self.hf.backend_tokenizer.to_str() if hasattr(self.hf, "backend_tokenizer") else repr(self.hf)
        dated = [self.template_date.isoformat()] if "strftime_now" in str(self.hf.chat_template) else []
        return fingerprint(backend, str(self.hf.chat_template), self.bos, self.start, self.eos, self.max_length, *dated)

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of each text; with ``special`` the tokenizer adds its own start and end tokens."""
        if not texts:
            return []
        if special not in self._direct:
            # The library wraps every token's place in the text as well, which nobody here asks for.
            some = texts[:16]
            there = hasattr(self.hf, "backend_tokenizer")
            self._direct[special] = there and self._quickly(some, special) == self._slowly(some, special)
        return self._quickly(texts, special) if self._direct[special] else self._slowly(texts, special)

    def _slowly(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        found = self.hf(list(texts), add_special_tokens=special, return_attention_mask=False)
        ids: list[list[int]] = found["input_ids"]
        return ids

    def _quickly(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        backend = self.hf.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=special)]

    def option_ids(self, options: Sequence[str], before: str = "The answer is:\n") -> tuple[int, ...]:
        """The token that each option becomes after a text, as it is or, if that is not one token, after a space.

        An EngineError where an option is several tokens, changes those before it, or is the same token as another.
        """
        (head,) = self.encode([before])
        for space in ("", " "):
            rows = self.encode([before + space + option for option in options])
            ids = tuple(row[-1] for row in rows if len(row) == len(head) + 1 and row[:-1] == head)
            if len(set(ids)) == len(options):
                return ids
        found = ", ".join(f"'{option}' {row[len(head) :]}" for option, row in zip(options, rows, strict=True))
        raise EngineError(
            f"the tokenizer of '{self.hf.name_or_path}' does not make one token of its own of each option "
            f"{', '.join(options)} (after a space: {found}), so their probabilities cannot be read; rate with another "
            "model, such as --model rater=WHERE"
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Any = None,
        *,
        jinja: str | None = None,
        ask: bool = False,
        values: Mapping[str, Any] | None = None,
    ) -> str:
        """Messages in the chat template, which is told ``template_date`` where it asks for the date.

        ``jinja`` is a template in place of the tokenizer's own, ``ask`` adds the prompt for an answer, and ``values``
        are what the template is given besides.
        """
        text: str = self.hf.apply_chat_template(
            list(messages),
            tools=tools,
            chat_template=jinja,
            tokenize=False,
            add_generation_prompt=ask,
            strftime_now=self.strftime_now,
            **(values or {}),
        )
        return text

    def strftime_now(self, form: str) -> str:
        """What a chat template is told that the time is: midnight of ``template_date``."""
        return datetime.datetime.combine(self.template_date, datetime.time()).strftime(form)

    def chat(self, sample: Sample, layout: ChatTemplate, how: Turns) -> list[Segment]:
        """Segments under the chat template: assistant turns by its generation marks, else by growing prefixes.

        No chat template is a ConfigError; one that cannot render this sample, or rewrites earlier turns so that no
        prefix holds, is a ValueError.
        """
        jinja = layout.jinja or self._template()
        messages = [_message(m.role, m.content + (f"\n{m.input}" if m.input else "")) for m in sample.messages]
        tools = json.loads(sample.tools) if sample.tools else None
        turns = [at for at, m in enumerate(sample.messages) if m.role == "assistant"]
        if _GENERATION.search(jinja):
            text, spans = self._render_marked(messages, tools, jinja)
        else:
            text, spans = self._render_growing(messages, tools, jinja, turns)
        if len(spans) != len(turns):
            raise ValueError("unrenderable")
        segments: list[Segment] = []
        at = 0
        for turn, (start, end) in zip(turns, spans, strict=True):
            segments.append(Segment(text[at:start], Kind.CONTEXT))
            if is_target(sample.messages, turn, how.targets):
                segments += self._response(text[start:end], sample.messages[turn].content)
            else:
                segments.append(Segment(text[start:end], Kind.CONTEXT))
            at = end
        return [segment for segment in segments if segment.text]

    def _template(self) -> str:
        if not self.hf.chat_template:
            raise ConfigError(
                f"the tokenizer of '{self.hf.name_or_path}' has no chat template; "
                "give --template alpaca, plain, direct or a .jinja file"
            )
        template: str = self.hf.get_chat_template()
        return template

    def _render_marked(
        self, messages: list[dict[str, str]], tools: Any, jinja: str
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, spans = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=jinja,
                return_assistant_tokens_mask=True,
                strftime_now=self.strftime_now,
                **self.hf.special_tokens_map,
            )
        except Exception as error:
            raise ValueError("unrenderable") from error
        return rendered[0], [(int(a), int(b)) for a, b in spans[0]]

    def _render_growing(
        self, messages: list[dict[str, str]], tools: Any, jinja: str, turns: list[int]
    ) -> tuple[str, list[tuple[int, int]]]:
        def render(upto: int, ask: bool) -> str:
            try:
                text = self.render(messages[:upto], tools, jinja=jinja, ask=ask)
            except Exception as error:
                raise ValueError("unrenderable") from error
            return text

        text = render(len(messages), False)
        spans = []
        for turn in turns:
            before, after = render(turn, True), render(turn + 1, False)
            if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
                raise ValueError("unrenderable")
            spans.append((len(before), len(after)))
        return text, spans

    def _response(self, span: str, content: str) -> list[Segment]:
        """Split an assistant span into what stands before the content, the content, its end mark and the rest."""
        said = next((c for c in (content, content.strip(), content.rstrip()) if c and c in span), None)
        if said is None:
            return [Segment(span, Kind.CONTEXT)]
        at = span.index(said)
        tail = span[at + len(said) :]
        marks = [t for t in self.hf.all_special_tokens if t in tail]
        end = min((tail.index(mark) + len(mark) for mark in marks), default=0)
        return [
            Segment(span[:at], Kind.CONTEXT),
            Segment(said, Kind.RESPONSE),
            Segment(tail[:end], Kind.END),
            Segment(tail[end:], Kind.CONTEXT),
        ]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": "assistant" if role == "call" else role, "content": content}
