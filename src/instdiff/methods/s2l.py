"""S2L (Yang et al., NeurIPS 2024, arXiv:2403.07384): small to large, evenly over rows that are learnt alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from instdiff.core import Column, Floats, MeanNll, Prompted, Scores, Signal, Signals
from instdiff.core.signals import Saves, TrainedOn
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.effort import check_kmeans
from instdiff.methods.algorithms.kmeans import Engine, cluster
from instdiff.methods.random import uniform
from instdiff.methods.shared.set_method import Indices, SetMethod

SMALL, ROUNDS = 2, 20
"""Rows of a cluster that gives only what others lack; rounds of k-means, as published."""


@dataclass(frozen=True)
class S2L(SetMethod):
    """Rows evenly over clusters of like loss trajectories: alike are rows whose losses move alike in a small training.

    A proxy is trained on the pool, ``epochs`` passes from the model of the role ``model``, and kept at ``saves`` points
    evenly over its steps; ``lora`` trains adapters of that rank. A row's vector is its mean NLL at each. Each of
    ``clusters`` gives the same number of rows at random, by ``seed``, or all where it has no more; clusters of one or
    two rows come last. With ``source``, a column, its values share the budget in the same way, and each is clustered by
    itself. Published is a save every 500 steps, at most 12; a row that could not be read at a save is left out here.

    The saves are the models of the roles ``proxy/1``, ``proxy/2``, ...; they are trained where they are not bound.
    ``engine`` is that of `kmeans_quota`. All rows are ranked at once: ``reach`` is 1. Details: ``cluster``, numbered
    from the smallest, and ``nll_first`` and ``nll_last``, at the first and the last save.
    """

    name: ClassVar[str] = "s2l"
    paper: ClassVar[str] = "arXiv:2403.07384"

    clusters: int = 100
    saves: int = 12
    epochs: float = 3
    source: str | None = None
    lora: int | None = None
    engine: Engine = "full"
    seed: int = 42
    model: str = "proxy"
    proxy: str = "proxy"
    reach: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("clusters", "saves", *(("lora",) if self.lora is not None else ())):
            if getattr(self, key) < 1:
                raise ConfigError(f"'{self.name}.{key}' is {getattr(self, key)}; the least is 1")
        if not self.epochs > 0:
            raise ConfigError(f"'{self.name}.epochs' is {self.epochs:g}; it lies above 0")

    def signals(self) -> dict[str, Signal]:
        """The mean NLL of the response at each save, the training that keeps them, and the source."""
        roles = tuple((f"{self.proxy}/{at}", self.epochs * at / self.saves) for at in range(1, self.saves + 1))
        lora = {} if self.lora is None else {"use_lora": True, "lora_r": self.lora, "lora_alpha": 2.0 * self.lora}
        kept = Saves(roles, tuple(lora.items()), of="pool", model=self.model, seed=self.seed)
        losses = {f"nll_{at}": Signal(MeanNll(), Prompted(), role) for at, (role, _) in enumerate(roles, 1)}
        source = {"source": Signal(Column(self.source))} if self.source else {}
        return {**losses, "seen": Signal(TrainedOn(roles[-1][0], kept)), **source}

    def _losses(self, s: Signals) -> Floats:
        """The trajectory of each row [rows, saves], in nats per token."""
        return np.stack([getattr(s, f"nll_{at}").mean() for at in range(1, self.saves + 1)], 1)

    def score(self, s: Signals) -> Scores:
        """Minus the rank, with the cluster."""
        ranks, x = super().score(s), self._losses(s)
        own, rows = np.full(len(s), np.nan), self.order_rows(s, np.flatnonzero(self.ready(s)))
        if len(rows):
            own[rows] = self._clusters(s.take(rows))[1]
        return Scores(ranks.value, ranks.reason, cluster=own, nll_first=x[:, 0], nll_last=x[:, -1])

    def choose(self, s: Signals, count: int) -> Indices:
        """Round the sources, and in each round the clusters; rows of a value that is full are passed over."""
        draw, (source, own) = uniform(self.seed, s), self._clusters(s)
        place = np.empty(len(s), np.int64)
        for rows in (np.flatnonzero(source == one) for one in range(int(source.max()) + 1)):
            place[rows[cluster_order(own[rows], draw[rows])]] = np.arange(len(rows))
        order = even_order(source, place)
        return (order if s.caps is None else s.caps.limit(order))[:count]

    def _clusters(self, s: Signals) -> tuple[Indices, Indices]:
        """The source and the cluster of each row, both numbered from the smallest."""
        x, source = self._losses(s), np.zeros(len(s), np.int64)
        if self.source:
            source = by_size(np.unique([str(one) for one in s.source], return_inverse=True)[1])
        own, done = np.zeros(len(s), np.int64), 0
        for rows in (np.flatnonzero(source == one) for one in range(int(source.max()) + 1)):
            wanted = min(self.clusters, len(np.unique(x[rows], axis=0)))
            if self.engine == "full":
                check_kmeans(self.name, (len(rows), x.shape[1]), wanted)
            found = cluster(x[rows], wanted, seed=self.seed, engine=self.engine, rounds=ROUNDS)[0]
            own[rows] = done + by_size(found)
            done = int(own[rows].max()) + 1
        return source, own


def by_size(labels: npt.NDArray[Any]) -> Indices:
    """The same groups numbered from the smallest, 0; of equal ones from that of the lowest row."""
    _, first, group, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    number = np.empty(len(sizes), np.int64)
    number[np.lexsort((first, sizes))] = np.arange(len(sizes))
    return number[group]


def even_order(group: Indices, place: Indices) -> Indices:
    """The order whose every beginning gives each group, the smallest first, what is left over the groups left.

    ``group`` is numbered from the smallest; ``place`` is a row's own in its group, from 0. The remainder goes to the
    largest groups, so that these come first in each round.
    """
    return np.lexsort((-group, place))


def cluster_order(own: Indices, draw: npt.NDArray[np.float64]) -> Indices:
    """Rows round the clusters, at random in each; those of clusters of one or two rows at random behind."""
    order = np.argsort(draw, kind="stable")
    small = np.bincount(own)[own] <= SMALL
    large = order[~small[order]]
    turn = np.zeros(len(own), np.int64)
    for one in np.unique(own[large]):
        rows = large[own[large] == one]
        turn[rows] = np.arange(len(rows))
    rows = np.flatnonzero(~small)
    return np.concatenate([rows[even_order(own[rows], turn[rows])], order[small[order]]])
