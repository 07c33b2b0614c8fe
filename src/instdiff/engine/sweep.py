"""The one unit of work: a pass over rows, measures in a single forward, whatever the executor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Log, Measure
from instdiff.engine.batch import batches
from instdiff.engine.forward import Batch, Forward
from instdiff.errors import EngineError
from instdiff.ragged import Ragged
from instdiff.render import Rows

DEFAULT_BATCH_TOKENS = {"cpu": 4096}
GPU_BATCH_TOKENS = 32768


@dataclass(frozen=True)
class Swept:
    """What one batch gave: positions in the rows given, and per measure one value per target."""

    at: npt.NDArray[np.int64]
    columns: dict[Measure, Ragged]
    tokens: int


class Sweep:
    """Run a model over rows, longest first, and yield what was read, batch by batch."""

    def __init__(self, model: torch.nn.Module, log: Log, batch_tokens: int | None = None) -> None:
        self.forward = Forward(model, log)
        self.log = log
        device = self.forward.device.type
        self.batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS.get(device, GPU_BATCH_TOKENS)

    def __call__(self, rows: Rows, measures: tuple[Measure, ...]) -> Iterator[Swept]:
        """Rows must have ids; a batch that does not fit into memory is halved and run again.

        Raises:
            EngineError: the model's weights are not finite, or a single row does not fit into memory.
        """
        lengths = rows.ids.lengths()
        target = Ragged(rows.target, rows.ids.offsets)
        waiting = [np.arange(len(rows))]
        first = True
        while waiting:
            pending = waiting.pop()
            for at in batches(lengths[pending], self.batch_tokens):
                chosen = pending[at]
                batch = Batch.of([(rows.ids[int(i)], target[int(i)]) for i in chosen])
                try:
                    read = self.forward(batch, measures)
                except torch.OutOfMemoryError:
                    self._halve(int(lengths[chosen].max()), len(chosen))
                    # Everything from this batch on is cut anew; what came before has been handed out.
                    order = np.argsort(-lengths[pending], kind="stable")
                    waiting.append(pending[order[int(np.flatnonzero(order == at[0])[0]) :]])
                    break
                if first:
                    self._check(read)
                    first = False
                offsets = np.concatenate([[0], np.cumsum(np.bincount(batch.row, minlength=len(chosen)))])
                yield Swept(chosen, {m: Ragged(v, offsets) for m, v in read.items()}, int(lengths[chosen].sum()))

    def _halve(self, longest: int, rows: int) -> None:
        if rows == 1:
            raise EngineError(f"one row of {longest} tokens does not fit into memory; lower --max-length")
        self.batch_tokens = max(longest, self.batch_tokens // 2)
        self.log(f"out of memory: the batch budget is now {self.batch_tokens} tokens")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check(self, read: dict[Measure, npt.NDArray[np.float32]]) -> None:
        if all(np.isfinite(v).any() for v in read.values()):
            return
        name = self.forward.broken_weights()
        if name is not None:
            raise EngineError(f"the model's weights are not finite (first in '{name}'); the checkpoint is damaged")
