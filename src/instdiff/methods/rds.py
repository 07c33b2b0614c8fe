"""RDS+ (Ivison et al., 2025, arXiv:2503.01807): rows nearest to those of a target file, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from instdiff.core import Column, Pooled, Signal, Signals, WholeText, vectors
from instdiff.errors import DataError
from instdiff.methods.algorithms.round_robin import robin, robin_tasks
from instdiff.methods.shared.set_method import Indices, SetMethod


@dataclass(frozen=True)
class RDS(SetMethod):
    """For each target row in turn, take the row of highest cosine similarity that is left.

    A row's vector is the mean of the model's last hidden states over the whole text, token t weighing t; the end token,
    as the last, weighs most. ``task`` names
    a column of the target file: then tasks take turns, and a row's likeness to a task is that to its nearest target.
    Targets are visited in the order of their file, tasks in that of their first row.
    """

    name: ClassVar[str] = "rds"
    paper: ClassVar[str] = "arXiv:2503.01807"

    task: str | None = None
    model: str = "base"

    def signals(self) -> dict[str, Signal]:
        """The pooled hidden states of both files, and the task of each target."""
        both = {
            name: Signal(Pooled("weighted"), WholeText(end=True), self.model, of)
            for name, of in (("vector", "pool"), ("target", "target"))
        }
        return both | ({"task": Signal(Column(self.task), of="target")} if self.task else {})

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows that have a vector."""
        return super().ready(s) & vectors(s.vector)[1]

    def choose(self, s: Signals, count: int) -> Indices:
        """Round-robin over targets, or over tasks."""
        targets, full = vectors(s.target)
        if not full.any():
            raise DataError("no row of the target file could be read by the model; give another --target")
        x = vectors(s.vector)[0]
        if not self.task:
            return robin(x, targets, count, s.caps)
        names = np.array([str(name) for name in s.task], object)[full]
        return robin_tasks(x, [targets[names == name] for name in dict.fromkeys(names)], count, s.caps)
