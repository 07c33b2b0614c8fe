"""A controlled pool: synthetic instruction skills of which it is known who can do what, and which rows are wrong.

Data: ``builtin:skills`` (the pool), ``builtin:skills/test`` and ``builtin:skills/known``, each with ``@SEED`` behind it
for another draw, and the pool with ``?noise=0.4`` for another share of wrong rows. Model: ``builtin:skills``, which has
learned the known skills and none of the others.
"""

from instdiff.data.builtin.skills.pool import AMOUNTS, KINDS, PARTS, rows, rows_named
from instdiff.data.builtin.skills.tasks import BEYOND, FILLER, KNOWN, LEARNABLE, SKILLS, Skill

__all__ = [
    "AMOUNTS",
    "BEYOND",
    "FILLER",
    "KINDS",
    "KNOWN",
    "LEARNABLE",
    "PARTS",
    "SKILLS",
    "Skill",
    "rows",
    "rows_named",
]
