"""RHO-LOSS (Mindermann et al., ICML 2022, arXiv:2206.07137): what other data of the same kind teach a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Length, Listed, Method, Nll, Prompted, Scores, Signal, Signals, reasons
from instdiff.errors import ConfigError


@dataclass(frozen=True)
class Rho(Method):
    """Drop of the response NLL under a model trained on a holdout set, highest first.

    Such rows can be learnt, are worth it, and are not learnt yet: noise stays as unlikely as it was, and what is known
    has nothing to lose. Rows of the holdout set are ``filtered``. Published is a choice in each batch by the model of
    that moment; here there is one ranking by the base before any step, so a row that is learnt early keeps its place.
    Nothing is cut off, as published, and there is no outlier rule. `learnability` does without a holdout set.

    Two models with unlike tokenizers have unlike means, which is an error; ``per="char"`` divides both sums by the
    response's characters instead of its tokens.
    """

    name: ClassVar[str] = "rho"
    paper: ClassVar[str] = "arXiv:2206.07137"
    filters: ClassVar[str] = "in the holdout set"

    per: Literal["token", "char"] = "token"
    base: str = "base"
    holdout: str = "holdout"

    def signals(self) -> dict[str, Signal]:
        """NLL of the response under both models, and which rows the second has seen."""
        chars = {"chars": Signal(Length(unit="chars"))} if self.per == "char" else {}
        return chars | {
            "base": Signal(Nll(), Prompted(), self.base),
            "held": Signal(Nll(), Prompted(), self.holdout),
            "seen": Signal(Listed(self.holdout)),
        }

    def score(self, s: Signals) -> Scores:
        """NLL of the base minus that of the holdout model."""
        if self.per == "char":
            chars = np.where(s.chars > 0, s.chars, np.nan)
            base, held = s.base.sum() / chars, s.held.sum() / chars
        else:
            ready = self.ready(s)
            if not np.array_equal(s.base.lengths()[ready], s.held.lengths()[ready]):
                raise ConfigError(
                    f"the models '{self.base}' and '{self.holdout}' count other tokens in the same responses, so that "
                    "their means say nothing of each other; take models with one tokenizer, or give --set "
                    f"{self.name}.per=char"
                )
            base, held = s.base.mean(), s.held.mean()
        seen = np.asarray(s.seen, bool)
        value = np.where(seen, np.nan, base - held)
        return Scores(value, reasons(len(s), filtered=seen), nll_base=base, nll_holdout=held)
