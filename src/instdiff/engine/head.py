"""The language-model head on target positions only, in chunks.

Shapes: N target positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch

from instdiff.core import Log

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
GPU_ROWS, GPU_SHARE = 4096, 0.05
"""Most positions at a time on a GPU, and the share of its free memory that their logits may take."""
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


FUSED_ON, FUSED_TYPES = ("cuda",), (torch.bfloat16, torch.float16)
"""Where the fused kernel is tried, and what it multiplies."""
TILED_FROM = 100_000
"""Entries of a vocabulary from which on tiles of it win on a CPU."""
TILE, TILE_ROWS = 4096, 256
"""Entries of the vocabulary and positions of a tile."""


def chunk_rows(vocabulary: int, device: torch.device | None = None) -> int:
    """Target positions at a time: what a cache holds, and on a GPU a share of its free memory."""
    row = 4 * vocabulary
    if device is not None and device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        free -= torch.cuda.memory_allocated(device)  # what is kept for later is free too
        return max(LEAST_ROWS, min(GPU_ROWS, int(free * GPU_SHARE) // row))
    return max(1, min(max(LEAST_ROWS, CACHE_BYTES // row), CHUNK_BYTES // row))


class Stats(NamedTuple):
    """Per target: NLL and entropy in nats, and whether it is the most likely token."""

    nll: torch.Tensor
    entropy: torch.Tensor | None
    top: torch.Tensor


class Part(NamedTuple):
    """A chunk on its way: which positions, logits less their maximum, that, exp of the former, and the sum of these."""

    at: slice
    shifted: torch.Tensor
    highest: torch.Tensor
    weights: torch.Tensor
    total: torch.Tensor


class _Logits:
    """Logits of one chunk after another, in fp32: in the same place where the head is a plain product.

    A place for each would be the largest that is asked for and given back, many times in a batch, and leave holes.
    """

    def __init__(self, head: Head, hidden: torch.Tensor, size: int) -> None:
        self.head = head
        self.linear = _linear(head, hidden)
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


def _linear(head: Head, hidden: torch.Tensor) -> torch.nn.Linear | None:
    """The plain product in a head, where it is one, on the device of the states."""
    output = head.output if isinstance(head, Finished) else head
    return output if _is_plain(output) and output.weight.device == hidden.device else None


def _is_plain(output: Any) -> TypeGuard[torch.nn.Linear]:
    """A linear layer of a plain weight that nobody listens to or stands in for, as what spreads a model does."""
    if type(output) is not torch.nn.Linear or type(output.weight) is not torch.nn.Parameter:
        return False
    return not (output._forward_hooks or output._forward_pre_hooks or "forward" in vars(output))


Fused = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""See ``fused_head.reduce_shares``."""


def fused_kernel(hidden: torch.Tensor, head: Head, log: Log) -> Fused | None:
    """The fused kernel, where a GPU has one and it agrees with the plain way on a few states [N, D].

    The log is told where it fails or differs.
    """
    if hidden.device.type not in FUSED_ON or not _is_plain(head) or head.bias is not None:
        return None
    if hidden.dtype not in FUSED_TYPES or head.weight.dtype != hidden.dtype or head.weight.device != hidden.device:
        return None
    try:
        from instdiff.engine.fused_head import reduce_shares
    except ImportError:
        return None
    target = torch.arange(len(hidden), device=hidden.device) % head.out_features
    exact = _chunked(hidden, target, head, len(hidden), entropy=True)
    try:
        mine = join_shares(reduce_shares(hidden, target, head.weight), entropy=True)
    except Exception as error:  # noqa: BLE001 - a compiler of kernels raises errors of many kinds
        log(f"the fused head fails on this GPU ({type(error).__name__}); using plain products (slower)")
        return None
    assert mine.entropy is not None and exact.entropy is not None
    both = torch.isfinite(exact.nll + exact.entropy)
    gap = torch.maximum((mine.nll - exact.nll).abs(), (mine.entropy - exact.entropy).abs())[both]
    most = 4 * torch.finfo(hidden.dtype).eps * max(float(head(hidden).float().abs().max()), 1.0)
    if len(gap) and float(gap.max()) <= most:
        return reduce_shares
    log("the fused head differs from plain products; using these (slower)")
    return None


def join_shares(shares: torch.Tensor, *, entropy: bool) -> Stats:
    """Of the shares of the vocabulary, [4, S, N], to each position; see ``fused_head.reduce_shares``."""
    highest, total, product, own = shares
    most, mine = highest.amax(0), own.sum(0)
    shift = torch.nan_to_num(highest - most, neginf=-1e4)
    keep = shift.exp()
    whole = (total * keep).sum(0)
    spread = whole.log() - ((product + shift * total) * keep).sum(0) / whole if entropy else None
    return Stats(whole.log() + (most - mine), spread, (mine == most).to(torch.float32))


@torch.no_grad()
def token_stats(
    hidden: torch.Tensor,
    target: torch.Tensor,
    head: Head,
    vocabulary: int,
    *,
    entropy: bool,
    chunk: int | None = None,
    fused: Fused | None = None,
    also: Callable[[Part], None] | None = None,
) -> Stats:
    """What is asked of each target token, reduced in fp32.

    ``hidden`` [N, D] are the states that predict the targets [N]. Positions go through the head ``chunk`` at a time, by
    default as many as ``chunk_rows`` says for the vocabulary; a large vocabulary goes tile by tile on a CPU. ``fused``
    is what ``fused_kernel`` gave for the head. With ``also``, which is told of each chunk, neither is done.
    """
    linear = _linear(head, hidden)
    if also is not None:
        stats = _chunked(
            hidden, target, head, chunk or chunk_rows(vocabulary, hidden.device), entropy=entropy, also=also
        )
    elif linear is not None and fused is not None:
        stats = join_shares(fused(hidden, target, linear.weight), entropy=entropy)
    elif linear is not None and chunk is None and hidden.device.type == "cpu" and vocabulary >= TILED_FROM:
        stats = _tiled(hidden, target, head, linear, entropy=entropy)
    else:
        stats = _chunked(hidden, target, head, chunk or chunk_rows(vocabulary, hidden.device), entropy=entropy)
        if not entropy:
            return stats
    finite = torch.isfinite(stats.nll if stats.entropy is None else stats.nll + stats.entropy)
    if bool(finite.all()):
        return stats
    # An entry of the vocabulary that is ruled out (-inf) adds 0 and not NaN.
    again = torch.nonzero(~finite)[:, 0]
    few = _chunked(hidden[again], target[again], head, chunk or chunk_rows(vocabulary), entropy=entropy, least=-1e4)
    for whole, part in zip(stats, few, strict=True):
        if whole is not None and part is not None:
            whole[again] = part
    return stats


def _chunked(
    hidden: torch.Tensor,
    target: torch.Tensor,
    head: Head,
    size: int,
    *,
    entropy: bool,
    least: float | None = None,
    also: Callable[[Part], None] | None = None,
) -> Stats:
    """Some positions at a time, all of the vocabulary; of a logit below the highest by ``-least`` and more, ``least``.

    With z the logits less their maximum and s the sum of exp z: NLL = log s - z_y, entropy = log s - sum(z exp z) / s.
    """
    size = max(1, min(size, len(target)))
    logits_of = _Logits(head, hidden, size)
    nll = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
    spread = torch.empty_like(nll) if entropy else None
    top = torch.empty_like(nll)
    room = torch.empty(0)
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        logits = logits_of(hidden[part])
        room = room if len(room) >= len(logits) else torch.empty_like(logits)
        shifted = logits.sub_(highest := logits.amax(-1, keepdim=True))
        weights = torch.exp(shifted, out=room[: len(logits)])
        total = weights.sum(-1)
        if also is not None:
            also(Part(part, shifted, highest, weights, total))
        log_total = total.log()
        mine = shifted.gather(-1, target[part, None])[:, 0]
        nll[part] = log_total - mine
        top[part] = (mine == 0).to(top.dtype)
        if spread is not None:
            shifted = shifted if least is None else shifted.clamp_(min=least)
            spread[part] = log_total - weights.mul_(shifted).sum(-1) / total
    return Stats(nll, spread, top)


def _tiled(hidden: torch.Tensor, target: torch.Tensor, head: Head, linear: torch.nn.Linear, *, entropy: bool) -> Stats:
    """A part of the vocabulary at a time, so that its weights and logits stay in the cache.

    The highest logit so far, and the sums of exp z and z exp z relative to it, are kept and corrected where a tile has
    a higher one.
    """
    wide = torch.float32
    nll, top = (torch.empty(len(target), dtype=wide) for _ in range(2))
    spread = torch.empty(len(target), dtype=wide) if entropy else None
    raw = hidden.new_empty((min(TILE_ROWS, len(target)), TILE))
    room, other = (torch.empty(raw.shape, dtype=wide) for _ in range(2))
    for start in range(0, len(target), TILE_ROWS):
        part = slice(start, start + TILE_ROWS)
        rows = hidden[part]
        count = len(rows)
        highest = torch.full((count, 1), -torch.inf)
        total, product = torch.zeros(count, 1), torch.zeros(count, 1)
        own = torch.full((count, 1), torch.nan)
        for first in range(0, linear.out_features, TILE):
            width = min(TILE, linear.out_features - first)
            logits = _tile(rows, linear, head, first, raw[:count, :width], room[:count, :width])
            here = target[part] - first
            hit = torch.nonzero((here >= 0) & (here < width))[:, 0]
            own[hit, 0] = logits[hit, here[hit]]
            above = torch.maximum(highest, logits.amax(-1, keepdim=True))
            shift = torch.nan_to_num(highest - above, neginf=-1e4)  # the first tile has nothing before it
            keep, before = shift.exp(), total
            shifted = logits.sub_(above)
            weights = torch.exp(shifted, out=other[:count, :width])
            total = total * keep + weights.sum(-1, keepdim=True)
            if spread is not None:
                product = (product + shift * before) * keep + weights.mul_(shifted).sum(-1, keepdim=True)
            highest = above
        log_total = total.log()
        nll[part] = (log_total + highest - own)[:, 0]
        top[part] = (own == highest)[:, 0].to(wide)
        if spread is not None:
            spread[part] = (log_total - product / total)[:, 0]
    return Stats(nll, spread, top)


def _tile(
    rows: torch.Tensor, linear: torch.nn.Linear, head: Head, first: int, raw: torch.Tensor, wide: torch.Tensor
) -> torch.Tensor:
    """Logits, in fp32, of the entries of the vocabulary from ``first`` on."""
    weight = linear.weight[first : first + raw.shape[1]].t()
    if linear.bias is None:
        torch.mm(rows, weight, out=raw)
    else:
        torch.addmm(linear.bias[first : first + raw.shape[1]], rows, weight, out=raw)
    if isinstance(head, Finished):
        raw = head.finish(raw, head.value)
    return wide.copy_(raw)


def choice_logs(
    hidden: torch.Tensor, head: Head, ids: tuple[int, ...], vocabulary: int, chunk: int | None = None
) -> torch.Tensor:
    """Log-probability, in nats over the whole vocabulary, of each of a few tokens: [N, len(ids)]."""
    wanted = torch.tensor(ids, device=hidden.device)
    linear = _linear(head, hidden)
    if linear is not None and chunk is None and hidden.device.type == "cpu" and vocabulary >= TILED_FROM:
        bias = None if linear.bias is None else linear.bias[wanted]
        few = torch.nn.functional.linear(hidden, linear.weight[wanted], bias)
        few = (head.finish(few, head.value) if isinstance(head, Finished) else few).float()
        nll = token_stats(hidden, wanted[:1].expand(len(hidden)), head, vocabulary, entropy=False).nll
        return few - few[:, :1] - nll[:, None]
    size = chunk or chunk_rows(vocabulary, hidden.device)
    parts = []
    for start in range(0, len(hidden), size):
        logits = head(hidden[start : start + size]).float()
        parts.append(logits[:, wanted] - logits.logsumexp(-1, keepdim=True))
    return torch.cat(parts)
