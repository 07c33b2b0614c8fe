"""Scores without near copies of better rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from instdiff.core import NEAR_DUPLICATE, Scored
from instdiff.core.caps import Caps
from instdiff.data import Pool
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.near_copies import near_copies
from instdiff.rendering.texts import words
from instdiff.rendering.vocabulary import Vocabulary


def without_copies(pool: Pool, scored: Scored, alike: float, caps: Caps | None = None) -> Scored:
    """The scores without rows that are near copies of a better row, by their whole text; these are ``near_duplicate``.

    Rows that a set method did not come to are behind all others, in the order of their ids. What ``caps`` leave out is
    no better row, unless the method holds them itself: which rows it takes is not known yet. Raises a ConfigError
    where ``alike`` is no similarity.
    """
    if not 0 < alike <= 1:
        raise ConfigError(f"near_duplicates is {alike:g}; it is a Jaccard similarity above 0 and up to 1, such as 0.8")
    left = np.flatnonzero(scored.takeable & ~scored.eligible)
    order = np.concatenate([scored.best(), left[np.argsort(np.array(scored.ids)[left], kind="stable")]])
    texts = (words(one, "row", pool.turns) for one in pool.take(order).samples())
    held = None if caps is None or scored.method.holds_caps else caps.take(order)
    gone = order[near_copies(Vocabulary().column(texts), alike, held) >= 0]
    value, reason = scored.value.copy(), scored.reason.copy()
    value[gone], reason[gone] = np.nan, NEAR_DUPLICATE
    return replace(scored, value=value, reason=reason)
