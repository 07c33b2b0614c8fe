"""Methods that take rows one after the other: by vectors, and in parts where there are more rows than they can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    NOT_REACHED,
    Budget,
    Embedding,
    Method,
    Pooled,
    Scored,
    Scores,
    Signal,
    Signals,
    WholeText,
    Words,
    reasons,
    vectors,
)
from instdiff.core.caps import Caps
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.effort import check_effort
from instdiff.methods.algorithms.partitioned import run_in_partitions

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SetMethod(Method):
    """A method whose score is minus the rank at which it took the row: 0, -1, -2, ...

    Scoring ranks the share ``reach`` of the rows; the others are ``not_reached``. A selection within that takes the
    head, and a larger one ranks on, with the columns of the store. So does one whose ``caps`` the head does not keep:
    what it passes over then has no part in what comes later. Rows that are left when none can be taken any more are
    ``filtered``.
    """

    reach: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.reach <= 1:
            raise ConfigError(f"'{self.name}.reach' is {self.reach}; a share lies in 0 to 1")

    @property
    def holds_caps(self) -> bool:
        """In ``choose``."""
        return True

    def choose(self, s: Signals, count: int) -> Indices:
        """The first ``count`` rows in the order taken, of rows that can all be taken; ties go to the lowest.

        A larger ``count`` must give the same rows and then more. Of a value that is full by ``s.caps``, where there are
        any, no further row is taken; all of them together allow ``count``.
        """
        raise NotImplementedError

    def order_rows(self, s: Signals, rows: Indices) -> Indices:
        """The order in which ``choose`` is shown the rows: by content, so that the input's order never matters."""
        return s.ids.order(rows)

    def order(self, s: Signals, count: int) -> Indices:
        """Up to ``count`` rows in the order taken."""
        rows = self.open_rows(s)
        count = min(count, most_of(s.caps, rows))
        return rows[self.choose(s.take(rows), count)] if count else rows[:0]

    def open_rows(self, s: Signals) -> Indices:
        """The rows that can be taken, in their order."""
        ready = self.ready(s) if s.caps is None else self.ready(s) & s.caps.open
        return self.order_rows(s, np.flatnonzero(ready))

    def score(self, s: Signals) -> Scores:
        """Minus the rank, for a share of the rows."""
        ready = self.ready(s)
        count = min(max(1, int(np.ceil(self.reach * len(s) - 1e-9))), int(ready.sum()))
        return self.rank_scores(s, ready, self.order(s, count), count)

    def rank_scores(self, s: Signals, ready: npt.NDArray[np.bool_], order: Indices, count: int) -> Scores:
        """Scores of rows taken in this order, where ``count`` were asked for."""
        value = np.full(len(s), np.nan)
        value[order[::-1]] = 0.0 - np.arange(len(order))[::-1]
        left = ready & np.isnan(value)
        done = len(order) < count
        return Scores(value, reasons(len(s), no_signal=~ready, **{"filtered" if done else NOT_REACHED: left}))

    def pick(self, scored: Scored, budget: Budget) -> Indices:
        """The head of the ranking; a longer one is made where the budget goes beyond it."""
        order, caps = scored.best(), scored.caps
        more = bool(np.isin(scored.reason, NOT_REACHED).any())
        again = caps is not None and caps.binds(budget.take(order, scored))
        while again or (more and not budget.is_filled_by(order, scored)):
            count = 2 * max(1, len(order)) if budget.of_tokens else budget.target(scored)
            order, again = self.order(scored.signals(), count), False
            more = budget.of_tokens and len(order) == count
        # A user's method may not look at caps; its rows are then left out afterwards.
        return budget.take(order if caps is None else caps.limit(order), scored)


def most_of(caps: Caps | None, rows: Indices) -> int:
    """How many of these rows can be taken."""
    return len(rows) if caps is None else caps.take(rows).most


@dataclass(frozen=True)
class VectorMethod(SetMethod):
    """A set method that goes by one vector for each row.

    ``model`` is the role that gives it: the text embedder, which reads ``text`` (the ``row``, its ``instruction`` or
    its ``response``), or any other role, whose hidden states over the whole row, its end token too, are pooled at
    ``layer``. ``pooling`` is the embedder's own or, of hidden states, ``mean`` where nothing is said.
    """

    model: str = field(default="embedder", kw_only=True)
    text: Literal["row", "instruction", "response"] = field(default="row", kw_only=True)
    pooling: Literal["mean", "cls", "last", "weighted"] | None = field(default=None, kw_only=True)
    layer: int = field(default=-1, kw_only=True)

    def signals(self) -> dict[str, Signal]:
        """One vector for each row."""
        return {"vector": vector(self.model, self.text, self.pooling, self.layer)}

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows that have a vector."""
        return super().ready(s) & vectors(s.vector)[1]


def vector(
    model: str = "embedder",
    text: Literal["row", "instruction", "response"] = "row",
    pooling: Literal["mean", "cls", "last", "weighted"] | None = None,
    layer: int = -1,
) -> Signal:
    """The signal for a vector of each row, as of ``VectorMethod``."""
    if model == "embedder":
        return Signal(Embedding(pooling), Words(text), model)
    return Signal(Pooled(pooling or "mean", layer), WholeText(end=True), model)


# ── parts and cells ───────────────────────────────────────────────────────────────────────────────────────────────────

Parts = int | Literal["auto"] | None
OF_A_CELL = 1024
"""Rows of a cell on average, where parts are ``auto``."""


@dataclass(frozen=True)
class PartitionedMethod(VectorMethod):
    """A set method on vectors whose rows can be dealt out to parts.

    ``parts`` of null runs the exact algorithm, and fails if it would take hours on this machine; 1 always runs it. Of
    several random parts each gives ``oversample`` times its share of the rows that are asked for. Above 1 the exact
    algorithm chooses among these. ``auto`` makes parts of at most ``of_a_part`` rows. With several parts a larger
    budget than scoring ranked is another choice, and not a longer one.
    """

    of_a_part: ClassVar[int] = 8192

    parts: Parts = field(default=None, kw_only=True)
    oversample: float = field(default=1.0, kw_only=True)
    seed: int = field(default=42, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self.name, self.parts)
        if not self.oversample >= 1:
            raise ConfigError(
                f"'{self.name}.oversample' is {self.oversample}; a part gives its share at least, which is 1"
            )

    def pairs(self, n: int, k: int) -> float:
        """Pairs of rows that the exact way compares, about, to take ``k`` of ``n``."""
        raise NotImplementedError

    @property
    def approximation(self) -> str | None:
        """How the rows are not those of the exact way."""
        if self.parts in (None, 1):
            return None
        again = (
            f"; of {self.oversample:g} times as many rows the exact way takes the last" if self.oversample > 1 else ""
        )
        parts = parts_text(self.parts, "random parts", self.of_a_part)
        return f"{self.name}: chosen in {parts}, an equal share of each{again}"

    def choose_rows(
        self,
        x: npt.NDArray[Any],
        k: int,
        choose: Callable[..., Indices],
        chosen: Indices | None = None,
        caps: Caps | None = None,
        **columns: Any,
    ) -> Indices:
        """``k`` rows by ``choose``, in as many parts as are asked for."""
        n = len(x) - (0 if chosen is None else len(chosen))
        parts = parts_of(self.parts, n, self.of_a_part)
        if self.parts is None:
            check_effort(self.name, self.pairs(n, k) * x.shape[1], f"'{self.name}.parts' to auto")
        elif parts > 1 and self.oversample > 1:
            many = int(min(n, self.oversample * k))
            check_effort(self.name, self.pairs(many, k) * x.shape[1], f"'{self.name}.oversample' to 1")
        return run_in_partitions(
            x, k, choose, parts=parts, oversample=self.oversample, seed=self.seed, chosen=chosen, caps=caps, **columns
        )


def check_parts(name: str, parts: Parts) -> None:
    """Raise a ConfigError where a number of parts is below 1."""
    if isinstance(parts, int) and parts < 1:
        raise ConfigError(f"'{name}.parts' is {parts}; the least is 1, all rows together")


def parts_of(parts: Parts, n: int, size: int = OF_A_CELL) -> int:
    """How many parts ``n`` rows have; those of ``auto`` have ``size``."""
    wanted = 1 if parts is None else -(-n // size) if parts == "auto" else parts
    return max(1, min(wanted, n))


def parts_text(parts: Parts, what: str, size: int) -> str:
    """The parts in words."""
    return f"{what} of {size:,} rows" if parts == "auto" else f"{parts} {what}"


def cells_text(name: str, parts: Parts) -> str | None:
    """What is approximate where only rows of one cell are compared."""
    if parts in (None, 1):
        return None
    return f"{name}: only rows of one cell are compared, of {parts_text(parts, 'cells', OF_A_CELL)}"


def approximations(*methods: Method) -> str | None:
    """What those of them that are approximate say."""
    return "; ".join(text for method in methods if (text := getattr(method, "approximation", None))) or None
