"""The language-model head on target positions only, in chunks.

Shapes: N target positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, D] to logits [n, V]."""

CHUNK_BYTES = 64 << 20
"""Logits held at once, in fp32; the peak is about twice that."""


def token_stats(
    hidden: torch.Tensor, target: torch.Tensor, head: Head, vocabulary: int, *, entropy: bool, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """NLL and entropy of each target token, in nats, reduced in fp32.

    Args:
        hidden: [N, D], the hidden states that predict the targets.
        target: [N] token ids.
        head: the model's head.
        vocabulary: V, by which the chunk is sized.
        entropy: whether to compute the entropy too.
        chunk: positions at a time; by default as many as fit ``CHUNK_BYTES``.
    """
    size = chunk or max(1, CHUNK_BYTES // (4 * vocabulary))
    nll = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
    spread = torch.empty_like(nll) if entropy else None
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        logits = head(hidden[part]).float()
        lse = logits.logsumexp(-1)
        nll[part] = lse - logits.gather(-1, target[part, None])[:, 0]
        if spread is not None:
            # log-probabilities, clamped so that a vocabulary entry that is ruled out (-inf) adds 0 and not NaN
            shifted = (logits - lse[:, None]).clamp_(min=-1e4)
            spread[part] = -(shifted.exp() * shifted).sum(-1)
    return nll, spread
