"""The language-model head on target positions only, in chunks.

Shapes: N target positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, D] to logits [n, V]."""

Finish = Callable[[torch.Tensor, float], torch.Tensor]
FINISHES: dict[str, Finish] = {
    "final_logit_softcapping": lambda logits, cap: (logits / cap).tanh_().mul_(cap),
    "logit_scale": lambda logits, scale: logits * scale,
    "logits_scaling": lambda logits, scale: logits / scale,
    "lm_head_multiplier": lambda logits, scale: logits * scale,
}
"""What some models do to their logits, by the name that their configuration has for it."""

CHUNK_BYTES = 64 << 20
"""Most logits held at once, in fp32; the peak is about twice that."""
CACHE_BYTES, LEAST_ROWS = 4 << 20, 128
"""A chunk that stays in the processor's cache is read several times for the price of once, but must not be so small
that the product with the embedding gets slow."""


def heads(output: Head, config: Any) -> Iterator[Head]:
    """The output embedding alone, then followed by what the model's configuration says of its logits."""
    yield output
    for name, finish in FINISHES.items():
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield partial(_finished, output, finish, value)


def _finished(output: Head, finish: Finish, value: float, hidden: torch.Tensor) -> torch.Tensor:
    return finish(output(hidden), value)


def chunk_rows(vocabulary: int) -> int:
    """Target positions at a time."""
    row = 4 * vocabulary
    return max(1, min(max(LEAST_ROWS, CACHE_BYTES // row), CHUNK_BYTES // row))


class Stats(NamedTuple):
    """Per target: NLL and entropy in nats, and whether it is the most likely token."""

    nll: torch.Tensor
    entropy: torch.Tensor | None
    top: torch.Tensor


@torch.no_grad()
def token_stats(
    hidden: torch.Tensor, target: torch.Tensor, head: Head, vocabulary: int, *, entropy: bool, chunk: int | None = None
) -> Stats:
    """What is asked of each target token, reduced in fp32.

    Args:
        hidden: [N, D], the hidden states that predict the targets.
        target: [N] token ids.
        head: the model's head.
        vocabulary: V, by which the chunk is sized.
        entropy: whether to compute the entropy too.
        chunk: positions at a time; by default as many as ``chunk_rows`` says.
    """
    size = chunk or chunk_rows(vocabulary)
    nll = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
    spread = torch.empty_like(nll) if entropy else None
    top = torch.empty_like(nll)
    room = torch.empty(0)
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        logits = head(hidden[part]).float()
        room = room if len(room) >= len(logits) else torch.empty_like(logits)
        # With z the logits less their maximum and s the sum of exp z:
        # NLL = log s - z_y, entropy = log s - sum(z exp z) / s
        shifted = logits.sub_(logits.amax(-1, keepdim=True))
        weights = torch.exp(shifted, out=room[: len(logits)])
        total = weights.sum(-1)
        log_total = total.log()
        mine = shifted.gather(-1, target[part, None])[:, 0]
        nll[part] = log_total - mine
        top[part] = (mine == 0).to(top.dtype)
        if spread is not None:
            found = log_total - weights.mul_(shifted).sum(-1) / total
            if not bool(torch.isfinite(found).all()):
                # an entry of the vocabulary that is ruled out (-inf) adds 0 and not NaN
                torch.exp(shifted, out=weights)
                found = log_total - weights.mul_(shifted.clamp(min=-1e4)).sum(-1) / total
            spread[part] = found
    return Stats(nll, spread, top)


def choice_logs(
    hidden: torch.Tensor, head: Head, ids: tuple[int, ...], vocabulary: int, chunk: int | None = None
) -> torch.Tensor:
    """Log-probability, in nats over the whole vocabulary, of each of a few tokens: [N, len(ids)]."""
    size = chunk or chunk_rows(vocabulary)
    wanted = torch.tensor(ids, device=hidden.device)
    parts = []
    for start in range(0, len(hidden), size):
        logits = head(hidden[start : start + size]).float()
        parts.append(logits[:, wanted] - logits.logsumexp(-1, keepdim=True))
    return torch.cat(parts)
