"""RDS+ (Ivison et al., 2025, arXiv:2503.01807): rows nearest to those of a target file, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from instdiff.core import Pooled, Signal, WholeText
from instdiff.methods.shared.targeted import TargetedVectors


@dataclass(frozen=True)
class RDS(TargetedVectors):
    """For each target row in turn, take the row of highest cosine similarity that is left.

    A row's vector is the mean of the model's last hidden states over the whole text, token t weighing t; the end token,
    as the last, weighs most. ``task`` names
    a column of the target file: then tasks take turns, and a row's likeness to a task is that to its nearest target.
    Targets are visited in the order of their file, tasks in that of their first row. ``match`` of ``max`` ranks by the
    nearest target instead, ``mean`` by the mean over all; with ``task`` both go by the mean over the targets of a task.
    """

    name: ClassVar[str] = "rds"
    paper: ClassVar[str] = "arXiv:2503.01807"

    model: str = "base"

    def signals(self) -> dict[str, Signal]:
        """The pooled hidden states of both files, and the task of each target."""
        both = {
            name: Signal(Pooled("weighted"), WholeText(end=True), self.model, of)
            for name, of in (("vector", "pool"), ("target", "target"))
        }
        return both | self.tasks_signal()
