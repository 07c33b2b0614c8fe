"""Attention for training: each row of a packed pass attends to itself.

Rows stand end to end, so that nothing but attention knows of them: no token is padding. On a GPU a kernel takes them so
where it can. Elsewhere rows of like length are laid side by side. On a CPU in bf16 two products and a softmax with a
backward pass of their own replace the fused kernel, whose backward takes a quarter of a step; in fp32 the fused kernel
is the faster one.

Shapes: H heads, G key-value heads, n packed tokens, d head size; B rows of at most T tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from instdiff.engine.attention import (
    Bucket,
    Layout,
    Unsupported,
    blocks,
    check_asked,
    fused_attention,
    weights_of,
    window_of,
)
from instdiff.engine.prefix_tree import Tree

NAME = "instdiff_rows"

KEPT_WIDTH = 512
"""Tokens of a row up to which weights are kept for the backward pass: a quarter of what a layer keeps anyway."""
BY_MODEL = ("cuda",)
"""Devices whose backward pass, which may compute layers again, has a thread of its own."""


class _Pass(threading.local):
    """The rows of the pass that a thread computes: attention is called by the model, which passes nothing on."""

    layout: Layout | None = None


_now = _Pass()
_last: dict[int, Layout] = {}
"""The rows of each model's last pass, by its configuration."""


def begin(position_ids: torch.Tensor, config: Any = None) -> None:
    """Say where the rows of a model's next pass, forward and backward, begin: where positions [1, n] are zero again."""
    place = position_ids[0].cpu().numpy()
    starts = np.flatnonzero(place == 0)
    edges = [*starts.tolist(), len(place)]
    where = [np.arange(start, stop) for start, stop in pairwise(edges)]
    tree = Tree(place, place, np.arange(len(where)), where, [0] * len(where))
    _now.layout = _last[id(config)] = Layout(tree, len(place), position_ids.device)


@contextmanager
def attending_to_rows(*models: Any) -> Iterator[None]:
    """Let the attention of models keep the rows of ``begin`` apart."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, row_attention)
    before = [(model.config, model.config._attn_implementation) for model in models]
    for config, _ in before:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
            _last.pop(id(config.get_text_config()), None)
        _now.layout = None


def row_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Query [1, H, n, d], key and value [1, G, n, d] to [1, n, H, d]."""
    check_asked(more)
    kind, window = query.device.type, window_of(more)
    rows = _last.get(id(getattr(module, "config", None))) if kind in BY_MODEL else _now.layout
    if dropout or rows is None:
        raise Unsupported
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    query, key, value = (x.to(half)[0].transpose(0, 1) for x in (query, key, value))
    with torch.autocast(kind, enabled=False):
        out = rows.attend(query, key, value, scale, window)
        if out is None and kind == "cpu" and half == torch.bfloat16:
            out = _Rows.apply(query, key, value, rows.buckets, scale, window)  # type: ignore[no-untyped-call]
        elif out is None:
            out = _fused_rows(query, key, value, rows.buckets, scale, window)
    return out[None], None


def _fused_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Sequence[Bucket],
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Packed [n, H, d], twice [n, G, d] to [n, H, d], by the fused kernel."""
    tokens, heads = query.shape[:2]
    out = query.new_zeros(((tokens + 1) * heads, value.shape[-1]))
    for bucket in rows:
        q, k, v = (_laid(x, bucket, heads) for x in (query, key, value))
        got = fused_attention(q, k, v, scale, 0, window)
        out = out.index_copy(0, bucket.lines(heads, heads, back=True), got.reshape(-1, got.shape[-1]))
    return out.view(tokens + 1, heads, -1)[:tokens]


def _laid(packed: torch.Tensor, bucket: Bucket, heads: int) -> torch.Tensor:
    """Packed [n, G, d] to rows side by side, [B, H, T, d]."""
    lines = bucket.lines(packed.shape[1], heads)
    return packed.reshape(-1, packed.shape[-1]).index_select(0, lines).view(-1, heads, bucket.width, packed.shape[-1])


class _Rows(torch.autograd.Function):
    """Causal attention of packed rows in plain products; long rows make their weights again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rows: Sequence[Bucket],
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Packed [n, H, d], twice [n, G, d] to [n, H, d]."""
        ctx.how = rows, scale, window
        tokens, heads = query.shape[:2]
        out, kept = query.new_empty(((tokens + 1) * heads, value.shape[-1])), list[torch.Tensor]()
        for bucket in rows:
            q, k, v = (_laid(x, bucket, heads).flatten(0, 1) for x in (query, key, value))
            got = torch.empty_like(v)
            for block in blocks(len(q), 0, bucket.width, window):
                here, asks, keys = block
                weights = weights_of(q, k, block, scale, window)
                torch.bmm(weights, v[here, keys], out=got[here, asks])
                kept += [weights] * (bucket.width <= KEPT_WIDTH)
            out.index_copy_(0, bucket.lines(heads, heads, back=True), got.view(-1, got.shape[-1]))
        ctx.save_for_backward(query, key, value, *kept)
        return out.view(tokens + 1, heads, -1)[:tokens]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """The gradients of query, key and value."""
        packed, kept = ctx.saved_tensors[:3], iter(ctx.saved_tensors[3:])
        rows, scale, window = ctx.how
        tokens, heads = packed[0].shape[:2]
        made = [x.new_zeros(((tokens + 1) * x.shape[1], x.shape[2])) for x in packed]
        behind = torch.cat([grad, grad.new_zeros((1, *grad.shape[1:]))]).view(-1, grad.shape[-1])
        for bucket in rows:
            q, k, v = (_laid(x, bucket, heads).flatten(0, 1) for x in packed)
            g = behind.index_select(0, bucket.lines(heads, heads, back=True)).view_as(v)
            weights = kept if bucket.width <= KEPT_WIDTH else None
            for into, got in zip(made, _gradients(q, k, v, g, scale, window, weights), strict=True):
                groups = len(into) // (tokens + 1)
                got = got.view(-1, groups, heads // groups, bucket.width, got.shape[-1])
                got = got[:, :, 0] if groups == heads else got.sum(2)
                into.index_copy_(0, bucket.lines(groups, groups, back=True), got.reshape(-1, got.shape[-1]))
        return (
            *(into.view(tokens + 1, x.shape[1], -1)[:tokens] for into, x in zip(made, packed, strict=True)),
            None,
            None,
            None,
        )


def _gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: float,
    window: int | None,
    kept: Iterator[torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of [B * H, T, d] each; ``kept`` are the weights of all blocks in turn, where there are some."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for block in blocks(len(q), 0, q.shape[1], window):
        here, asks, keys = block
        weights = weights_of(q, k, block, scale, window) if kept is None else next(kept)
        out, ask = g[here, asks], q[here, asks]
        dv[here, keys].baddbmm_(weights.transpose(1, 2), out)
        slope = torch.bmm(out, v[here, keys].transpose(1, 2))
        slope = torch._softmax_backward_data(slope, weights, -1, weights.dtype)
        dq[here, asks] = torch.bmm(slope, k[here, keys]).mul_(scale)
        dk[here, keys].baddbmm_(slope.transpose(1, 2), ask, alpha=scale)
    return dq, dk, dv
