"""Tokens per second of a training against TRL's trainer, padded and packed, and a plain loop: same model, same rows.

Each way trains on the same rows with the same global batch and the loss on the response, in turn, each the fastest of
three. The first step warms up; time is from its end to the end of the last. Tokens are those of rows, never padding.
``loss_difference`` is the largest of any step between ours and the plain loop, which take the rows in the same order.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, arguments, finish, in_child, useful_flops
from transformers import AutoModelForCausalLM, TrainerCallback

from instdiff.config.train import TrainSettings
from instdiff.core import ModelRef
from instdiff.data import load
from instdiff.engine.models import matmul_peak
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.rendering.renderer import Rows, training_rows
from instdiff.rendering.templates import template
from instdiff.training.sft import fit

MODELS = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models"))
RATE, BATCH, RUNS = 1e-4, 8, 3


@dataclass
class Clock:
    """When each optimizer step ended."""

    at: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A step has ended."""
        self.at.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def seconds(self) -> float:
        """From the end of the first step."""
        return self.at[-1] - self.at[0]

    def cpu_seconds(self) -> float:
        """The same of the processor."""
        return self.cpu[-1] - self.cpu[0]


@dataclass
class Case:
    """One model and its rows; ``order`` has the rows of each optimizer step as our sampler deals them."""

    shape: str
    lora: bool
    dtype: str
    folder: Path
    tokenizer: Any
    rows: Rows
    device: str = "cpu"
    batch: int = BATCH

    @property
    def bf16(self) -> bool:
        """Whether products are in bf16."""
        return self.dtype == "bfloat16"

    def model(self) -> Any:
        """The base, in fp32."""
        return AutoModelForCausalLM.from_pretrained(str(self.folder), dtype=torch.float32, trust_remote_code=False)

    def order(self) -> list[np.ndarray]:
        """The sampler's, for the seed of ``ours``."""
        from accelerate.data_loader import SeedableRandomSampler

        every = np.fromiter(SeedableRandomSampler(range(len(self.rows)), data_seed=0), np.int64)
        return [every[at : at + self.batch] for at in range(0, len(every), self.batch)]


def case_of(shape: str, lora: bool, dtype: str, count: int) -> Case:
    source = resolve(ModelRef("builtin:tiny" if shape == "tiny" else str(MODELS / "smollm2-135m")))
    tokenizer = load_tokenizer(source)
    if shape == "tiny":
        pool, how = load("builtin:demo"), template("plain")
    else:
        pool, how = load(str(SHARED / "data" / "alpaca" / "alpaca_union.json")), template("alpaca")
    some = np.sort(np.random.default_rng(0).permutation(len(pool))[: count * 2])
    rows = training_rows(pool.take(some), tokenizer, how, 512)
    rows = rows.take(np.flatnonzero([reason is None for reason in rows.reason])[:count])
    return Case(shape, lora, dtype, source.folder, tokenizer.hf, rows)


# ── the ways ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(case: Case, place: Path, **more: Any) -> tuple[Clock, list[float]]:
    clock = Clock()
    how = TrainSettings(
        learning_rate=RATE, num_train_epochs=1, global_batch_size=case.batch, warmup_ratio=0, weight_decay=0,
        lr_scheduler_type="constant", use_lora=case.lora, lora_dropout=0, dtype=case.dtype, **more,
    )  # fmt: skip
    report = fit(
        case.rows, case.folder, case.tokenizer, how, place, seed=0, device=case.device, log=_nobody,
        progress=lambda done, of: clock.tick(),
    )  # fmt: skip
    return clock, report.losses


def trl(case: Case, place: Path, *, packed: bool, **more: Any) -> tuple[Clock, list[float]]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock = Clock()

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **more: Any) -> None:
            clock.tick()

    offsets = case.rows.ids.offsets
    data = Dataset.from_dict(
        {
            "input_ids": [case.rows.ids[at].tolist() for at in range(len(case.rows))],
            "completion_mask": [case.rows.target[a:b].astype(int).tolist() for a, b in pairwise(offsets.tolist())],
        }
    )
    mean = int(case.rows.ids.lengths().mean() * case.batch)
    args = SFTConfig(
        output_dir=str(place), seed=0, use_cpu=case.device == "cpu", bf16=case.bf16, learning_rate=RATE,
        num_train_epochs=1, lr_scheduler_type="constant", weight_decay=0.0,
        per_device_train_batch_size=1 if packed else case.batch, packing=packed,
        max_length=max(mean, 512) if packed else 512, completion_only_loss=True, save_strategy="no",
        report_to="none", disable_tqdm=True, logging_steps=1, gradient_checkpointing=False,
        dataloader_pin_memory=False, **more,
    )  # fmt: skip
    lora = _lora() if case.lora else None
    trainer = SFTTrainer(
        case.model(), args, train_dataset=data, processing_class=case.tokenizer, callbacks=[Ticks()], peft_config=lora
    )
    trainer.train()
    return clock, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def loop(case: Case, place: Path) -> tuple[Clock, list[float]]:
    """Padded rows, autocast, the head on target positions, fused AdamW."""
    clock, losses, model = Clock(), [], case.model()
    if case.lora:
        from peft import get_peft_model

        torch.manual_seed(0)  # adapters begin as those of the other ways
        model = get_peft_model(model, _lora())
    steps = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, weight_decay=0.0, fused=True)
    base = model.get_base_model() if case.lora else model
    model.train()
    for which in case.order():
        ids, labels, seen = _padded(case.rows, which)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.bf16):
            states = base.model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
            keep = labels[:, 1:] != -100
            logits = base.lm_head(states[:, :-1][keep]).float()
            loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:][keep])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
        clock.tick()
    return clock, losses


def _padded(rows: Rows, which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    offsets = rows.ids.offsets
    ids = [torch.from_numpy(np.asarray(rows.ids[int(at)], np.int64)) for at in which]
    hit = [torch.from_numpy(rows.target[offsets[at] : offsets[at + 1]]) for at in which]
    labels = [torch.where(h, i, torch.full_like(i, -100)) for i, h in zip(ids, hit, strict=True)]
    pad = torch.nn.utils.rnn.pad_sequence
    seen = pad([torch.ones_like(i) for i in ids], batch_first=True)
    return pad(ids, batch_first=True), pad(labels, batch_first=True, padding_value=-100), seen


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])


def _nobody(line: str) -> None: ...


# ── the record ────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(shape: str, lora: bool, dtype: str, count: int, runs: int) -> dict[str, Any]:
    case = case_of(shape, lora, dtype, count)
    peak = matmul_peak(torch.device("cpu"), getattr(torch, dtype), 1.0, 2048)
    ways: dict[str, Callable[[Case, Path], tuple[Clock, list[float]]]] = {
        "trl_padded": lambda case, place: trl(case, place, packed=False),
        "trl_packed": lambda case, place: trl(case, place, packed=True),
        "plain_loop": loop,
        "ours": ours,
    }
    best: dict[str, tuple[float, float]] = {}
    losses: dict[str, list[float]] = {}
    for name in (name for _ in range(runs) for name in ways):
        with _scratch() as place:
            clock, losses[name] = ways[name](case, place)
        # All but the first step; packs hold other numbers of rows, so that each step counts for its share.
        share = (len(clock.at) - 1) / len(clock.at)
        tokens = float(case.rows.ids.lengths().sum()) * share
        if name in ("ours", "plain_loop"):
            tokens = float(sum(case.rows.ids.lengths()[which].sum() for which in case.order()[1:]))
        rate = tokens / clock.seconds(), tokens / clock.cpu_seconds()
        best[name] = max(best.get(name, (0.0, 0.0)), rate)
    peak = max(peak, matmul_peak(torch.device("cpu"), getattr(torch, dtype), 1.0, 2048))
    model, tokens = case.model(), float(case.rows.ids.lengths().sum())
    flops = 3 * useful_flops(model, case.rows) / tokens
    apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["plain_loop"], strict=True))
    rates = {name if name != "ours" else "ours_tokens_per_s": rate for name, (rate, _) in best.items()}
    return {
        "shape": shape, "mode": "lora" if lora else "full", "dtype": dtype, "rows": len(case.rows), **rates,
        **{f"{name}_per_cpu_s": rate for name, (_, rate) in best.items()},
        "ratio_trl_packed": best["ours"][0] / best["trl_packed"][0],
        "ratio_trl_padded": best["ours"][0] / best["trl_padded"][0],
        "ratio_plain_loop": best["ours"][0] / best["plain_loop"][0],
        "share_of_peak": flops * best["ours"][0] / peak, "matmul_gflops": peak / 1e9, "loss_difference": apart,
    }  # fmt: skip


class _scratch:
    def __enter__(self) -> Path:
        self.place = Path(tempfile.mkdtemp())
        return self.place / "out"

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


def cases(quick: bool, only: str) -> Iterator[tuple[str, bool, str, int]]:
    """Shape, adapters, precision, rows."""
    for shape, count in (("tiny", 96), ("135m", 32)):
        if (only and shape != only) or (shape == "135m" and not (MODELS / "smollm2-135m").is_dir()):
            continue
        for lora in (False, True):
            for dtype in ("bfloat16", "float32"):
                if not (quick and (lora or dtype == "float32" or shape != "tiny")):
                    yield shape, lora, dtype, count // 2 if quick else count


def main() -> None:
    args = arguments(only="", runs=RUNS, dtype="")
    records = []
    for shape, lora, dtype, count in cases(args.quick, args.only):
        if args.dtype in ("", dtype):
            records.append(in_child(measure, shape, lora, dtype, count, 1 if args.quick else args.runs))
            print(json.dumps(records[-1]), flush=True)
    finish(args, records)


if __name__ == "__main__":
    main()
