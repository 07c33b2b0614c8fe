"""Ratings from a model's probabilities of digits: SelectIT (arXiv:2402.16705) and DEITA (arXiv:2312.15685).

The three levels are those of SelectIT's self-reflection: token, sentence, model.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats

Norm = Literal["paper", "official"]


def token_level(probability: npt.ArrayLike, norm: Norm = "paper") -> Floats:
    """SelectIT's rating under each prompt: the likeliest digit times how far it stands out.

    ``probability`` [..., K] are those of the digits 1 to K, over the whole vocabulary or not; p is these brought to sum
    1. With s the likeliest digit, the lower one of equals: s * (sum over digits i of p_s - p_i) / (K - 1). ``official``
    takes a softmax of p first, as the published code does, which brings all p close to 1 / K. NaN where no digit has
    any probability. Fewer than two digits, a negative probability, or an unknown norm is a ValueError.
    """
    p = np.asarray(probability, np.float64)
    if norm not in ("paper", "official"):
        raise ValueError(f"norm {norm!r} is neither 'paper' nor 'official'")
    if p.ndim == 0 or p.shape[-1] < 2 or (p < 0).any():
        raise ValueError(f"probabilities of two digits or more are needed, none negative; got shape {p.shape}")
    total = p.sum(-1, keepdims=True)
    p = p / np.where(total > 0, total, np.nan)
    if norm == "official":
        p = np.exp(p) / np.exp(p).sum(-1, keepdims=True)
    digits = p.shape[-1]
    best = p.argmax(-1)
    return np.asarray((best + 1) * (p.max(-1, keepdims=True) - p).sum(-1) / (digits - 1))


def sentence_level(ratings: npt.ArrayLike, alpha: float = 0.2) -> Floats:
    """SelectIT's rating of a row: mean over prompts [..., prompts] / (1 + alpha * population standard deviation)."""
    each = np.asarray(ratings, np.float64)
    return np.asarray(each.mean(-1) / (1 + alpha * each.std(-1)))


def model_level(ratings: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """SelectIT's rating by several models [..., models]: their mean, weighted by size.

    The weights are brought to sum 1, as in the paper; the published code uses 7/20, 13/20 and 70/90 as they are. A
    ValueError where there is not one weight per model, one is negative, or none is above 0.
    """
    each, weight = np.asarray(ratings, np.float64), np.asarray(weights, np.float64)
    if weight.shape != each.shape[-1:] or (weight < 0).any() or not weight.sum() > 0:
        raise ValueError(f"{each.shape[-1:]} models need as many weights, none negative and one above 0: {weight}")
    return np.asarray(each @ (weight / weight.sum()))


def published_order(ratings: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Rows by descending (rating, row), as SelectIT's code sorts them: of equal ratings the later row is first."""
    return np.asarray(np.argsort(np.asarray(ratings, np.float64), kind="stable")[::-1], np.int64)


def expected_score(logits: npt.ArrayLike) -> Floats:
    """DEITA's score: sum over i of i * p_i, p the softmax of the logits [..., digits 1, 2, ...] alone.

    NaN where a logit is not finite.
    """
    at = np.asarray(logits, np.float64)
    at = np.where(np.isfinite(at).all(-1, keepdims=True), at, np.nan)
    p = np.exp(at - at.max(-1, keepdims=True))
    return np.asarray((p / p.sum(-1, keepdims=True)) @ np.arange(1.0, at.shape[-1] + 1))
