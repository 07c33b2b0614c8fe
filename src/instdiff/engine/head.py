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


@dataclass(frozen=True)
class More:
    """What is asked beside NLL: ranks, and Brier scores over so many likeliest tokens, None for all."""

    rank: bool = False
    brier: tuple[int | None, ...] = ()

    @property
    def by_tiles(self) -> bool:
        """Whether it can be told from one part of the vocabulary after another."""
        return self.brier in ((), (None,))


NOTHING = More()


class Stats(NamedTuple):
    """Per target: NLL and entropy in nats, whether it is the most likely token, its rank and its Brier scores.

    The Brier scores are [Q, N], one line for each that is asked.
    """

    nll: torch.Tensor
    entropy: torch.Tensor | None
    top: torch.Tensor
    rank: torch.Tensor | None = None
    brier: torch.Tensor | None = None

    @classmethod
    def empty(cls, count: int, device: torch.device, *, entropy: bool, more: More) -> Stats:
        """Room for a number of targets, in fp32."""
        nll = torch.empty(count, dtype=torch.float32, device=device)
        spread, rank = (torch.empty_like(nll) if asked else None for asked in (entropy, more.rank))
        brier = nll.new_empty((len(more.brier), count)) if more.brier else None
        return cls(nll, spread, torch.empty_like(nll), rank, brier)


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
    more: More = NOTHING,
    chunk: int | None = None,
    fused: Fused | None = None,
    also: Callable[[Part], None] | None = None,
) -> Stats:
    """What is asked of each target token, reduced in fp32.

    ``hidden`` [N, D] are the states that predict the targets [N]. Positions go through the head ``chunk`` at a time, by
    default as many as ``chunk_rows`` says for the vocabulary; a large vocabulary goes tile by tile on a CPU. ``fused``
    is what ``fused_kernel`` gave for the head; it knows nothing of ``more``. With ``also``, which is told of each
    chunk, all goes chunk by chunk.
    """
    linear = None if also is not None else _linear(head, hidden)
    if linear is not None and fused is not None and more == NOTHING:
        stats = join_shares(fused(hidden, target, linear.weight), entropy=entropy)
    elif (
        linear is not None
        and chunk is None
        and hidden.device.type == "cpu"
        and vocabulary >= TILED_FROM
        and more.by_tiles
    ):
        stats = _tiled(hidden, target, head, linear, entropy=entropy, more=more)
    else:
        size = chunk or chunk_rows(vocabulary, hidden.device)
        stats = _chunked(hidden, target, head, size, entropy=entropy, more=more, also=also)
        if not entropy:
            return stats
    finite = torch.isfinite(stats.nll if stats.entropy is None else stats.nll + stats.entropy)
    if bool(finite.all()):
        return stats
    # An entry of the vocabulary that is ruled out (-inf) adds 0 and not NaN.
    again, size = torch.nonzero(~finite)[:, 0], chunk or chunk_rows(vocabulary)
    few = _chunked(hidden[again], target[again], head, size, entropy=entropy, more=more, least=-1e4)
    for whole, part in zip(stats, few, strict=True):
        if whole is not None and part is not None:
            whole[..., again] = part
    return stats


def _chunked(
    hidden: torch.Tensor,
    target: torch.Tensor,
    head: Head,
    size: int,
    *,
    entropy: bool,
    more: More = NOTHING,
    least: float | None = None,
    also: Callable[[Part], None] | None = None,
) -> Stats:
    """Some positions at a time, all of the vocabulary; of a logit below the highest by ``-least`` and more, ``least``.

    With z the logits less their maximum and s the sum of exp z: NLL = log s - z_y, entropy = log s - sum(z exp z) / s.
    """
    size = max(1, min(size, len(target)))
    logits_of = _Logits(head, hidden, size)
    stats = Stats.empty(len(target), hidden.device, entropy=entropy, more=more)
    nll, spread, top = stats[:3]
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
        if stats.rank is not None:
            stats.rank[part] = _known(1 + (shifted > mine[:, None]).sum(-1), nll[part])
        for line, likeliest in enumerate(more.brier):
            assert stats.brier is not None
            stats.brier[line, part] = _brier_of(shifted, weights, total, mine, likeliest)
        if spread is not None:
            shifted = shifted if least is None else shifted.clamp_(min=least)
            spread[part] = log_total - weights.mul_(shifted).sum(-1) / total
    return stats


def _known(rank: torch.Tensor, nll: torch.Tensor) -> torch.Tensor:
    """Ranks in fp32; none where the logits are no numbers, which compare as equal."""
    return torch.where(torch.isnan(nll), nll, rank.to(nll.dtype))


def _brier_of(
    shifted: torch.Tensor, weights: torch.Tensor, total: torch.Tensor, mine: torch.Tensor, likeliest: int | None
) -> torch.Tensor:
    """Brier scores [n] of logits less their maximum, their exponentials [n, V] and the sums of these."""
    if likeliest is None:
        norm: torch.Tensor = torch.linalg.vector_norm(weights, dim=-1)
        return 1 - 2 * mine.exp() / total + (norm / total).square()
    most = shifted.topk(min(likeliest, shifted.shape[-1])).values
    share = most.softmax(-1)
    among = (shifted > mine[:, None]).sum(-1) < likeliest
    own = torch.where(among, (mine - most.logsumexp(-1)).exp(), 0.0)
    return 1 - 2 * own + share.square().sum(-1)


def _own_logits(rows: torch.Tensor, target: torch.Tensor, linear: torch.nn.Linear, head: Head) -> torch.Tensor:
    """The logit of each row's target [n, 1] in fp32, rounded as the product of all of them would be."""
    raw = torch.einsum("nd,nd->n", rows.float(), linear.weight[target].float())
    raw = (raw if linear.bias is None else raw + linear.bias[target]).to(rows.dtype)
    return (head.finish(raw, head.value) if isinstance(head, Finished) else raw).float()[:, None]


def _tiled(
    hidden: torch.Tensor,
    target: torch.Tensor,
    head: Head,
    linear: torch.nn.Linear,
    *,
    entropy: bool,
    more: More = NOTHING,
) -> Stats:
    """A part of the vocabulary at a time, so that its weights and logits stay in the cache."""
    stats = Stats.empty(len(target), hidden.device, entropy=entropy, more=more)
    raw = hidden.new_empty((min(TILE_ROWS, len(target)), TILE))
    places = (raw, *(torch.empty(raw.shape, dtype=torch.float32) for _ in range(2)))
    for start in range(0, len(target), TILE_ROWS):
        part = slice(start, start + TILE_ROWS)
        found = _reduce_tiles(hidden[part], target[part], head, linear, places, entropy=entropy, more=more)
        for whole, some in zip(stats, found, strict=True):
            if whole is not None and some is not None:
                whole[..., part] = some
    return stats


def _reduce_tiles(
    rows: torch.Tensor,
    target: torch.Tensor,
    head: Head,
    linear: torch.nn.Linear,
    places: tuple[torch.Tensor, ...],
    *,
    entropy: bool,
    more: More,
) -> Stats:
    """Of a few positions, whose logits and weights lie in ``places``.

    The highest logit so far, and the sums of exp z, exp 2z and z exp z relative to it, are kept and corrected where a
    tile has a higher one. Ranks compare with the target's own logit, which is made before the first tile.
    """
    raw, room, other = (place[: len(rows)] for place in places)
    highest = torch.full((len(rows), 1), -torch.inf)
    total, product, squares = (torch.zeros(len(rows), 1) for _ in range(3))
    own, larger = torch.full((len(rows), 1), torch.nan), torch.zeros(len(rows), dtype=torch.int64)
    wanted = _own_logits(rows, target, linear, head) if more.rank else None
    for first in range(0, linear.out_features, TILE):
        width = min(TILE, linear.out_features - first)
        logits = _tile(rows, linear, head, first, raw[:, :width], room[:, :width])
        here = target - first
        hit = torch.nonzero((here >= 0) & (here < width))[:, 0]
        own[hit, 0] = logits[hit, here[hit]]
        if wanted is not None:
            larger += (logits > wanted).sum(-1)
            larger[hit] -= (own[hit, 0] > wanted[hit, 0]).to(larger.dtype)  # no token is larger than itself
        above = torch.maximum(highest, logits.amax(-1, keepdim=True))
        shift = torch.nan_to_num(highest - above, neginf=-1e4)  # the first tile has nothing before it
        keep, before = shift.exp(), total
        shifted = logits.sub_(above)
        weights = torch.exp(shifted, out=other[:, :width])
        total = total * keep + weights.sum(-1, keepdim=True)
        if more.brier:
            squares = squares * keep.square() + torch.linalg.vector_norm(weights, dim=-1, keepdim=True).square()
        if entropy:
            product = (product + shift * before) * keep + weights.mul_(shifted).sum(-1, keepdim=True)
        highest = above
    nll = (total.log() + highest - own)[:, 0]
    spread = (total.log() - product / total)[:, 0] if entropy else None
    brier = (1 - 2 * (own - highest).exp() / total + squares / total.square()).t() if more.brier else None
    top = (own == highest)[:, 0].to(nll.dtype)
    return Stats(nll, spread, top, _known(1 + larger, nll) if more.rank else None, brier)


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
