"""LARK (Yu et al., arXiv:2605.30651): of several traces of a problem those whose loss will fall fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Brier, Floats, Method, Nll, Prompted, Scores, Signal, Signals, reasons
from instdiff.core.signals import Group
from instdiff.errors import ConfigError

LIKELIEST, OFFICIAL_STEP = 50, 1e-8
"""Tokens over which the published code takes the Brier score, and how far below the last trace its threshold lies."""
FLAT = 1e-12
"""Traces whose gains lie together by less than this, each, count the same."""


@dataclass(frozen=True)
class Lark(Method):
    """How fast the model's loss on a trace will fall, compared with the other traces of its problem; highest first.

    A problem is a prompt, or a value of the column ``group``. It groups by itself; ``--per prompt B`` then takes the
    best B of each problem. ``weight`` is a detail: what the best ``best`` traces of a problem count in training, by how
    far they lie above the next one; equal where there is no next one. `pipeline` and `compare` train by it, unless
    ``weights`` is ``none``; ``--weights lark.weight`` of `select` writes it to the rows, where ``train.weights`` reads
    it. Copies in a problem are ``filtered``, since they would count twice, and so is a problem without any loss.

    ``compat="official"`` takes the Brier score over the 50 likeliest tokens, counts copies, and gives the last trace of
    a problem with no more than ``best`` of them a weight of about 0. Details: ``nll``, ``brier``, ``ratio`` and
    ``weight``.
    """

    name: ClassVar[str] = "lark"
    paper: ClassVar[str] = "arXiv:2605.30651"
    filters: ClassVar[str] = "copies, and problems without any loss"
    default_weights: ClassVar[str] = "weight"

    best: int = 3
    group: str | None = None
    model: str = "base"
    compat: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        if self.best < 1:
            raise ConfigError(f"'{self.name}.best' is {self.best}; the least is 1 trace of a problem")

    def signals(self) -> dict[str, Signal]:
        """NLL and Brier score of each response token given the prompt, and which rows have one prompt."""
        brier = Brier(LIKELIEST if self.compat == "official" else None)
        return {
            "nll": Signal(Nll(), Prompted(), self.model),
            "brier": Signal(brier, Prompted(), self.model),
            "group": Signal(Group(self.group)),
        }

    def score(self, s: Signals) -> Scores:
        """The gain of each trace within its problem."""
        loss, brier = s.nll.mean(), s.brier.mean()
        copy = (s.occurrence > 0) & (self.compat == "default")
        rows = s.ids.order(np.flatnonzero(np.isfinite(loss) & np.isfinite(brier) & ~copy))  # sums in a fixed order
        problem = np.unique(np.asarray(s.group)[rows].astype(str), return_inverse=True)[1]
        ratio, gain, weight = (np.full(len(s), np.nan) for _ in range(3))
        ratio[rows], gain[rows] = gains(loss[rows], brier[rows], problem)
        weight[rows] = np.where(np.isnan(gain[rows]), np.nan, 0.0)
        best = rows[np.lexsort((-gain[rows], problem))]
        for traces in np.split(best, np.flatnonzero(np.diff(np.sort(problem))) + 1):
            traces = traces[~np.isnan(gain[traces])]
            weight[traces[: self.best]] = weights(gain[traces], self.best, official=self.compat == "official")
        lost = np.isin(np.arange(len(s)), rows) & np.isnan(gain)
        why = reasons(len(s), filtered=copy | lost)
        return Scores(gain, why, nll=loss, brier=brier, ratio=ratio, weight=weight)


def gains(loss: Floats, brier: Floats, problem: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Brier score over NLL of each trace, and its gain; NaN for the traces of a problem without any loss.

    ``loss``, ``brier`` and the number of the ``problem`` are [N]. With L the loss and r the ratio the gain is
    ``(L / sum L) (2 r - sum(r L) / sum L)``, sums over the traces of the problem (sections 4.2 and 4.3).
    """
    ratio = np.where(loss > 0, brier / np.where(loss > 0, loss, 1.0), 0.0)
    total, product = (np.bincount(problem, x)[problem] if len(x) else x for x in (loss, ratio * loss))
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = loss / total * (2 * ratio - product / total)
    return ratio, np.where(total > 0, gain, np.nan)


def weights(gain: Floats, best: int, *, official: bool = False) -> Floats:
    """What the best traces of a problem count, with sum 1, of the gains of all its traces, best first."""
    some = gain[:best]
    if len(gain) > best:
        above = some - gain[best]
    else:
        above = some - (some[-1:] - OFFICIAL_STEP) if official else np.zeros(len(some))
    if above.sum() < FLAT * best:
        return np.full(len(some), 1 / max(1, len(some)))
    return np.asarray(above / above.sum())
