"""Gradients of the output embedding, sketched where the head makes its probabilities: no backward pass.

With p_t the distribution that predicts target y_t from the state h_t, the gradient of a row's mean NLL by the output
embedding is G = 1/T sum_t (p_t - onehot(y_t)) h_t^T. Its sketch is S = A G B^T: A puts vocabulary entries into buckets
with random signs, B has entries +-1/sqrt(width). The expectation of <S, S'> is <G, G'>.

Shapes: N target positions, D hidden size, V vocabulary, m buckets, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import GradSketch
from instdiff.engine.head import FINISHES, Finished, Head, Part
from instdiff.errors import EngineError

_SLOPES: dict[str, Callable[[torch.Tensor, float], torch.Tensor | float]] = {
    "final_logit_softcapping": lambda logits, cap: 1 - (logits / cap) ** 2,
    "logit_scale": lambda logits, scale: scale,
    "logits_scaling": lambda logits, scale: 1 / scale,
    "lm_head_multiplier": lambda logits, scale: scale,
}
"""The derivative of each finish, from the logits that it made."""


@dataclass(frozen=True)
class Projection:
    """A as ``bucket`` [V] and ``sign`` [V], and B as ``across`` [w, D]; there are ``buckets``."""

    bucket: torch.Tensor
    sign: torch.Tensor
    across: torch.Tensor
    buckets: int


@lru_cache(maxsize=8)
def projection(measure: GradSketch, vocabulary: int, width: int, device: torch.device) -> Projection:
    """The matrices of a measure, from a hash of its seed and of each place: the same on every device."""
    entries = _hash(measure.seed, 0, vocabulary)
    signs = _hash(measure.seed, 1, measure.width * width) >> np.uint64(63)
    across = np.where(signs == 0, 1.0, -1.0).reshape(measure.width, width) / np.sqrt(measure.width)
    low = (entries & np.uint64(0xFFFFFFFF)) % np.uint64(measure.buckets)
    sign = np.where(entries >> np.uint64(63) == 0, 1.0, -1.0)
    return Projection(
        torch.from_numpy(low.astype(np.int64)).to(device),
        torch.from_numpy(sign.astype(np.float32)).to(device),
        torch.from_numpy(across.astype(np.float32)).to(device),
        measure.buckets,
    )


def _hash(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    """Sixty-four bits for each place (SplitMix64, Steele et al., 2014)."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF)
    z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


class Sketch:
    """Collects A (p - onehot(y)) of each position as the head's chunks come by; ``rows`` makes the sketches of them."""

    def __init__(self, hidden: torch.Tensor, target: torch.Tensor, head: Head, how: Projection) -> None:
        self.hidden, self.target, self.how = hidden, target, how
        self.left = torch.zeros((len(hidden), how.buckets), dtype=torch.float32, device=hidden.device)
        self.slope, self.room = _slope(head), hidden.new_empty(0, dtype=torch.float32)

    def __call__(self, chunk: Part) -> None:
        """Take in a chunk."""
        bucket, sign = self.how.bucket, self.how.sign
        target = self.target[chunk.at]
        self.room = self.room if len(self.room) >= len(target) else torch.empty_like(chunk.weights)
        p = torch.div(chunk.weights, chunk.total[:, None], out=self.room[: len(target)])
        p.scatter_add_(1, target[:, None], torch.full_like(p[:, :1], -1.0))
        if self.slope is not None:
            p *= self.slope(chunk.shifted + chunk.highest)
        self.left[chunk.at].scatter_add_(1, bucket.expand_as(p), p.mul_(sign))

    def rows(self, counts: npt.NDArray[np.int64]) -> torch.Tensor:
        """S of rows of so many targets each: [rows, m w]."""
        right = self.hidden.float() @ self.how.across.t()
        ends = np.cumsum(counts).tolist()
        parts = [slice(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]
        return torch.stack([(self.left[at].t() @ right[at] / (at.stop - at.start)).flatten() for at in parts])


class Sketches:
    """Several, which are all told of each chunk."""

    def __init__(self, each: Iterable[Sketch]) -> None:
        self.each = list(each)

    def __call__(self, chunk: Part) -> None:
        """Take in a chunk."""
        for sketch in self.each:
            sketch(chunk)


def _slope(head: Head) -> Callable[[torch.Tensor], torch.Tensor | float] | None:
    if not isinstance(head, Finished):
        return None
    name = next((name for name, finish in FINISHES.items() if finish is head.finish and name in _SLOPES), None)
    if name is None:
        raise EngineError("what the model does to its logits has no known derivative, so no gradient is sketched")
    return lambda logits: _SLOPES[name](logits, head.value)
