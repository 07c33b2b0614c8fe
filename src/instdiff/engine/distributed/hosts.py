"""Where models are: in this process, in several others, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

import torch

from instdiff.core import Log, Measure, Settings
from instdiff.engine.distributed.ray_host import RayHost
from instdiff.engine.distributed.workers import Workers
from instdiff.engine.models import Resident, pick_device, pick_dtype
from instdiff.engine.sources import Source
from instdiff.engine.sweep import BatchResult
from instdiff.rendering.rows import Rows


class ModelHost(Protocol):
    """Keeps models between passes and has rows computed, wherever that is."""

    @property
    def dtype(self) -> object:
        """That of the weights."""

    @property
    def devices(self) -> Sequence[str]:
        """Of this machine, those that compute; none where others do."""

    def sweep(
        self, source: Source, rows: Rows, measures: tuple[Measure, ...], log: Log, batch_tokens: int | None = None
    ) -> Generator[BatchResult]:
        """Values of rows under a model, batch by batch, in any order; whoever stops early closes it."""

    def local(self) -> Resident:
        """A host in this process, for what embeds or writes."""

    def close(self) -> None:
        """End all other processes, where there are any."""


def make_model_host(
    settings: Settings, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> ModelHost:
    """The host that settings ask for: ``workers``, by default one for each GPU, and one on a named or other device."""
    device = device or pick_device(settings.device)
    dtype = dtype or pick_dtype(settings.dtype, device)
    if settings.executor == "ray":
        return RayHost(settings, device, dtype)
    devices = [str(device)]
    if device.type == "cuda" and settings.device in ("auto", "cuda"):
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if (settings.gpus_per_worker or 1) > 1:
        return Resident(device, dtype, over_gpus=True)
    count = settings.workers or len(devices)
    return Resident(device, dtype) if count == 1 else Workers(count, devices, dtype)
