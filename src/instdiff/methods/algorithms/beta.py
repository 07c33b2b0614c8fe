"""The beta distribution: its mass below a place, and the place below which a mass lies."""

from __future__ import annotations

import math

import numpy as np

from instdiff.core import Floats

TERMS = 200
"""Of the continued fraction at most; it needs about as many as the root of the larger parameter."""
HALVINGS = 60
"""Of the interval in which a place is looked for."""


def beta_mass(a: Floats, b: Floats, x: float | Floats) -> Floats:
    """Mass of Beta(a, b) below x: the regularised incomplete beta function, by a continued fraction (DLMF 8.17.22)."""
    a, b, x = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (a, b, x)))
    swap = x > (a + 1) / (a + b + 2)
    p, q, y = np.where(swap, b, a), np.where(swap, a, b), np.clip(np.where(swap, 1 - x, x), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        front = np.exp(_log_gamma(p + q) - _log_gamma(p) - _log_gamma(q) + p * np.log(y) + q * np.log1p(-y)) / p
    mass = np.where(y > 0, front * _fraction(p, q, y), 0.0)
    return np.asarray(np.where(swap, 1 - mass, mass))


def beta_place(a: Floats, b: Floats, mass: float) -> Floats:
    """The place below which Beta(a, b) has this mass."""
    low, high = np.zeros(np.shape(a)), np.ones(np.shape(a))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = beta_mass(a, b, middle) < mass
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2)


def _fraction(p: Floats, q: Floats, y: Floats) -> Floats:
    """Lentz's way from the first term on."""
    tiny = 1e-300
    d = 1 - (p + q) * y / (p + 1)
    d = 1 / np.where(np.abs(d) < tiny, tiny, d)
    c, value = np.ones_like(y), d
    for m in range(1, TERMS):
        even = m * (q - m) * y / ((p + 2 * m - 1) * (p + 2 * m))
        odd = -(p + m) * (p + q + m) * y / ((p + 2 * m) * (p + 2 * m + 1))
        before = value
        for term in (even, odd):
            d, c = 1 + term * d, 1 + term / c
            d, c = (np.where(np.abs(one) < tiny, tiny, one) for one in (d, c))
            d = 1 / d
            value = value * d * c
        if np.allclose(value, before, rtol=1e-15, atol=0):
            break
    return np.asarray(value)


def _log_gamma(x: Floats) -> Floats:
    return np.asarray(np.vectorize(math.lgamma, otypes=[np.float64])(x))
