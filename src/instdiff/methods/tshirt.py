"""T-SHIRT (Fu et al., NeurIPS 2025, arXiv:2506.01317): IFD of the tokens that matter, steady under noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Budget,
    Floats,
    Joint,
    Method,
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
from instdiff.methods.algorithms.token_selection import Running, least_size, selective
from instdiff.methods.shared.short import too_short


@dataclass(frozen=True)
class TShirt(Method):
    """Highest mean S-IFD over noisy copies, and of ``gamma`` times the budget of those the ones with least deviation.

    S-IFD is IFD of the tokens alone whose difference is among the top ``k`` percent of the data set: by ``threshold``
    of all noisy copies, as published, or of the ``clean`` rows. ``draws`` copies have noise of size ``alpha`` on their
    embeddings. ``k=100`` is IFD of every token; ``hierarchical=false`` is clean S-IFD without any noise;
    ``variance="high"`` prefers the unsteady rows (the paper's ablations).

    Where the mean noisy IFD is 1 or more the prompt misleads the model: ``filtered``, as in the published code but not
    in the paper; ``keep_misled`` keeps them. A row none of whose tokens is ever selected says nothing: ``filtered``.

    By default a start token stands before the response alone, so that all its tokens count. A response of fewer than
    ``min_response_tokens`` tokens is ``too_short``: by default 2, and 1 as published.
    ``compat="official"``: no template, one joint tokenisation, no first token where the tokenizer adds no start token,
    sizes strictly above the percentile, and a row without selected tokens has S-IFD 1. Where the prompt's end merges
    with the response the published code stops; here the row is ``misaligned``.
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
        if not (0 < self.k <= 100 and self.draws >= 1 and self.gamma >= 1):
            raise ValueError("k lies above 0 and up to 100, draws and gamma are 1 or more")

    def signals(self) -> dict[str, Signal]:
        """NLL of the response with and without the prompt, clean and with each draw of noise."""
        given, alone = self.views()
        out = {"given": Signal(Nll(), given, self.model), "alone": Signal(Nll(), alone, self.model)}
        for draw in range(self.draws if self.hierarchical else 0):
            for name, view in (("given", given), ("alone", alone)):
                out[f"{name}_{draw}"] = Signal(Nll(), Noisy(view, draw, self.alpha, self.seed), self.model)
        return out

    def views(self) -> tuple[View, View]:
        """The response given its prompt, and alone."""
        if self.compat == "official":
            return Joint("plain"), Joint("plain", alone="", slack=None)
        return Prompted(), ResponseOnly()

    def score(self, s: Signals) -> Scores:
        """Mean S-IFD over draws, or clean S-IFD."""
        rows, aside, ifd = self._clean(s)
        ends = [f"_{draw}" for draw in range(self.draws)] if self.hierarchical else [""]
        by = ends if self.threshold == "noisy" else [""]
        least = least_size(lambda: (_pair(s, rows, end)[0] for end in by), self.k) if len(rows) else 0.0
        selected, plain, seen = Running(len(rows)), Running(len(rows)), np.zeros(len(rows), np.int64)
        for end in ends:
            column, ratio = _pair(s, rows, end)
            value, count = selective(column, least, strict=self.compat == "official")
            selected.add(value)
            plain.add(ratio)
            seen += count

        def wide(values: npt.ArrayLike) -> Floats:
            out = np.full(len(s), np.nan)
            out[rows] = values
            return out

        mean, unseen = wide(selected.mean), wide(seen) == 0
        drop = np.zeros(len(s), bool) if self.keep_misled else wide(plain.mean) >= 1
        drop |= unseen & (self.compat == "default")
        reason = reasons(len(s), **aside, filtered=drop)
        details = {"ifd": ifd} | {name: np.full(len(s), np.nan) for name in DETAILS}
        if self.hierarchical:
            found = (wide(plain.mean), wide(plain.std), mean, wide(selected.std))
            details |= dict(zip(DETAILS, found, strict=True))
        return Scores(np.where(drop, np.nan, mean), reason, **details)

    def _clean(self, s: Signals) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.bool_]], Floats]:
        """Rows with all columns, those left out by reason (views that differ in tokens as no others do), and IFD."""
        given, alone = s.given, s.alone
        with np.errstate(over="ignore"):
            ifd = np.exp(given.mean() - alone.mean())
        short = too_short(given.count(), self.min_response_tokens, self.compat)
        usable = np.array([word is None for word in s.reason], bool) & ~short
        more = given.lengths() - alone.lengths()
        kinds, counts = np.unique(more[usable], return_counts=True)
        misaligned = usable & (more != (kinds[counts.argmax()] if len(kinds) else 0))
        return np.flatnonzero(usable & ~misaligned), {"too_short": short, "misaligned": misaligned}, ifd

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """The steadiest of the best ``gamma`` budgets; equally steady ones by their mean."""
        best = scored.best()
        if not self.hierarchical:
            return budget.take(best, scored)
        if self.compat == "official":  # ties by row
            best = np.sort(best)[np.argsort(-scored.value[np.sort(best)], kind="stable")]
        unit = "rows" if budget.kind in ("rows", "share", "eligible") else "tokens"
        wide = Budget(self.gamma * budget.target(scored), unit).take(best, scored)
        std = scored.details["std_noisy_sifd"][wide]
        return budget.take(wide[np.argsort(std if self.variance == "low" else -std, kind="stable")], scored)


DETAILS = ("avg_noisy_ifd", "std_noisy_ifd", "avg_noisy_sifd", "std_noisy_sifd")


def _pair(s: Signals, rows: npt.NDArray[np.int64], end: str) -> tuple[Any, Floats]:
    """NLL with the prompt minus NLL without, of the tokens that both have, and the ratio of perplexities."""
    given, alone = getattr(s, f"given{end}").take(rows), getattr(s, f"alone{end}").take(rows)
    with np.errstate(over="ignore"):
        return given.keep_last(alone.lengths()) - alone, np.exp(given.mean() - alone.mean())
