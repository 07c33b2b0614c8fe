"""The nouns; nothing in this file reads or writes anything."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ids import Ids
from instdiff.core.arrays.ranking import best_first
from instdiff.core.budget import Budget
from instdiff.core.caps import Caps, Per
from instdiff.core.columns import Floats, Reasons, Signals, first_reason, no_reasons
from instdiff.core.display import Shown, html_table, pandas, visible
from instdiff.core.signals import Signal
from instdiff.errors import PlanError


class Scores(Shown):
    """One value per row, higher is better, NaN where the row is not eligible, with a ``reason``.

    Reasons that the signals bring need not be repeated. ``details`` are further columns, filled wherever they can be
    computed, also for ineligible rows. A column of another length is a ValueError.
    """

    def __init__(self, value: npt.ArrayLike, reason: Reasons | None = None, **details: npt.ArrayLike) -> None:
        self.value: Floats = np.asarray(value, np.float64)
        self.reason: Reasons = no_reasons(len(self.value)) if reason is None else reason
        self.details: dict[str, Floats] = {name: np.asarray(column, np.float64) for name, column in details.items()}
        for name, column in {"reason": self.reason, **self.details}.items():
            if len(column) != len(self.value):
                raise ValueError(f"score column {name!r} has {len(column)} rows, expected {len(self.value)}")

    def __repr__(self) -> str:
        return f"<Scores of {len(self.value):,} rows, {int(np.isfinite(self.value).sum()):,} with a value>"

    def with_reasons(self, signals: Signals) -> Scores:
        """The same scores, one per row, with a reason for every NaN: the signals' own first, then the method's."""
        if len(self.value) != len(signals):
            raise ValueError(f"the method gave {len(self.value)} scores for {len(signals)} rows")
        reason = first_reason(signals.reason, self.reason)
        given = reason != None  # noqa: E711 - elementwise
        bad = ~np.isfinite(self.value)
        if not (bad | given).any():
            return Scores(self.value, reason, **self.details)
        reason = first_reason(reason, reasons(len(reason), non_finite=bad))
        return Scores(np.where(bad | given, np.nan, self.value), reason, **self.details)


def reasons(rows: int, **marks: npt.NDArray[np.bool_]) -> Reasons:
    """One reason per row from boolean columns, not to be written to; where several hold, the first named counts."""
    if not any(mark.any() for mark in marks.values()):
        return no_reasons(rows)
    reason = np.full(rows, None, object)
    for word, mark in reversed(marks.items()):
        reason[mark] = word
    return reason


@dataclass(frozen=True)
class Scored:
    """A method's part of the score table: what ``pick`` and ``select`` may look at.

    ``n_tokens`` are the scored response tokens per row, the currency of token budgets, and ``n_thought`` those of them
    that are of a thought, where some row has one. ``recall`` reads again what ``score`` read, where there is a store to
    read it from. ``meta`` says what they were made of. ``caps`` bound how many rows of each value of a column may be
    taken; only methods with ``holds_caps`` see any.
    """

    name: str
    method: Method
    value: Floats
    reason: Reasons
    details: Mapping[str, Floats]
    ids: Ids
    n_tokens: npt.NDArray[np.int64]
    recall: Callable[[], Signals] | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    n_thought: npt.NDArray[np.int64] | None = None
    caps: Caps | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", Ids.of(self.ids))

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        known = self.value[self.eligible]
        middle = f", median {np.median(known):.4g}" if len(known) else ""
        return f"<Scored by {self.name}: {len(known):,} of {len(self):,} rows have a score{middle}>"

    def _columns(self, at: slice) -> dict[str, list[Any]]:
        """The columns of the score file, as Python values."""
        known: dict[str, list[Any]] = {"id": list(self.ids[at]), "n_tokens": self.n_tokens[at].tolist()}
        known |= {self.name: self.value[at].tolist(), f"{self.name}.why": list(self.reason[at])}
        return known | {f"{self.name}.{name}": column[at].tolist() for name, column in self.details.items()}

    def head(self, n: int = 5) -> list[dict[str, Any]]:
        """The first rows: id, tokens, score, reason, details."""
        columns = self._columns(slice(0, n))
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_pandas(self) -> Any:
        """A pandas data frame, a row for each row of the pool; a PlanError where pandas is missing."""
        return pandas().DataFrame(self._columns(slice(None)))

    def _repr_html_(self) -> str:
        """What a notebook shows: the best rows."""
        best = self.best()[:10]
        lines = [[int(at), self.ids[int(at)], float(self.value[at])] for at in best]
        return f"<p>{html.escape(visible(repr(self)))}</p>{html_table(['place', 'id', self.name], lines)}"

    def signals(self) -> Signals:
        """What ``score`` read, from the store; a PlanError where there is none that has it."""
        if self.recall is None:
            raise PlanError(
                f"this selection needs more of {self.name} than its scores hold, and there is no store to read it "
                "from; run `instdiff score` again, and select with the same --store and --model"
            )
        return self.recall().capped(self.caps)

    def take(self, rows: npt.NDArray[np.int64]) -> Scored:
        """The sub-problem of these rows, in that order."""
        return Scored(
            self.name,
            self.method,
            self.value[rows],
            self.reason[rows],
            {name: column[rows] for name, column in self.details.items()},
            self.ids.take(rows),
            self.n_tokens[rows],
            None if self.recall is None else lambda: self.signals().take(rows),
            self.meta,
            None if self.n_thought is None else self.n_thought[rows],
            None if self.caps is None else self.caps.take(rows),
        )

    @property
    def eligible(self) -> npt.NDArray[np.bool_]:
        """Rows that have a score."""
        return np.isfinite(self.value)

    @property
    def scorable(self) -> npt.NDArray[np.bool_]:
        """Rows that could be scored: the eligible ones and those that the method itself filtered."""
        return self.eligible | np.isin(self.reason, FILTERED)

    @property
    def takeable(self) -> npt.NDArray[np.bool_]:
        """The eligible rows, and those that a set method did not come to."""
        return self.eligible | np.isin(self.reason, NOT_REACHED)

    def best(self) -> npt.NDArray[np.int64]:
        """Eligible rows, best first; ties by id, then row, so that the input's order never matters."""
        return best_first(self.value, self.ids)


NOT_REACHED = "not_reached"
"""Why a row has no rank by a method that takes rows one after the other, and stopped before it."""
NEAR_DUPLICATE = "near_duplicate"
"""Why a row is left out that says nearly what another says, which stays."""
FILTERED = ("filtered", "warmup", NOT_REACHED, "contaminated", NEAR_DUPLICATE)
"""Reasons by which a method leaves out rows that it could score; they count in a token budget's total."""


@dataclass(frozen=True)
class DetailPlot:
    """Two details of a method against each other, as the report draws them.

    ``id`` and ``title`` are those of the report's section. ``x`` names the detail across and ``y`` the one upwards,
    which the report also shows by domain; ``words`` is what the two are called and ``unit`` that of both. ``text`` says
    what is to be seen. With ``band`` the method keeps the rows between two values of ``x``.
    """

    id: str
    title: str
    x: str
    y: str
    words: tuple[str, str]
    unit: str
    text: str
    band: bool = False


@dataclass(frozen=True)
class Method:
    """Declare signals; turn them into scores; rank.

    A method is a frozen dataclass whose fields are the paper's hyper-parameters with the paper's defaults. It is
    deterministic and uses numpy alone.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    origin: ClassVar[str] = ""
    """``file.py:Class`` of a method that was read from a file."""
    plots: ClassVar[tuple[DetailPlot, ...]] = ()
    """Pairs of details that the report draws against each other."""
    filters: ClassVar[str] = ""
    """Which rows it leaves out as ``filtered``, in a few words."""
    tag: ClassVar[str] = ""
    """What ``tags`` gives to rows, such as ``neuron``; the report counts them."""

    official_order: ClassVar[bool] = False
    """Whether ``pick`` differs from best first with ``compat="official"`` alone."""
    default_per: ClassVar[Per | None] = None
    """How many rows of each value of a column are taken where nobody says it."""
    default_weights: ClassVar[str] = ""
    """The detail that rows weigh by in training where nobody says it, for a method whose definition has weights."""

    @property
    def holds_caps(self) -> bool:
        """Whether ``pick`` keeps to ``scored.caps`` itself, since what it takes depends on what it took before.

        Of other methods only the best rows of each value are shown to ``pick``.
        """
        return False

    @property
    def by_score(self) -> bool:
        """Whether it takes rows in the order of their scores."""
        usual = self.official_order and getattr(self, "compat", None) == "default"
        return usual or type(self).pick is Method.pick

    def signals(self) -> dict[str, Signal]:
        """The columns that ``score`` reads, by the names it uses."""
        return {}

    def score(self, s: Signals) -> Scores:
        """One value per row from the signals."""
        raise NotImplementedError

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Rows of the subset, best first."""
        return budget.take(scored.best(), scored)

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows that can be taken."""
        return np.array([word is None for word in s.reason], bool)

    def remark(self, scored: Scored, at: npt.NDArray[np.int64]) -> str | None:
        """What the record should say of the rows that were picked, where there is something to say."""
        return None

    def tags(self, s: Signals, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """The tags of these rows, which are ready: where each row's begin, and the tags; for methods with a ``tag``."""
        raise NotImplementedError

    def params(self) -> dict[str, Any]:
        """Hyper-parameters by name, as JSON can hold them; a method among them is ``{its name: its parameters}``."""
        return {f.name: _param_value(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _param_value(value: Any) -> Any:
    if isinstance(value, Method):
        return {value.origin or value.name: value.params()} if value.origin or value.name else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple) and any(isinstance(one, Method) for one in value):
        return [_param_value(one) for one in value]
    return value
