"""A judge on this machine: a causal language model that writes its answers greedily."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from instdiff.core import Log
from instdiff.engine.forward import out_of_memory
from instdiff.engine.text.judge import MAX_TOKENS, Answer, Question
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import EngineError

GPU_BATCH_ROWS = 32
LEAST_ROWS, MOST_ROWS = 4, 64
"""Answers written at once on a CPU: a step of a small model costs the same for many."""
CACHE_BYTES = 1 << 30
"""What their keys and values may take there, where nothing tells that memory is full."""


def rows_on_cpu(model: Any, max_tokens: int) -> int:
    """How many answers a model writes at once on a CPU, if a question is as long as its answer."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    return int(min(MOST_ROWS, max(LEAST_ROWS, CACHE_BYTES // (token * 2 * max_tokens))))


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
        self.name, self.model, self.tokenizer, self.log = name, model, tokenizer, log
        self.device = next(model.parameters()).device
        most = rows_on_cpu(model, max_tokens) if self.device.type == "cpu" else GPU_BATCH_ROWS
        self.batch_rows = batch_rows or most
        self.max_tokens = max_tokens

    def answers(
        self, work: deque[Question], say: Callable[[Question], str], system: str
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Answers, batch by batch; a question that leaves no room for one has none."""
        limit = self.tokenizer.max_length
        while work:
            some = [work.popleft() for _ in range(min(self.batch_rows, len(work)))]
            ids = [self._ids(system, say(question)) for question in some]
            fits = [limit is None or len(row) + self.max_tokens <= limit for row in ids]
            long = [q for q, fit in zip(some, fits, strict=True) if not fit]
            if long:
                yield [(q, Answer(None, f"the question is too long for a model of {limit} tokens")) for q in long]
            short = [q for q, fit in zip(some, fits, strict=True) if fit]
            if not short:
                continue
            try:
                written = self._write([row for row, fit in zip(ids, fits, strict=True) if fit])
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve(len(short))
                work.extendleft(reversed(short))
                continue
            yield list(zip(short, written, strict=True))

    def _ids(self, system: str, text: str) -> list[int]:
        hf = self.tokenizer.hf
        if not hf.chat_template:
            return self.tokenizer.encode([f"{system}\n\n{text}\n" if system else f"{text}\n"], special=True)[0]
        told = [{"role": "system", "content": system}] if system else []
        try:
            said = self._chat([*told, {"role": "user", "content": text}])
        except Exception:
            if not told:
                raise
            # Some templates refuse a system turn.
            said = self._chat([{"role": "user", "content": f"{system}\n\n{text}"}])
        return self.tokenizer.encode([said])[0]

    def _chat(self, messages: list[dict[str, str]]) -> str:
        # Templates that know no thinking ignore the switch; the others would think past the end of the answer.
        said: str = self.tokenizer.hf.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return said

    @torch.inference_mode()
    def _write(self, ids: list[list[int]]) -> list[Answer]:
        from transformers import GenerationConfig

        width, hf = max(map(len, ids)), self.tokenizer.hf
        ends = self.model.generation_config.eos_token_id
        ends = hf.eos_token_id if ends is None else ends
        pad = next((i for i in (hf.pad_token_id, hf.eos_token_id) if i is not None), 0)
        rows = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        # The penalty would count the padding, so that a row's answer depended on the rows beside it.
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=self.max_tokens,
            eos_token_id=ends,
            pad_token_id=pad,
        )
        out = self.model.generate(
            input_ids=rows.to(self.device), attention_mask=mask.to(self.device), generation_config=config
        )
        stops = set(ends if isinstance(ends, list) else [ends])
        answers = []
        for row, written in zip(ids, out[:, width:].tolist(), strict=True):
            end = next((at + 1 for at, token in enumerate(written) if token in stops), len(written))
            answers.append(Answer(hf.decode(written[:end], skip_special_tokens=True), "", len(row), end))
        return answers

    def _halve(self, rows: int) -> None:
        if rows == 1:
            raise EngineError(f"one question does not fit into memory with judge {self.name}")
        self.batch_rows = rows // 2
        self.log(f"out of memory: judge {self.name} goes on with {self.batch_rows} answers at once")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
