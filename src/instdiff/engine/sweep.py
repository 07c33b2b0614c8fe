"""The one unit of work: a pass over rows, measures in a single forward, whatever the executor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Log, Measure
from instdiff.engine.batch import batches
from instdiff.engine.forward import Batch, Forward, Row
from instdiff.engine.tree import trees
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
    """Run a model over rows and yield what was read, batch by batch.

    Rows are packed as trees of shared prefixes where the model's attention can follow one, else padded, longest first.
    """

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
        open_ = np.ones(len(rows), bool)
        first = True
        while open_.any():
            for batch in self._batches(rows, np.flatnonzero(open_)):
                try:
                    if batch.nodes is not None and not self.forward.can_pack(batch):
                        self.forward.packs = False
                        break  # all open rows again, padded
                    read = self.forward(batch, measures)
                except RuntimeError as error:
                    if not _out_of_memory(error):
                        raise
                    self._halve(int(lengths[batch.rows].max()), len(batch.rows))
                    break  # all open rows again, in smaller batches
                if first:
                    self._check(read)
                    first = False
                open_[batch.rows] = False
                offsets = np.concatenate([[0], np.cumsum(batch.counts)])
                columns = {m: Ragged(v, offsets) for m, v in read.items()}
                yield Swept(batch.rows, columns, int(lengths[batch.rows].sum()))

    def _batches(self, rows: Rows, which: npt.NDArray[np.int64]) -> Iterator[Batch]:
        target = Ragged(rows.target, rows.ids.offsets)

        def taken(numbers: npt.NDArray[np.int64]) -> list[Row]:
            return [(rows.ids[int(i)], target[int(i)]) for i in numbers]

        if self.forward.packs is False:
            for at in batches(rows.ids.lengths()[which], self.batch_tokens):
                yield Batch.padded(which[at], taken(which[at]))
            return
        for tree in trees([rows.ids[int(i)] for i in which], self.batch_tokens):
            numbers = which[tree.rows]
            yield Batch.packed(numbers, taken(numbers), tree)

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


def _out_of_memory(error: RuntimeError) -> bool:
    """A device says it by its own class, the CPU's allocator in words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
