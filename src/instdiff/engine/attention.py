"""Attention over a packed tree: each row attends to its own tokens and to the beginning that it shares with others.

Rows of like length are laid side by side for attention alone: everything else of the model works on packed tokens,
without padding and without repeating what is shared.

Shapes: H heads, G key-value heads, n packed tokens, d head size; B rows of at most T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from instdiff.engine.tree import Tree

NAME = "instdiff_tree"

FOREIGN = ("softcap", "s_aux", "sliding_window", "position_bias", "cu_seq_lens_q")
"""Things that some models ask of their attention, and that a tree does not know."""

LEAST_FULL = 0.85
"""Rows share a bucket while the shortest fills this much of the longest."""
QUERIES = 160
"""Queries of a row at a time: those of a block do not look at keys after it, so that half of the products are saved."""
SCORE_BYTES = 4 << 20
"""Weights held at once on a CPU: as many as stay in the cache between the two products."""


class Unsupported(Exception):
    """The model asks something of its attention that a tree does not know."""


@dataclass(frozen=True)
class Bucket:
    """Rows of like length.

    Args:
        width: T.
        first: the first query of any row that is not an earlier row's too.
        place: packed place of each token, [B * T]; those after a row's end stand for anything.
        own: which of them are this row's own and not an earlier row's.
        to: the packed places of those.
    """

    width: int
    first: int
    place: torch.Tensor
    own: torch.Tensor
    to: torch.Tensor


def buckets(tree: Tree, device: torch.device) -> list[Bucket]:
    """The rows of a tree by length."""
    order = sorted(range(len(tree.where)), key=lambda row: -len(tree.where[row]))
    out: list[Bucket] = []
    start = 0
    while start < len(order):
        width = len(tree.where[order[start]])
        stop = start + 1
        while stop < len(order) and len(tree.where[order[stop]]) >= LEAST_FULL * width:
            stop += 1
        rows = order[start:stop]
        place = np.zeros((len(rows), width), np.int64)
        own = np.zeros((len(rows), width), bool)
        for at, row in enumerate(rows):
            where, common = tree.where[row], tree.common[row]
            place[at, : len(where)] = where
            own[at, common : len(where)] = True
        first = min(tree.common[row] for row in rows)
        parts = place.ravel(), np.flatnonzero(own), place[own]
        out.append(Bucket(width, first, *(torch.from_numpy(part).to(device) for part in parts)))
        start = stop
    return out


class _Now:
    """The batch that is being computed: attention is called by the model, which passes nothing on."""

    buckets: list[Bucket] | None = None


@contextmanager
def attending(model: Any, rows: list[Bucket]) -> Iterator[None]:
    """Let a model's attention follow a tree."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    _Now.buckets = rows
    try:
        yield
    finally:
        _Now.buckets = None
        config._attn_implementation = before


def tree_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, **more: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Query [1, H, n, d], key and value [1, G, n, d] to [1, n, H, d]."""
    assert _Now.buckets is not None
    if any(more.get(name) is not None for name in FOREIGN):
        raise Unsupported
    heads, tokens = query.shape[1:3]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = query.new_empty((tokens, heads, value.shape[-1]))
    for bucket in _Now.buckets:
        q, k, v = (_laid(x[0], bucket, heads) for x in (query, key, value))
        if query.device.type == "cpu":
            got = _in_blocks(q, k, v, scale, bucket.first)
        else:
            got = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        out[bucket.to] = got.reshape(heads, -1, got.shape[-1])[:, bucket.own].transpose(0, 1)
    return out[None], None


def _laid(x: torch.Tensor, bucket: Bucket, heads: int) -> torch.Tensor:
    """[H or G, n, d] to [H, B, T, d]."""
    rows = x.index_select(1, bucket.place).view(len(x), -1, bucket.width, x.shape[-1])
    return rows if len(x) == heads else rows.repeat_interleave(heads // len(x), 0)


def _in_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, first: int) -> torch.Tensor:
    """Causal attention [H, B, T, d] from query ``first`` on; two plain products beat the fused kernel on short rows."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    rows, width = q.shape[:2]
    out = torch.empty_like(v)
    blocks = max(1, round((width - first) / QUERIES))
    edges = [first + (width - first) * at // blocks for at in range(blocks + 1)]
    for start, stop in pairwise(edges):
        side = stop - start
        later = torch.full((side, side), -torch.inf, dtype=q.dtype).triu_(1)
        few = max(1, SCORE_BYTES // (side * stop * q.element_size()))
        for at in range(0, rows, few):
            here = slice(at, at + few)
            weights = torch.bmm(q[here, start:stop], k[here, :stop].transpose(1, 2)).mul_(scale)
            weights[:, :, start:].add_(later)
            torch.bmm(torch.softmax(weights, -1), v[here, :stop], out=out[here, start:stop])
    return out
