"""Batches side by side: on a CPU each with cores of its own, on a GPU so that one is prepared while another runs.

The operations of a small model are short, and threads that share one wait for each other after every one of them. In
lanes they do not: each computes a batch of its own on its share of the threads, with the same weights. A GPU computes
one kernel after another, but has those of a second batch queued while a thread waits for the first one's results.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, islice
from queue import SimpleQueue
from typing import TypeVar

import torch

from instdiff.engine.batch import Batch
from instdiff.engine.forward import Forward

T = TypeVar("T")

MOST, ON_GPU = 8, 2
"""Lanes at most: each holds the activations of a batch."""


def lanes_of(device: torch.device) -> int:
    """One for each thread of a CPU, up to ``MOST``; on a GPU one computes and one is prepared."""
    return min(torch.get_num_threads(), MOST) if device.type == "cpu" else ON_GPU if device.type == "cuda" else 1


class Lanes:
    """Several forwards of one model, copies that share its weights, each in a thread that ends with this object."""

    def __init__(self, forward: Forward, count: int) -> None:
        self.forwards, self.count = [forward], count
        self._begun, self._spent = False, 0
        self._share = max(1, torch.get_num_threads() // count)
        self._pool = ThreadPoolExecutor(count, "lane")

    @property
    def tokens(self) -> int:
        """Tokens that were computed, in all lanes."""
        return self._spent + sum(forward.tokens for forward in self.forwards)

    def through(
        self, batches: Iterator[Batch], work: Callable[[Forward, Batch], T], *, by_head: bool
    ) -> Generator[T, None, None]:
        """What the work gives for each batch, in their order; what it raises is raised here.

        Batches run alone until fast ways were compared with plain ones, of which the head is one where it is used
        (``by_head``): so that this is done, and said, once.
        """
        while ahead := list(islice(batches, 2 if self._is_settled(by_head) else 1)):
            if len(ahead) == 1 or not self._widen():
                yield from (work(self.forwards[0], batch) for batch in ahead)
                self._begun = True
            else:
                yield from self._abreast(chain(ahead, batches), work)

    def narrow(self) -> None:
        """One lane from now on."""
        self.count = 1
        self._drop()

    def _drop(self) -> None:
        self._spent += sum(forward.tokens for forward in self.forwards[1:])
        del self.forwards[1:]

    def _is_settled(self, by_head: bool) -> bool:
        return self._begun and not (by_head and self.forwards[0].fast is None)

    def _widen(self) -> bool:
        """Whether there is more than one lane.

        There is not where a model cannot be copied, lies over several GPUs, or has all logits in memory.
        """
        if any(other.fast is not self.forwards[0].fast for other in self.forwards):
            self._drop()  # they were copied before a head was chosen
        if self.forwards[0].fast is False or hasattr(self.forwards[0].model, "hf_device_map"):
            return False
        if len(self.forwards) < self.count:
            try:
                self.forwards += [twin(self.forwards[0]) for _ in range(self.count - 1)]
            except Exception:  # noqa: BLE001 - whatever its author's modules do, one lane is right too
                self.count = 1
        return self.count > 1

    def _abreast(self, batches: Iterator[Batch], work: Callable[[Forward, Batch], T]) -> Generator[T, None, None]:
        free = SimpleQueue[Forward]()
        for forward in self.forwards:
            free.put(forward)

        def one(batch: Batch) -> T:
            forward = free.get()
            torch.set_num_threads(self._share)  # of this thread alone
            try:
                return work(forward, batch)
            finally:
                free.put(forward)

        threads, todo = torch.get_num_threads(), deque[Future[T]]()
        try:
            for batch in batches:
                todo.append(self._pool.submit(one, batch))
                if len(todo) > self.count:  # one more than there are lanes, so that none of them waits
                    yield todo.popleft().result()
            while todo:
                yield todo.popleft().result()
        finally:
            wait([future for future in todo if not future.cancel()])
            torch.set_num_threads(threads)  # what a thread sets for itself is the default of those that come later


def twin(forward: Forward) -> Forward:
    """The same model with the same weights, in modules of its own, so that hooks and settings are its own too."""
    model = forward.model
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = copy.copy(forward)
    other.model = copy.deepcopy(model, weights)
    other.backbone = getattr(other.model, other.model.base_model_prefix, None)
    other.forwards = other.tokens = 0
    return other
