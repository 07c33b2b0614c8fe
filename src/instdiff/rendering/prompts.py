"""Rows with one prompt, which is what stands before the first turn that is learnt."""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

from instdiff.data import Pool, Sample
from instdiff.rendering.templates import calls_text, is_target


def prompt_groups(pool: Pool, *, near: bool = False) -> npt.NDArray[np.object_]:
    """Per row a hash that rows with equal prompts share: one template renders equal turns equally.

    With ``near`` case, punctuation and blanks make no difference. That is for rows that must not be apart, as in folds;
    ``12 - 5`` and ``12 * 5`` are one there, so that elsewhere it would lose rows.
    """
    out = np.empty(len(pool), object)
    for row, sample in enumerate(pool.samples()):
        text = prompt_of(sample, pool.turns.targets)
        text = plain(text) or text if near else text
        out[row] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return out


def prompt_of(sample: Sample, targets: str) -> str:
    """Who says what before the first turn that is learnt, and the tools on offer."""
    told = [sample.tools]
    for at, turn in enumerate(sample.messages):
        if is_target(sample.messages, at, targets):
            break
        told += [turn.role, turn.content, turn.input, calls_text(turn.calls) if turn.calls else ""]
    return "\n".join(told)


def plain(text: str) -> str:
    """Without differences that change no meaning: NFKC, lower case, and blanks for punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().translate(_blanks()).split())


@cache
def _blanks() -> dict[int, str]:
    return {code: " " for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P")}
