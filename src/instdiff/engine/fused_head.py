"""The head on a GPU in one kernel: a tile of logits never leaves the chip, and is reduced where it was made.

The recurrence is that of ``head``'s tiles: the highest logit so far, and the sums of exp z and z exp z relative to it,
corrected where a tile has a higher one. The vocabulary is dealt to several programs, so that all of a GPU is busy.

Shapes: N target positions, D hidden size, V vocabulary, S shares of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

ROWS, ENTRIES, INNER = 128, 128, 64
"""A tile: positions, entries of the vocabulary, and how much of D is multiplied at a time."""
PROGRAMS = 8
"""Programs for each of a GPU's processors, at least, so that none waits long for the last one."""


@triton.jit  # type: ignore[untyped-decorator]
def _reduce_tiles(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    target,
    out,
    count,
    vocabulary,
    width,
    share,
    hidden_step,
    weight_step,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    INNER: tl.constexpr,
):
    row, split = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    here = row < count
    inner = tl.arange(0, INNER)
    wanted = tl.load(target + row, mask=here, other=-1)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    zero = tl.zeros((ROWS,), tl.float32)
    total, product, own = zero, zero, zero
    from_row = hidden + row.to(tl.int64)[:, None] * hidden_step
    stop = tl.minimum((split + 1) * share, vocabulary)
    for first in range(split * share, stop, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        there = entry < stop
        from_entry = weight + entry.to(tl.int64)[None, :] * weight_step
        logits = tl.zeros((ROWS, ENTRIES), tl.float32)
        for at in range(0, width, INNER):
            inside = at + inner < width
            h = tl.load(from_row + (at + inner)[None, :], mask=here[:, None] & inside[None, :], other=0.0)
            w = tl.load(from_entry + (at + inner)[:, None], mask=there[None, :] & inside[:, None], other=0.0)
            logits = tl.dot(h, w, logits)
        own += tl.sum(tl.where(entry[None, :] == wanted[:, None], logits, 0.0), 1)
        logits = tl.where(there[None, :], logits, float("-inf"))
        above = tl.maximum(highest, tl.max(logits, 1))
        shift = tl.where(highest == float("-inf"), -1e4, highest - above)  # the first tile has nothing before it
        keep = tl.exp(shift)
        shifted = logits - above[:, None]
        weights = tl.exp(shifted)
        product = (product + shift * total) * keep + tl.sum(tl.where(there[None, :], weights * shifted, 0.0), 1)
        total = total * keep + tl.sum(weights, 1)
        highest = above
    step = tl.num_programs(1) * count
    place = out + split * count + row
    tl.store(place, highest, mask=here)
    tl.store(place + step, total, mask=here)
    tl.store(place + 2 * step, product, mask=here)
    tl.store(place + 3 * step, own, mask=here)


def reduce_shares(hidden: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Per share and position the highest logit, sum of exp z, sum of z exp z, and the target's logit or 0: [4, S, N].

    ``hidden`` [N, D] and ``weight`` [V, D] are of one half precision, ``target`` [N]; sums are in fp32.
    """
    count, width = hidden.shape
    tiles, blocks = triton.cdiv(len(weight), ENTRIES), triton.cdiv(count, ROWS)
    wanted = min(tiles, triton.cdiv(PROGRAMS * _processors(hidden.device), blocks))
    share = triton.cdiv(tiles, wanted) * ENTRIES
    splits = triton.cdiv(len(weight), share)
    out = torch.empty((4, splits, count), dtype=torch.float32, device=hidden.device)
    given = (hidden, weight, target, out, count, len(weight), width, share, hidden.stride(0), weight.stride(0))
    how: dict[str, Any] = {"ROWS": ROWS, "ENTRIES": ENTRIES, "INNER": INNER, "num_warps": 8, "num_stages": 3}
    with torch.cuda.device_of(hidden):  # type: ignore[no-untyped-call]
        _reduce_tiles[(blocks, splits)](*given, **how)
    return out


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
