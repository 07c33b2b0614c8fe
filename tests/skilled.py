"""A plain greedy writer for the model of `builtin:skills`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instdiff.engine.generation.backend import Prompt, Sampling


class Greedy:
    """Writes the likeliest tokens after prompts in the template `plain`; remembers what it was asked."""

    name = "greedy"

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.asked: list[tuple[list[Prompt], Sampling]] = []

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        """See ``Generates``."""
        self.asked.append((list(prompts), sampling))
        return [[text] for text in self.answers([f"{prompt.text}\n" for prompt in prompts])]

    def answers(self, texts: Sequence[str], tokens: int = 7) -> list[str]:
        """What follows each text, up to the end token."""
        import torch

        ids = self.tokenizer(list(texts)).input_ids
        longest, pad = max(map(len, ids)), self.tokenizer.pad_token_id
        batch = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
        with torch.no_grad():
            out = self.model.generate(
                input_ids=batch, attention_mask=(batch != pad).long(), max_new_tokens=tokens, do_sample=False
            )
        return self.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
