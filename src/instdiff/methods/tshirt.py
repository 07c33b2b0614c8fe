"""T-SHIRT (Fu et al., NeurIPS 2025, arXiv:2506.01317): IFD of the tokens that matter, steady under noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Budget,
    Floats,
    Joint,
    Nll,
    Noisy,
    Prompted,
    ResponseOnly,
    Scored,
    Scores,
    Signal,
    Signals,
    View,
    reasons,
)
from instdiff.methods.algorithms.token_selection import Running, least_size, selective, share_of
from instdiff.methods.shared.race import RacingMethod, goes_on
from instdiff.methods.shared.token_pairs import clean_rows, have_both, pair, placed


@dataclass(frozen=True)
class TShirt(RacingMethod):
    """Shortlist ``gamma`` x budget rows by mean S-IFD over noisy copies; keep those of the lowest standard deviation.

    S-IFD is IFD of some tokens: those whose difference is among the top ``k`` percent of the data set. ``threshold``
    takes the percentile over all noisy copies, as published, or over the ``clean`` rows. ``draws`` copies have noise of
    size ``alpha`` on their embeddings. ``k=100`` is IFD of every token, ``hierarchical=false`` is clean S-IFD without
    noise, and ``variance="high"`` prefers unsteady rows (the paper's ablations).

    Where the mean noisy IFD is 1 or more the prompt misleads the model: ``filtered``, as in the published code but not
    in the paper; ``keep_misled`` keeps them. A row none of whose tokens is ever selected says nothing: ``filtered``.

    By default a start token stands before the response alone, so that all its tokens count. A response of fewer than
    ``min_response_tokens`` tokens is ``too_short``: by default 2, and 1 as published.
    ``compat="official"``: no template, one joint tokenisation, no first token where the tokenizer adds no start token,
    sizes strictly above the percentile, and a row without selected tokens has S-IFD 1. Where the prompt's end merges
    with the response the published code stops; here the row is ``misaligned``.

    With ``race``, a budget such as ``10%``, rows that after ``race_after`` draws are unlikely to be among ``gamma`` of
    it have no more draws. They keep the mean so far and come last; ``contends`` tells. The threshold is that of the
    first draws. ``least`` is the threshold, ``informative`` the share of a clean row's tokens that reach it.
    """

    name: ClassVar[str] = "tshirt"
    paper: ClassVar[str] = "arXiv:2506.01317"
    filters: ClassVar[str] = "mean noisy IFD >= 1, or no token selected"

    k: float = 50.0
    threshold: Literal["noisy", "clean"] = "noisy"
    draws: int = 30
    alpha: float = 5.0
    gamma: float = 2.0
    seed: int = 42
    hierarchical: bool = True
    variance: Literal["low", "high"] = "low"
    keep_misled: bool = False
    min_response_tokens: int | None = None
    model: str = "proxy"
    compat: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.k <= 100 and self.draws >= 1 and self.gamma >= 1):
            raise ValueError("k lies above 0 and up to 100, draws and gamma are 1 or more")

    def signals(self) -> dict[str, Signal]:
        """NLL of the response with and without the prompt, clean and with each draw of noise."""
        given, alone = self.views()
        out = {"given": Signal(Nll(), given, self.model), "alone": Signal(Nll(), alone, self.model)}
        for draw in range(self.draws if self.hierarchical else 0):
            for name, view in (("given", given), ("alone", alone)):
                noisy = Signal(Nll(), Noisy(view, draw, self.alpha, self.seed), self.model)
                out[f"{name}_{draw}"] = noisy if draw < self.first_draws else self.late(noisy)
        return out | self.contends(given)

    @property
    def all_draws(self) -> int:
        """Of noise."""
        return self.draws if self.hierarchical else 1

    def views(self) -> tuple[View, View]:
        """The response given its prompt, and alone."""
        if self.compat == "official":
            return Joint("plain"), Joint("plain", alone="", slack=None)
        return Prompted(), ResponseOnly()

    def score(self, s: Signals) -> Scores:
        """Mean S-IFD over draws, or clean S-IFD."""
        rows, aside, ifd = clean_rows(s, self.min_response_tokens, self.compat)
        on, strict = goes_on(s)[rows], self.compat == "official"
        ends = [f"_{draw}" for draw in self.seen_draws(on)] if self.hierarchical else [""]
        by = ends[: self.first_draws] if self.threshold == "noisy" else [""]
        every = len(rows) == 0 or (self.race is not None and self.k == 100)  # also those below the least of the first
        least = 0.0 if every else least_size(lambda: (pair(s, rows, end)[0] for end in by), self.k)
        selected, plain, seen = Running(len(rows)), Running(len(rows)), np.zeros(len(rows), np.int64)
        for draw, end in enumerate(ends):
            at = np.flatnonzero(on & have_both(s, rows, end)) if draw >= self.first_draws else np.arange(len(rows))
            column, ratio = pair(s, rows[at], end)
            value, count = selective(column, least, strict=strict)
            selected.add(value, at)
            plain.add(ratio, at)
            seen[at] += count

        wide = partial(placed, rows, len(s))
        mean, unseen = wide(selected.mean), wide(seen) == 0
        drop = np.zeros(len(s), bool) if self.keep_misled else wide(plain.mean) >= 1
        drop |= unseen & (self.compat == "default")
        noisy = (plain.mean, plain.std, selected.mean, selected.std) if self.hierarchical else [np.nan] * len(DETAILS)
        shown = {"informative": wide(share_of(pair(s, rows, "")[0], least, strict=strict)), "least": wide(least)}
        details = {"ifd": ifd} | dict(zip(DETAILS, map(wide, noisy), strict=True)) | shown | self.told(s)
        return Scores(np.where(drop, np.nan, mean), reasons(len(s), **aside, filtered=drop), **details)

    def interval(self, scores: Scores, margin: float) -> tuple[Floats, Floats]:
        """The mean S-IFD, where the mean IFD may leave the row in."""
        ifd, dev, mean, std = (scores.details[name] for name in DETAILS)
        ifd = np.zeros(len(ifd)) if self.keep_misled else ifd
        sure = (scores.reason == None) & (ifd + margin * dev < 1)  # noqa: E711 - elementwise
        low = np.where(sure, mean - margin * std, np.nan)
        return low, np.where(ifd - margin * dev < 1, mean + margin * std, np.nan)

    def reach(self, budget: Budget, scored: Scored) -> Budget:
        """``gamma`` times the budget."""
        return budget.count(self.gamma * budget.target(scored))

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """The steadiest of the best ``gamma`` budgets; equally steady ones by their mean."""
        if not self.hierarchical:
            return super().pick(scored, budget)
        best = scored.best()
        if self.compat == "official":  # ties by row
            best = np.sort(best)[np.argsort(-scored.value[np.sort(best)], kind="stable")]
        wide = self.reach(budget, scored).take(self.dropped_last(best, scored), scored)
        std = scored.details["std_noisy_sifd"][wide] * (1 if self.variance == "low" else -1)
        return budget.take(self.dropped_last(wide[np.argsort(std, kind="stable")], scored), scored)


DETAILS = ("avg_noisy_ifd", "std_noisy_ifd", "avg_noisy_sifd", "std_noisy_sifd")
