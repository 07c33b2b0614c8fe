"""A judge on this machine: a causal language model that writes its answers greedily."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from instdiff.core import Log
from instdiff.engine.text.generate import Generator, render_chat, rows_at_once
from instdiff.engine.text.judge import MAX_TOKENS, Answer, Question
from instdiff.engine.tokenizer import HFTokenizer


class Writer:
    """Writes answers with a model in memory, in its chat template where the tokenizer has one.

    ``batch_rows`` are written at once; on a CPU by default as many as fit into a GiB of keys and values.
    """

    attempts = 2  # the second with a reminder; greedily, a third would be the same

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: HFTokenizer,
        log: Log,
        *,
        batch_rows: int | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self.name, self.tokenizer, self.max_tokens = name, tokenizer, max_tokens
        device = next(model.parameters()).device.type
        # If a question is as long as its answer.
        rows = batch_rows or rows_at_once(model.config.get_text_config(), device, model.dtype, 2 * max_tokens)
        self.generator = Generator(model, tokenizer.hf, f"judge {name}", rows, log, "question")

    def answers(
        self, work: deque[Question], say: Callable[[Question], str], system: str
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Answers, batch by batch; a question that leaves no room for one has none."""
        limit = self.tokenizer.max_length
        while work:
            some = [work.popleft() for _ in range(min(self.generator.rows, len(work)))]
            ids = [self._ids(system, say(question)) for question in some]
            fits = [limit is None or len(row) + self.max_tokens <= limit for row in ids]
            long = [q for q, fit in zip(some, fits, strict=True) if not fit]
            if long:
                yield [(q, Answer(None, f"the question is too long for a model of {limit} tokens")) for q in long]
            short = [q for q, fit in zip(some, fits, strict=True) if fit]
            if not short:
                continue
            rows = [row for row, fit in zip(ids, fits, strict=True) if fit]
            written = self.generator.write(rows, self.max_tokens)
            if written is None:
                work.extendleft(reversed(short))
                continue
            yield [
                (question, self._answer(row, tokens))
                for question, row, tokens in zip(short, rows, written, strict=True)
            ]

    def _answer(self, prompt: list[int], tokens: list[int]) -> Answer:
        return Answer(self.tokenizer.hf.decode(tokens, skip_special_tokens=True), "", len(prompt), len(tokens))

    def _ids(self, system: str, text: str) -> list[int]:
        if not self.tokenizer.chat_template:
            return self.tokenizer.encode([f"{system}\n\n{text}\n" if system else f"{text}\n"], special=True)[0]
        return self.tokenizer.encode([render_chat(self._chat, text, system)])[0]

    def _chat(self, messages: list[dict[str, str]]) -> str:
        # Templates that know no thinking ignore the switch; the others would think past the end of the answer.
        return self.tokenizer.render(messages, ask=True, values={"enable_thinking": False})
