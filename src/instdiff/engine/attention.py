"""Attention over a packed tree: each row attends to its own tokens and to the beginning that it shares with others.

Rows of like length are laid side by side for attention alone: everything else of the model works on packed tokens,
without padding and without repeating what is shared.

Shapes: H heads, G key-value heads, n packed tokens, d head size; B rows of at most T tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from instdiff.engine.batch import EVEN, round_up
from instdiff.engine.prefix_tree import Tree
from instdiff.engine.upload import upload
from instdiff.engine.varlen import Edges, attend, can_attend

NAME = "instdiff_tree"

FOREIGN = ("softcap", "s_aux", "position_bias", "cu_seq_lens_q")
"""Things that some models ask of their attention, and that a tree does not know."""

ROOM = 4
"""Times the tokens of a batch that may lie side by side on a GPU."""
LEAST_FULL = 0.85
"""Rows share a bucket while the shortest fills this much of the longest."""
QUERIES = 128
"""Queries of a row at a time: those of a block do not look at keys after it, so that half of the products are saved."""
LEAST_SPARED = 0.25
"""Share of a bucket's queries from which on it pays to leave them out on a CPU; the fused kernel then has a mask."""
SCORE_BYTES = 2 << 20
"""Weights held at once on a CPU: as many as stay in the cache between the two products."""


class Unsupported(Exception):
    """The model asks something of its attention that a tree does not know."""


@dataclass
class Bucket:
    """Rows of like length, ``width`` (T), a multiple of ``EVEN``.

    ``first`` is a multiple of ``EVEN`` at or before the first query of any row that is not an earlier row's too.
    ``place`` is the packed place of each token, [B, T], of anything after a row's end; ``to`` is the same, but the
    number of packed tokens where the token is not this row's own.
    """

    width: int
    first: int
    place: torch.Tensor
    to: torch.Tensor
    _lines: dict[tuple[int, int, bool], torch.Tensor] = field(default_factory=dict)

    def lines(self, groups: int, heads: int, *, back: bool = False) -> torch.Tensor:
        """Where each of [B, H, T] lies in packed tokens of ``groups`` heads each, [n * G]."""
        known = self._lines.get((groups, heads, back))
        if known is None:
            place = self.to if back else self.place
            head = torch.arange(heads, device=place.device) // (heads // groups)
            known = (place[:, None] * groups + head[None, :, None]).flatten()
            self._lines[groups, heads, back] = known
        return known


def buckets(tree: Tree, device: torch.device) -> list[Bucket]:
    """The rows of a tree by length, of which shared tokens stand in each.

    A bucket is at most as many tokens as the tree has, or one row; on a GPU, where launches count, ``ROOM`` times as
    many.
    """
    room = (1 if device.type == "cpu" else ROOM) * len(tree.ids)
    own = [row for row, where in enumerate(tree.where) if len(where) > tree.common[row]]
    order = sorted(own, key=lambda row: -len(tree.where[row]))
    out: list[Bucket] = []
    start = 0
    while start < len(order):
        width = len(tree.where[order[start]])
        stop = start + 1
        while stop < len(order) and len(tree.where[order[stop]]) >= LEAST_FULL * width:
            stop += 1
        fresh = [row for row in order[start:stop] if tree.common[row] < LEAST_SPARED * width]
        led = [row for row in order[start:stop] if tree.common[row] >= LEAST_SPARED * width]
        most = max(1, room // round_up(width))
        for rows in (fresh, led):
            out += [_bucket(tree, rows[at : at + most], round_up(width), device) for at in range(0, len(rows), most)]
        start = stop
    return out


def _bucket(tree: Tree, rows: list[int], width: int, device: torch.device) -> Bucket:
    place = np.zeros((len(rows), width), np.int64)
    to = np.full((len(rows), width), len(tree.ids), np.int64)
    for at, row in enumerate(rows):
        where, common = tree.where[row], tree.common[row]
        place[at, : len(where)] = where
        to[at, common : len(where)] = where[common:]
    first = min(tree.common[row] for row in rows) // EVEN * EVEN
    return Bucket(width, first, upload(place, device), upload(to, device))


class Layout:
    """Where the rows of a packed batch lie for attention, in the form that a kernel asks for.

    ``tokens`` are those of the tree, and what fills it up.
    """

    def __init__(self, tree: Tree, tokens: int, device: torch.device) -> None:
        self.tree, self.tokens, self.device = tree, tokens, device

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Rows side by side."""
        return buckets(self.tree, self.device)

    @cached_property
    def edges(self) -> Edges:
        """Rows end to end."""
        return Edges.of(self.tree, self.tokens, self.device)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor | None:
        """Packed [n, H, d], twice [n, G, d] to [n, H, d]; None where rows cannot be end to end, or a window cuts."""
        if not can_attend(query, key, value) or (window is not None and window < self.edges.most[1]):
            return None
        return attend(query, key, value, self.edges, scale)


class _Batch(threading.local):
    """The batch that a thread computes: attention is called by the model, which passes nothing on."""

    layout: Layout | None = None


_now = _Batch()


@contextmanager
def attending(model: Any, rows: Layout) -> Iterator[None]:
    """Let a model's attention follow a tree."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    _now.layout = rows
    try:
        yield
    finally:
        _now.layout = None
        config._attn_implementation = before


def tree_attention(
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
    assert _now.layout is not None
    check_asked(more)
    window = window_of(more)
    heads, tokens = query.shape[1:3]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    whole = _now.layout.attend(q, k, v, scale, window)
    if whole is not None:
        return whole[None], None
    packed = [x.reshape(-1, x.shape[-1]) for x in (q, k, v)]
    # Behind the packed tokens, a line for what belongs to nobody: padding, and what another row has computed.
    out = query.new_empty(((tokens + 1) * heads, value.shape[-1]))
    out[-EVEN * heads :] = 0  # tokens that only fill the batch up, among them
    for bucket in _now.layout.buckets:
        q, k, v = (
            x.index_select(0, bucket.lines(groups, heads)).view(-1, bucket.width, x.shape[-1])
            for x, groups in zip(packed, (heads, key.shape[1], value.shape[1]), strict=True)
        )
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            got = _in_blocks(q, k, v, scale, bucket.first, window)
        else:
            q, k, v = (x.view(-1, heads, *x.shape[1:]) for x in (q, k, v))
            got = fused_attention(q, k, v, scale, bucket.first, window)
        out.index_copy_(0, bucket.lines(heads, heads, back=True), got.reshape(-1, got.shape[-1]))
    return out.view(tokens + 1, heads, -1)[None, :tokens], None


def check_asked(more: dict[str, Any]) -> None:
    """Raise ``Unsupported`` where a model asks its attention for something that is not known here."""
    if any(more.get(name) is not None for name in FOREIGN):
        raise Unsupported


def window_of(more: dict[str, Any]) -> int | None:
    """How many tokens a query looks at, itself among them, where a layer says so."""
    window = more.get("sliding_window")
    return None if window is None else int(window)


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, first: int, window: int | None
) -> torch.Tensor:
    """Causal attention [B, H, T, d]; on a CPU of the queries from ``first`` on alone, where that spares many.

    On a GPU a mask would keep the fastest kernels away.
    """
    fused = torch.nn.functional.scaled_dot_product_attention
    width = q.shape[2]
    if window is not None and window < width:
        parts = []
        for asks, keys in spans(0, width, window):
            mask = band(asks, keys, window, q.dtype, q.device)
            parts.append(fused(q[:, :, asks], k[:, :, keys], v[:, :, keys], attn_mask=mask, scale=scale))
        return torch.cat(parts, 2)
    if q.device.type != "cpu" or first < LEAST_SPARED * width:
        return fused(q, k, v, is_causal=True, scale=scale)
    out = torch.empty_like(v)
    mask = band(slice(first, width), slice(0, width), None, q.dtype)
    out[:, :, first:] = fused(q[:, :, first:], k, v, attn_mask=mask, scale=scale)
    return out


def _in_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, first: int, window: int | None
) -> torch.Tensor:
    """Causal attention [B * H, T, d] from query ``first`` on; in bf16, plain products beat the fused kernel."""
    out = torch.empty_like(v)
    for here, asks, keys in blocks(len(q), first, q.shape[1], window):
        torch.bmm(weights_of(q, k, (here, asks, keys), scale, window), v[here, keys], out=out[here, asks])
    return out


def weights_of(
    q: torch.Tensor, k: torch.Tensor, block: tuple[slice, slice, slice], scale: float, window: int | None
) -> torch.Tensor:
    """What the queries of a block give to each of its keys: [rows, queries, keys]."""
    here, asks, keys = block
    ask, key = q[here, asks], k[here, keys].transpose(1, 2)
    mask = band(asks, keys, window, q.dtype)
    return torch.softmax(torch.baddbmm(mask.expand(len(ask), -1, -1), ask, key, alpha=scale), -1)


def blocks(rows: int, first: int, width: int, window: int | None) -> Iterator[tuple[slice, slice, slice]]:
    """Rows, queries and keys at a time, so few that their weights stay in the cache; see ``spans``."""
    for asks, keys in spans(first, width, window):
        few = max(1, SCORE_BYTES // ((asks.stop - asks.start) * (keys.stop - keys.start) * 2))
        for at in range(0, rows, few):
            yield slice(at, min(rows, at + few)), asks, keys


def spans(first: int, width: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Queries from ``first`` on and the keys that they need: none after the last of them, none before a window."""
    count = max(1, round((width - first) / QUERIES))
    edges = sorted({first + round_up((width - first) * at // count) for at in range(count + 1)})
    for start, stop in pairwise(edges):
        begin = 0 if window is None else max(0, start - window + 1) // EVEN * EVEN
        yield slice(start, stop), slice(begin, stop)


def band(
    asks: slice, keys: slice, window: int | None, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """[queries, keys]: nothing where a query may look, minus infinity after it and before its window."""
    narrow = window is not None and asks.stop - keys.start > window
    return _kept_band(asks.stop - asks.start, keys.stop - keys.start, window if narrow else None, dtype, device)


@lru_cache(maxsize=32)
def _kept_band(
    side: int, width: int, window: int | None, dtype: torch.dtype, device: torch.device | None
) -> torch.Tensor:
    """For the last ``side`` of ``width`` tokens; kept, since those of blocks come again in every layer."""
    later = torch.full((side, width), -torch.inf, dtype=dtype, device=device).triu_(1 + width - side)
    if window is None:
        return later
    return later + torch.full_like(later, -torch.inf).tril_(width - side - window)
