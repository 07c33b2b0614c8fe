"""Rows of a pass side by side on a CPU: copies of a small model on shared weights, each on cores of its own.

The operations of a small model are short, and threads that share one wait for each other after every one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

from instdiff.engine.batch import EVEN
from instdiff.engine.lanes import MOST
from instdiff.training.collators import pack
from instdiff.training.losses import IGNORED, TargetLoss

MOST_WEIGHTS = 30_000_000
"""Weights up to which lanes win: each casts them for itself, and has gradients of its own."""


def lanes_of(model: Any, rows: int) -> int:
    """How many lanes a training on a CPU has, of so many ``rows`` in a pass: one for each thread where they win.

    Dropout draws from one generator, in whatever order lanes come to it, so a model that has some keeps to one.
    """
    if sum(weight.numel() for weight in model.parameters()) > MOST_WEIGHTS:
        return 1
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules()):
        return 1
    return max(1, min(torch.get_num_threads(), MOST, rows // 2))


def twin(model: Any) -> Any:
    """The same model on the same weights, with gradients and modules of its own."""
    known: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for weight in model.parameters():
        if weight.requires_grad:
            known[id(weight)] = torch.nn.Parameter(weight.detach())
    return copy.deepcopy(model, known)


class Lanes:
    """Losses of one model and of its twins; gradients are added up in the model, in the order of the lanes."""

    def __init__(self, model: Any, twins: Sequence[Any], losses: Sequence[TargetLoss], *, bf16: bool, pad: int) -> None:
        self.twins, self.losses, self.bf16, self.pad = twins, losses, bf16, pad
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.theirs = [[weight for weight in other.parameters() if weight.requires_grad] for other in twins]
        self._share = max(1, torch.get_num_threads() // len(losses))
        self._pool = ThreadPoolExecutor(len(losses), "lane")

    def backward(self, batch: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
        """The summed loss of a packed pass times ``scale``; its gradients are added to those of the model."""
        for other in self.twins:
            other.train()
        parts, threads = deal(batch, len(self.losses), self.pad), torch.get_num_threads()
        try:
            work = [
                self._pool.submit(self._one, loss, part, scale) for loss, part in zip(self.losses, parts, strict=False)
            ]
            total = torch.stack([future.result() for future in work]).sum()
        finally:
            torch.set_num_threads(threads)  # what a thread sets for itself is the default of those that come later
        for theirs in self.theirs:
            for weight, other in zip(self.weights, theirs, strict=True):
                if other.grad is not None:
                    weight.grad = other.grad if weight.grad is None else weight.grad.add_(other.grad)
                    other.grad = None
        return total

    def _one(self, loss: TargetLoss, part: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
        torch.set_num_threads(self._share)  # of this thread alone
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            found: torch.Tensor = loss(**part)["loss"] * scale
        found.backward()  # type: ignore[no-untyped-call]
        return found.detach()


def deal(batch: dict[str, torch.Tensor], count: int, pad: int) -> list[dict[str, torch.Tensor]]:
    """A packed pass as up to ``count`` smaller ones of like numbers of tokens; longest rows first.

    What only fills the pass up is left out, since each of them is filled up again.
    """
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    edges = [*torch.nonzero(batch["position_ids"][0] == 0)[:, 0].tolist(), len(ids)]
    teach = [(a, b) for a, b in pairwise(edges) if bool((labels[a:b] != IGNORED).any())]
    spans = sorted(teach or [(0, edges[1])], key=lambda span: (span[0] - span[1], span[0]))
    hands: list[list[tuple[int, int]]] = [[] for _ in range(min(count, len(spans)))]
    for span in spans:
        min(hands, key=lambda hand: sum(stop - start for start, stop in hand)).append(span)
    weights = batch["weights"][0] if "weights" in batch else None
    return [
        pack(
            [(ids[a:b], labels[a:b]) for a, b in hand],
            pad,
            EVEN,
            None if weights is None else [float(weights[a]) for a, _ in hand],
        )
        for hand in hands
    ]
