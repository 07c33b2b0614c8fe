"""Uniform noise that is addressed, not drawn: the same on every device, in every batch and in every order.

The number at (row, address, dimension) is a hash of the three (the finaliser of splitmix64), so nothing has to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from instdiff.engine.upload import upload
from instdiff.rendering.renderer import Noise

Indices = npt.NDArray[np.int64]

_STEP = -0x61C8864680B583EB  # the golden ratio's 64 bits, as the signed number that torch wants
_DIMENSION = -0x3C5A3A8B0F1E2D67
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_BITS = 24


@dataclass(frozen=True)
class Addressed:
    """Per token of a batch: which row's noise, at which address, and how large; 0 for none."""

    seed: Indices
    address: Indices
    scale: npt.NDArray[np.float32]

    @classmethod
    def of(cls, noise: Noise, rows: Indices, target: list[npt.NDArray[np.bool_]], width: int) -> Addressed:
        """For rows end to end; ``width`` is the embedding size."""
        seeds, addresses, scales = [], [], []
        for row, marks in zip(rows.tolist(), target, strict=True):
            address, noisy = noise.addresses(marks)
            scale = noise.alpha / np.sqrt(float(noise.tokens[row]) * width)
            seeds.append(np.full(len(marks), noise.row[row]))
            addresses.append(address)
            scales.append(np.where(noisy, scale, 0.0).astype(np.float32))
        return cls(np.concatenate(seeds), np.concatenate(addresses), np.concatenate(scales))

    def at(self, places: Indices, count: int) -> Addressed:
        """The same for tokens that lie at these places among ``count``."""
        out = Addressed(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.float32))
        out.seed[places], out.address[places], out.scale[places] = self.seed, self.address, self.scale
        return out

    def values(self, width: int, device: torch.device) -> torch.Tensor:
        """The noise itself, [tokens, width] in fp32."""
        seed, address, scale = (upload(x, device) for x in (self.seed, self.address, self.scale))
        return uniform(seed, address, width) * scale[:, None]


def uniform(seed: torch.Tensor, address: torch.Tensor, width: int) -> torch.Tensor:
    """Numbers in [-1, 1), [n, width], from two int64 columns [n]."""
    pairs = torch.arange((width + 1) // 2, device=seed.device)
    z = (seed + address * _STEP)[:, None] + (pairs + 1) * _DIMENSION
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        z = (z ^ _shift_right(z, shift)).mul_(factor)
    z ^= _shift_right(z, 31)
    parts = torch.stack([z & (2**_BITS - 1), _shift_right(z, 64 - _BITS)], -1).flatten(1)[:, :width]
    return parts.to(torch.float32).mul_(2.0 ** (1 - _BITS)).sub_(1.0)


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Right, with zeros coming in from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
