"""What the benchmarks measure, held at a small scale: tokens of several methods, one load, numbers of the head."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import instdiff
from helpers import Lab, causal, reference, some_rows
from instdiff import METHODS, ModelRef, Nll, Settings
from instdiff.core import Entropy
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine.forward import Forward
from instdiff.engine.models import Resident
from instdiff.engine.sweep import Sweep
from instdiff.rendering.renderer import Rows

NAMES = ("instructdiff", "ifd", "perplexity", "entropy", "superfiltering", "longest", "random", "full")
SETTINGS = Settings(max_length=200, dtype="float32", device="cpu")
POOL = instdiff.load(some_rows(40))


@pytest.fixture
def bound(lab: Lab, tmp_path: Path) -> dict[str, ModelRef]:
    """The base as the proxy too, and with an adapter as the calibrated model."""
    from peft import LoraConfig, get_peft_model

    base = str(lab.models["llama"])
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(causal(lab.models["llama"]), config).save_pretrained(tmp_path / "adapter")
    adapted = ModelRef(base, adapter=str(tmp_path / "adapter"))
    return {"base": ModelRef(base), "proxy": ModelRef(base), "calibrated": adapted}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass."""
    seen: list[int] = []
    call = Forward.__call__

    def counting(self: Forward, *args: Any) -> Any:
        before = self.tokens
        out = call(self, *args)
        seen.append(self.tokens - before)
        return out

    monkeypatch.setattr(Forward, "__call__", counting)
    return seen


def planned(lab: Lab, names: tuple[str, ...], bound: dict[str, ModelRef]) -> dict[str, Any]:
    methods = {name: METHODS[name]() for name in names}
    bill = instdiff.plan(POOL, methods, bound, settings=SETTINGS, store=lab.store())
    return json.loads(json.dumps(bill.to_dict()["total"]))


def test_eight_methods_together_cost_little_more_than_half(
    lab: Lab, bound: dict[str, ModelRef], computed: list[int]
) -> None:
    def scored(names: tuple[str, ...]) -> tuple[int, int]:
        computed.clear()
        resident = Resident(torch.device("cpu"), torch.float32)
        methods = {name: METHODS[name]() for name in names}
        instdiff.score(POOL, methods, bound, settings=SETTINGS, store=lab.store(), resident=resident)
        return sum(computed), resident.loads

    together, loads = scored(NAMES)
    alone = sum(scored((name,))[0] for name in NAMES)
    assert loads == 1
    assert 0 < together <= 0.6 * alone


def test_the_plan_says_so_before(lab: Lab, bound: dict[str, ModelRef]) -> None:
    together = planned(lab, NAMES, bound)
    alone = sum(planned(lab, (name,), bound)["todo_tokens"] for name in NAMES)
    assert together["model_loads"] == 1
    assert together["todo_tokens"] <= 0.6 * alone


def test_a_vocabulary_of_150_thousand() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 150_000, "tie_word_embeddings": True, "initializer_range": 0.2,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    rng = np.random.default_rng(0)
    ids = Ragged.of([rng.integers(0, 150_000, size) for size in (64, 40)], np.int32)
    target = np.concatenate([np.arange(size) >= size // 2 for size in (64, 40)])
    rows = Rows(ids, target, np.zeros(2, bool), np.full(2, None, object))
    for swept in Sweep(model, print)(rows, (Nll(), Entropy())):
        for at, row in enumerate(swept.at):
            span = slice(ids.offsets[row], ids.offsets[row + 1])
            nll, entropy = reference(model, ids[row].tolist(), target[span].tolist())
            np.testing.assert_allclose(swept.columns[Nll()][at], nll, rtol=1e-5)
            np.testing.assert_allclose(swept.columns[Entropy()][at], entropy, rtol=1e-5)
