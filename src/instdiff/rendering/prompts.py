"""Rows with one prompt: what stands before the first turn that is learnt, up to case, punctuation and blanks."""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

from instdiff.data import Pool, Sample
from instdiff.rendering.templates import calls_text, is_target


def prompt_groups(pool: Pool) -> npt.NDArray[np.object_]:
    """Per row a hash that rows share whose prompts are near copies: one template renders equal turns equally."""
    out = np.empty(len(pool), object)
    for row, sample in enumerate(pool.samples()):
        text = prompt_of(sample, pool.turns.targets)
        out[row] = hashlib.blake2b((plain(text) or text).encode(), digest_size=8).hexdigest()
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
