"""TAP (Yang, He, Cheng, 2026, arXiv:2605.09404): rows whose loss falls while an adapter learns the target alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from instdiff.core import Method, Nll, Prompted, Scores, Signal, Signals, reasons
from instdiff.core.signals import Saves, TrainedOn
from instdiff.errors import ConfigError

PATH = "path"
"""What the names of the two roles begin with."""


@dataclass(frozen=True)
class Path:
    """How the adapter is trained: ``epochs`` passes over the target, ``batch`` rows a step, at an even rate.

    ``rank``, ``alpha``, ``dropout`` and ``modules`` are the adapter's.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    epochs: float = 2
    learning_rate: float = 1e-5
    batch: int = 1
    rank: int = 1
    alpha: float = 4
    dropout: float = 0.1
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        fits = self.epochs > 1 and self.learning_rate > 0 and self.rank >= 1 and self.batch >= 1
        if not (fits and self.alpha > 0 and 0 <= self.dropout < 1 and self.modules):
            raise ConfigError(
                f"path {{epochs: {self.epochs:g}, learning_rate: {self.learning_rate:g}, batch: {self.batch}, rank: "
                f"{self.rank}, alpha: {self.alpha:g}, dropout: {self.dropout:g}}} does not fit; epochs lie above 1, "
                "since the first is where the path begins, the others above 0, and dropout below 1"
            )


@dataclass(frozen=True)
class TAP(Method):
    """Share of a row's response NLL that is lost along a short training on the target, highest first.

    A small adapter is trained on the rows of the target, and the NLL after its first pass is compared with that after
    its last: ``(first - last) / max(first, 1e-12)``. What falls is what the target teaches. The first term is not the
    base's. ``path`` says how it is trained; the rate and the number of passes are the paper's, which chose them for
    each target by gradients of held-out rows: nothing is calibrated here. How many rows a step has is not said there,
    and one is our choice. Rows of the target are ``filtered``, with their copies, since they were trained on.
    Details: ``nll_first``, ``nll_last``.
    """

    name: ClassVar[str] = "tap"
    paper: ClassVar[str] = "arXiv:2605.09404"
    filters: ClassVar[str] = "in the target"

    path: Path = field(default_factory=Path)
    seed: int = 42

    def signals(self) -> dict[str, Signal]:
        """NLL of the response under both saves, and which rows they were trained on."""
        how, (first, last) = self.path, (f"{PATH}/first", f"{PATH}/last")
        settings = {"learning_rate": how.learning_rate, "global_batch_size": how.batch, "mode": "sft", "seed": None}
        settings |= {"lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0, "use_lora": True}
        settings |= {"lora_r": how.rank, "lora_alpha": how.alpha, "lora_dropout": how.dropout}
        settings |= {"lora_target_modules": how.modules, "per_device_train_batch_size": None}
        kept = Saves(((first, 1.0), (last, how.epochs)), tuple(settings.items()), seed=self.seed)
        return {
            "first": Signal(Nll(), Prompted(), first),
            "last": Signal(Nll(), Prompted(), last),
            "seen": Signal(TrainedOn(last, kept)),
        }

    def score(self, s: Signals) -> Scores:
        """The relative fall, without the target's own rows."""
        first, last = s.first.mean(), s.last.mean()
        value = (first - last) / np.maximum(first, 1e-12)
        seen = np.asarray(s.seen, bool)
        return Scores(np.where(seen, np.nan, value), reasons(len(s), filtered=seen), nll_first=first, nll_last=last)
