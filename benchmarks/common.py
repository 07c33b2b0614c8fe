"""What the benchmarks share: rows, models, the plain reference, the machine, and the record of a run."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instdiff.engine import allocator

# As the program does; what the allocator is told counts for processes that are started from here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault(allocator.NAME, allocator.NO_SMALL_CACHES)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from instdiff.core import ModelRef, Prompted
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import Pool, load
from instdiff.engine.forward import Forward
from instdiff.engine.models import is_emulated, matmul_peak
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.rendering.renderer import Rows, render
from instdiff.rendering.templates import template

SHARED = Path(os.environ.get("INSTDIFF_SHARED", Path(__file__).resolve().parents[1] / "../shared"))
STATUS = Path("/proc/self/status")


def arguments(**extra: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--add", action="store_true", help="keep other records of that file")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    for name, default in extra.items():
        how: dict[str, Any] = {"action": "store_true"} if default is False else {"type": type(default)}
        parser.add_argument(f"--{name}", default=default, **how)
    return parser.parse_args()


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def alpaca() -> Pool:
    """Alpaca's rows; the embedded ones where the shared folder is absent."""
    path = SHARED / "data" / "alpaca" / "alpaca_union.json"
    return load(str(path) if path.is_file() else "builtin:demo")


def rows_of(count: int, max_length: int = 512, seed: int = 0) -> Rows:
    """Random Alpaca rows as the model sees them."""
    pool = alpaca()
    pool = pool.take(np.sort(np.random.default_rng(seed).permutation(len(pool))[: count + count // 20 + 4]))
    source = resolve(ModelRef("builtin:tiny"))
    rows = render(Prompted(), pool, load_tokenizer(source), template("alpaca"), max_length)
    return rows.take(np.flatnonzero([reason is None for reason in rows.reason])[:count])


def renamed(rows: Rows, vocabulary: int, seed: int = 0) -> Rows:
    """Every token id replaced by a random one of a larger vocabulary: lengths and shared beginnings stay."""
    to = np.random.default_rng(seed).permutation(vocabulary).astype(np.int32)
    return Rows(Ragged(to[rows.ids.values], rows.ids.offsets), rows.target, rows.truncated, rows.reason)


def random_rows(count: int, length: int, vocabulary: int, seed: int = 0) -> Rows:
    """Rows of random tokens, the second half of each its targets."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, count * length).astype(np.int32)
    target = np.tile(np.arange(length) >= length - length // 2, count)
    offsets = np.arange(count + 1, dtype=np.int64) * length
    return Rows(Ragged(ids, offsets), target, np.zeros(count, bool), np.full(count, None, object))


# ── the plain way, and what a sweep is worth ──────────────────────────────────────────────────────────────────────────


def reference(model: Any, rows: Rows, *, published: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """NLL and entropy per target: one row at a time, full logits; ``published`` keeps the gradient graph."""
    out = []
    with torch.set_grad_enabled(published):
        for at in range(len(rows)):
            ids = torch.from_numpy(np.asarray(rows.ids[at], np.int64))[None].to(model.device)
            hit = np.flatnonzero(rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]])
            hit = torch.from_numpy(hit).to(model.device)
            logits = model(input_ids=ids, use_cache=published).logits[0, :-1]
            logits = logits if logits.dtype == torch.float64 else logits.float()
            log_p, p = torch.log_softmax(logits, -1), torch.softmax(logits, -1)
            nll = -log_p.gather(-1, ids[0, 1:, None])[:, 0][hit - 1]
            entropy = -(p * log_p).sum(-1)[hit - 1]
            out.append((nll.detach().cpu().numpy(), entropy.detach().cpu().numpy()))
    return out


def useful_flops(model: Any, rows: Rows) -> float:
    """Of the body on all tokens and the head on targets; padding does not count, shared beginnings do."""
    config = model.config
    embedding = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters()) - embedding * (1 if config.tie_word_embeddings else 2)
    lengths = rows.ids.lengths().astype(float)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = config.num_hidden_layers * 2 * 2 * width * (lengths * (lengths + 1) / 2).sum()
    return float(2 * body * lengths.sum() + 2 * embedding * rows.n_targets().sum() + attention)


@dataclass
class Counted:
    """Forward passes of this process, and the tokens that they computed."""

    forwards: int = 0
    tokens: int = 0


@contextmanager
def counting() -> Iterator[Counted]:
    """Count what every sweep computes."""
    counted, call = Counted(), Forward.__call__

    def counts(self: Forward, *args: Any) -> Any:
        before = self.forwards, self.tokens
        out = call(self, *args)
        counted.forwards += self.forwards - before[0]
        counted.tokens += self.tokens - before[1]
        return out

    Forward.__call__ = counts  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        Forward.__call__ = call  # type: ignore[method-assign]


# ── time and memory ───────────────────────────────────────────────────────────────────────────────────────────────────


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = function()
    return time.perf_counter() - start, out


def cpu_seconds() -> float:
    """Spent by this process and by its children that have ended."""
    return sum(os.times()[:4])


def status_mb(field: str) -> float:
    """A field of the process's status, such as VmHWM."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found.group(1)) / 1024 if found else float("nan")


@dataclass
class Peak:
    """Megabytes at the start and the most since; ``in_use`` is the most that was in use above the start."""

    start: float
    most: float
    in_use: float = float("nan")

    @property
    def above(self) -> float:
        """What was added to the start."""
        return self.most - self.start


def settle() -> None:
    """Give freed memory back to the system, so that using it again counts."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def peak_resident() -> Iterator[Peak]:
    """The most that was resident, exactly, where the kernel lets its high-water mark be reset."""
    settle()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    peak = Peak(status_mb("VmRSS"), 0.0)
    yield peak
    peak.most = status_mb("VmHWM")


class _Mallinfo(ctypes.Structure):
    NAMES = ("arena", "pieces", "small", "maps", "mapped", "most", "quick", "used", "free", "top")
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def in_use_mb() -> float:
    """What was asked of glibc's allocator and not given back; what it keeps free for later does not count."""
    try:
        count = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return float("nan")
    count.restype = _Mallinfo
    now = count()
    return float(now.used + now.mapped) / (1 << 20)


@contextmanager
def peak_anonymous(every_s: float = 0.01) -> Iterator[Peak]:
    """The most anonymous memory that was seen: what is mapped from files can be dropped and does not count."""
    settle()
    used = in_use_mb()
    peak = Peak(status_mb("RssAnon"), 0.0, used - used)  # NaN stays NaN: it is not known there
    over = threading.Event()

    def look() -> None:
        peak.most = max(peak.most, status_mb("RssAnon"))
        peak.in_use = max(peak.in_use, in_use_mb() - used)

    def watch() -> None:
        while not over.wait(every_s):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        look()


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Call in a fresh process, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


# ── the record ────────────────────────────────────────────────────────────────────────────────────────────────────────


FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile")
"""Instruction sets that decide how fast products are."""


def machine() -> dict[str, Any]:
    """What a record says nothing without: the processor, its instruction sets, and the load beside the benchmark."""
    facts = _processor()
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    return {
        "cpu": name, "family": facts.get("cpu family"), "model": facts.get("model"),
        "instructions": [flag for flag in FLAGS if flag in flags], "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def _processor() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def peaks() -> dict[str, float]:
    """GFLOP/s of a large matrix product on this machine's CPU, by precision."""
    cpu = torch.device("cpu")
    asked = [name for name in ("float32", "bfloat16") if not is_emulated(getattr(torch, name), cpu)]
    return {name: matmul_peak(cpu, getattr(torch, name), 0.5, 2048) / 1e9 for name in asked}


def finish(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    for record in records:
        print("  ".join(f"{key} {_short(value)}" for key, value in record.items()))
    save(args, records)


BEFORE = machine()
"""Before the benchmark, whose own load would count."""


def save(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    """Write what there is, with the machine and the command.

    With ``--add`` other records of the file stay, and a record takes the place of an earlier one whose texts (shape,
    model, data and the like) are the same.
    """
    if not args.json:
        return
    about = {"machine": BEFORE | {"peak_gflops": peaks()}, "command": " ".join(["python", *sys.argv])}
    kept = json.loads(args.json.read_text(encoding="utf-8")) if args.add and args.json.is_file() else []
    whole = [record | about for record in records]
    if kept:
        whole = list(
            ({_texts(record): record for record in kept} | {_texts(record): record for record in whole}).values()
        )
    args.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def _texts(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in record.items() if isinstance(value, str) and key != "command")


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
