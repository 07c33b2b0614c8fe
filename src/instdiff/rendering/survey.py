"""What the rows of a pool are, read off their texts: copies, empty rows, scripts. No model, no tokenizer."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ragged import Ragged
from instdiff.data import Pool
from instdiff.methods.algorithms.near_copies import near_copies
from instdiff.rendering.prompts import prompt_of
from instdiff.rendering.templates import why_nothing
from instdiff.rendering.texts import words
from instdiff.rendering.tokenise import response_texts, thought_texts
from instdiff.rendering.vocabulary import Vocabulary

CHARACTERS = 4000
"""Of a row, by which its script is told."""


@dataclass(frozen=True)
class Survey:
    """Counts of the ``rows`` that were looked at.

    ``row_copies`` ask and teach what an earlier row does, ``prompt_copies`` ask what an earlier row asks. Near copies
    differ from an earlier row, and share four fifths of their word triples with it. ``silent`` are rows with nothing to
    learn, by the reason; ``one_word`` those that teach one word. ``traces`` are rows that teach a thought before the
    answer, and ``answered_again`` those of them whose prompt an earlier one of them has. ``scripts`` are rows by the
    script of most letters: languages that share one are not told apart.
    """

    rows: int
    row_copies: int
    near_row_copies: int
    prompt_copies: int
    near_prompt_copies: int
    silent: dict[str, int]
    no_prompt: int
    one_word: int
    scripts: dict[str, int]
    traces: int = 0
    answered_again: int = 0


def survey(pool: Pool) -> Survey:
    """Look at all rows of a pool."""
    prompts, answers = list[str](), list[str]()
    silent, scripts = Counter[str](), Counter[str]()
    no_prompt = one_word = 0
    traced = list[str]()
    for sample in pool.samples():
        prompts.append(prompt_of(sample, pool.turns.targets))
        answers.append("\n".join(response_texts(sample, pool.turns)))
        why = why_nothing(sample, pool.turns.targets)
        silent.update([why] if why else [] if answers[-1].strip() else ["empty_response"])
        no_prompt += not words(sample, "instruction", pool.turns).strip()
        one_word += len(answers[-1].split()) == 1
        traced += prompts[-1:] if any(map(str.strip, thought_texts(sample, pool.turns))) else []
        scripts[script_of(words(sample, "row", pool.turns)[:CHARACTERS])] += 1
    known = Vocabulary()
    asked, said = ([known.number(text) for text in texts] for texts in (prompts, answers))
    same, near = _copies(list(zip(prompts, answers, strict=True)), list(map(np.append, asked, said)))
    same_prompts, near_prompts = _copies(prompts, asked)
    told = dict(silent.most_common()), no_prompt, one_word, dict(scripts.most_common())
    traces = len(traced), len(traced) - len({*traced})
    return Survey(len(pool), same, near, same_prompts, near_prompts, *told, *traces)


def _copies(texts: Sequence[Hashable], numbers: Sequence[npt.NDArray[np.int64]]) -> tuple[int, int]:
    """How many texts are equal to an earlier one, and how many others are nearly so."""
    same = np.ones(len(texts), bool)
    same[list({text: at for at, text in reversed(list(enumerate(texts)))}.values())] = False
    near = near_copies(Ragged.of(numbers, np.int64)) >= 0
    return int(same.sum()), int((near & ~same).sum())


def script_of(text: str) -> str:
    """The script of most letters, such as ``Latin``, or ``no letters``."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "no letters"
    counts = Counter[str]()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            counts[_script(letter)] += count
    return counts.most_common(1)[0][0] if counts else "no letters"


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "other").split()[0].split("-")[0]
    return {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}.get(name, name.capitalize())
