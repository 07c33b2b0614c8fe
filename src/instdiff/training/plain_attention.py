"""Attention of packed rows on a CPU in two products and a softmax, with a backward pass of their own.

In bf16 it replaces the fused kernel, whose backward takes a quarter of a small model's step. Rows lie end to end, so
each is a slice of the pass. Short rows that are neighbours share one product, under a mask that keeps them apart.

Shapes: H heads, G key-value heads, R = H / G, n packed tokens, d head size, t tokens of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from instdiff.engine.attention import SCORE_BYTES, band, spans
from instdiff.engine.batch import EVEN

SHORT = 128
"""Tokens up to which rows share a part: what an operation costs before its first number is more than they add."""
IN_FP32 = 64
"""Tokens of a part up to which fp32 is faster: a product in bf16 takes longer to begin."""
WIDTH = 32
"""What longer parts are rounded up to: a softmax in bf16 takes twice the time for other widths."""
KEPT_WIDTH = 512
"""Tokens of a part up to which weights are kept for the backward pass: a quarter of what a layer keeps anyway."""

Block = tuple[slice, slice, slice]
"""Key-value heads, queries and keys of a part."""


@dataclass
class Part:
    """Neighbours in a pass: the tokens from ``start`` to ``stop``, of rows of ``lengths``.

    Up to ``end`` others follow that fill its width; they are computed and not looked at.
    """

    start: int
    stop: int
    end: int
    lengths: tuple[int, ...]
    _masks: dict[Any, torch.Tensor] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Tokens that are computed."""
        return self.end - self.start

    def dtype(self, given: torch.dtype) -> torch.dtype:
        """Of its products, where tensors are of a ``given`` one."""
        return torch.float32 if given == torch.bfloat16 and self.width <= IN_FP32 else given

    def laid(self, packed: torch.Tensor, groups: int) -> torch.Tensor:
        """Packed [H, n, d] as [G, R, t, d]."""
        some = packed[:, self.start : self.end].to(self.dtype(packed.dtype))
        return some.reshape(groups, -1, *some.shape[1:])

    def blocks(self, heads: int, groups: int, window: int | None) -> Iterator[Block]:
        """So few at a time that their weights stay in the cache."""
        for asks, keys in spans(0, self.width, window):
            asks, keys = (slice(some.start, min(some.stop, self.width)) for some in (asks, keys))
            one = (asks.stop - asks.start) * (keys.stop - keys.start) * 2 * (heads // groups)
            few = max(1, SCORE_BYTES // one)
            for at in range(0, groups, few):
                yield slice(at, min(groups, at + few)), asks, keys

    def mask(self, q: torch.Tensor, block: Block, window: int | None) -> torch.Tensor:
        """[R * queries, keys]: minus infinity where a query may not look. Every layer asks for the same ones."""
        _, asks, keys = block
        which = asks.start, window, q.dtype
        known = self._masks.get(which)
        if known is None:
            if len(self.lengths) == 1:
                known = band(asks, keys, window, q.dtype)
            else:
                known = _apart((*self.lengths, self.end - self.stop), window, q.dtype)[asks, keys]
            known = self._masks[which] = known.repeat(q.shape[1], 1)
        return known

    def weights(self, q: torch.Tensor, k: torch.Tensor, block: Block, scale: float, window: int | None) -> torch.Tensor:
        """What queries give to keys, [groups, R * queries, keys]; nothing where a query is not of this part."""
        here, asks, keys = block
        ask = q[here, :, asks].flatten(1, 2)
        mask = self.mask(q, block, window)
        got = torch.softmax(torch.baddbmm(mask, ask, k[here, keys].mT, alpha=scale), -1)
        own = self.stop - self.start
        if own < asks.stop:
            got.view(len(got), q.shape[1], -1, got.shape[-1])[:, :, max(0, own - asks.start) :] = 0
        return got


@lru_cache(maxsize=64)
def _apart(lengths: tuple[int, ...], window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """A mask that is causal within each of several rows; kept, since every layer asks for it."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    width = slice(0, len(row))
    return band(width, width, window, dtype).masked_fill(row[:, None] != row, -torch.inf)


def parts_of(starts: Sequence[int], tokens: int) -> list[Part]:
    """The parts of a pass of so many ``tokens``, whose rows have these ``starts``."""
    parts: list[Part] = []
    for start, stop in pairwise([*starts, tokens]):
        first = start
        lengths: tuple[int, ...] = (stop - start,)
        if parts and stop - parts[-1].start <= SHORT:
            joined = parts.pop()
            first, lengths = joined.start, (*joined.lengths, *lengths)
        width = stop - first
        even = WIDTH if width > IN_FP32 else EVEN
        parts.append(Part(first, stop, min(tokens, first + -(-width // even) * even), lengths))
    return parts


class PlainAttention(torch.autograd.Function):
    """Causal attention of packed rows; those of long rows make their weights again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        parts: Sequence[Part],
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Query [H, n, d], key and value [G, n, d] to [n, H, d]."""
        ctx.how = parts, scale, window
        heads, groups = len(query), len(key)
        out, kept = query.new_empty((query.shape[1], heads, value.shape[-1])), list[torch.Tensor]()
        for part in parts:
            q, k, v = part.laid(query, groups), part.laid(key, groups)[:, 0], part.laid(value, groups)[:, 0]
            got = q.new_empty((*q.shape[:3], v.shape[-1]))
            for block in part.blocks(heads, groups, window):
                here, asks, keys = block
                weights = part.weights(q, k, block, scale, window)
                got[here, :, asks] = torch.bmm(weights, v[here, keys]).view(len(weights), q.shape[1], -1, v.shape[-1])
                kept += [weights] * (part.width <= KEPT_WIDTH)
            own = part.stop - part.start
            out[part.start : part.stop] = got.flatten(0, 1)[:, :own].transpose(0, 1)
        ctx.save_for_backward(query, key, value, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """The gradients of query, key and value."""
        (query, key, value, *left), (parts, scale, window) = ctx.saved_tensors, ctx.how
        kept, groups, grad = iter(left), len(key), grad.transpose(0, 1)
        made = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)]
        for part in parts:
            q, k, v = part.laid(query, groups), part.laid(key, groups)[:, 0], part.laid(value, groups)[:, 0]
            g = part.laid(grad, groups)
            dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for block in part.blocks(len(query), groups, window):
                here, asks, keys = block
                weights = next(kept) if part.width <= KEPT_WIDTH else part.weights(q, k, block, scale, window)
                out, ask = g[here, :, asks].flatten(1, 2), q[here, :, asks].flatten(1, 2)
                dv[here, keys].baddbmm_(weights.mT, out)
                slope = torch.bmm(out, v[here, keys].mT)
                slope = torch._softmax_backward_data(slope, weights, -1, weights.dtype)
                dq[here, :, asks] = torch.bmm(slope, k[here, keys]).mul_(scale).view(dq[here, :, asks].shape)
                dk[here, keys].baddbmm_(slope.mT, ask, alpha=scale)
            own = part.stop - part.start
            for into, got in zip(made, (dq.flatten(0, 1), dk, dv), strict=True):
                into[:, part.start : part.stop] = got[:, :own]
        return *made, None, None, None
