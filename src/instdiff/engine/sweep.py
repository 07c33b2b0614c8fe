"""The one unit of work: a pass over rows, measures in a single forward, whatever the executor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Log, Measure
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine.allocator import drop_pages
from instdiff.engine.batch import Batch, Row, batches, round_up
from instdiff.engine.forward import BY_HEAD, Forward, out_of_memory
from instdiff.engine.lanes import MOST, Lanes, lanes_of
from instdiff.engine.noise import Addressed
from instdiff.engine.prefix_tree import Indices, Some, trees
from instdiff.errors import EngineError
from instdiff.rendering.renderer import Rows

CPU_BATCH_TOKENS = {1: 4096, 2: 4096, 4: 2048, MOST: 1024}
"""By the number of lanes, so that all of them together hold at most twice what one would."""
GPU_BATCH_TOKENS = 32768
TRIALS, MOST_TRIED = {"cpu": (1024, 2048, 4096, 8192)}, 16384
"""Budgets that are measured, smallest first, on the rows that come first; tokens in all lanes together."""
GPU_TRIALS = (8192, 16384, 32768, 65536, 131072)
ABREAST = ("cpu",)
"""Devices on which several batches are computed at the same time."""
AS_FAST = 0.97
"""A smaller batch is as good when it reaches this much of the best speed."""
BLOCK = 1 << 14
"""Rows sorted at once to find shared prefixes."""


def default_batch_tokens(device: str) -> int:
    """Tokens of a batch on a kind of device (``cpu``, ``cuda``) where none are given and too few rows to measure."""
    if device != "cpu":
        return GPU_BATCH_TOKENS
    lanes = lanes_of(torch.device(device))
    return next(tokens for most, tokens in CPU_BATCH_TOKENS.items() if lanes <= most)


@dataclass(frozen=True)
class BatchResult:
    """What one batch gave: positions in the rows given, each measure's values for them; ``budget`` was its limit."""

    at: npt.NDArray[np.int64]
    columns: dict[Measure, Ragged]
    tokens: int
    budget: int | None = None


@dataclass(frozen=True)
class BatchAttempt:
    """What came of a batch: values, or why there are none."""

    batch: Batch
    read: dict[Measure, Ragged] | None
    seconds: float = 0.0
    unpackable: bool = False


class Sweep:
    """Run a model over rows and yield what was read, batch by batch.

    Rows are packed as trees of shared prefixes where the model's attention can follow one, else padded, longest first.
    Without ``batch_tokens`` a batch is the fastest of several sizes, measured on the first rows of a long sweep.
    ``lanes`` are batches at once, by default one for each of a CPU's threads, up to eight.
    """

    def __init__(
        self, model: torch.nn.Module, log: Log, batch_tokens: int | None = None, lanes: int | None = None
    ) -> None:
        self.forward = Forward(model, log)
        self.lanes = Lanes(self.forward, lanes or lanes_of(self.forward.device))
        self.log = log
        device = self.forward.device.type
        self.batch_tokens = batch_tokens or default_batch_tokens(device)
        tried = [tokens for tokens in TRIALS.get(device, ()) if tokens * self.lanes.count <= MOST_TRIED] or GPU_TRIALS
        self._untried = () if batch_tokens else tuple(tried)
        self._seconds, self._tokens = 0.0, 0
        self._checked = self._halved = False

    def __call__(self, rows: Rows, measures: tuple[Measure, ...]) -> Iterator[BatchResult]:
        """Rows must have ids; a batch that does not fit into memory is halved and run again.

        An EngineError where the model's weights are not finite, or a single row does not fit into memory.
        """
        for which in self._pieces(rows.ids.offsets):
            yield from self._through(rows, which, measures)
            if self.forward.device.type == "cpu":
                drop_pages()

    def _pieces(self, offsets: Indices) -> Iterator[Indices]:
        """All rows in turn; where there are many, the first of them in batches of several sizes, to find the best."""
        trial = max(2, self.lanes.count) * max(self._untried, default=0)  # no lane is idle while one is measured
        start, count = 0, len(offsets) - 1
        if self._untried and offsets[-1] >= 2 * trial * (len(self._untried) + 1):
            rates = dict[int, float]()
            for budget in (self._untried[0], *self._untried):  # the first one twice: it warms up
                stop = int(np.searchsorted(offsets[1:], offsets[start] + trial)) + 1
                self.batch_tokens = budget
                seconds, tokens = self._seconds, self._tokens
                yield np.arange(start, stop)
                start = stop
                if self.batch_tokens < budget:
                    break
                rates[budget] = (self._tokens - tokens) / max(self._seconds - seconds, 1e-9)
            else:
                self.batch_tokens = min(b for b, rate in rates.items() if rate >= AS_FAST * max(rates.values()))
            self._untried = ()
        for at in range(start, count, BLOCK):
            yield np.arange(at, min(at + BLOCK, count))

    def _through(self, rows: Rows, which: Indices, measures: tuple[Measure, ...]) -> Iterator[BatchResult]:
        lengths = rows.ids.lengths_of(which)
        open_ = np.ones(len(which), bool)
        while open_.any():
            work, by_head = partial(self._try, rows, measures), any(isinstance(one, BY_HEAD) for one in measures)
            results = self.lanes.through(self._batches(rows, which[open_]), work, by_head=by_head)
            # Where a batch cannot be had, all open rows come again: padded, or in smaller batches.
            with closing(results):
                for tried in results:
                    at = np.searchsorted(which, tried.batch.rows)
                    if tried.unpackable:
                        self.forward.packs = False
                        break
                    if tried.read is None and len(at) == 1 and self.lanes.count > 1:
                        self.lanes.narrow()  # it may fit where no other batch is in memory
                        break
                    if tried.read is None:
                        self._halve(int(lengths[at].max()), len(at))
                        break
                    self._check(tried.read)
                    open_[at] = False
                    tokens = int(lengths[at].sum())
                    self._seconds, self._tokens = self._seconds + tried.seconds, self._tokens + tokens
                    yield BatchResult(tried.batch.rows, tried.read, tokens, self.batch_tokens)

    def _try(self, rows: Rows, measures: tuple[Measure, ...], forward: Forward, batch: Batch) -> BatchAttempt:
        started = time.perf_counter()
        try:
            if batch.tree is not None and not forward.can_pack(batch):
                return BatchAttempt(batch, None, unpackable=True)
            read = forward(batch, measures)
            if batch.tree is not None and not all(np.isfinite(v.values).all() for v in read.values()):
                # What is not finite in one row spreads to those that share a beginning with it.
                batch = self._pad(rows, batch.rows)
                read = forward(batch, measures)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return BatchAttempt(batch, None)
        return BatchAttempt(batch, read, time.perf_counter() - started)

    def _batches(self, rows: Rows, which: Indices) -> Iterator[Batch]:
        if self.forward.packs is False:
            for at in batches(round_up(rows.ids.lengths_of(which)), self.batch_tokens):
                yield self._pad(rows, which[at])
            return
        some, device = Some(rows.ids, which, self.forward.positions), self.forward.device.type
        lanes = self.lanes.count if device in ABREAST else 1
        for tree in trees(some, self.batch_tokens, share=rows.noise is None, lanes=lanes):
            numbers = which[tree.rows]
            yield self._noisy(rows, Batch.pack(numbers, self._rows_of(rows, numbers), tree))

    def _pad(self, rows: Rows, which: Indices) -> Batch:
        return self._noisy(rows, Batch.pad(which, self._rows_of(rows, which), self.forward.positions))

    def _rows_of(self, rows: Rows, which: Indices) -> list[Row]:
        target = Ragged(rows.target, rows.ids.offsets)
        return [(rows.ids[int(i)], target[int(i)]) for i in which]

    def _noisy(self, rows: Rows, batch: Batch) -> Batch:
        if rows.noise is None:
            return batch
        marks = [mark for _, mark in self._rows_of(rows, batch.rows)]
        return replace(batch, noise=Addressed.of(rows.noise, batch.rows, marks, self.forward.width))

    def _halve(self, longest: int, rows: int) -> None:
        if rows == 1:
            raise EngineError(f"one row of {longest} tokens does not fit into memory; lower --max-length")
        if not self._halved:
            self.log(
                f"out of memory with batches of {self.batch_tokens} tokens: going on with half of that, and less where "
                "need be; --batch-tokens sets it"
            )
        self._halved = True
        self.batch_tokens = max(longest, self.batch_tokens // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check(self, read: dict[Measure, Ragged]) -> None:
        if self._checked or all(np.isfinite(v.values).any() for v in read.values()):
            self._checked = True
            return
        name = self.forward.broken_weights()
        if name is not None:
            raise EngineError(f"the model's weights are not finite (first in '{name}'); the checkpoint is damaged")
