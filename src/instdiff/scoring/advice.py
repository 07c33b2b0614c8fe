"""What a user should hear of scores before going by them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from instdiff.core import NOT_REACHED, Length, Scored
from instdiff.core.arrays.correlation import spearman
from instdiff.scoring.known import count_known

BY_LENGTH = 0.7
"""Rank correlation with response tokens from which a ranking is called one by length."""
ENOUGH = 20
"""The least rows by which that is said."""


def length_correlation(scored: Scored) -> float | None:
    """Rank correlation of a score with response tokens; None where it is not known, or of few rows."""
    known = scored.eligible & (scored.n_tokens >= 0)
    if int(known.sum()) < ENOUGH:
        return None
    found = spearman(scored.value[known], scored.n_tokens[known].astype(np.float64))
    return found if np.isfinite(found) else None


def advise(scored: Scored) -> list[str]:
    """Lines on rows that are known, a ranking that is mostly length, and a method that filters most rows."""
    lines, name = [str(one) for one in count_known(scored)], scored.name
    rho = length_correlation(scored)
    signals = scored.method.signals().values()
    by_length = bool(signals) and all(isinstance(signal.measure, Length) for signal in signals)
    if rho is not None and abs(rho) > BY_LENGTH and not by_length:
        lines.append(
            f"{name} goes mostly by length: its rank correlation with response tokens is {rho:.2f}; "
            "compare what --method longest chooses"
        )
    filtered, scorable = int((scored.reason == "filtered").sum()), int(scored.scorable.sum())
    if 2 * filtered > scorable:
        lines.append(
            f"{name} filtered {filtered:,} of {scorable:,} rows{_rule(scored)}; "
            f"{int(scored.eligible.sum()):,} are left to select from"
        )
    return lines


def excluded_text(scored: Scored) -> str:
    """How many rows have no score for which reason, in words; those that a set method did not come to are no matter."""
    words = Counter(str(word) for word in scored.reason if word is not None and word != NOT_REACHED)
    rule = f": {scored.method.filters}" if scored.method.filters else ""
    return ", ".join(f"{n:,} {word}{rule if word == 'filtered' else ''}" for word, n in sorted(words.items()))


def _rule(scored: Scored) -> str:
    return f" ({scored.method.filters})" if scored.method.filters else ""
