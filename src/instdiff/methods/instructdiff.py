"""InstructDiff (Su et al., ACL 2026, arXiv:2601.23006): lowest differential entropy among the learnable rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Budget,
    DetailPlot,
    Entropy,
    Floats,
    Joint,
    Listed,
    Method,
    Nll,
    Prompted,
    Scored,
    Scores,
    Signal,
    Signals,
    View,
    reasons,
)
from instdiff.core.arrays.ranking import best_first
from instdiff.methods.shared.bands import Band, by_band


@dataclass(frozen=True)
class InstructDiff(Method):
    """Drop both ends of delta NLL, then prefer the lowest delta entropy (delta is base minus calibrated; eq. 2 and 5).

    The calibrated model is the base after a short training on a random tenth, or on the last round's selection
    (Algorithm 1). ``nll_reject_ratio`` is cut, by rank, from each end of delta NLL: floor(ratio * n) rows of the n
    scorable ones, nothing where that would leave none. ``abs`` ranks by |delta entropy| instead of the signed value,
    ``band`` takes the middle or the highest instead of the lowest (the paper's ablation, Figure 3).
    ``exclude_warmup`` makes the rows of the warm-up subset ineligible. ``score_eos`` scores the end token too.

    ``compat="official"``: the published prompt, which ignores ``input``; the joining newline is scored where it is a
    token of its own; nothing is cut, rows with a prompt or response above 4,096 tokens are ``too_long``; ties keep the
    order of the delta-NLL sort.
    """

    name: ClassVar[str] = "instructdiff"
    paper: ClassVar[str] = "arXiv:2601.23006"
    official_order: ClassVar[bool] = True
    filters: ClassVar[str] = "an end of delta NLL"
    plots: ClassVar[tuple[DetailPlot, ...]] = (
        DetailPlot(
            "delta",
            "Delta NLL and delta entropy",
            "diff_nll",
            "diff_entropy",
            ("delta NLL", "delta entropy"),
            "nats per token",
            "Delta is the base model minus the calibrated one. Rows at both ends of delta NLL are left out; of the "
            "rows within the band those with the lowest delta entropy are taken.",
            band=True,
        ),
    )

    nll_reject_ratio: float = 0.1
    abs: bool = False
    band: Band = "min"
    exclude_warmup: bool = False
    score_eos: bool = False
    min_response_tokens: int = 1
    base: str = "base"
    calibrated: str = "calibrated"
    compat: Literal["default", "official"] = "default"

    def signals(self) -> dict[str, Signal]:
        """NLL and entropy of the response under both models."""
        official = self.compat == "official"
        view: View = Joint("alpaca_no_input", join="\n", limit=4096) if official else Prompted(score_eos=self.score_eos)
        warmup = {"warmup": Signal(Listed("warmup"))} if self.exclude_warmup else {}
        return warmup | {
            f"{role}_{word}": Signal(measure, view, model)
            for role, model in (("base", self.base), ("calibrated", self.calibrated))
            for word, measure in (("nll", Nll()), ("entropy", Entropy()))
        }

    def score(self, s: Signals) -> Scores:
        """Minus delta entropy, so that the lowest comes first."""
        details: dict[str, Floats] = {
            name: getattr(s, name).mean()
            for name in ("base_nll", "base_entropy", "calibrated_nll", "calibrated_entropy")
        }
        diff_nll = details["base_nll"] - details["calibrated_nll"]
        diff_entropy = details["base_entropy"] - details["calibrated_entropy"]
        count = s.base_nll.count()
        short = (count > 0) & (count < self.min_response_tokens)
        warmup = s.warmup if self.exclude_warmup else np.zeros(len(s), bool)
        ends = self._ends(np.where(short, np.nan, diff_nll), s)
        key = by_band(np.abs(diff_entropy) if self.abs else diff_entropy, self.band)
        reason = reasons(len(s), too_short=short, warmup=warmup, filtered=ends)
        value = np.where(short | warmup | ends, np.nan, key)
        return Scores(value, reason, **details, diff_nll=diff_nll, diff_entropy=diff_entropy)

    def _ends(self, diff_nll: Floats, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows at either end of the delta-NLL ranking (eq. 5); ties by id and copy, or by row as published."""
        official = self.compat == "official"
        order = best_first(-diff_nll, [""] * len(s) if official else s.ids)
        trim = self.cut_at_each_end(len(order))
        out = np.zeros(len(s), bool)
        if trim > 0:
            out[order[:trim]] = out[order[-trim:]] = True
        return out

    def cut_at_each_end(self, rows: int) -> int:
        """How many of so many scorable rows are cut from each end of delta NLL; 0 where none would be left.

        The share is a decimal that somebody typed: 0.29 of 100 rows is 29, and 28 as published, by floating point.
        """
        exact = rows * self.nll_reject_ratio
        trim = int(exact if self.compat == "official" else exact + 1e-9)
        return trim if 2 * trim < rows else 0

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Best first; the published order breaks ties by delta NLL, then by row."""
        if self.compat == "default":
            return super().pick(scored, budget)
        order = np.lexsort((np.arange(len(scored)), scored.details["diff_nll"], -scored.value))
        return budget.take(np.asarray(order[scored.eligible[order]], np.int64), scored)
