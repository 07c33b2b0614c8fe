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
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from instdiff.engine.attention import (
    Bucket,
    Layout,
    Unsupported,
    check_asked,
    fused_attention,
    window_of,
)
from instdiff.engine.prefix_tree import Tree
from instdiff.training.plain_attention import Part, PlainAttention, parts_of

NAME = "instdiff_rows"

BY_MODEL = ("cuda",)
"""Devices whose backward pass, which may compute layers again, has a thread of its own."""


class RowLayout(Layout):
    """Rows of a packed pass of which none shares a beginning."""

    @cached_property
    def parts(self) -> list[Part]:
        """As plain products take them."""
        return parts_of([int(where[0]) for where in self.tree.where], self.tokens)


class _Pass(threading.local):
    """The rows of the pass that a thread computes: attention is called by the model, which passes nothing on."""

    layout: RowLayout | None = None


_now = _Pass()
_last: dict[int, RowLayout] = {}
"""The rows of each model's last pass, by its configuration."""


def begin(position_ids: torch.Tensor, config: Any = None) -> None:
    """Say where the rows of a model's next pass, forward and backward, begin: where positions [1, n] are zero again."""
    place = position_ids[0].cpu().numpy()
    starts = np.flatnonzero(place == 0)
    edges = [*starts.tolist(), len(place)]
    where = [np.arange(start, stop) for start, stop in pairwise(edges)]
    tree = Tree(place, place, np.arange(len(where)), where, [0] * len(where))
    _now.layout = _last[id(config)] = RowLayout(tree, len(place), position_ids.device)


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
    query, key, value = (x.to(half)[0] for x in (query, key, value))
    with torch.autocast(kind, enabled=False):
        if kind == "cpu" and half == torch.bfloat16:
            out = PlainAttention.apply(query, key, value, rows.parts, scale, window)  # type: ignore[no-untyped-call]
            return out[None], None
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        out = rows.attend(query, key, value, scale, window)
        if out is None:
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
