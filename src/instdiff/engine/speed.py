"""How fast this machine is with a model: measured in seconds on real rows where it is small, else by arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from instdiff.core import Nll
from instdiff.engine.models import Resident, matmul_peak, work_seconds
from instdiff.engine.sources import Source
from instdiff.engine.sweep import Sweep
from instdiff.engine.text.generate import Generator
from instdiff.rendering.rows import Rows

SHARE_OF_PEAK = 0.35
"""Share of the matrix-product peak that a sweep is assumed to reach where it is not measured."""
TRIAL_S, FEWEST_TOKENS = 2.0, 256
"""Most seconds of a trial by arithmetic, and the tokens below which it would tell nothing."""
READ_BYTES_PER_S = 5e8
"""Of weights that are read and converted, where that is not measured."""
WRITTEN, TAIL = 8, 16
"""Tokens that are written in a trial, after so many of a prompt: a token costs about the same after more of them."""
_peak = cache(matmul_peak)
"""Measured once in a process, where each cell of a comparison is priced."""


@dataclass(frozen=True)
class Speed:
    """Seconds before a model's first row, and operations a second of a sweep."""

    load_s: float
    flops_per_s: float


def alone(device: torch.device) -> int:
    """By how much more than its share of the work what one thread of a CPU does takes."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def copy_peak(device: torch.device, size: int = 1 << 23, times: int = 5) -> float:
    """Bytes a second that are read and written, the best of some copies."""
    a, best = torch.zeros(size, device=device), float("inf")
    b = torch.empty_like(a)
    for _ in range(times):
        began = work_seconds(device)
        b.copy_(a)
        best = min(best, work_seconds(device) - began)
    return 2 * a.nbytes / best


def load_seconds(source: Source) -> float:
    """Until the weights of a model are read and converted, by their size."""
    return 4 * source.parameters / READ_BYTES_PER_S


class Machine:
    """A device with its peaks, measured when they are first asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: float | None = None
        self._speeds: dict[tuple[str, torch.dtype], Speed] = {}
        self._writing: dict[tuple[str, torch.dtype], float] = {}

    def peak(self, dtype: torch.dtype) -> float:
        """Operations a second of a matrix product."""
        return _peak(self.device, dtype)

    @property
    def bytes_per_s(self) -> float:
        """Of copies in memory."""
        if self._copies is None:
            self._copies = copy_peak(self.device)
        return self._copies

    def speed(self, source: Source, rows: Rows, dtype: torch.dtype, flops_per_token: float) -> Speed:
        """Of a sweep by a model; ``rows`` are tried where the model is small enough."""
        place = (str(source.folder), dtype)
        if place not in self._speeds:
            assumed = self.peak(dtype) * SHARE_OF_PEAK
            load_s = load_seconds(source)
            tokens = int(min(16_384, TRIAL_S * assumed / max(flops_per_token, 1.0)))
            some = rows.take(np.flatnonzero(np.cumsum(rows.ids.lengths()) <= tokens))
            small = load_s < TRIAL_S and int(some.ids.lengths().sum()) >= FEWEST_TOKENS
            self._speeds[place] = self._try(source, some, dtype, flops_per_token) if small else Speed(load_s, assumed)
        return self._speeds[place]

    def _try(self, source: Source, rows: Rows, dtype: torch.dtype, flops_per_token: float) -> Speed:
        """A sweep of the rows, twice: the first one also compiles and verifies, which is a part of loading."""
        device = self.device
        times = [work_seconds(device)]
        with Resident(device, dtype).use(source) as model:
            times.append(work_seconds(device))
            sweep = Sweep(model, lambda line: None)
            for _ in range(2):
                for _ in sweep(rows, (Nll(),)):
                    pass
                times.append(work_seconds(device))
        load, first, again = (max(float(one), 1e-6) for one in np.diff(times))
        flops = flops_per_token * int(rows.ids.lengths().sum())
        return Speed(load * alone(device) + max(0.0, first - again), flops / again)

    def writing(self, source: Source, hf: Any, prompts: Sequence[list[int]], dtype: torch.dtype) -> float:
        """Seconds of the next token of all prompts at once; by memory alone where the model is large."""
        place = (str(source.folder), dtype)
        if place not in self._writing:
            size = source.parameters * torch.empty(0, dtype=dtype).element_size()
            least = 2 * size / self.bytes_per_s
            small = least * WRITTEN < TRIAL_S and size / READ_BYTES_PER_S < TRIAL_S
            found = self._write(source, hf, [ids[-TAIL:] for ids in prompts], dtype) if small else least
            self._writing[place] = max(found, least / 2)  # the weights are read at least once
        return self._writing[place]

    def _write(self, source: Source, hf: Any, prompts: Sequence[list[int]], dtype: torch.dtype) -> float:
        times = []
        with Resident(self.device, dtype).use(source) as model:
            writer = Generator(model, hf, "the model", len(prompts), lambda line: None)
            writer.ends = set()
            for room in (1, 1, 1 + WRITTEN):
                writer.generate(prompts, room)
                times.append(work_seconds(self.device))
        first, again = np.diff(times)
        return float(again - first) / WRITTEN
