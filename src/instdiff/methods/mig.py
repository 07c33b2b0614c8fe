"""MIG (Chen et al., 2025, arXiv:2504.13835): the rows that add most information about their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from instdiff.core import Embedding, Floats, Length, Scores, Signal, Signals, reasons, vectors
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.columns import first_reason
from instdiff.core.signals import EachLabel, Labels
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.effort import check_kmeans
from instdiff.methods.algorithms.information import most_information, spread
from instdiff.methods.algorithms.kmeans import Engine, cluster
from instdiff.methods.shared.set_method import Indices, SetMethod, vector


@dataclass(frozen=True)
class MIG(SetMethod):
    """Greedy: add the row that tells most about labels of which the chosen rows tell little.

    A row tells its score of each of its labels, and shares it with labels whose cosine is ``threshold`` or more. Its
    score is that of the method before it (``then``), which has to be 0 or more; published is a judge's quality times
    complexity, as in `deita`. Without one all rows count the same. ``norm`` divides the score by the number of labels.

    ``column`` holds the labels of each row, and the text embedder reads their names; rows without one are
    ``no_label``. Without a column a row's label is its cluster: one of ``clusters`` among the embedder's vectors of
    rows, sqrt(n / 2) of them where nothing is said, and a cluster's vector is its centre. ``engine`` is that of
    `kmeans_quota`. Details: ``n_labels``, and ``cluster``.
    """

    name: ClassVar[str] = "mig"
    paper: ClassVar[str] = "arXiv:2504.13835"

    column: str | None = None
    clusters: int | None = None
    threshold: float = 0.9
    norm: bool = False
    engine: Engine = "full"
    seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold <= 1 or (self.clusters or 1) < 1:
            raise ConfigError(f"'{self.name}.threshold' is above 0 and at most 1, and '{self.name}.clusters' 1 or more")

    def signals(self) -> dict[str, Signal]:
        """The labels of each row with their vectors, or a vector of each row."""
        length = {"length": Signal(Length(unit="chars"))}
        if self.column is None:
            return length | {"vector": vector()}
        labels, read = Labels(self.column), Signal(Embedding(), EachLabel(self.column), "embedder", of="labels")
        return length | {"labels": Signal(labels), "names": Signal(labels, of="labels"), "named": read}

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows with a label."""
        return super().ready(s) & (vectors(s.vector)[1] if self.column is None else _counts(s) > 0)

    def score(self, s: Signals) -> Scores:
        """Minus the rank, with the number of labels."""
        if self.column is not None:
            ranks, counts = super().score(s), _counts(s)
            reason = first_reason(reasons(len(s), no_label=counts == 0), ranks.reason)
            return Scores(ranks.value, reason, n_labels=counts)
        ranks, own = super().score(s), np.full(len(s), np.nan)
        rows = self.order_rows(s, np.flatnonzero(self.ready(s)))
        if len(rows):
            own[rows] = self._cluster(s.take(rows))[0]
        return Scores(ranks.value, ranks.reason, n_labels=np.isfinite(own), cluster=own)

    def choose(self, s: Signals, count: int) -> Indices:
        """Lazy greedy."""
        if self.column is None:
            own, x = self._cluster(s)
            labels = Ragged.of(own[:, None], np.int64)
        else:
            place = {name: at for at, name in enumerate(s.names)}
            labels = Ragged.of([[place[label] for label in row] for row in s.labels], np.int64)
            named, full = vectors(s.named)
            x = np.zeros((len(full), named.shape[1]), np.float32)
            x[full] = named
        over = spread(x, self.threshold)
        return most_information(labels, self._scores(s), over, count, norm=self.norm, caps=s.caps)

    def _cluster(self, s: Signals) -> tuple[Indices, npt.NDArray[np.float32]]:
        """The cluster of each row, and the centres."""
        x = vectors(s.vector)[0]
        wanted = min(max(1, self.clusters or int(np.sqrt(len(s) / 2))), len(np.unique(x, axis=0)))
        if self.engine == "full":
            check_kmeans(self.name, x.shape, wanted)
        _, own = np.unique(cluster(x, wanted, seed=self.seed, engine=self.engine)[0], return_inverse=True)
        return own, np.stack([x[own == one].mean(0) for one in range(int(own.max()) + 1)])

    def _scores(self, s: Signals) -> Floats:
        if s.prior is None:
            return np.ones(len(s))
        if (s.prior < 0).any():
            raise ConfigError(
                f"'{self.name}' weighs rows by the scores of the method before it, and some are below 0; let 'blend' "
                "of that method come first, whose ranks lie in 0 to 1"
            )
        return np.where(np.isfinite(s.prior), s.prior, 0.0)


def _counts(s: Signals) -> npt.NDArray[np.int64]:
    return np.array([len(labels) for labels in s.labels], np.int64)
