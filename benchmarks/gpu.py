"""What there is to know about a GPU, in one run of less than eight minutes.

Weights are random, of the shapes of Qwen2.5, in bf16; rows are random tokens of unlike lengths that begin alike.
Scoring is measured against a plain loop over rows and against lm-evaluation-harness's ``HFLM``, T-SHIRT's noisy draws
against the clean pass, and training against TRL's trainer, padded and packed, with Liger's kernels where they are
installed. Peers score fewer rows, so that all of it fits.

Without CUDA it says so and ends; ``--cpu`` runs the same at a toy shape there. What does not begin within ``--minutes``
is left out.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, finish, reference, save, timed, useful_flops
from scoring import harness, ours
from training import Case, Clock, trl
from training import ours as train_ours
from transformers import Qwen2Config, Qwen2ForCausalLM

from instdiff.core import ModelRef, Nll
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine import varlen
from instdiff.engine.allocator import keep_pages
from instdiff.engine.models import matmul_peak
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.sweep import Sweep
from instdiff.rendering.rows import Noise, Rows

SHARED_TOKENS = 30
"""Tokens that all rows begin with, as a template's preamble."""


@dataclass(frozen=True)
class Shape:
    """A model's shape, how many rows ours and its peers score, and those of a training."""

    name: str
    config: Qwen2Config
    rows: int
    peer_rows: int
    trained: int = 0


def qwen(hidden: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int, *, tied: bool) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=4096,
    )  # fmt: skip


TOY = Shape("toy", qwen(64, 128, 2, 4, 2, 4096, tied=True), 24, 8, 12)
SHAPES = (
    Shape("0.5b", qwen(896, 4864, 24, 14, 2, 151936, tied=True), 6000, 128, 640),
    Shape("1.5b", qwen(1536, 8960, 28, 12, 2, 151936, tied=True), 3000, 96),
    Shape("7b", qwen(3584, 18944, 28, 28, 4, 152064, tied=False), 1500, 64),
)


def unlike_rows(count: int, vocabulary: int, longest: int = 1024, seed: int = 0) -> Rows:
    """Rows of lengths as Alpaca's are spread, the second half of each its targets."""
    draw = np.random.default_rng(seed)
    lengths = np.clip(draw.lognormal(math.log(130), 0.6, count), SHARED_TOKENS + 8, longest).astype(int)
    shared = draw.integers(1, vocabulary, SHARED_TOKENS)
    ids = [np.concatenate([shared, draw.integers(1, vocabulary, length - SHARED_TOKENS)]) for length in lengths]
    target = np.concatenate([np.arange(length) >= max(length // 2, SHARED_TOKENS) for length in lengths])
    return Rows(Ragged.of(ids, np.int32), target, np.zeros(count, bool), np.full(count, None, object))


class Bench:
    """A device, what its products reach, and how long there is."""

    def __init__(self, device: torch.device, *, quick: bool, minutes: float) -> None:
        self.device, self.quick, self.dtype = device, quick, torch.bfloat16
        self.until = time.monotonic() + 60 * minutes
        cuda = device.type == "cuda"
        self.peak = matmul_peak(device, self.dtype, 0.5 if cuda else 0.1, 8192 if cuda else 256)
        self.facts: dict[str, Any] = {"device": device.type}
        if cuda:
            told = torch.cuda.get_device_properties(device)
            self.facts |= {
                "gpu": told.name, "gpu_memory_gb": round(told.total_memory / 1e9, 1),
                "capability": f"{told.major}.{told.minor}", "cuda": torch.version.cuda,
            }  # fmt: skip
        self.records: list[dict[str, Any]] = []

    def try_(self, kind: str, shape: Shape, part: Callable[[Bench, Shape], dict[str, Any]]) -> None:
        """Add the record of a part, where there is time for it and it does not fail."""
        if time.monotonic() > self.until:
            print(f"{kind} {shape.name}: left out, there is no time for it")
            return
        try:
            record = {"kind": kind, "shape": shape.name, "dtype": "bfloat16", "peak_tflops": self.peak / 1e12}
            self.records.append(record | part(self, shape) | self.facts)
        except Exception as error:  # noqa: BLE001 - a peer's fault, or too little memory, must not cost the other parts
            print(f"{kind} {shape.name}: left out, {type(error).__name__}: {error}")
            return
        finally:
            gc.collect()
            torch.cuda.empty_cache()  # nothing without a GPU
        print(json.dumps(self.records[-1]), flush=True)

    def seconds(self, way: Callable[[], Any], runs: int = 1) -> float:
        """Of the fastest of some runs; a GPU's work is waited for."""

        def whole() -> None:
            way()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return min(timed(whole)[0] for _ in range(runs))

    @contextmanager
    def memory(self) -> Any:
        """The most that a GPU held while the block ran, in megabytes; None on a CPU."""
        found: list[float | None] = [None]
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        if self.device.type == "cuda":
            found[0] = torch.cuda.max_memory_allocated(self.device) / (1 << 20)

    def model(self, shape: Shape) -> Any:
        """Random weights of a shape."""
        torch.manual_seed(0)
        with self.device:
            model = Qwen2ForCausalLM._from_config(shape.config, dtype=self.dtype)
        return model.eval().requires_grad_(False)


# ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def score(bench: Bench, shape: Shape) -> dict[str, Any]:
    """A pass of ours against the loop and the harness."""
    model = bench.model(shape)
    rows = unlike_rows(shape.rows // (4 if bench.quick else 1), shape.config.vocab_size)
    few = rows.take(np.arange(min(shape.peer_rows, len(rows))))
    tokenizer = load_tokenizer(resolve(ModelRef("builtin:tiny"))).hf
    sweep = Sweep(model, print)
    with bench.memory() as used:
        ours(sweep, rows)  # warm; a batch size is chosen
        ours_s = bench.seconds(lambda: ours(sweep, rows), 1 if bench.quick else 2)
    means = np.array([nll.mean() for nll, _ in reference(model, few)])
    loop_s = bench.seconds(lambda: reference(model, few))
    peers = {size: harness(model, tokenizer, size) for size in (8, 64)}
    took = {size: bench.seconds(lambda way=way: way(few)) for size, way in peers.items()}
    size = min(took, key=lambda one: took[one])
    tokens, share = int(rows.ids.lengths().sum()), float(few.ids.lengths().sum() / rows.ids.lengths().sum())
    return {
        "rows": len(rows), "tokens": tokens, "targets": int(rows.n_targets().sum()), "peer_rows": len(few),
        "ours_tokens_per_s": tokens / ours_s, "loop_tokens_per_s": tokens * share / loop_s,
        "hflm_tokens_per_s": tokens * share / took[size], "hflm_size": size,
        "ratio_loop": loop_s / share / ours_s, "ratio_hflm": took[size] / share / ours_s,
        "share_of_peak": useful_flops(model, rows) / ours_s / bench.peak, "batch_tokens": sweep.batch_tokens,
        "packed": bool(sweep.forward.packs), "varlen": _can_varlen(model),
        "fused_head": sweep.forward.fused is not None, "peak_memory_mb": used[0],
        "nll_difference": float(np.abs(ours(sweep, few)[:, 0] / means - 1).max()),
    }  # fmt: skip


def _can_varlen(model: Any) -> bool:
    """Whether its attention goes through the kernel for rows of unlike lengths."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    q, k, v = (
        torch.empty(1, heads, size, device=model.device, dtype=model.dtype)
        for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    )
    return varlen.can_attend(q, k, v)


def noise(bench: Bench, shape: Shape) -> dict[str, Any]:
    """T-SHIRT's noisy draws, of which the paper takes thirty, against the clean pass."""
    model = bench.model(shape)
    rows = unlike_rows(shape.rows // (16 if bench.quick else 4), shape.config.vocab_size)
    sweep, draws = Sweep(model, print, 32768 if bench.device.type == "cuda" else 512), 2

    def drawn(draw: int) -> Rows:
        named = np.arange(len(rows), dtype=np.int64) * draws + draw
        return replace(rows, noise=Noise(5.0, named, rows.ids.lengths(), 0))

    def swept(some: Rows) -> None:
        for _ in sweep(some, (Nll(),)):
            pass

    swept(rows)
    swept(drawn(0))  # warm
    clean_s = bench.seconds(lambda: swept(rows))
    noisy_s = bench.seconds(lambda: [swept(drawn(draw)) for draw in range(draws)]) / draws
    tokens = int(rows.ids.lengths().sum())
    return {
        "rows": len(rows), "tokens": tokens, "draws": draws, "clean_s": clean_s, "noisy_s": noisy_s,
        "ratio_clean": noisy_s / clean_s, "noisy_tokens_per_s": tokens / noisy_s,
        "share_of_peak": useful_flops(model, rows) / noisy_s / bench.peak,
    }  # fmt: skip


def train(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Ours, packed, against TRL's trainer: same rows, same global batch, bf16 autocast over fp32 weights."""
    place = Path(tempfile.mkdtemp())
    try:
        tokenizer = load_tokenizer(resolve(ModelRef("builtin:tiny"))).hf
        model = bench.model(shape)
        flops = 3 * useful_flops(model, unlike_rows(shape.trained, shape.config.vocab_size))
        model.save_pretrained(place / "base")
        tokenizer.save_pretrained(place / "base")
        del model
        rows = unlike_rows(shape.trained // (2 if bench.quick else 1), shape.config.vocab_size, 512)
        liger = bench.device.type == "cuda" and find_spec("liger_kernel") is not None
        batch = 64 if bench.device.type == "cuda" else 4
        case = Case(shape.name, False, "bfloat16", place / "base", tokenizer, rows, bench.device.type, batch)
        ways: dict[str, Callable[[Path], tuple[Clock, list[float]]]] = {
            "ours": lambda at: train_ours(case, at, packing=True),
            "trl": lambda at: trl(case, at, packed=False, use_liger_kernel=liger),
            "trl_packed": lambda at: trl(case, at, packed=True, use_liger_kernel=liger),
        }
        rates, losses, memory = dict[str, float](), dict[str, list[float]](), dict[str, float | None]()
        for name, way in ways.items():
            with bench.memory() as used:
                clock, losses[name] = way(place / name)
            memory[name] = used[0]
            # All but the first step; packs hold other numbers of rows, so that each step counts for its share.
            share = (len(clock.at) - 1) / len(clock.at)
            rates[name] = float(rows.ids.lengths().sum()) * share / clock.seconds()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    per_token = flops / float(unlike_rows(shape.trained, shape.config.vocab_size).ids.lengths().sum())
    return {
        "rows": len(rows), "batch": batch, "liger": liger,
        **{f"{name}_tokens_per_s": rate for name, rate in rates.items()},
        "ratio_trl": rates["ours"] / rates["trl"], "ratio_trl_packed": rates["ours"] / rates["trl_packed"],
        "share_of_peak": per_token * rates["ours"] / bench.peak,
        **{f"{name}_memory_mb": found for name, found in memory.items()},
        "loss_difference": max(abs(a - b) for a, b in zip(losses["ours"], losses["trl"], strict=True)),
    }  # fmt: skip


def main() -> None:
    args = arguments(cpu=False, minutes=7.5)
    if not (args.cpu or torch.cuda.is_available()):
        print("no CUDA device is here; --cpu runs the same at a toy shape")
        return
    keep_pages()
    bench = Bench(torch.device("cpu" if args.cpu else "cuda"), quick=args.quick, minutes=args.minutes)
    first, *others = (TOY,) if args.cpu else SHAPES[: 1 if args.quick else None]
    parts = [("scoring", first, score), ("noise", first, noise), ("training", first, train)]
    for kind, shape, part in (*parts, *(("scoring", shape, score) for shape in others)):
        bench.try_(kind, shape, part)
        save(args, bench.records)  # what there is, should a later part end all
    finish(args, bench.records)


if __name__ == "__main__":
    main()
