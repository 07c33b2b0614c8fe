"""Methods that sum up many draws and may leave out the later ones of rows that cannot win."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from instdiff.core import Budget, Floats, Method, Scored, Scores, Signal, Signals
from instdiff.core.budget import parse_budget
from instdiff.core.signals import Contends, Contested, View
from instdiff.errors import ConfigError

Mask = npt.NDArray[np.bool_]

STANDARD_ERRORS = 2.0
"""How far from its mean so far a row's score may end up."""


@dataclass(frozen=True)
class RacingMethod(Method):
    """A method whose score is a mean over draws, of which the later ones may be left out.

    ``race`` is a budget, such as ``10%``. After ``race_after`` draws of all rows only those go on whose score may still
    lie within it; the others keep the score so far, and are ranked behind.
    """

    race: str | int | None = field(default=None, kw_only=True)
    race_after: int = field(default=10, kw_only=True)

    @property
    def all_draws(self) -> int:
        """Draws of a row that goes on."""
        raise NotImplementedError

    @property
    def first_draws(self) -> int:
        """Draws of every row."""
        return self.all_draws if self.race is None else self.race_after

    def seen_draws(self, on: Mask) -> range:
        """The draws that some row has, where those ``on`` have all."""
        return range(self.all_draws if on.any() else self.first_draws)

    def race_budget(self) -> Budget:
        """What the race is for."""
        return parse_budget(self.race or "100%")

    def __post_init__(self) -> None:
        self.race_budget()
        if self.race is not None and not 2 <= self.race_after < self.all_draws:
            raise ConfigError(
                f"'{self.name}.race_after' is {self.race_after}; a race of {self.all_draws} draws is decided after "
                f"2 to {self.all_draws - 1}"
            )

    @property
    def approximation(self) -> str | None:
        """Which rows have fewer draws."""
        if self.race is None:
            return None
        why = f"that {self.race_after} draws put outside {self.race_budget()}"
        return f"{self.name}: rows {why} have no more of the {self.all_draws}, and come last"

    def late(self, signal: Signal) -> Signal:
        """A column that only the rows have that go on."""
        return replace(signal, view=Contested(signal.view, Race(self)), optional=True)

    def contends(self, view: View) -> dict[str, Signal]:
        """The column that says which rows go on; none without a race."""
        if self.race is None:
            return {}
        return {"contends": Signal(Contends(), Contested(view, Race(self)))}

    def interval(self, scores: Scores, margin: float) -> tuple[Floats, Floats]:
        """Per row the least score that it is sure to have and the highest that it may have; NaN for none.

        ``scores`` are those of the first draws, ``margin`` is in standard deviations of a draw.
        """
        raise NotImplementedError

    def reach(self, budget: Budget, scored: Scored) -> Budget:
        """The rows, or tokens, among which a selection within the budget looks."""
        return budget.as_count(scored)

    def told(self, s: Signals) -> dict[str, Floats]:
        """A detail, 1 for the rows that went on and 0 for others; none without a race."""
        return {} if self.race is None else {"contends": np.asarray(goes_on(s), np.float64)}

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Best first, and last the rows that did not go on."""
        return budget.take(self.dropped_last(scored.best(), scored), scored)

    def dropped_last(self, order: npt.NDArray[np.int64], scored: Scored) -> npt.NDArray[np.int64]:
        """The same order, behind all others the rows that did not go on."""
        on = scored.details.get("contends")
        return order if on is None else order[np.argsort(-on[order], kind="stable")]


def goes_on(s: Signals) -> Mask:
    """The rows that have the later draws; none where it is not decided yet."""
    return np.asarray(getattr(s, "contends", np.zeros(len(s))), bool)


@dataclass(frozen=True)
class Race:
    """Decides after the first draws of a method which rows go on."""

    method: RacingMethod

    def signals(self) -> dict[str, Signal]:
        """The columns of the first draws."""
        return {name: one for name, one in self.method.signals().items() if not isinstance(one.view, Contested)}

    def contenders(self, s: Signals) -> Mask:
        """Rows whose highest score reaches the least one of those that would fill the budget."""
        method, budget = self.method, self.method.race_budget()
        first, last = method.first_draws, method.all_draws
        # A mean of all draws lies about that of the first so far away, sampled without replacement.
        margin = STANDARD_ERRORS * np.sqrt((1 / first - 1 / last) * first / (first - 1))
        low, high = method.interval(method.score(s).with_reasons(s), float(margin))
        tokens = s.given.lengths() if budget.of_tokens else np.zeros(len(s), np.int64)
        sure, may = (Scored(method.name, method, value, s.reason, {}, s.ids, tokens) for value in (low, high))
        wanted, best = method.reach(budget, may), sure.best()
        if not wanted.is_filled_by(best, sure):
            return np.isfinite(high)
        filled = wanted.take(best, sure)
        return np.asarray(high >= low[filled].min(initial=np.inf))

    def __str__(self) -> str:
        """For people."""
        return f"the race of {self.method.name} for {self.method.race_budget()}"
