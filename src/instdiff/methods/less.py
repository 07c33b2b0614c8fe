"""LESS (Xia et al., ICML 2024, arXiv:2402.04333), by the last layer alone: rows that teach what a target teaches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import GradSketch, Prompted, Signal, Signals, vectors
from instdiff.errors import ConfigError
from instdiff.methods.shared.targeted import Mask, TargetedVectors

LEAST = 1e-6
"""The norm of a gradient below which its direction is noise."""


@dataclass(frozen=True)
class LESS(TargetedVectors):
    """Cosine of a row's last-layer gradient with those of the target: mean per task, max over tasks; highest first.

    The gradient is that of the response's mean NLL by the output embedding alone, known in the forward pass and
    sketched there to ``buckets`` times ``width`` numbers, whose inner products have the gradient's as expectation.
    Published are the gradients of LoRA weights in all layers, with Adam's moments, at four saves of a warm-up. Where
    input and output share one embedding, the input's part is not in it. Rows that the model knows have next to no
    gradient, and are ``filtered`` below a norm of 1e-6. `column` ranks by LESS's own scores, made by Bergson.

    ``task`` names a column of the target file; without it each target is a task of its own. ``match="mean"`` takes the
    mean over tasks, and ``robin`` lets tasks take turns, as in `rds`. ``models`` are the roles whose gradients are
    compared, such as saves of a warm-up; ``weights`` are theirs, in LESS the learning rates. Details: ``norm``, of the
    sketch by the first model.
    """

    name: ClassVar[str] = "less"
    paper: ClassVar[str] = "arXiv:2402.04333"
    filters: ClassVar[str] = "next to no gradient"

    models: tuple[str, ...] = ("base",)
    weights: tuple[float, ...] = ()
    buckets: int = 128
    width: int = 64
    match: Literal["robin", "max", "mean"] = field(default="max", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models or (self.weights and len(self.weights) != len(self.models)):
            raise ConfigError(f"'less': {len(self.models)} models have {len(self.weights)} weights; give one for each")
        if any(not weight > 0 for weight in self.weights) or self.buckets < 1 or self.width < 1:
            raise ConfigError("'less': weights lie above 0, and buckets and width are 1 or more")

    def signals(self) -> dict[str, Signal]:
        """The sketch of each row's gradient in both files by each model, and the task of each target."""
        measure = GradSketch(self.buckets, self.width)
        both = {
            f"{name}{at}": Signal(measure, Prompted(), model, of)
            for at, model in enumerate(self.models)
            for name, of in (("vector", "pool"), ("target", "target"))
        }
        return both | self.tasks_signal()

    def matrix(self, s: Signals, of: Literal["vector", "target"]) -> tuple[npt.NDArray[np.float32], Mask]:
        """Sketches of unit length, side by side: the cosine of two rows is the weighted mean of the models' cosines."""
        parts = [self.unit(s, f"{of}{at}") for at in range(len(self.models))]
        whole = np.asarray(np.all([full for _, full in parts], axis=0), bool)
        weights = np.array(self.weights or [1.0] * len(parts))
        scales = np.sqrt(weights / weights.sum()).astype(np.float32)
        picked = [found[whole[full]] * scale for (found, full), scale in zip(parts, scales, strict=True)]
        return np.concatenate(picked, axis=1), whole

    def unit(self, s: Signals, name: str) -> tuple[npt.NDArray[np.float32], Mask]:
        """Sketches of length 1, and which rows have one."""
        found, full = vectors(getattr(s, name))
        norm = np.linalg.norm(found, axis=1)
        full[full] = norm >= LEAST
        return found[norm >= LEAST] / norm[norm >= LEAST, None], full

    def norms(self, s: Signals) -> npt.NDArray[np.float64]:
        """Per row the norm of its sketch by the first model."""
        found, full = vectors(s.vector0)
        out = np.full(len(s), np.nan)
        out[full] = np.linalg.norm(found, axis=1)
        return out

    def leave_out(self, s: Signals) -> Mask:
        """Rows with next to no gradient by some model."""
        there = [vectors(getattr(s, f"vector{at}"))[1] for at in range(len(self.models))]
        return np.asarray(np.all(there, axis=0) & ~self.matrix(s, "vector")[1], bool)

    def details(self, s: Signals) -> dict[str, npt.NDArray[Any]]:
        """The size of each row's gradient."""
        return {"norm": self.norms(s)}
