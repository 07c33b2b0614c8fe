"""DS2 (arXiv:2410.10877): find and mend wrong scores by the scores of near rows, then prefer what is rare.

Everything reads one table of nearest neighbours: ``neighbours`` int [N, k], nearest first and without the row itself,
``distances`` float [N, k], cosine (one minus similarity). Labels are whole numbers from 0. The published code searches
neighbours anew among 90 % of two copies of the pool in every round, so that a row often is its own neighbour; here one
search over the plain pool serves all.

Two detectors give the same ``Suspects``. ``suspects`` is the published one, SimiFeat-rank. In each round a row and its
nearest ``k - 1`` of those that are in vote for their labels with weight 1 - distance; the row's own distance is
extrapolated from the first two. Its score is -log of the vote for its label, after the votes were brought to length 1.
Of each label c the highest scores are suspected, the share 1 - matrix[c, c] * prior[c] / (share of label c), kept
within ``clip``, and the label with most votes is proposed. One difference: a row whose voters all agree with it is
never suspected; by the published rule it is, when the threshold falls into such rows.

``infer_labels`` is ours: Bayes' rule with matrix and prior. A vote cannot find labels that most rows of a class have
wrong in the same way; what is known of which label turns into which can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats

Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def transition(
    labels: npt.ArrayLike, neighbours: npt.ArrayLike, classes: int, *, steps: int = 1500, rate: float = 0.1
) -> tuple[Floats, Floats]:
    """How labels go wrong, without knowing the right ones: the paper's transition matrix, by high-order consensus.

    A row and its two nearest neighbours are taken for three looks at one clean label. The frequencies of single labels,
    pairs and triples are compared with those that a matrix and a prior would give; the sum of the three Euclidean
    distances is minimised by ``steps`` of Adam, whose ``rate`` falls along a half cosine, and the best iterate counts.
    All rows are counted once, so that nothing is drawn: the published code repeats this on samples of two copies of the
    pool, where a row often is its own neighbour. The start is the published one, a nearly diagonal matrix, with a
    uniform prior.

    Returns ``matrix`` [classes, classes], row = clean label, column = label seen, rows sum to 1, and ``prior``
    [classes] of the clean labels. Labels out of range, or fewer than two neighbours, are a ValueError.
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
    """Labels as int64 [N]; a ValueError where one is not a whole number from 0 to ``classes - 1``."""
    seen = np.asarray(labels)
    whole = seen.astype(np.int64)
    if seen.ndim != 1 or not len(seen) or (whole != seen).any() or whole.min() < 0 or whole.max() >= classes:
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, one per row")
    return whole


def softmax(at: Floats) -> Floats:
    """Exponentials of each row, brought to sum 1."""
    high = np.exp(at - at.max(1, keepdims=True))
    return np.asarray(high / high.sum(1, keepdims=True))


@dataclass(frozen=True)
class Suspects:
    """What a detector thinks of each row.

    ``noisy`` says how likely the label is wrong, ``suggested`` is the label to have instead, which may be the same,
    with a ``confidence`` in [0, 1].
    """

    noisy: Floats
    suggested: Indices
    confidence: Floats


def suspects(
    labels: npt.ArrayLike,
    neighbours: npt.ArrayLike,
    distances: npt.ArrayLike,
    matrix: Floats,
    prior: Floats,
    *,
    k: int = 10,
    rounds: int = 51,
    share: float = 0.9,
    clip: tuple[float, float] = (0.05, 0.95),
    seed: int = 0,
) -> Suspects:
    """Rows whose near rows have other labels, as many per label as ``matrix`` says are wrong (SimiFeat-rank).

    ``noisy`` is (hits + 1) / (rounds that the row was in + 2), ``suggested`` the label most often proposed,
    ``confidence`` (its proposals + 1) / (hits + classes), times ``noisy``; without a hit the own label, with 0. ``k``
    voters, the row among them, are looked for in a few more neighbours, since only a ``share`` of the rows is in each
    round. Labels out of range, or shapes that do not fit, are a ValueError.
    """
    classes = len(prior)
    seen, near, far = _table(labels, neighbours, distances, classes)
    observed = np.bincount(seen, minlength=classes) / len(seen)
    wrong = np.clip(1 - np.minimum(np.diag(matrix) * prior / np.maximum(observed, 1e-12), 1), *clip)
    rng = np.random.default_rng(seed)
    times, hits, proposed = np.zeros(len(seen)), np.zeros(len(seen)), np.zeros((len(seen), classes))
    for _ in range(rounds):
        rows = np.sort(rng.permutation(len(seen))[: max(1, int(share * len(seen)))])
        votes = _votes(seen, near, far, rows, k, classes)
        doubtful = _doubtful(votes[np.arange(len(rows)), seen[rows]], seen[rows], wrong)
        times[rows] += 1
        hits[rows] += doubtful
        proposed[rows[doubtful], votes[doubtful].argmax(1)] += 1
    noisy, suggested = (hits + 1) / (times + 2), np.where(hits > 0, proposed.argmax(1), seen)
    return Suspects(noisy, suggested, np.where(hits > 0, (proposed.max(1) + 1) / (hits + classes) * noisy, 0.0))


def _votes(seen: Indices, near: Indices, far: Floats, rows: Indices, k: int, classes: int) -> Floats:
    """Votes for each label, of length 1 per row [rows, classes]."""
    present = np.zeros(len(seen), bool)
    present[rows] = True
    near, far = near[rows], far[rows]
    counts = present[near]
    counts &= counts.cumsum(1) <= k - 1
    weight = np.where(counts, np.maximum(1 - far, 0), 0)
    own = np.clip(1 - 2 * far[:, 0] + far[:, 1], 1e-6, None)
    slot = np.arange(len(rows))[:, None] * classes
    ballots = np.bincount((slot + seen[near]).ravel(), weight.ravel(), len(rows) * classes)
    votes = np.asarray(ballots, np.float64).reshape(-1, classes)
    votes[np.arange(len(rows)), seen[rows]] += own
    return np.asarray(votes / np.linalg.norm(votes, axis=1, keepdims=True))


def _doubtful(support: Floats, seen: Indices, wrong: Floats) -> Bools:
    """Of each label the share with the least support, but none that all support."""
    score = -np.log(np.clip(support, 1e-12, 1))
    out = np.zeros(len(seen), bool)
    for label in np.unique(seen):
        mine = seen == label
        out[mine] = score[mine] >= np.percentile(score[mine], 100 * (1 - wrong[label]))
    return out & (score > 1e-9)


def infer_labels(
    labels: npt.ArrayLike,
    neighbours: npt.ArrayLike,
    distances: npt.ArrayLike,
    matrix: Floats,
    prior: Floats,
    *,
    k: int = 10,
) -> Suspects:
    """What matrix and prior make of a row's label and those of its near rows, by Bayes' rule; ours, not the paper's.

    log P(clean = a) = log prior[a] + sum over the row and its ``k`` nearest of weight * log matrix[a, label], with
    weight 1 - distance, 1 for the row itself. ``noisy`` is one minus the probability of the row's label, ``suggested``
    the likeliest label and ``confidence`` its probability. Labels out of range, or shapes that do not fit, are a
    ValueError.
    """
    seen, near, far = _table(labels, neighbours, distances, len(prior))
    told = np.log(np.maximum(matrix, 1e-6)).T
    at = np.log(np.maximum(prior, 1e-9)) + told[seen]
    for rank in range(min(k, near.shape[1])):
        at += np.maximum(1 - far[:, rank], 0)[:, None] * told[seen[near[:, rank]]]
    chance = softmax(at)
    return Suspects(1 - chance[np.arange(len(seen)), seen], chance.argmax(1), chance.max(1))


def _table(
    labels: npt.ArrayLike, neighbours: npt.ArrayLike, distances: npt.ArrayLike, classes: int
) -> tuple[Indices, Indices, Floats]:
    seen, near, far = whole_labels(labels, classes), np.asarray(neighbours, np.int64), np.asarray(distances, np.float64)
    if near.ndim != 2 or near.shape != far.shape or len(near) != len(seen) or near.shape[1] < 2:
        raise ValueError(f"{len(seen)} labels do not fit neighbours {near.shape} and distances {far.shape}")
    return seen, near, far


def curate_labels(labels: npt.ArrayLike, found: Suspects, *, confidence: float = 0.5) -> Indices:
    """The labels with every suggestion of at least that confidence taken (score curation)."""
    return np.where(found.confidence >= confidence, found.suggested, np.asarray(labels, np.int64))


def long_tail(distances: npt.ArrayLike, k: int = 10, *, official: bool = False) -> Floats:
    """Rarity of each row in [0, 1), its long-tail score: of the mean x of ``k`` distances 2 / (1 + exp(-x)) - 1.

    ``distances`` ascend, without the row itself; fewer than are needed are a ValueError. ``official`` is what two
    copies of the pool make of it: the row and its copy, at 0, are among the ``k``, every neighbour is there twice, and
    the result has four decimals.
    """
    far = np.asarray(distances, np.float64)
    if official:
        far = np.concatenate([np.zeros((len(far), 2)), np.repeat(far, 2, axis=1)], axis=1)
    if far.shape[1] < k:
        raise ValueError(f"{k} distances per row are needed, not {far.shape[1]}")
    rarity = 2 / (1 + np.exp(-far[:, :k].mean(1))) - 1
    return np.asarray(rarity.round(4) if official else rarity)


def ds2_order(scores: npt.ArrayLike, rarity: npt.ArrayLike) -> Indices:
    """Rows by descending score, within a score the rarest first, then by row.

    The head of any length is the published choice: whole levels from the highest while they fit, and of the level
    that does not the rarest rows.
    """
    level = np.asarray(scores)
    return np.asarray(np.lexsort((np.arange(len(level)), -np.asarray(rarity, np.float64), -level)), np.int64)
