"""Preference pairs, which nothing here trains on."""

from __future__ import annotations

from instdiff.data import Pool
from instdiff.errors import ConfigError


def refuse_pairs(pool: Pool) -> Pool:
    """The rows of a pool, a ConfigError where some are preference pairs."""
    if count := int(pool.pairs.sum()):
        raise ConfigError(
            f"training is supervised fine-tuning on one answer of each row, and {count:,} rows of {pool.origin} are "
            "preference pairs: give --map instruction=prompt,response=chosen, or --map messages=chosen for "
            "conversations, to learn the chosen side alone, or write them for a DPO trainer with `instdiff export`"
        )
    return pool
