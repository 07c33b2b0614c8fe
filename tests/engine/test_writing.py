"""Answers in a batch: those that have ended are left out of it, and the others are what they would be alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from instdiff.engine.text.generate import Generator, _Ended

ROOM = 40
SHAPE = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3,
    "tie_word_embeddings": False,
}  # fmt: skip
LAYERS = {
    "llama": {},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "mistral": {"sliding_window": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
}  # fmt: skip


def writer(kind: str) -> tuple[Generator, list[int]]:
    """A generator whose answers end after some tokens, and where it writes down how many rows a pass has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **LAYERS[kind])).eval()
    model.generation_config.eos_token_id = [7, 21, 35]
    passes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: passes.append(len(given["input_ids"])), with_kwargs=True)
    return Generator(model, SimpleNamespace(pad_token_id=0, eos_token_id=7), "it", 64, print), passes


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[1, *rng.integers(2, 99, rng.integers(3, 30)).tolist()] for _ in range(count)]


@pytest.mark.parametrize("kind", LAYERS)
def test_who_has_ended_is_left_out_and_nobody_else_notices(kind: str) -> None:
    generator, passes = writer(kind)
    asked = prompts(24)
    alone = [generator.generate([row], ROOM)[0] for row in asked]
    lengths = sorted(map(len, alone))
    assert lengths[0] < lengths[12] < ROOM == lengths[-1], "the answers are of many lengths"
    assert all(row[-1] in generator.ends for row in alone if len(row) < ROOM)
    passes.clear()
    assert generator.generate(asked, ROOM) == alone
    assert len(passes) == ROOM, "no token is computed twice"
    if kind == "lfm2":  # its other states cannot be taken apart
        assert passes == [24] * ROOM
    else:
        assert passes[0] == 24 and passes[-1] <= 1.4 * sum(len(row) == ROOM for row in alone)
        assert sum(passes) < 1.25 * sum(lengths)


def test_what_a_rule_ends_is_left_out_too() -> None:
    generator, passes = writer("llama")
    generator.ends = set()
    asked = prompts(24)

    def stopped(ids: torch.Tensor) -> torch.Tensor:
        return ids[:, -1] % 10 == 3

    alone = [generator.generate([row], ROOM, stopped=stopped)[0] for row in asked]
    passes.clear()
    together = generator.generate(asked, ROOM, stopped=stopped)
    assert [row[: len(one)] for row, one in zip(together, alone, strict=True)] == alone
    assert all(set(row[len(one) :]) <= {generator.pad} for row, one in zip(together, alone, strict=True))
    assert sum(passes) < 1.25 * sum(map(len, alone))


def test_draws_go_with_their_rows() -> None:
    generator, _ = writer("llama")

    class Number:
        """Leaves the token of a number that belongs to the row and the place."""

        def __init__(self, rows: list[int]) -> None:
            self.rows = rows

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            chosen = torch.tensor([[(13 * row + 29 * ids.shape[1]) % 99] for row in self.rows])
            return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

        def of(self, rows: torch.Tensor) -> Any:
            return Number([self.rows[row] for row in rows.tolist()])

    asked = [[1, 2, 3, 4]] * 12
    alone = [generator.generate([row], ROOM, Number([at]))[0] for at, row in enumerate(asked)]
    assert len(set(map(len, alone))) > 3
    assert generator.generate(asked, ROOM, Number(list(range(12)))) == alone


def test_padding_after_the_end_ends_nobody() -> None:
    """A library that looks one step late adds a padding token to every row, and padding may be an end."""
    ended = _Ended([7], None, 4, 0.25, torch.device("cpu"))
    assert ended(torch.tensor([[1], [1], [1], [1]]), None).tolist() == [False] * 4
    assert ended(torch.tensor([[7], [2], [3], [4]]), None).tolist() == [True] * 4
    assert ended(torch.tensor([[7], [7], [7], [7]]), None).tolist() == [True] * 4
    assert ended.rows.tolist() == [True, False, False, False]
