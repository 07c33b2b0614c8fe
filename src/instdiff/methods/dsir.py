"""DSIR (Xie et al., NeurIPS 2023, arXiv:2302.03169): rows drawn by how much more a target has of their n-grams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from instdiff.core import Length, Method, Scores, Signal, Signals, Text, reasons
from instdiff.errors import ConfigError, DataError
from instdiff.methods.algorithms.words import hash_ngrams, importance
from instdiff.methods.random import uniform


@dataclass(frozen=True)
class DSIR(Method):
    """Log importance weight of a row's hashed n-grams, target over pool, plus noise; highest first.

    N-grams of one and two words (``ngrams``) go to ``buckets`` by their hash. A bucket's weight is the log of its share
    in the target over that in the pool, and a row's the sum over its n-grams. The ``noise`` is that of Gumbel, drawn by
    ``seed``: the best k then are k draws without replacement, in proportion to the weights. The sum favours long rows
    where their words are the target's; ``per_token`` divides it by the row's n-grams, which is ours. ``pseudo`` is
    added to the target's counts, for small targets. Rows under ``min_tokens`` words are ``too_short``; published are
    100, which would leave out most instruction rows. The text is the whole row. Details: ``log_ratio``, without noise.
    """

    name: ClassVar[str] = "dsir"
    paper: ClassVar[str] = "arXiv:2302.03169"

    buckets: int = 10_000
    ngrams: int = 2
    min_tokens: int = 0
    noise: bool = True
    per_token: bool = False
    pseudo: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        if not (self.buckets >= 2 and self.ngrams >= 1 and self.min_tokens >= 0 and self.pseudo >= 0):
            raise ConfigError(
                f"'dsir': buckets {self.buckets}, ngrams {self.ngrams}, min_tokens {self.min_tokens}, pseudo "
                f"{self.pseudo:g} do not fit; 2 buckets and 1-grams are the least, the others lie at 0 or above"
            )

    def signals(self) -> dict[str, Signal]:
        """The texts of both files; rows without a response are told by its length."""
        both = {name: Signal(Text("row"), of=of) for name, of in (("text", "pool"), ("target", "target"))}
        return both | {"length": Signal(Length(unit="chars"))}

    def score(self, s: Signals) -> Scores:
        """The sum of the log ratios of a row's n-grams."""
        grams, sizes, words = hash_ngrams(s.text, self.ngrams, self.buckets)
        wanted = hash_ngrams(s.target, self.ngrams, self.buckets)[0]
        if not len(wanted):
            raise DataError("no row of the target file has a word; give another --target")
        counts = [np.bincount(one, minlength=self.buckets) for one in (grams, wanted)]
        weights = importance(counts[0], counts[1], self.pseudo)
        ratio = np.bincount(np.repeat(np.arange(len(s)), sizes), weights[grams], len(s))
        ratio = np.where(words == 0, np.nan, ratio / np.maximum(sizes, 1) if self.per_token else ratio)
        drawn = -np.log(-np.log(np.maximum(uniform(self.seed, s), 1e-300))) if self.noise else 0.0
        short = words < max(1, self.min_tokens)
        return Scores(np.where(short, np.nan, ratio + drawn), reasons(len(s), too_short=short), log_ratio=ratio)
