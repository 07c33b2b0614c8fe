"""How labels go wrong, found from near rows alone: the transition matrix of DS2 (arXiv:2410.10877), numpy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats

Indices = npt.NDArray[np.int64]


def transition(
    labels: npt.ArrayLike, neighbours: npt.ArrayLike, classes: int, *, steps: int = 1500, rate: float = 0.1
) -> tuple[Floats, Floats]:
    """How labels go wrong, without knowing the right ones, by high-order consensus.

    This is the paper's score transition matrix. A row and its two nearest neighbours are taken for three looks at one
    clean label. The frequencies of single labels, pairs and triples are compared with those that a matrix and a prior
    would give; the sum of the three Euclidean distances is minimised by Adam, and the best iterate counts. All rows
    are counted once, so that nothing is drawn: the published code repeats this on samples of two copies of the pool,
    where a row often is its own neighbour. The start is the published one, a nearly diagonal matrix, with a uniform
    prior without noise.

    Args:
        labels: int [N].
        neighbours: int [N, 2 or more], nearest first, without the row itself.
        classes: number of labels.
        steps: of Adam.
        rate: of Adam; it falls to nothing along a half cosine.

    Returns:
        ``matrix`` [classes, classes], row = clean label, column = label seen, rows sum to 1, and ``prior`` [classes]
        of the clean labels.

    Raises:
        ValueError: labels out of range, or fewer than two neighbours.
    """
    seen, near = whole_labels(labels, classes), np.asarray(neighbours, np.int64)
    if near.ndim != 2 or len(near) != len(seen) or near.shape[1] < 2:
        raise ValueError(f"{len(seen)} labels need neighbours [{len(seen)}, 2 or more], not {near.shape}")
    triple = (seen * classes + seen[near[:, 0]]) * classes + seen[near[:, 1]]
    third = np.bincount(triple, minlength=classes**3).reshape((classes,) * 3) / len(seen)
    second = np.bincount(triple // classes, minlength=classes**2).reshape(classes, classes) / len(seen)
    at = np.concatenate([5 * np.eye(classes) - 1, np.zeros((1, classes))])
    best, least = softmax(at), np.inf
    mean, square = np.zeros_like(at), np.zeros_like(at)
    for step in range(1, steps + 1):
        now = softmax(at)
        loss, slope = _misfit(now[:-1], now[-1], (second.sum(1), second, third))
        if loss < least:
            best, least = now, loss
        slope = now * (slope - (now * slope).sum(1, keepdims=True))
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        pace = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        at = at - pace * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return best[:-1], best[-1]


def _misfit(matrix: Floats, prior: Floats, counted: tuple[Floats, Floats, Floats]) -> tuple[float, Floats]:
    """Distance of the consensus that matrix and prior give to the one counted; its slope by matrix, then prior."""
    weighted = prior[:, None] * matrix
    expected = (
        prior @ matrix,
        weighted.T @ matrix,
        np.einsum("ai,aj,al->ijl", weighted, matrix, matrix, optimize=True),
    )
    off = [mine - theirs for mine, theirs in zip(expected, counted, strict=True)]
    length = [float(np.sqrt((part**2).sum())) for part in off]
    one, two, three = (part / max(norm, 1e-12) for part, norm in zip(off, length, strict=True))
    two, three = two + two.T, three + three.transpose(1, 0, 2) + three.transpose(2, 1, 0)
    pairs = np.einsum("ijl,aj,al->ai", three, matrix, matrix, optimize=True)
    by_matrix = one + matrix @ two + pairs
    by_prior = (matrix * (one + matrix @ two / 2 + pairs / 3)).sum(1)
    return sum(length), np.concatenate([prior[:, None] * by_matrix, by_prior[None]])


def whole_labels(labels: npt.ArrayLike, classes: int) -> Indices:
    """Labels as int64 [N].

    Raises:
        ValueError: one is not a whole number from 0 to ``classes - 1``.
    """
    seen = np.asarray(labels)
    whole = seen.astype(np.int64)
    if seen.ndim != 1 or not len(seen) or (whole != seen).any() or whole.min() < 0 or whole.max() >= classes:
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, one per row")
    return whole


def softmax(at: Floats) -> Floats:
    """Exponentials of each row, brought to sum 1."""
    high = np.exp(at - at.max(1, keepdims=True))
    return np.asarray(high / high.sum(1, keepdims=True))
