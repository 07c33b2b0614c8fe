"""What a training costs: rows, tokens and steps, and its seconds, measured on three steps where they are short."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instdiff.config.train import TrainSettings, split_batch
from instdiff.engine.models import work_seconds
from instdiff.engine.sources import Source
from instdiff.engine.speed import READ_BYTES_PER_S, Machine, alone
from instdiff.rendering.rows import Rows
from instdiff.training.sft import fit
from instdiff.training.trainer import CPU_ROWS, GPU_TOKENS, RECOMPUTE_ABOVE, fast_bf16

SHARE_OF_PEAK = 0.35
"""Share of the matrix-product peak that a step is assumed to reach where it is not measured."""
STEP_BYTES = 44
"""Moved in memory for each trained weight by the optimizer: gradients, masters and both moments, and the norm."""
TRIAL_STEPS, TRIAL_S = 3, 5.0
"""Steps of a trial, and the most seconds that they may take by arithmetic."""


@dataclass(frozen=True)
class TrainingWork:
    """Rows, the tokens that all epochs see, optimizer steps, and operations."""

    rows: int
    tokens: int
    steps: int
    flops: float


@dataclass(frozen=True)
class TrainingSpeed:
    """Seconds of a training beside its steps, of a token of a step, and of a step beside its tokens."""

    beside_s: float
    token_s: float
    step_s: float

    def seconds(self, work: TrainingWork) -> float:
        """Of a training."""
        return self.beside_s + work.tokens * self.token_s + work.steps * self.step_s


def training_work(
    lengths: npt.NDArray[np.int64], settings: TrainSettings, source: Source, device: torch.device
) -> TrainingWork:
    """Count a training on rows of so many tokens each."""
    if not len(lengths):
        return TrainingWork(0, 0, 0, 0.0)
    size, passes = split_batch(settings, 1, _most_rows(device, int(lengths.max())))
    each = max(1, -(-len(lengths) // (size * passes)))
    extra = settings.model_extra or {}
    most = int(extra.get("max_steps") or 0)
    steps = most if most > 0 else int(np.ceil(settings.num_train_epochs * each))
    epochs = steps / each
    flops = epochs * float(_flops_per_row(lengths, settings, source, device).sum())
    return TrainingWork(len(lengths), round(epochs * int(lengths.sum())), steps, flops)


def _most_rows(device: torch.device, longest: int) -> int:
    return CPU_ROWS if device.type == "cpu" else max(1, GPU_TOKENS // longest)


def _flops_per_row(
    lengths: npt.NDArray[np.int64], settings: TrainSettings, source: Source, device: torch.device
) -> npt.NDArray[np.float64]:
    """Two for each weight and token forward, four backward (of frozen weights two), and attention's two products."""
    forwards = 1 + settings.referred + (device.type == "cuda" and source.parameters > RECOMPUTE_ABOVE)
    backwards = 1 if settings.use_lora else 2
    width = source.config.get("hidden_size") or source.config.get("n_embd") or 0
    attention = 4.0 * source.depth * width * lengths.astype(np.float64) ** 2
    return (forwards + backwards) * 2.0 * source.parameters * lengths + (forwards + 2) * attention


def training_speed(
    rows: Rows, source: Source, tokenizer: Any, settings: TrainSettings, machine: Machine
) -> TrainingSpeed:
    """How fast a model trains here, by ``rows`` out of those that it will see.

    Three steps are made in a folder that is removed again where they take seconds; else the peak of matrix products
    and of copies tells. Raises what ``fit`` raises for settings that do not fit.
    """
    device, lengths = machine.device, rows.ids.lengths()
    used = np.flatnonzero(lengths > 0)
    size = split_batch(settings, 1, _most_rows(device, int(lengths.max())))[0]
    some = used[np.linspace(0, len(used) - 1, TRIAL_STEPS * size).astype(np.int64)]
    fast = settings.dtype in ("bfloat16", "pure_bf16") or (settings.dtype == "auto" and fast_bf16(device.type))
    rate = machine.peak(torch.bfloat16 if fast else torch.float32) * SHARE_OF_PEAK
    flops = float(_flops_per_row(lengths[some], settings, source, device).sum())
    trained = 0 if settings.use_lora else source.parameters
    step_s = trained * STEP_BYTES / machine.bytes_per_s
    beside_s = (2 if trained else 1) * 4 * source.parameters / READ_BYTES_PER_S
    if beside_s + flops / rate + TRIAL_STEPS * step_s > TRIAL_S:
        return TrainingSpeed(beside_s, flops / int(lengths[some].sum()) / rate, step_s)
    return _try(rows.take(some), source, tokenizer, settings, size, device)


def _try(
    rows: Rows, source: Source, tokenizer: Any, settings: TrainSettings, size: int, device: torch.device
) -> TrainingSpeed:
    from trl import SFTTrainer  # noqa: F401 - what the first training of a process imports is no part of each

    once = {"global_batch_size": size, "per_device_train_batch_size": size, "num_train_epochs": 1, "max_steps": -1}
    times = [work_seconds(device)]
    with tempfile.TemporaryDirectory() as folder:
        fit(
            rows,
            source.folder,
            tokenizer,
            settings.model_copy(update={**once, "resume": False, "checkpoint_steps": None, "saves": ()}),
            Path(folder, "model"),
            seed=0,
            device=str(device),
            log=lambda line: None,
            progress=lambda step, steps: times.append(work_seconds(device)),
        )
        times.append(work_seconds(device))
    step = (times[TRIAL_STEPS] - times[1]) / (TRIAL_STEPS - 1)
    tokens = int(rows.ids.lengths().sum()) / TRIAL_STEPS
    beside = times[-1] - times[0] - TRIAL_STEPS * step
    return TrainingSpeed(beside * alone(device), step / tokens, 0.0)
