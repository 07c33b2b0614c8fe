"""Rows per second of the sweep against a plain loop over rows, same process, same weights, same rows.

``reference``: one row at a time, full logits, log-softmax and softmax, same dtype, no gradients.
``published``: the same in fp32 with the gradient graph kept, as published scorers do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import arguments, finish, peak_memory_mb, renamed, rows_of, timed
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from instdiff.core import Entropy, ModelRef, Nll
from instdiff.engine.load import resolve
from instdiff.engine.peak import matmul_peak
from instdiff.engine.sweep import Sweep
from instdiff.render import Rows

SHAPE_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_of(shape: str) -> Any:
    torch.manual_seed(0)
    if shape == "135m":
        return LlamaForCausalLM(LlamaConfig(**SHAPE_135M)).eval()
    return AutoModelForCausalLM.from_pretrained(
        str(resolve(ModelRef("builtin:tiny")).folder), dtype=torch.float32
    ).eval()


def loop(model: Any, rows: Rows, *, published: bool) -> list[tuple[float, float]]:
    out = []
    with torch.set_grad_enabled(published):
        for at in range(len(rows)):
            ids = torch.from_numpy(np.asarray(rows.ids[at], np.int64))[None]
            hit = torch.from_numpy(np.flatnonzero(rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]]))
            logits = model(input_ids=ids, use_cache=published).logits[0, :-1]
            log_p = torch.log_softmax(logits.float(), -1)
            p = torch.softmax(logits.float(), -1)
            nll = -log_p.gather(-1, ids[0, 1:, None])[:, 0][hit - 1]
            entropy = -(p * log_p).sum(-1)[hit - 1]
            out.append((nll.mean().item(), entropy.mean().item()))
    return out


def ours(sweep: Sweep, rows: Rows) -> np.ndarray:
    out = np.zeros((len(rows), 2))
    for swept in sweep(rows, (Nll(), Entropy())):
        out[swept.at] = np.stack([swept.columns[Nll()].mean(), swept.columns[Entropy()].mean()], 1)
    return out


def useful_flops(model: Any, rows: Rows) -> float:
    config = model.config
    embedding = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters()) - embedding * (1 if config.tie_word_embeddings else 2)
    lengths = rows.ids.lengths().astype(float)
    width = config.num_attention_heads * config.head_dim
    attention = config.num_hidden_layers * 2 * 2 * width * (lengths * (lengths + 1) / 2).sum()
    return float(2 * body * lengths.sum() + 2 * embedding * rows.n_targets().sum() + attention)


def main() -> None:
    args = arguments(rows=0)
    records = []
    for shape, count in (("5m", 400), ("135m", 64)):
        count = args.rows or (count // 4 if args.quick else count)
        rows = rows_of(count)
        if shape == "135m":
            rows = renamed(rows, SHAPE_135M["vocab_size"])
        few = rows.take(np.arange(max(4, count // 4)))
        plain = model_of(shape)
        slow, expected = timed(lambda: loop(plain, few, published=True))  # noqa: B023 - called at once
        for name, dtype in DTYPES.items():
            model = plain.to(dtype)
            peak = matmul_peak(torch.device("cpu"), dtype, 1.0, 2048)
            sweep = Sweep(model.requires_grad_(False), print)
            ours(sweep, few)  # warm
            before = sweep.forward.tokens
            mine = min((timed(lambda: ours(sweep, rows)) for _ in range(2)), key=lambda pair: pair[0])  # noqa: B023
            computed = (sweep.forward.tokens - before) / 2
            reference, _ = timed(lambda: loop(model, few, published=False))  # noqa: B023
            if dtype is torch.float32:
                np.testing.assert_allclose(mine[1][: len(few)], np.array(expected), rtol=2e-4)
            rate, loop_rate, published = len(rows) / mine[0], len(few) / reference, len(few) / slow
            tokens = int(rows.ids.lengths().sum())
            records.append(
                {
                    "shape": shape, "dtype": name, "rows": len(rows), "ours_rows_per_s": rate,
                    "reference_rows_per_s": loop_rate, "published_rows_per_s": published,
                    "ratio_reference": rate / loop_rate, "ratio_published": rate / published,
                    "tokens_per_s": tokens / mine[0], "share_of_peak": useful_flops(model, rows) / mine[0] / peak,
                    "matmul_gflops": peak / 1e9, "tokens_saved": 1 - computed / tokens,
                    "peak_memory_mb": peak_memory_mb(),
                }
            )  # fmt: skip
            model.requires_grad_(True)
    finish(args, records)


if __name__ == "__main__":
    main()
