"""GRAPE (Zhang, Dai and Peng, 2025, arXiv:2502.04194): of several answers to a prompt the likeliest to the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from instdiff.core import Nll, Prompted, Signal
from instdiff.core.caps import PROMPT, Per
from instdiff.methods.perplexity import Perplexity


@dataclass(frozen=True)
class Grape(Perplexity):
    """The answer with the lowest mean NLL per token under the base model, of all answers to one prompt.

    It is a name for ``perplexity`` with ``band: min``, of which ``select`` takes one row of each prompt; ``per`` says
    otherwise, as ``prompt 2``. Without a budget one answer to every prompt is taken. ``score_eos`` counts the end token
    too; whether the paper does is not known. Inside ``then`` and ``blend`` it is ``perplexity``, and ``per`` is to be
    given.
    """

    name: ClassVar[str] = "grape"
    paper: ClassVar[str] = "arXiv:2502.04194"
    default_per: ClassVar[Per | None] = Per(PROMPT, 1)

    score_eos: bool = False

    def signals(self) -> dict[str, Signal]:
        """NLL of the response given its prompt."""
        if not self.score_eos or self.compat == "official":
            return super().signals()
        return {"nll": Signal(Nll(), Prompted(score_eos=True), self.model)}
