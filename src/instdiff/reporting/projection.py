"""Rows in two dimensions, what is near what, and how well a selection covers the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.data import Pool, Sample
from instdiff.errors import require

Matrix = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
FACTORS, FEATURES, CHARACTERS = 32, 1 << 14, 1500
MOST_TSNE, LEAST_TSNE = 3000, 50
CLUSTERS = 64
_BLOCK = 1 << 22
"""Similarities held at once."""


def words(pool: Pool) -> list[str]:
    """Each row's instruction and response, cut where they are long."""

    def text(sample: Sample) -> str:
        said = "\n".join((sample.instruction, sample.input, sample.response))
        return said[:CHARACTERS]

    return [text(sample) for sample in pool.samples()]


def of_texts(texts: list[str]) -> Matrix:
    """Hashed words, weighted by TF-IDF, in a few factors (LSA).

    Raises:
        PlanError: scikit-learn is missing.
    """
    require("sklearn", "this picture")
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    counts = HashingVectorizer(n_features=FEATURES, alternate_sign=False, norm=None).transform(texts)
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    factors = max(1, min(FACTORS, len(texts) - 1))
    return np.asarray(TruncatedSVD(factors, n_iter=2, random_state=0).fit_transform(weights), np.float32)


def of_vectors(x: npt.NDArray[Any]) -> Matrix:
    """Vectors in a few factors.

    Raises:
        PlanError: scikit-learn is missing.
    """
    require("sklearn", "this picture")
    from sklearn.decomposition import PCA

    factors = max(1, min(FACTORS, x.shape[1], len(x)))
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return np.asarray(PCA(factors, svd_solver="randomized", random_state=0).fit_transform(unit), np.float32)


def flat(factors: Matrix) -> tuple[str, Matrix]:
    """Two dimensions of them: t-SNE where there are few rows, else the first two principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if LEAST_TSNE <= len(factors) <= MOST_TSNE:
        placed = TSNE(2, init="pca", perplexity=min(30, len(factors) / 4), max_iter=500, angle=0.8, random_state=0)
        return "t-SNE", np.asarray(placed.fit_transform(factors), np.float32)
    if min(factors.shape) < 2:
        return "PCA", np.concatenate([factors[:, :1], np.zeros((len(factors), 1), np.float32)], 1)
    return "PCA", np.asarray(PCA(2, random_state=0).fit_transform(factors), np.float32)


def unit(x: Matrix) -> Matrix:
    """Each row at length 1."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)


def near(factors: Matrix, shown: Indices, count: int = 3) -> npt.NDArray[np.int32]:
    """For each row the places in ``shown`` of the rows most like it, itself aside; -1 where there are fewer."""
    x = unit(factors)
    some, k = x[shown], min(count, max(0, len(shown) - 1))
    out = np.full((len(x), count), -1, np.int32)
    if k == 0:
        return out
    place = np.full(len(x), -1)
    place[shown] = np.arange(len(shown))
    step = max(1, _BLOCK // len(shown))
    for start in range(0, len(x), step):
        like = x[start : start + step] @ some.T
        mine = place[start : start + step]
        like[np.flatnonzero(mine >= 0), mine[mine >= 0]] = -2
        for nth in range(k):
            best = like.argmax(1)
            out[start : start + step, nth] = best
            like[np.arange(len(like)), best] = -3
    return out


def clusters(factors: Matrix, count: int = CLUSTERS) -> npt.NDArray[np.int32]:
    """Of each row the cluster of its texts or vectors."""
    from sklearn.cluster import MiniBatchKMeans

    made = MiniBatchKMeans(min(count, max(1, len(factors) // 2)), n_init=1, random_state=0)
    return np.asarray(made.fit_predict(unit(factors)), np.int32)


def reach(factors: Matrix, chosen: Indices) -> float | None:
    """Median cosine of a row that is not chosen to the chosen row most like it."""
    rest = np.setdiff1d(np.arange(len(factors)), chosen)
    if len(rest) == 0 or len(chosen) == 0:
        return None
    x = unit(factors)
    best = np.empty(len(rest), np.float32)
    step = max(1, _BLOCK // len(chosen))
    for start in range(0, len(rest), step):
        best[start : start + step] = (x[rest[start : start + step]] @ x[chosen].T).max(1)
    return float(np.median(best))
