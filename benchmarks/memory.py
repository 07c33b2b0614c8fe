"""Peak memory above the weights: our sweep against full logits, each in a process of its own, same weights and rows.

``plain`` heads are a product with the output embedding; ``scaled`` (Cohere) and ``capped`` (Gemma 2) change the logits
after it, so that a model has to go through its own head. Half of the tokens are targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from common import arguments, finish, in_child, peak_resident, random_rows, reference, timed, useful_flops
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from instdiff.core import Entropy, Nll
from instdiff.engine.models import matmul_peak
from instdiff.engine.sweep import Sweep
from instdiff.rendering.renderer import Rows

HEADS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "plain": (LlamaConfig, LlamaForCausalLM, {}),
    "scaled": (CohereConfig, CohereForCausalLM, {"logit_scale": 0.0625}),
    "capped": (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 1.0, "head_dim": 64}),
}
BOUND_MB = 700


class Case(NamedTuple):
    """What is measured; two rows, so that a batch of ours is more than a row."""

    sweep: str
    head: str
    vocabulary: int
    length: int
    rows: int = 2


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case("target", "plain", 150_000, 2048, rows=1), Case("vocabulary", "scaled", 32_000, 512)]
    return [
        Case("target", "plain", 150_000, 2048, rows=1),
        *(Case("vocabulary", "plain", size, 2048, rows=1) for size in (32_000, 256_000)),
        *(Case("length", "plain", 32_000, length, rows=1) for length in (512, 8192)),
        *(Case("head", head, 150_000, 2048, rows=1) for head in HEADS if head != "plain"),
    ]


def model_of(case: Case) -> Any:
    torch.manual_seed(0)
    config, model, changes = HEADS[case.head]
    shape = {
        "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": case.vocabulary, "tie_word_embeddings": True,
        "max_position_embeddings": 8192, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return model(config(**shape | changes)).eval().requires_grad_(False)


def swept(model: Any, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    found: list[Any] = [None] * len(rows)
    for part in Sweep(model, lambda line: None)(rows, (Nll(), Entropy())):
        nll, entropy = part.columns[Nll()], part.columns[Entropy()]
        for at, row in enumerate(part.at):
            found[int(row)] = nll[at], entropy[at]
    return np.concatenate([nll for nll, _ in found]), np.concatenate([entropy for _, entropy in found])


def full(model: Any, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    found = reference(model, rows)
    return np.concatenate([nll for nll, _ in found]), np.concatenate([entropy for _, entropy in found])


def ours(case: Case) -> tuple[float, float, np.ndarray, float, float]:
    """Peak above the weights in MB, seconds, the numbers; the useful work, and what this machine can multiply."""
    model, rows = model_of(case), random_rows(case.rows, case.length, case.vocabulary)
    with peak_resident() as peak:
        numbers = swept(model, rows)
    seconds, _ = timed(lambda: swept(model, rows))
    speed = matmul_peak(torch.device("cpu"), torch.float32, 1.0, 2048)
    return peak.above, seconds, np.stack(numbers), useful_flops(model, rows), speed


def others(case: Case) -> tuple[float, float, np.ndarray]:
    """The same with full logits; a first run is as fast as the next, for most of it is one product and its reading."""
    model, rows = model_of(case), random_rows(case.rows, case.length, case.vocabulary)
    with peak_resident() as peak:
        seconds, numbers = timed(lambda: full(model, rows))
    return peak.above, seconds, np.stack(numbers)


def record(case: Case) -> dict[str, Any]:
    above, seconds, numbers, flops, speed = in_child(ours, case)
    full_above, full_s, expected = in_child(others, case)
    error = float(np.max(np.abs(numbers - expected) / np.abs(expected)))
    if not error <= 1e-5:
        raise AssertionError(f"{case}: the numbers differ by {error:.2g}")
    tokens = case.rows * case.length
    return case._asdict() | {
        "ours_peak_mb": above, "full_peak_mb": full_above, "ratio_memory": full_above / above,
        "most_difference": error, "tokens_per_s": tokens / seconds, "full_tokens_per_s": tokens / full_s,
        "ratio_speed": full_s / seconds, "share_of_peak": flops / seconds / speed, "matmul_gflops": speed / 1e9,
    }  # fmt: skip


def main() -> None:
    args = arguments()
    records = [record(case) for case in cases(args.quick)]
    finish(args, records)
    if records[0]["ours_peak_mb"] >= BOUND_MB:
        raise SystemExit(f"the first record is above the bound of {BOUND_MB} MB")


if __name__ == "__main__":
    main()
