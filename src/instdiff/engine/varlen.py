"""Attention of packed rows by the flash kernel that torch has for rows of unlike lengths on a GPU.

Queries are packed as they are; each row's keys are laid end to end, those that it shares with an earlier row among
them. The kernel lets the last query of a row look at its last key, so that a tree needs no mask.

Shapes: H heads, G key-value heads, n packed tokens, d head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from instdiff.engine.prefix_tree import Tree
from instdiff.engine.upload import upload

DEVICES, DTYPES = ("cuda",), (torch.bfloat16, torch.float16)
"""Where the kernel is tried, and what it multiplies."""
Kernel = Callable[..., torch.Tensor]
"""See ``plain``."""


@dataclass(frozen=True)
class Edges:
    """Where rows begin and end, among packed queries and among keys: int32 [rows + 1], and the most of a row.

    ``places`` are the packed places of the keys; None where each row has the keys of its own queries alone.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    most: tuple[int, int]
    places: torch.Tensor | None

    @classmethod
    def of(cls, tree: Tree, tokens: int, device: torch.device) -> Edges:
        """Of a tree; what fills it up to a number of tokens is one more row."""
        rows = [(len(w) - common, w) for w, common in zip(tree.where, tree.common, strict=True) if len(w) > common]
        if tokens > len(tree.ids):
            rows.append((tokens - len(tree.ids), np.arange(len(tree.ids), tokens)))
        asks, keys = np.array([own for own, _ in rows]), np.array([len(where) for _, where in rows])
        places = upload(np.concatenate([where for _, where in rows]), device) if any(tree.common) else None
        starts, ends = (upload(np.append(0, np.cumsum(sizes)).astype(np.int32), device) for sizes in (asks, keys))
        return cls(starts, ends, (int(asks.max()), int(keys.max())), places)


def can_attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel is there for packed [n, H, d] and twice [n, G, d], and does what plain attention does."""
    if query.device.type not in DEVICES or query.dtype not in DTYPES or key.shape != value.shape or kernel() is None:
        return False
    return _agrees(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[2])


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges: Edges, scale: float, run: Kernel | None = None
) -> torch.Tensor:
    """Causal attention of packed [n, H, d], twice [n, G, d] to [n, H, d]."""
    if edges.places is not None:
        key, value = key.index_select(0, edges.places), value.index_select(0, edges.places)
    shared = query.shape[1] != key.shape[1]
    run = run or kernel()
    assert run is not None
    ends, (asks, keys) = (edges.queries, edges.keys), edges.most
    return run(query, key, value, *ends, asks, keys, scale=scale, window_size=(-1, 0), enable_gqa=shared)


@cache
def kernel() -> Kernel | None:
    """That of the installed torch; None where it has none, or an older one that takes no scale."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Any = varlen_attn
    return found if {"scale", "window_size", "enable_gqa"} <= inspect.signature(found).parameters.keys() else None


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What the kernel should give, row by row; it takes the same."""
    rows, asks, keys = [], cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    for q, k, v in zip(torch.split(query, asks), torch.split(key, keys), torch.split(value, keys), strict=True):
        seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        fused = torch.nn.functional.scaled_dot_product_attention
        rows.append(fused(q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)[0].transpose(0, 1))
    return torch.cat(rows)


@lru_cache(maxsize=64)
def _agrees(device: torch.device, dtype: torch.dtype, heads: int, groups: int, size: int) -> bool:
    """Whether outputs and gradients of a small tree are those of plain attention."""
    whole, branch = np.arange(70), np.concatenate([np.arange(20), np.arange(70, 100)])
    tree = Tree(np.arange(100), np.arange(100), np.arange(2), [whole, branch], [0, 20])
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        counts = heads, groups, groups, heads
        *packed, weight = (torch.randn(112, count, size, generator=draw).to(device, dtype) for count in counts)
        edges, found = Edges.of(tree, 112, device), []
        try:
            for run in (kernel(), plain):
                q, k, v = (x.clone().requires_grad_() for x in packed)
                out = attend(q, k, v, edges, size**-0.5, run)
                found.append([out.detach(), *torch.autograd.grad((out * weight).sum(), (q, k, v))])
            gaps = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(*found, strict=True)]
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
    return max(gaps) <= 8 * torch.finfo(dtype).eps
