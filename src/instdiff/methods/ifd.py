"""Instruction-Following Difficulty (Li et al., NAACL 2024, arXiv:2308.12032)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Joint, Method, Nll, Prompted, ResponseOnly, Scores, Signal, Signals, View, reasons
from instdiff.methods.shared.short import too_short


@dataclass(frozen=True)
class IFD(Method):
    """Response loss with the prompt over loss without it. Higher = harder to follow. Rows at 1 or above are dropped.

    ``ratio="perplexity"`` is PPL(y|x) / PPL(y) (Superfiltering's form), ``ratio="loss"`` the ratio of the mean losses
    (Cherry_LLM's form); they rank differently. At 1 and above the prompt misleads the model: ``filtered``, as in the
    paper.

    By default both views score the same T response tokens: a start token stands before the response alone.
    ``first_token="official"`` leaves it out where the tokenizer adds none, so that the response alone has T - 1 terms.

    A response of fewer than ``min_response_tokens`` tokens is ``too_short``: by default 2, because of one token the
    ratio says how common that token is, and 1 as published.

    ``compat="official"`` is the published arithmetic. ``ratio="loss"``: the Alpaca prompt, "### Response:" before the
    response alone, one joint tokenisation, exactly 1 is kept. ``ratio="perplexity"``: no template, T - 1 terms, one
    joint tokenisation. Both cut the response alone to what the prompt leaves of ``max_length``.
    """

    name: ClassVar[str] = "ifd"
    paper: ClassVar[str] = "arXiv:2308.12032"
    filters: ClassVar[str] = "IFD >= 1"

    ratio: Literal["perplexity", "loss"] = "perplexity"
    first_token: Literal["aligned", "official"] = "aligned"
    min_response_tokens: int | None = None
    model: str = "base"
    compat: Literal["default", "official"] = "default"

    def views(self) -> tuple[View, View]:
        """The response given its prompt, and alone."""
        if self.compat == "default":
            return Prompted(), ResponseOnly(context=self.first_token == "aligned")
        if self.ratio == "loss":
            return Joint("alpaca"), Joint("alpaca", alone="### Response:", slack=4)
        return Joint("plain"), Joint("plain", alone="", slack=1)

    def signals(self) -> dict[str, Signal]:
        """NLL of the response with and without the prompt."""
        given, alone = self.views()
        return {"given": Signal(Nll(), given, self.model), "alone": Signal(Nll(), alone, self.model)}

    def score(self, s: Signals) -> Scores:
        """The ratio itself, in (0, 1)."""
        given, alone = s.given.mean(), s.alone.mean()
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            ifd = np.exp(given - alone) if self.ratio == "perplexity" else given / alone
        short = too_short(s.given.count(), self.min_response_tokens, self.compat)
        one_stays = self.compat == "official" and self.ratio == "loss"
        misled = (ifd > 1) if one_stays else (ifd >= 1)
        value = np.where(short | misled, np.nan, ifd)
        reason = reasons(len(s), too_short=short, filtered=misled)
        return Scores(value, reason, ifd=ifd, nll_given=given, nll_alone=alone)
