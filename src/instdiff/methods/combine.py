"""Methods of methods: filter by one and rank by another, or weigh several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from instdiff.core import Budget, Floats, Method, Reasons, Scored, Scores, Signal, Signals
from instdiff.errors import ConfigError
from instdiff.methods.shared.bands import ranks
from instdiff.methods.shared.keep import check, keep_rows
from instdiff.methods.shared.set_method import approximations

Indices = npt.NDArray[np.int64]
_NONE = Method()


@dataclass(frozen=True)
class Then(Method):
    """Keep rows by ``first``, then rank them by ``second`` as if there were no others.

    ``keep`` is ``500`` or ``20%`` of the rows, best first; ``20% eligible``, of those with a score; ``10%-90%``, the
    rows between these quantiles of the score; ``mid 30%``, the middle ones; ``>=4.5``, ``<``, ..., a limit on the
    score. The others are ``filtered``. ``second`` may go by the scores of ``first``: ``cosine_filter`` visits rows in
    their order, ``facility_location`` takes them as quality, ``kmeans_quota`` as the order inside a cluster. With
    ``keep: 100%`` and ``cosine_filter`` second, near-duplicates are left out of a ranking, and a budget is still met.

    Columns are computed for all rows, also those of ``second``. Details: ``first`` is its score, ``kept`` 1 or 0, and
    those of both methods under ``first.`` and ``second.``.
    """

    name: ClassVar[str] = "then"
    paper: ClassVar[str] = "ours"

    first: Method = _NONE
    keep: str | int = "20%"
    second: Method = _NONE

    def __post_init__(self) -> None:
        check(str(self.keep).strip())

    @property
    def approximation(self) -> str | None:
        """Those of both."""
        return approximations(self.first, self.second)

    def signals(self) -> dict[str, Signal]:
        """Those of both."""
        return _together({"first": self.first, "second": self.second})

    def score(self, s: Signals) -> Scores:
        """The second's score of the rows that the first keeps."""
        for name in ("first", "second"):
            if type(getattr(self, name)) is Method:
                raise ConfigError(f"'then' needs two methods, and has no {name}; give --set then.{name}=NAME")
        one = s.part("first")
        first = self.first.score(one).with_reasons(one)
        none = np.zeros(len(s), np.int64)
        scored = Scored(self.first.name, self.first, first.value, first.reason, first.details, s.ids, none, lambda: one)
        rows = np.sort(keep_rows(str(self.keep).strip(), scored))
        two = s.part("second").take(rows, first.value[rows])
        second = self.second.score(two).with_reasons(two)
        value, reason, inside = np.full(len(s), np.nan), first.reason.copy(), np.zeros(len(s), bool)
        reason[reason == None] = "filtered"  # noqa: E711 - elementwise
        value[rows], reason[rows], inside[rows] = second.value, second.reason, True
        details = {"first": first.value, "kept": inside.astype(float)}
        details |= {f"first.{name}": column for name, column in first.details.items()}
        for name, column in second.details.items():
            details[f"second.{name}"] = np.full(len(s), np.nan)
            details[f"second.{name}"][rows] = column
        return Scores(value, reason, **details)

    @property
    def holds_caps(self) -> bool:
        """Where the second method does."""
        return self.second.holds_caps

    def pick(self, scored: Scored, budget: Budget) -> Indices:
        """What the second method picks of the rows kept; shares are of all rows."""
        rows = np.flatnonzero(scored.details["kept"] == 1)
        details = {k.removeprefix("second."): v[rows] for k, v in scored.details.items() if k.startswith("second.")}
        prior = scored.details["first"][rows]

        def recall() -> Signals:
            return scored.signals().part("second").take(rows, prior)

        caps = None if scored.caps is None else scored.caps.take(rows)
        inner = scored.take(rows)
        inner = replace(inner, name=self.second.name, method=self.second, details=details, recall=recall, meta={})
        inner = replace(inner, caps=caps)
        return rows[self.second.pick(inner, budget.as_count(scored))]


@dataclass(frozen=True)
class Blend(Method):
    """The weighted mean of the ranks by several methods, among the rows that all of them score.

    A method's best row has rank 1 and its worst 0; equal scores share the mean of theirs. ``weights`` are 1 each where
    nothing is said. A method that ranks only a share of the rows (``reach``) makes the others ineligible. Details:
    ``0``, ``1``, ... are the ranks by each method, and their own follow under ``0.``, ``1.``, ...
    """

    name: ClassVar[str] = "blend"
    paper: ClassVar[str] = "ours"

    of: tuple[Method, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and (len(self.weights) != len(self.of) or min(self.weights) < 0 or not sum(self.weights) > 0):
            raise ConfigError(
                f"'blend.weights' are {list(self.weights)} for {len(self.of)} methods; give one each, none below 0"
            )

    @property
    def approximation(self) -> str | None:
        """Those of all."""
        return approximations(*self.of)

    def signals(self) -> dict[str, Signal]:
        """Those of all."""
        return _together({str(at): method for at, method in enumerate(self.of)})

    def score(self, s: Signals) -> Scores:
        """Ranks, weighed."""
        if not self.of:
            raise ConfigError("'blend' needs methods; give --set 'blend.of=[ifd, longest]'")
        parts = [s.part(str(at)) for at in range(len(self.of))]
        scores = [method.score(part).with_reasons(part) for method, part in zip(self.of, parts, strict=True)]
        reason: Reasons = np.full(len(s), None, object)
        for one in scores:
            reason = np.where(reason == None, one.reason, reason)  # noqa: E711 - elementwise
        all_ = np.array([word is None for word in reason], bool)
        value, total = np.zeros(len(s)), sum(self.weights) or len(self.of)
        details: dict[str, Floats] = {}
        for at, one in enumerate(scores):
            details[str(at)] = ranks(np.where(all_, one.value, np.nan)) / max(1, int(all_.sum()) - 1)
            value += (self.weights[at] if self.weights else 1.0) / total * details[str(at)]
            details |= {f"{at}.{name}": column for name, column in one.details.items()}
        return Scores(value, reason, **details)


def _together(methods: Mapping[str, Method]) -> dict[str, Signal]:
    return {f"{part}.{name}": signal for part, method in methods.items() for name, signal in method.signals().items()}
