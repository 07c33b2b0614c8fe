"""A model and a tokenizer small enough to train in a moment, and rows for them; as a program, one training."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdiff.config.train import TrainSettings
from instdiff.core.arrays.ragged import Ragged
from instdiff.rendering.renderer import Rows
from instdiff.training.sft import TrainReport, fit

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
VOCAB = 64
EOS = 2


def make_base(folder: Path, dtype: torch.dtype = torch.float32, pad: bool = False) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=EOS,
        attention_dropout=0.0,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": EOS, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )
    if pad:
        tokenizer.pad_token = "w3"
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count: int = 12, seed: int = 0, reason: dict[int, str] | None = None, cut: int = -1) -> Rows:
    """Rows of a prompt, a response and an end token that is a target; row ``cut`` was cut before its end."""
    rng = np.random.default_rng(seed)
    ids: list[list[int]] = []
    target: list[list[bool]] = []
    for row in range(count):
        prompt, response = rng.integers(2, 8), rng.integers(1, 9)
        end = [] if row == cut else [EOS]
        out = reason is not None and row in reason
        ids.append([] if out else [1, *rng.integers(3, VOCAB, prompt - 1 + response).tolist(), *end])
        target.append([] if out else [False] * prompt + [True] * (response + len(end)))
    reasons = np.full(count, None, object)
    for row, word in (reason or {}).items():
        reasons[row] = word
    truncated = np.arange(count) == cut
    return Rows(Ragged.of(ids, np.int32), Ragged.of(target, np.bool_).values, truncated, reasons)


def settings(**changes: Any) -> TrainSettings:
    values = {"learning_rate": 1e-2, "global_batch_size": 4, "num_train_epochs": 2, "dtype": "float32", **changes}
    return TrainSettings(**values)


def tokenizer_of(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def run(base: Path, output: Path, rows: Any = None, seed: int = 3, **changes: Any) -> TrainReport:
    log = changes.pop("log", lambda line: None)
    progress = changes.pop("progress", None)
    rows = make_rows() if rows is None else rows
    more = {"seed": seed, "log": log, "progress": progress, "weights": changes.pop("factors", None)}
    return fit(rows, base, tokenizer_of(base), settings(**changes), output, **more)


def distance(a: Path, b: Path) -> float:
    """Norm of the difference of two folders' weights, relative to that of the weights."""
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    difference = sum(float((first[key] - second[key]).double().square().sum()) for key in first)
    return math.sqrt(difference / sum(float(value.double().square().sum()) for value in first.values()))


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


RESUME = {"num_train_epochs": 8, "checkpoint_steps": 2}
# One step, so large that the difference of the weights is the gradient to all its digits; ten rows are no multiple of
# what two processes take at a time.
GRADIENT = {
    "mode": "asft", "optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0, "learning_rate": 100.0, "num_train_epochs": 1, "global_batch_size": 12,
    "per_device_train_batch_size": 2,
}  # fmt: skip
UNEVEN = {"mode": "asft", "num_train_epochs": 3, "packing": True, "per_device_train_batch_size": 2}


class Stop(Exception):
    pass


def several(base: Path, home: Path) -> None:
    """What two processes do: train, one step, and a training that ends within its second epoch and goes on."""
    from instdiff.training.trainer import _Watch

    run(base, home / "two", log=print, **RESUME)
    run(base, home / "two_gradient", make_rows(10), **GRADIENT)
    own = _Watch.on_step_end

    def stop(self: Any, args: Any, state: Any, *more: Any, **others: Any) -> None:
        own(self, args, state, *more, **others)
        if state.global_step == 5:
            raise Stop

    _Watch.on_step_end = stop
    try:
        run(base, home / "two_uneven", make_rows(10), **UNEVEN, checkpoint_steps=1)
    except Stop:
        _Watch.on_step_end = own
    report = run(base, home / "two_uneven", make_rows(10), **UNEVEN, checkpoint_steps=1)
    assert report.resumed_at == 4, report


if __name__ == "__main__":
    home, kind = Path(sys.argv[1]), sys.argv[3]
    if kind == "several":
        several(home, Path(sys.argv[2]))
    else:
        # The test that kills this program after its first checkpoint must not come too late.
        fit(
            make_rows(), home, tokenizer_of(home), settings(**RESUME, use_lora=kind == "lora"), Path(sys.argv[2]),
            seed=3, progress=lambda step, steps: time.sleep(300 * (step == 5)),
        )  # fmt: skip
