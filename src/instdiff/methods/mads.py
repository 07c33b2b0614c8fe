"""MADS (Bai et al., 2026, arXiv:2605.30857), as far as it is known: coverage of strongly activated neurons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats, Length, Neurons, PromptOnly, Scores, Signal, Signals, vectors
from instdiff.core.caps import Caps
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.coverage import coverage
from instdiff.methods.algorithms.vectors import blocks
from instdiff.methods.random import uniform
from instdiff.methods.shared.set_method import Indices, SetMethod, most_of

Tags = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]
_CALIBRATION, _COMPARED = 100, 512
"""The least rows that thresholds come from; the most that are compared pair by pair."""


@dataclass(frozen=True)
class MADS(SetMethod):
    """Greedy: add the row that activates most neurons that no chosen row activates; begin again when there are none.

    Only the abstract and the captions are published. Data are distinguished by neuron activations during inference, in
    three stages. "Strongly activated neurons" and "activation tags" of single layers are shown, with a long-tailed
    frequency of tags, and 15 % of Alpaca-GPT4 are chosen by coverage. All else is our reading. A tag is a strongly
    activated neuron, and a neuron is an input of an MLP's down projection; layers count from 0. Its activation is the
    magnitude ``over`` the tokens of the instruction (``max``, ``mean`` or ``last``). It is strong above the
    ``quantile`` of its layer, over a seeded ``calibration`` share of the rows. Tags in more than ``common`` of the rows
    are dropped. Coverage is greedy and starts again when nothing is left to cover.

    ``layers``: the ``middle`` one; ``spread``, ``count`` evenly over the depth; ``diverse``, of these the one whose tag
    sets overlap least (mean pairwise Jaccard); or a list, whole numbers as layers, fractions as shares of the depth.
    ``times`` closes a tag only when that many rows show it; ``weight="rarity"`` counts it by log(rows / its rows).

    Long instructions have more tokens to set a neuron off: ``length_correlation``, the same number in each row, is the
    correlation of ``n_tags`` with ``length``, the instruction's. If it is high, take ``over="mean"``.
    """

    name: ClassVar[str] = "mads"
    paper: ClassVar[str] = "arXiv:2605.30857"
    tag: ClassVar[str] = "neuron"

    layers: Literal["middle", "spread", "diverse"] | tuple[int | float, ...] = "middle"
    count: int = 4
    over: Literal["max", "mean", "last"] = "max"
    quantile: float = 0.95
    calibration: float = 0.05
    common: float = 0.9
    times: int = 1
    weight: Literal["one", "rarity"] = "one"
    seed: int = 42
    model: str = "base"
    reach: float = field(default=0.15, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = 0 < self.quantile < 1 and 0 < self.calibration <= 1 and self.count >= 1 and self.times >= 1
        if not fits or not self.layers:
            raise ConfigError("'mads': quantile and calibration lie in 0 to 1, count, times and layers are 1 or more")

    def places(self) -> tuple[int | float, ...]:
        """The layers to read."""
        if isinstance(self.layers, tuple):
            return self.layers
        return (0.5,) if self.layers == "middle" else tuple((at + 0.5) / self.count for at in range(self.count))

    def signals(self) -> dict[str, Signal]:
        """Activations of each layer over the instruction, and its length."""
        layers = {
            f"layer{at}": Signal(Neurons(layer, self.over), PromptOnly(), self.model)
            for at, layer in enumerate(self.places())
        }
        return layers | {"length": Signal(Length("instruction"), model=self.model)}

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows whose layers were all read."""
        full = super().ready(s)
        for at in range(len(self.places())):
            full = full & vectors(getattr(s, f"layer{at}"))[1]
        return full

    def score(self, s: Signals) -> Scores:
        """Minus the rank, with the number of tags."""
        ready = self.ready(s)
        rows = self.order_rows(s, np.flatnonzero(ready))
        n_tags, order = np.full(len(s), np.nan), rows
        count = min(max(1, int(np.ceil(self.reach * len(s) - 1e-9))), len(rows))
        if count:
            tags = self.tags(s, rows)
            n_tags[rows] = np.diff(tags[0])
            order = rows[self._cover(tags, count)]
        ranks = self.rank_scores(s, ready, order, count)
        length = np.asarray(s.length, np.float64)
        same = np.where(ready, _correlation(n_tags[rows], length[rows]), np.nan)
        return Scores(ranks.value, ranks.reason, n_tags=n_tags, length=length, length_correlation=same)

    def order(self, s: Signals, count: int) -> Indices:
        """Coverage in rounds."""
        rows = self.open_rows(s)
        caps = None if s.caps is None else s.caps.take(rows)
        return rows[self._cover(self.tags(s, rows), min(count, most_of(s.caps, rows)), caps)] if len(rows) else rows

    def _cover(self, tags: Tags, count: int, caps: Caps | None = None) -> Indices:
        return coverage(*tags, count, times=self.times, weight=self.weight, common=self.common, caps=caps)

    def tags(self, s: Signals, rows: Indices) -> Tags:
        """The strongly activated neurons of these rows: offsets, and layer * width + neuron. No layer is copied."""
        size = min(len(rows), max(_CALIBRATION, int(self.calibration * len(rows))))
        sample = rows[np.sort(np.argsort(uniform(self.seed, s)[rows], kind="stable")[:size])]
        layers = []
        for at in range(len(self.places())):
            x, full = vectors(getattr(s, f"layer{at}"))
            place = np.cumsum(full) - 1
            layers.append((x, place, float(np.quantile(x[place[sample]], self.quantile))))
        if self.layers == "diverse":
            some = sample[:: -(-len(sample) // _COMPARED)]
            layers = [min(layers, key=lambda layer: _overlap(layer[0][layer[1][some]] > layer[2]))]
        counts, indices = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)]
        for part in blocks(len(rows), 1024):
            strong = np.concatenate([x[place[rows[part]]] > limit for x, place, limit in layers], 1)
            counts.append(strong.sum(1))
            indices.append(np.nonzero(strong)[1].astype(np.int32))
        return np.cumsum(np.concatenate(counts)), np.concatenate(indices)


def _overlap(strong: npt.NDArray[np.bool_]) -> float:
    """Mean Jaccard similarity of the tag sets of two rows; two empty sets are alike."""
    x: npt.NDArray[Any] = strong.astype(np.float32)
    both, sizes = x @ x.T, x.sum(1)
    either = sizes[:, None] + sizes - both
    pairs = np.triu_indices(len(x), 1)
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0)[pairs].mean()) if len(pairs[0]) else 0.0


def _correlation(a: Floats, b: Floats) -> float:
    """Pearson's; NaN where one does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
