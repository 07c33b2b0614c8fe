"""CPU seconds, forwards, tokens and memory against the number of rows, the vocabulary and the length.

Each size runs in a process of its own. Batches of rows from a file have a given budget: a measured one follows the
clock, and the number of forwards with it, up or down. ``cpu_s`` is spent by the process and its children after a
warm-up. Memory is anonymous, since mapped files can be dropped: ``process_mb`` is the most that the process had,
``peak_memory_mb`` as much of it as came after the warm-up, and ``in_use_mb`` the most that was in use of this, without
what the allocator kept free.
``..._growth`` is the cost against the size before, over the growth of the size: 1 is linear.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    alpaca,
    arguments,
    counting,
    cpu_seconds,
    finish,
    in_child,
    peak_anonymous,
    random_rows,
    reference,
    timed,
    useful_flops,
)
from transformers import LlamaConfig, LlamaForCausalLM

from instdiff import ModelRef, Perplexity, Prompted, ResponseEntropy, Settings, Store, load, score
from instdiff.core import Entropy, Nll
from instdiff.engine.models import matmul_peak
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.sweep import Sweep
from instdiff.rendering.renderer import Rows, render
from instdiff.rendering.templates import template

SETTINGS = Settings(max_length=512, dtype="float32", device="cpu", batch_tokens=4096)
METHODS = (Perplexity(), ResponseEntropy())
FEW = 100
"""Rows of the warm-up and of the reference."""
SLACK = 0.15


def model_of(vocabulary: int) -> Any:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": vocabulary, "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**shape)).eval().requires_grad_(False)


def make_model(home: Path) -> Path:
    source = resolve(ModelRef("builtin:tiny"))
    model_of(len(load_tokenizer(source).hf)).save_pretrained(home)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source.folder / name, home)
    return home


def write_rows(file: Path, count: int) -> Path:
    """Alpaca's rows, then copies of them with their words in another order."""
    pool, rng = alpaca(), np.random.default_rng(0)
    order = rng.permutation(len(pool))
    rows = [json.loads(json.dumps(row)) for row in pool.source_rows(order[:count])]

    def mixed(text: str) -> str:
        return " ".join(rng.permutation(text.split()).tolist())

    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            row = {key: rows[number % len(rows)].get(key) or "" for key in ("instruction", "input", "output")}
            if number >= len(rows):
                row |= {key: mixed(row[key]) for key in ("instruction", "output")}
            out.write(json.dumps(row) + "\n")
    return file


def against_reference(model: Any, rows: Rows) -> tuple[float, float]:
    """Rows per second of the plain loop, and the work of a row."""
    took, _ = timed(lambda: reference(model, rows))
    return len(rows) / took, useful_flops(model, rows) / len(rows)


def score_file(file: Path, more: Path, model: Path, home: Path) -> dict[str, Any]:
    """Score a file, score it again, and score it with a hundredth more rows."""

    def run(pool: Any, store: Path) -> Any:
        return score(pool, METHODS, str(model), settings=SETTINGS, store=Store(store))

    first = load(str(file)).take(np.arange(FEW))
    run(first, home / "warm")
    with counting() as counted, peak_anonymous() as memory:
        before = cpu_seconds()
        pool = load(str(file))
        load_cpu_s = cpu_seconds() - before
        wall_s, _ = timed(lambda: run(pool, home / "store"))
        cpu_s = cpu_seconds() - before
    with counting() as again:
        rerun_s, _ = timed(lambda: run(pool, home / "store"))
    with counting() as added:
        run(load(str(more)), home / "store")
    rows = render(Prompted(), first, load_tokenizer(resolve(ModelRef(str(model)))), template("alpaca"), 512)
    plain_rate, flops = against_reference(model_of(load_vocabulary(model)), rows.take(scorable(rows)))
    speed = matmul_peak(torch.device("cpu"), torch.float32, 1.0, 2048)
    return {
        "cpu_s": cpu_s, "load_cpu_s": load_cpu_s, "wall_s": wall_s, "forwards": counted.forwards,
        "tokens": counted.tokens, "process_mb": memory.most, "peak_memory_mb": memory.above,
        "in_use_mb": memory.in_use, "tokens_per_s": counted.tokens / wall_s,
        "ratio_reference": len(pool) / wall_s / plain_rate, "share_of_peak": flops * len(pool) / wall_s / speed,
        "matmul_gflops": speed / 1e9, "rerun_forwards": again.forwards, "rerun_s": rerun_s,
        "added_share": added.tokens / counted.tokens,
    }  # fmt: skip


def load_vocabulary(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])


def scorable(rows: Rows) -> np.ndarray:
    return np.flatnonzero([reason is None for reason in rows.reason])


def sweep_random(vocabulary: int, length: int, tokens: int) -> dict[str, Any]:
    """Sweep rows of random tokens; nothing is shared."""
    model, rows = model_of(vocabulary), random_rows(tokens // length, length, vocabulary)
    few = rows.take(np.arange(max(1, len(rows) // 8)))
    sweep, measures = Sweep(model, print), (Nll(), Entropy())
    list(sweep(few, measures))
    with counting() as counted, peak_anonymous() as memory:
        before = cpu_seconds()
        wall_s, _ = timed(lambda: list(sweep(rows, measures)))
        cpu_s = cpu_seconds() - before
    plain_rate, flops = against_reference(model, few)
    speed = matmul_peak(torch.device("cpu"), torch.float32, 1.0, 2048)
    return {
        "rows": len(rows), "cpu_s": cpu_s, "wall_s": wall_s, "forwards": counted.forwards, "tokens": counted.tokens,
        "peak_memory_mb": memory.above, "tokens_per_s": counted.tokens / wall_s,
        "ratio_reference": len(rows) / wall_s / plain_rate, "share_of_peak": flops * len(rows) / wall_s / speed,
        "matmul_gflops": speed / 1e9,
    }  # fmt: skip


def growing(records: list[dict[str, Any]], size: str) -> list[dict[str, Any]]:
    """Each record with its costs against the one before it."""
    for key in ("cpu_s", "forwards", "peak_memory_mb"):
        records[0][f"{key}_growth"] = None
    for before, now in itertools.pairwise(records):
        times = now[size] / before[size]
        for key in ("cpu_s", "forwards", "peak_memory_mb"):
            now[f"{key}_growth"] = now[key] / before[key] / times
    return records


def by_rows(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    records = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            file, more = write_rows(home / "rows.jsonl", rows), write_rows(home / "more.jsonl", rows + rows // 100)
            found = in_child(score_file, file, more, make_model(home / "model"), home)
        records.append({"kind": "rows", "rows": rows} | found)
    return growing(records, "rows")


def by_shape(kind: str, sizes: tuple[int, ...], tokens: int) -> list[dict[str, Any]]:
    records = []
    for size in sizes:
        shape = {"vocabulary": 8000, "length": 512} | {kind: size}
        found = in_child(sweep_random, shape["vocabulary"], shape["length"], tokens)
        records.append({"kind": kind} | shape | found)
    return growing(records, kind)


def broken(rows: list[dict[str, Any]]) -> list[str]:
    """What the numbers of rows do not keep to; costs are compared where no fixed part can hide them."""
    out = []
    for record in rows:
        if record["rerun_forwards"]:
            out.append(f"{record['rows']} rows again: {record['rerun_forwards']} forwards")
        if record["rows"] >= 1000 and abs(record["added_share"] - 0.01) > 0.005:
            out.append(f"1 % more than {record['rows']} rows: {record['added_share']:.2%} of the tokens")
    for before, now in itertools.pairwise(rows):
        if before["rows"] < 1000:
            continue
        for key in ("cpu_s", "forwards"):
            if now[f"{key}_growth"] > 1 + SLACK:
                out.append(f"{now['rows']} rows: {key} grew {now[f'{key}_growth']:.2f} times as much as rows")
        for key in ("peak_memory_mb", "in_use_mb"):
            if now[key] > (1 + SLACK) * before[key]:
                out.append(f"{now['rows']} rows: {key} {now[key]:.0f} after {before[key]:.0f}")
    return out


def main() -> None:
    args = arguments()
    quick = args.quick
    rows = by_rows((100, 500) if quick else (1000, 10_000, 100_000))
    tokens = 1 << (13 if quick else 16)
    shapes = by_shape("vocabulary", (8000, 32_000) if quick else (8000, 32_000, 150_000), tokens)
    shapes += by_shape("length", (128, 2048) if quick else (128, 256, 512, 1024, 2048), tokens)
    finish(args, [*rows, *shapes])
    if found := broken(rows):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
