"""Methods that go by how like a row is to those of a target file: in turns, by the nearest of them, or on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Column, Floats, Scores, Signal, Signals, reasons, vectors
from instdiff.core.columns import first_reason
from instdiff.errors import DataError
from instdiff.methods.algorithms.round_robin import likeness, robin, robin_tasks
from instdiff.methods.shared.set_method import Indices, SetMethod

Mask = npt.NDArray[np.bool_]
Tasks = Sequence[npt.NDArray[np.int64]]
"""Of each task the positions of its targets, in the order of the first of them."""


@dataclass(frozen=True)
class Targeted(SetMethod):
    """A method whose rows are like some rows that show what is wanted.

    ``match`` says how: with ``robin`` the targets take turns, and each takes the row most like it that is left; ``max``
    ranks by the target that is nearest, ``mean`` by the mean over all. ``task`` names a column of the target file. Then
    tasks take turns, a row's likeness to a task being that to its nearest target; for ``max`` and ``mean`` it is the
    mean over the task's targets, as LESS has it.
    """

    match: Literal["robin", "max", "mean"] = field(default="robin", kw_only=True)
    task: str | None = field(default=None, kw_only=True)

    @property
    def by_score(self) -> bool:
        """Whether rows are taken in the order of their scores, which turns do not give."""
        return self.match != "robin"

    @property
    def holds_caps(self) -> bool:
        """Where targets take turns, which each pass over a row whose value is full."""
        return not self.by_score

    def tasks_signal(self) -> dict[str, Signal]:
        """The task of each target, where there are tasks."""
        return {"task": Signal(Column(self.task), of="target")} if self.task else {}

    def tasks(self, s: Signals, usable: Mask) -> Tasks:
        """The usable targets of each task; every target is one of its own where there are none.

        A DataError where no target is usable.
        """
        at = np.flatnonzero(usable)
        if not len(at):
            raise DataError("no row of the target file could be read by the model; give another --target")
        if not self.task:
            return [at[[number]] for number in range(len(at))]
        names = np.array([str(name) for name in s.task], object)
        return [at[names[at] == name] for name in dict.fromkeys(names[at])]

    def measure_likeness(self, s: Signals, how: Literal["max", "mean"]) -> Floats:
        """Per row the largest, or the mean, of the mean likeness to each task."""
        raise NotImplementedError

    def leave_out(self, s: Signals) -> Mask:
        """Rows that are ``filtered``, since nothing can be said of their likeness."""
        return np.zeros(len(s), bool)

    def score(self, s: Signals) -> Scores:
        """Minus the rank where targets take turns, else the likeness."""
        out = self.leave_out(s)
        if self.match == "robin":
            found = super().score(s)
        else:
            rows, value = np.flatnonzero(self.ready(s)), np.full(len(s), np.nan)
            value[rows] = self.measure_likeness(s.take(rows), self.match)
            found = Scores(value, reasons(len(s), no_signal=np.isnan(value)))
        reason = first_reason(reasons(len(s), filtered=out), found.reason)
        return Scores(np.where(out, np.nan, found.value), reason, **self.details(s))

    def details(self, s: Signals) -> dict[str, npt.NDArray[Any]]:
        """Further columns of the score table."""
        return {}


@dataclass(frozen=True)
class TargetedVectors(Targeted):
    """By the cosine of a ``vector`` for each row with those of the rows ``target``."""

    def matrix(self, s: Signals, of: Literal["vector", "target"]) -> tuple[npt.NDArray[np.float32], Mask]:
        """The vectors of the pool's rows or of the targets, as far as there are some, and which have one."""
        return vectors(getattr(s, of))

    def ready(self, s: Signals) -> Mask:
        """Rows that have a vector."""
        return super().ready(s) & self.matrix(s, "vector")[1]

    def queries(self, s: Signals) -> list[npt.NDArray[np.float32]]:
        """The vectors of each task's targets."""
        found, full = self.matrix(s, "target")
        place = np.cumsum(full) - 1
        return [found[place[at]] for at in self.tasks(s, full)]

    def choose(self, s: Signals, count: int) -> Indices:
        """Targets in turns, or tasks."""
        x, queries = self.matrix(s, "vector")[0], self.queries(s)
        if self.task:
            return robin_tasks(x, queries, count, s.caps)
        return robin(x, np.concatenate(queries), count, s.caps)

    def measure_likeness(self, s: Signals, how: Literal["max", "mean"]) -> Floats:
        """Cosines."""
        return likeness(self.matrix(s, "vector")[0], self.queries(s), how)
