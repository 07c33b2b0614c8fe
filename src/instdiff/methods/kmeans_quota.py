"""Equal shares of clusters, as ClusterClip (arXiv:2402.14526) and CaR (arXiv:2402.18191) balance data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from instdiff.core import Signals, vectors
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.effort import check_kmeans
from instdiff.methods.algorithms.kmeans import Engine, by_cluster, cluster, principal_components
from instdiff.methods.shared.set_method import Indices, VectorMethod


@dataclass(frozen=True)
class KMeansQuota(VectorMethod):
    """The best row of each cluster, then the second best of each, and so on.

    Best is the score of the method before it (``then``) or, without one, nearest to the centroid. ``clusters`` is
    sqrt(n / 2) where nothing is said, as in CaR. ``spherical`` compares by cosine. The clusters are those of all rows,
    so that all are ranked at once: ``reach`` is 1. ``pca`` is the share of the variance that the vectors keep before
    they are clustered, 0.95 in CaR. k-means runs ``starts`` times and the best is kept, 10 times in CaR.

    ``engine=full`` goes over all rows until no cluster changes, with a copy of the vectors in memory, and refuses where
    that would take hours or most of the memory. ``minibatch`` learns the clusters from draws of 4,096 rows, ``faiss``
    from at most 256 rows for each; both then go over the rows once, and do not copy them.
    """

    name: ClassVar[str] = "kmeans_quota"
    paper: ClassVar[str] = "arXiv:2402.14526; arXiv:2402.18191"

    clusters: int | None = None
    spherical: bool = False
    pca: float | None = None
    starts: int = 1
    engine: Engine = "full"
    seed: int = 42
    reach: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < (self.pca or 1) <= 1 or self.starts < 1:
            raise ConfigError(f"'{self.name}.pca' is above 0 and at most 1, and '{self.name}.starts' 1 or more")

    def choose(self, s: Signals, count: int) -> Indices:
        """Clusters in turns."""
        wanted = min(max(1, self.clusters or int(np.sqrt(len(s) / 2))), len(s))
        x = vectors(s.vector)[0]
        if self.engine == "full":
            check_kmeans(self.name, (self.starts * x.shape[0], x.shape[1]), wanted)
        if self.pca is not None and (x != x[0]).any():
            x = principal_components(x, self.pca, self.seed)
        label, distance = cluster(
            x, wanted, seed=self.seed, engine=self.engine, spherical=self.spherical, starts=self.starts
        )
        score = None if s.prior is None else np.where(np.isfinite(s.prior), s.prior, -np.inf)
        return by_cluster(label, distance, count, score=score, caps=s.caps)

    @property
    def approximation(self) -> str | None:
        """How the clusters are not those of all rows."""
        return (
            None if self.engine == "full" else f"{self.name}: clusters learnt from a part of the rows ({self.engine})"
        )
