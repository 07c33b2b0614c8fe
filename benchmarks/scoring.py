"""Rows per second of the sweep against other ways, same process, same weights, same rows.

``reference``: one row at a time, full logits, log-softmax and softmax, same dtype, no gradients.
``published``: the same in fp32 with the gradient graph kept, as published scorers do.
``batched``: as lm-evaluation-harness reads log-likelihoods: sorted by length, padded batches of the best of several
sizes, full logits, same dtype. It reads the NLL only, which is less than the others do.

With ``--model`` published models on real rows: folders, or names below ``INSTDIFF_MODELS``. Peers there are the plain
loop and lm-evaluation-harness itself, its ``HFLM`` with batches of 1 and of 8, in turn with ours. In fp32 ours and the
loop are compared with the loop in fp64 on a few rows (``fp32_difference`` and ``fp32_difference_loop``, relative).
``--data`` takes one of the two data sets alone.

Each way is the fastest of three runs, padded batches of one for each size. Each record has a process of its own. The
loops and the padded batches come first; ours comes last, since it keeps freed pages with the process, as the program
does, and all that comes after would gain by that too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    SHARED,
    alpaca,
    arguments,
    finish,
    in_child,
    peak_resident,
    reference,
    renamed,
    rows_of,
    timed,
    useful_flops,
)
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from instdiff.core import Entropy, ModelRef, Nll, Prompted
from instdiff.data import load
from instdiff.engine.allocator import keep_pages
from instdiff.engine.models import is_emulated, matmul_peak
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.sweep import Sweep
from instdiff.rendering.renderer import Rows, render
from instdiff.rendering.templates import template

SHAPE_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH_SIZES = (4, 8, 16)
RUNS = 3
MODELS = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models"))


def model_of(shape: str) -> Any:
    torch.manual_seed(0)
    if shape == "135m":
        return LlamaForCausalLM(LlamaConfig(**SHAPE_135M)).eval()
    return AutoModelForCausalLM.from_pretrained(
        str(resolve(ModelRef("builtin:tiny")).folder), dtype=torch.float32
    ).eval()


def means(model: Any, rows: Rows, *, published: bool) -> np.ndarray:
    return np.array([(nll.mean(), entropy.mean()) for nll, entropy in reference(model, rows, published=published)])


@torch.no_grad()
def batched(model: Any, rows: Rows, size: int) -> np.ndarray:
    """Mean NLL of each row, in padded batches, longest first."""
    out, offsets = np.zeros(len(rows)), rows.ids.offsets
    order = np.argsort(-rows.ids.lengths(), kind="stable")
    for start in range(0, len(order), size):
        at = order[start : start + size]
        ids = [torch.from_numpy(np.asarray(rows.ids[int(row)], np.int64)) for row in at]
        padded = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in ids], batch_first=True)
        every = torch.log_softmax(model(padded).logits, -1)
        for row, mine, log_p in zip(at, ids, every, strict=True):
            hit = torch.from_numpy(np.flatnonzero(rows.target[offsets[row] : offsets[row + 1]]))
            out[row] = -log_p[hit - 1].gather(-1, mine[hit, None]).float().mean().item()
    return out


def ours(sweep: Sweep, rows: Rows) -> np.ndarray:
    out = np.zeros((len(rows), 2))
    for swept in sweep(rows, (Nll(), Entropy())):
        out[swept.at] = np.stack([swept.columns[Nll()].mean(), swept.columns[Entropy()].mean()], 1)
    return out


def best(runs: int, way: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds of the fastest of some runs: on shared cores a single one may be twice as slow."""
    return min((timed(way) for _ in range(runs)), key=lambda pair: pair[0])


def best_batched(model: Any, rows: Rows, sizes: tuple[int, ...]) -> tuple[float, int, np.ndarray]:
    runs = [(*timed(lambda: batched(model, rows, size)), size) for size in sizes]  # noqa: B023 - called at once
    took, nll, size = min(runs, key=lambda run: run[0])
    return len(rows) / took, size, nll


def peak_of(dtype: torch.dtype) -> float:
    return matmul_peak(torch.device("cpu"), dtype, 1.0, 2048)


def measure(shape: str, dtype: torch.dtype, count: int, sizes: tuple[int, ...], runs: int) -> dict[str, Any]:
    """The record of one shape and dtype."""
    rows, peak = rows_of(count), peak_of(dtype)
    if shape == "135m":
        rows = renamed(rows, SHAPE_135M["vocab_size"])
    few, model = rows.take(np.arange(max(4, count // 4))), model_of(shape)
    published_s, expected = best(runs, lambda: means(model, few, published=True))
    published_rate = len(few) / published_s
    if is_emulated(dtype, torch.device("cpu")):  # hundreds of times slower, so that a few rows have to do
        rows, few = rows.take(np.arange(max(4, count // 16))), few.take(np.arange(4))
    model = model.to(dtype).requires_grad_(False)
    loop_s, _ = best(runs, lambda: means(model, few, published=False))
    batched_rate, size, nll = best_batched(model, rows, sizes)
    keep_pages()
    sweep = Sweep(model, print)
    ours(sweep, few)  # warm
    before = sweep.lanes.tokens
    with peak_resident() as memory:
        took, mine = best(runs, lambda: ours(sweep, rows))
    peak = max(peak, peak_of(dtype))  # a core that was taken away in between would make the share too large
    computed = (sweep.lanes.tokens - before) / runs
    if dtype is torch.float32:
        np.testing.assert_allclose(mine[:, 0], nll, rtol=2e-4)
        np.testing.assert_allclose(mine[: len(few)], expected, rtol=2e-4)
    tokens, rate, loop_rate = int(rows.ids.lengths().sum()), len(rows) / took, len(few) / loop_s
    return {
        "rows": len(rows), "ours_rows_per_s": rate, "reference_rows_per_s": loop_rate,
        "published_rows_per_s": published_rate, "batched_rows_per_s": batched_rate, "batched_size": size,
        "ratio_reference": rate / loop_rate, "ratio_published": rate / published_rate,
        "ratio_batched": rate / batched_rate, "tokens_per_s": tokens / took,
        "share_of_peak": useful_flops(model, rows) / took / peak, "matmul_gflops": peak / 1e9,
        "tokens_saved": 1 - computed / tokens, "peak_memory_mb": memory.above,
    }  # fmt: skip


# ── published models ──────────────────────────────────────────────────────────────────────────────────────────────────


def real_rows(data: str, folder: Path, count: int) -> tuple[Rows, Any]:
    """Rows of GSM8K or Alpaca as a published model's tokenizer sees them, and the tokenizer."""
    tokenizer = load_tokenizer(resolve(ModelRef(str(folder))))
    pool = alpaca() if data == "alpaca" else load(str(SHARED / "data" / "gsm8k" / "train.jsonl"))
    pool = pool.take(np.sort(np.random.default_rng(0).permutation(len(pool))[: count + count // 10 + 4]))
    rows = render(Prompted(), pool, tokenizer, template("alpaca"), 512)
    return rows.take(np.flatnonzero([reason is None for reason in rows.reason])[:count]), tokenizer.hf


def harness(model: Any, tokenizer: Any, size: int) -> Callable[[Rows], np.ndarray]:
    """lm-evaluation-harness's own way: summed log-likelihood of each response."""
    from lm_eval.models.huggingface import HFLM

    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device=str(model.device))

    def way(rows: Rows) -> np.ndarray:
        asked = []
        for at in range(len(rows)):
            ids, targets = rows.ids[at].tolist(), int(rows.n_targets()[at])
            asked.append((("", ""), ids[:-targets], ids[-targets:]))
        return np.array([found[0] for found in peer._loglikelihood_tokens(asked, disable_tqdm=True)])

    return way


def measure_real(name: str, data: str, count: int, runs: int) -> dict[str, Any]:
    """The record of one published model on one data set, in bf16 where the processor multiplies it."""
    folder = Path(name) if Path(name).is_dir() else MODELS / name
    rows, tokenizer = real_rows(data, folder, count)
    dtype = torch.float32 if is_emulated(torch.bfloat16, torch.device("cpu")) else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, trust_remote_code=False).eval()
    few = rows.take(np.arange(4))
    found = {"": ours(Sweep(model.requires_grad_(False), print), few), "_loop": means(model, few, published=False)}
    exact = means(model.double(), few, published=False)
    apart = {f"fp32_difference{key}": float(np.max(np.abs(some / exact - 1))) for key, some in found.items()}
    model, peak = model.to(dtype), peak_of(dtype)
    keep_pages()
    sweep = Sweep(model, print)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "loop": lambda: means(model, rows, published=False),
        "hflm_1": lambda: one(rows),
        "hflm_8": lambda: eight(rows),
        "ours": lambda: ours(sweep, rows),
    }
    one, eight = harness(model, tokenizer, 1), harness(model, tokenizer, 8)
    took: dict[str, float] = {}
    for way in (way for _ in range(runs) for way in ways):
        took[way] = min(took.get(way, math.inf), timed(ways[way])[0])
    peak = max(peak, peak_of(dtype))
    best = min(took["hflm_1"], took["hflm_8"])
    return {
        "model": name, "data": data, "dtype": str(dtype).removeprefix("torch."), "rows": len(rows),
        "tokens": int(rows.ids.lengths().sum()), "targets": int(rows.n_targets().sum()),
        **{f"{way}_s": seconds for way, seconds in took.items()},
        "ratio_loop": took["loop"] / took["ours"], "ratio_best_peer": min(best, took["loop"]) / took["ours"],
        "ratio_hflm": best / took["ours"], "share_of_peak": useful_flops(model, rows) / took["ours"] / peak,
        "matmul_gflops": peak / 1e9, **apart,
    }  # fmt: skip


def main_real(args: Any) -> None:
    records = []
    for name in args.model.split(","):
        for data in [args.data] if args.data else ["gsm8k", "alpaca"]:
            count = args.rows or (8 if args.quick else 200)
            records.append(in_child(measure_real, name, data, count, 1 if args.quick else RUNS))
            print(json.dumps(records[-1]), flush=True)
    finish(args, records)


def main() -> None:
    args = arguments(rows=0, model="", data="")
    if args.model:
        main_real(args)
        return
    records = []
    for shape, count in (("5m", 400), ("135m", 64)):
        count = args.rows or (count // 8 if args.quick else count)
        for name, dtype in DTYPES.items():
            sizes, runs = (BATCH_SIZES[1:2], 1) if args.quick else (BATCH_SIZES, RUNS)
            found = in_child(measure, shape, dtype, count, sizes, runs)
            records.append({"shape": shape, "dtype": name} | found)
            print(json.dumps(records[-1]), flush=True)
    finish(args, records)


if __name__ == "__main__":
    main()
