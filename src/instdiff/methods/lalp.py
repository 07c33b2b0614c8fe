"""Local average log probability (Just, Ko, Jia, ICML 2026, arXiv:2510.03988): traces of natural steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from instdiff.core import MeanNll, Method, Scores, Signal, Signals, Windowed
from instdiff.errors import ConfigError


@dataclass(frozen=True)
class LocalLogProbability(Method):
    """Mean over the steps of a response of their mean log-probability per token, highest first.

    Each step is read after the prompt and ``k`` steps before it, not after the whole trace, and counts the same however
    long it is. ``step`` is a ``sentence`` or line, or a ``paragraph`` between empty lines; pieces with fewer than 4
    characters join the next. With ``share`` the window is that share of the steps before. The ranking compares answers
    of one problem: use it with ``--per prompt 1``.

    The authors' code is unknown, and accounts of ``k`` differ (4 sentences, or 5 to 75 % of the steps before), so no
    published number is claimed. Rows with over 4,096 steps are ``too_long``. Details: ``steps``, and ``nll``, the mean
    over them.
    """

    name: ClassVar[str] = "lalp"
    paper: ClassVar[str] = "arXiv:2510.03988"

    k: int = 4
    share: float | None = None
    step: Literal["sentence", "paragraph"] = "sentence"
    model: str = "base"

    def __post_init__(self) -> None:
        if self.k < 0 or not 0 <= (self.share or 0) <= 1:
            raise ConfigError(
                f"'{self.name}.k' is {self.k} and '{self.name}.share' {self.share}; k is 0 or more, and a share lies "
                "in 0 to 1"
            )

    def signals(self) -> dict[str, Signal]:
        """Mean NLL of each step."""
        return {"steps": Signal(MeanNll(), Windowed(self.k, self.step, self.share), self.model)}

    def score(self, s: Signals) -> Scores:
        """Minus the mean NLL of the steps."""
        nll = s.steps.mean()
        return Scores(-nll, nll=nll, steps=s.steps.lengths())
