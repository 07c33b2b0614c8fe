"""Attention over a packed tree: a token sees its own node up to itself, and all of the nodes above it.

Each node attends to itself causally, and everything below a node attends to the whole of it; the parts are joined by
their log-sums, which is the softmax over all of it. No mask is ever made.

Shapes: H heads, G key-value heads, n packed tokens, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from instdiff.engine.tree import Node

NAME = "instdiff_tree"


FOREIGN = ("softcap", "s_aux", "sliding_window", "position_bias", "cu_seq_lens_q")
"""Things that some models ask of their attention, and that a tree does not know."""


class Unsupported(Exception):
    """The model asks something of its attention that a tree does not know."""


class _Now:
    """The tree that is being computed: attention is called by the model, which passes nothing on."""

    nodes: list[Node] | None = None


@contextmanager
def attending(model: Any, nodes: list[Node]) -> Iterator[None]:
    """Let a model's attention follow a tree."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    _Now.nodes = nodes
    try:
        yield
    finally:
        _Now.nodes = None
        config._attn_implementation = before


def tree_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, dropout: float = 0.0, **more_of_it: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Query [1, H, n, d], key and value [1, G, n, d] to [1, n, H, d]."""
    assert _Now.nodes is not None
    if any(more_of_it.get(name) is not None for name in FOREIGN):
        raise Unsupported
    heads, groups = query.shape[1], key.shape[1]
    out = torch.empty_like(query)
    log_sum = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    below = [node for node in _Now.nodes if node.end > node.stop]
    for node in _Now.nodes:
        own = slice(node.start, node.stop)
        k, v = _repeat(key[:, :, own], heads // groups), _repeat(value[:, :, own], heads // groups)
        out[:, :, own], log_sum[:, :, own] = _attend(query[:, :, own], k, v, scaling, causal=True)
    for node in below:
        own, rest = slice(node.start, node.stop), slice(node.stop, node.end)
        k, v = _repeat(key[:, :, own], heads // groups), _repeat(value[:, :, own], heads // groups)
        more, more_sum = _attend(query[:, :, rest], k, v, scaling, causal=False)
        # The parts' shares of the softmax; as a logistic of their difference the two add up to 1 without rounding.
        share = torch.sigmoid(more_sum - log_sum[:, :, rest])[..., None].to(out.dtype)
        out[:, :, rest].lerp_(more, share)
        log_sum[:, :, rest] = torch.logaddexp(log_sum[:, :, rest], more_sum)
    return out.transpose(1, 2), None


def _repeat(x: torch.Tensor, times: int) -> torch.Tensor:
    return x if times == 1 else x.repeat_interleave(times, 1)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and the log-sum of its weights, by the backend's fused kernel."""
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out, log_sum
