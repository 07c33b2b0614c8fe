"""A causal language model writes: batches padded on the left, halved where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from instdiff.core import Log
from instdiff.engine.forward import out_of_memory
from instdiff.errors import EngineError


class Generator:
    """Writes with a causal language model in memory and its tokenizer ``hf``.

    Messages call the model ``who`` and a prompt ``asked``. ``rows`` answers are written at once, fewer after memory did
    not suffice; ``log`` is told what happens. A token of ``ends`` ends an answer.
    """

    def __init__(self, model: Any, hf: Any, who: str, rows: int, log: Log, asked: str = "prompt") -> None:
        self.model, self.hf, self.who, self.rows, self.log, self.asked = model, hf, who, rows, log, asked
        self.device = next(model.parameters()).device
        ends = model.generation_config.eos_token_id
        ends = hf.eos_token_id if ends is None else ends
        self.ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.pad = next((i for i in (hf.pad_token_id, hf.eos_token_id) if i is not None), 0)

    def write(self, prompts: Sequence[list[int]], room: int, **how: Any) -> list[list[int]] | None:
        """Of each prompt the tokens that follow, its end token with them, greedily unless ``how`` draws.

        An answer has at most ``room`` tokens; ``how`` are further arguments of ``generate``. Gives None where memory
        did not suffice, and ``rows`` is lower now; a single prompt that does not fit is an EngineError.
        """
        try:
            return self.generate(prompts, room, **how)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if len(prompts) == 1:
            raise EngineError(
                f"one {self.asked} does not fit into memory with {self.who}; take a smaller model or dtype"
            )
        self.rows = len(prompts) // 2
        self.log(f"out of memory: {self.who} goes on with {self.rows} answers at once")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], room: int, **how: Any) -> list[list[int]]:
        """The same in one batch, whatever memory there is."""
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        rows = torch.tensor([[self.pad] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        # The penalty would count the padding, so that a row's answer depended on the rows beside it.
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=room,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self.pad,
        )
        out = self.model.generate(
            input_ids=rows.to(self.device), attention_mask=mask.to(self.device), generation_config=config, **how
        )
        return [self._until_end(row) for row in out[:, width:].tolist()]

    def _until_end(self, tokens: list[int]) -> list[int]:
        return tokens[: next((at + 1 for at, token in enumerate(tokens) if self.is_end(token)), len(tokens))]

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return token in self.ends


def render_chat(render: Callable[[list[dict[str, str]]], str], text: str, system: str) -> str:
    """A question in a chat template; a system turn that the template refuses becomes a part of the question."""
    question = [{"role": "user", "content": text}]
    if not system:
        return render(question)
    try:
        return render([{"role": "system", "content": system}, *question])
    except Exception:  # noqa: BLE001 - templates raise what they like
        return render([{"role": "user", "content": f"{system}\n\n{text}"}])
