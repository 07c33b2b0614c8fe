"""The language-model head on target positions only, in chunks.

Shapes: N target positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, D] to logits [n, V]."""

Finish = Callable[[torch.Tensor, float], torch.Tensor]
FINISHES: dict[str, Finish] = {
    "final_logit_softcapping": lambda logits, cap: logits.div_(cap).tanh_().mul_(cap),
    "logit_scale": torch.Tensor.mul_,
    "logits_scaling": torch.Tensor.div_,
    "lm_head_multiplier": torch.Tensor.mul_,
}
"""What some models do to their logits, in place, by the name that their configuration has for it."""

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
            yield Finished(output, finish, value)


@dataclass(frozen=True)
class Finished:
    """An output embedding, and what is done to its logits."""

    output: Head
    finish: Finish
    value: float

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, D] to logits [n, V]."""
        return self.finish(self.output(hidden), self.value)


def chunk_rows(vocabulary: int) -> int:
    """Target positions at a time."""
    row = 4 * vocabulary
    return max(1, min(max(LEAST_ROWS, CACHE_BYTES // row), CHUNK_BYTES // row))


class Stats(NamedTuple):
    """Per target: NLL and entropy in nats, and whether it is the most likely token."""

    nll: torch.Tensor
    entropy: torch.Tensor | None
    top: torch.Tensor


class _Logits:
    """Logits of one chunk after another, in fp32: in the same place where the head is a plain product.

    A place for each would be the largest that is asked for and given back, many times in a batch, and leave holes.
    """

    def __init__(self, head: Head, hidden: torch.Tensor, size: int) -> None:
        self.head = head
        output = head.output if isinstance(head, Finished) else head
        self.linear = output if _is_plain(output) and output.weight.device == hidden.device else None
        if self.linear is not None:
            self.raw = hidden.new_empty((size, self.linear.out_features))
            self.wide = self.raw if hidden.dtype == torch.float32 else torch.empty_like(self.raw, dtype=torch.float32)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.linear is None:
            return self.head(hidden).float()
        raw, wide = self.raw[: len(hidden)], self.wide[: len(hidden)]
        if self.linear.bias is None:
            torch.mm(hidden, self.linear.weight.t(), out=raw)
        else:
            torch.addmm(self.linear.bias, hidden, self.linear.weight.t(), out=raw)
        if isinstance(self.head, Finished):
            raw = self.head.finish(raw, self.head.value)
        return raw if raw.dtype == torch.float32 else wide.copy_(raw)


def _is_plain(output: Any) -> TypeGuard[torch.nn.Linear]:
    """A linear layer of a plain weight that nobody listens to or stands in for, as what spreads a model does."""
    if type(output) is not torch.nn.Linear or type(output.weight) is not torch.nn.Parameter:
        return False
    return not (output._forward_hooks or output._forward_pre_hooks or "forward" in vars(output))


@torch.no_grad()
def token_stats(
    hidden: torch.Tensor, target: torch.Tensor, head: Head, vocabulary: int, *, entropy: bool, chunk: int | None = None
) -> Stats:
    """What is asked of each target token, reduced in fp32.

    ``hidden`` [N, D] are the states that predict the targets [N]. Positions go through the head ``chunk`` at a time, by
    default as many as ``chunk_rows`` says for the vocabulary.
    """
    size = min(chunk or chunk_rows(vocabulary), len(target))
    logits_of = _Logits(head, hidden, size)
    nll = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
    spread = torch.empty_like(nll) if entropy else None
    top = torch.empty_like(nll)
    room = torch.empty(0)
    for start in range(0, len(target), max(1, size)):
        part = slice(start, start + size)
        logits = logits_of(hidden[part])
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
