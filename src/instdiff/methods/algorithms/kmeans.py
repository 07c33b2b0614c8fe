"""Clusters by k-means, equal shares of them, and their anchors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core.caps import Caps, Room
from instdiff.methods.algorithms.round_robin import take_turns
from instdiff.methods.algorithms.vectors import Indices, Matrix, blocks, count, matrix, unit

Engine = Literal["full", "minibatch", "faiss"]


def principal_components(x: npt.NDArray[Any], share: float, seed: int = 0) -> Matrix:
    """The rows of ``x`` [n, d] on their first principal axes, as many as hold that share of the variance (CaR)."""
    from sklearn.decomposition import PCA

    fit = PCA(share if share < 1 else None, random_state=seed)
    return np.asarray(fit.fit_transform(matrix(x)), np.float32)


def cluster(
    x: npt.NDArray[Any],
    clusters: int,
    *,
    seed: int = 0,
    engine: Engine = "full",
    spherical: bool = False,
    starts: int = 1,
    rounds: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """k-means of ``x`` [n, d]: the cluster of each row, and its Euclidean distance to the centroid.

    The same seed, engine and number of threads give the same clusters. Rows with fewer different values than
    ``clusters`` leave clusters empty. ``engine`` is ``full`` (scikit-learn, all rows until it settles; copies a memory
    map into memory), ``minibatch`` (scikit-learn, for large data), or ``faiss`` (20 rounds, trained on 256 rows per
    cluster at most). ``spherical`` rows and centroids have length 1 and are compared by cosine (ClusterClip, section
    3.1). Of several ``starts`` the closest clusters are kept. ``rounds`` are the most that it makes. A ValueError where
    ``clusters`` is below 1 or above the rows, a row is not finite, or ``engine`` is unknown.
    """
    x = matrix(x)
    if clusters < 1:
        raise ValueError(f"clusters is {clusters}; the least is 1")
    count(clusters, len(x))
    rows = unit(x) if spherical else x
    centroids = _centroids(rows, clusters, seed, engine, spherical, starts, rounds)
    return _assign(rows, unit(centroids) if spherical else centroids)


def _centroids(
    x: Matrix, clusters: int, seed: int, engine: str, spherical: bool, starts: int, rounds: int | None
) -> Matrix:
    if engine == "faiss":
        import faiss

        once = {"niter": rounds or 20, "seed": seed, "spherical": spherical, "min_points_per_centroid": 1}
        found = faiss.Kmeans(x.shape[1], clusters, nredo=starts, **once)
        found.train(np.ascontiguousarray(x))
        return np.asarray(found.centroids, np.float32)
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if engine == "full":
        fit = KMeans(clusters, random_state=seed, n_init=starts, max_iter=rounds or 300)
    elif engine == "minibatch":
        fit = MiniBatchKMeans(clusters, random_state=seed, n_init=starts, batch_size=4096, compute_labels=False)
    else:
        raise ValueError(f"engine '{engine}' is not 'full', 'minibatch' or 'faiss'")
    return np.asarray(fit.fit(x).cluster_centers_, np.float32)


def _assign(x: Matrix, centroids: Matrix) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The nearest centroid of each row, the first of equally near ones, and the distance to it."""
    label, distance = np.empty(len(x), np.int64), np.empty(len(x), np.float32)
    half = np.square(centroids).sum(1) / 2
    for part in blocks(len(x), 4096):
        label[part] = np.argmax(x[part] @ centroids.T - half, 1)
        distance[part] = np.sqrt(np.square(x[part] - centroids[label[part]]).sum(1))
    return label, distance


def quotas(sizes: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    """``k`` in equal parts over groups, none above its size; what is left goes to the first ones that have room."""
    sizes = np.asarray(sizes, np.int64)
    count(k, int(sizes.sum()))
    out = np.zeros(len(sizes), np.int64)
    while out.sum() < k:
        room = np.flatnonzero(sizes > out)
        left = k - int(out.sum())
        share = max(1, left // len(room))
        some = room[:left]
        out[some] += np.minimum(share, (sizes - out)[some])
    return out


def by_cluster(
    label: npt.NDArray[np.int64],
    distance: npt.NDArray[Any],
    k: int,
    *,
    score: npt.NDArray[Any] | None = None,
    caps: Caps | None = None,
) -> Indices:
    """``k`` rows, an equal quota of each cluster; inside one by score, highest first, else nearest to the centroid.

    The best of each cluster comes first, then the second of each, so that every beginning is balanced. A score of NaN
    marks rows that may not be taken. Where the value of a row is full by ``caps`` its cluster gives the next one. Ties
    go to the lowest index; distances tie that differ by less than can be told.
    """
    key = _steps(np.asarray(distance, np.float64)) if score is None else -np.asarray(score, np.float64)
    order = np.lexsort((np.arange(len(label)), key, label))
    order = order[~np.isnan(key[order])]
    if caps is not None:
        clusters = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
        return take_turns(clusters, k, Room(caps, len(label)))
    sizes = np.bincount(label[order], minlength=1)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = place < quotas(sizes, k)[label[order]]
    order, place = order[taken], place[taken]
    return np.asarray(order[np.lexsort((label[order], place))], np.int64)


def _steps(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distances in steps of a ten-thousandth of the largest.

    Both rows of a cluster of two are equally near, and rounding, which differs between machines, should not choose. It
    still does where two distances lie on both sides of a step.
    """
    most = np.nanmax(distance, initial=0.0)
    return np.round(distance / most * 1e4) if most > 0 else distance


def anchors(x: npt.NDArray[Any], k: int, *, seed: int = 0, engine: Engine = "full") -> Indices:
    """The row nearest to the centroid in each of ``k`` clusters (NUGGETS, section 3.3: 100 anchors, seed 0).

    In the order of clusters, fewer than ``k`` where some are empty. Ties go to the lowest index.
    """
    label, distance = cluster(x, k, seed=seed, engine=engine)
    return by_cluster(label, distance, len(np.unique(label)))
