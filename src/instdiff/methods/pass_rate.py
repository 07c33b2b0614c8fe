"""Pass rate: how often a model solves a prompt, and whether that lies in a band; ours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats, Method, Scores, Signal, Signals, reasons
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.signals import CUT, RIGHT, UNVERIFIED, Contends, Contested, Posed, Solved
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.beta import beta_mass, beta_place

_BAND = re.compile(r"(\d*\.?\d+)\s*-\s*(\d*\.?\d+)")


@dataclass(frozen=True)
class PassRate(Method):
    """Prompts that the model solves sometimes: the probability that its pass rate lies in a band, highest first.

    The model draws ``step`` answers to each prompt. After c right ones of n the rate has the posterior Beta(c + prior,
    n - c + prior). Where the band holds at least 1 - ``delta`` of it, the row is inside; where at most ``delta``, it is
    outside, and ``filtered``. The others get ``step`` answers more, up to ``most``; what is undecided then is inside
    where the band holds half. ``order: hard`` takes rows with the lowest rate first.

    ``verifier`` says which answers are right: ``math``, ``code`` (tests in the row, run in the sandbox), ``exact``
    (the same words), ``judge`` (a model of the role ``judge``), or ``auto``, which goes by the row. The right answer
    stands in the column ``answer``; where none is named, in the one of that name, else it is the response. Prompts need
    no response. An answer that ``max_tokens`` cut counts as wrong. An answer without a verdict does not count.

    The band is that of one model at one ``temperature``. Answers stay in the store, so that a larger ``most`` draws
    the others alone. Details: ``drawn``, ``right``, ``rate`` with its 90 % interval ``low`` to ``high``, ``p_band``,
    ``decided``, and ``cut``, the number of answers that were.
    """

    name: ClassVar[str] = "pass_rate"
    paper: ClassVar[str] = "ours"
    filters: ClassVar[str] = "outside the band"

    band: str = "0.2-0.8"
    step: int = 4
    most: int = 16
    delta: float = 0.1
    prior: float = 0.5
    order: Literal["band", "hard"] = "band"
    verifier: Literal["auto", "math", "code", "exact", "judge"] = "auto"
    answer: str | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 42
    model: str = "base"
    judge: str = "judge"

    def __post_init__(self) -> None:
        low, high = self.edges
        if not 0 <= low < high <= 1:
            raise ConfigError(f"'{self.name}.band' is {self.band}; its edges lie in 0 to 1, the lower one first")
        if not 1 <= self.step <= self.most:
            raise ConfigError(
                f"'{self.name}.step' is {self.step}; it is at least 1 and at most {self.most}, the 'most'"
            )
        if not (0 < self.delta < 0.5 and self.prior > 0 and self.temperature > 0 and self.max_tokens >= 1):
            given = f"delta {self.delta:g}, prior {self.prior:g}, temperature {self.temperature:g}"
            raise ConfigError(f"{self.name}: {given} do not fit; delta is above 0 and below 0.5, the others above 0")

    @property
    def edges(self) -> tuple[float, float]:
        """The band as numbers; a ConfigError where it is none."""
        if (found := _BAND.fullmatch(self.band.strip())) is None:
            raise ConfigError(f"'{self.name}.band' is '{self.band}'; write two shares, as 0.2-0.8")
        return float(found[1]), float(found[2])

    def signals(self) -> dict[str, Signal]:
        """The answers in steps; those of later ones belong to rows that are undecided after the earlier."""
        return self.steps(self.most)

    def steps(self, most: int) -> dict[str, Signal]:
        """The columns of the first so many answers."""
        view, asked = Posed(self.verifier, self.answer), dict[str, Signal]()
        for first in range(0, most, self.step):
            last = min(first + self.step, most) - 1
            how = self.temperature, self.top_p, self.max_tokens, self.stop, self.seed
            solved = Solved(first, last, *how, self.judge if self.verifier == "judge" else None)
            shown = Contested(view, Undecided(self, first)) if first else view
            if first:
                asked[f"on{first}"] = Signal(Contends(), shown, self.model)
            asked[f"answers{first}"] = Signal(solved, shown, self.model, optional=first > 0)
        return asked

    def score(self, s: Signals) -> Scores:
        """The mass of the band, or minus the mean of the posterior."""
        drawn, right, cut = self.counts(s, self.most)
        mass, (good, bad) = self.mass(drawn, right), (right + self.prior, drawn - right + self.prior)
        known = drawn > 0
        decided = np.maximum(mass, 1 - mass) >= 1 - self.delta
        out = known & (mass < 0.5)
        value = mass if self.order == "band" else -good / (good + bad)
        rate = np.where(known, right / np.maximum(drawn, 1), np.nan)
        low = np.where(right == 0, 0.0, beta_place(good, bad, 0.05))
        high = np.where(right == drawn, 1.0, beta_place(good, bad, 0.95))
        some = {"low": low, "high": high, "p_band": mass, "decided": decided.astype(np.float64), "cut": cut}
        details = {name: np.where(known, column, np.nan) for name, column in some.items()}
        why = reasons(len(s), filtered=out, no_verdict=~known)
        value = np.where(known & ~out, value, np.nan)
        return Scores(value, why, drawn=drawn, right=right, rate=rate, **details)

    def counts(self, s: Signals, most: int) -> tuple[Floats, Floats, Floats]:
        """Per row how many of the first so many answers have a verdict, are right, and were cut by their length."""
        drawn, right, cut = (np.zeros(len(s)) for _ in range(3))
        for first in range(0, most, self.step):
            words = getattr(s, f"answers{first}")
            if first:  # the store may have more answers than were asked for
                words = words.keep_last(np.where(getattr(s, f"on{first}"), words.lengths(), 0))
            marks = words.values > UNVERIFIED, words.values == RIGHT, words.values == CUT
            for counted, mark in zip((drawn, right, cut), marks, strict=True):
                counted += Ragged(mark.astype(np.float64), words.offsets).sum()
        return drawn, right, cut

    def mass(self, drawn: Floats, right: Floats) -> Floats:
        """The mass of the posterior inside the band."""
        good, bad = right + self.prior, drawn - right + self.prior
        low, high = self.edges
        return beta_mass(good, bad, high) - beta_mass(good, bad, low)


@dataclass(frozen=True)
class Undecided:
    """Says which rows need more answers than the first ``drawn``."""

    method: PassRate
    drawn: int

    def signals(self) -> dict[str, Signal]:
        """The columns of the first answers."""
        return self.method.steps(self.drawn)

    def contenders(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows of which neither the band nor what lies outside has enough of the posterior."""
        mass = self.method.mass(*self.method.counts(s, self.drawn)[:2])
        return np.asarray(self.method.ready(s) & (np.maximum(mass, 1 - mass) < 1 - self.method.delta))

    def __str__(self) -> str:
        """For people."""
        return f"{self.method.name} after {self.drawn} answers"
