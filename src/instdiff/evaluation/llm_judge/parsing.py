"""What is read off a judge's answer. Strictly: an answer that does not keep to its form is no answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from instdiff.engine.text.judge import THOUGHTS
from instdiff.evaluation.llm_judge.win_rate import VERDICTS

Tops = tuple[str, dict[str, float]]
"""A token that was written, and the log probabilities of the likeliest ones at its place."""

_NUMBER = r"(\d{1,2}(?:\.\d+)?)"
_PAIR = re.compile(rf"{_NUMBER}(?:\s*[,;/]\s*|\s+){_NUMBER}", re.ASCII)
_VERDICT = re.compile(r"\[\[([AB<>=]+)\]\]")
_RATING = re.compile(rf"\[\[{_NUMBER}\]\]", re.ASCII)
HIGHEST = 10.0
LEAST_MASS = 0.01
"""Probability that the two choices must have together; below it the judge meant to write something else."""


class Weighed(str):
    """An answer whose server also told how likely the tokens were."""

    __slots__ = ("tokens",)
    tokens: tuple[Tops, ...]

    @classmethod
    def of(cls, text: str, tokens: Sequence[Tops]) -> Weighed:
        """A text with its tokens."""
        made = cls(text)
        made.tokens = tuple(tokens)
        return made


def _after_thinking(answer: str) -> str:
    """What was written after thinking; empty where thinking never ended."""
    text = answer.rpartition(THOUGHTS[1])[2]
    return "" if THOUGHTS[0] in text else text.strip()


def two_scores(answer: str) -> list[float] | None:
    """The two numbers on the first line, which has nothing else.

    They are asked for from 1 to 10; judges also write 0 for an answer that is worth nothing, and it counts.
    """
    found = _PAIR.fullmatch(_after_thinking(answer).partition("\n")[0].strip())
    scores = [float(found[1]), float(found[2])] if found else []
    return scores if scores and max(scores) <= HIGHEST else None


def verdict(answer: str) -> str | None:
    """``A>>B``, ``A>B``, ``A=B``, ``B>A`` or ``B>>A`` in double brackets; none where there are two different ones."""
    found = set(_VERDICT.findall(_after_thinking(answer)))
    only = found.pop() if len(found) == 1 else None
    return only if only in VERDICTS else None


def rating(answer: str) -> float | None:
    """A number from 1 to 10 in double brackets; none where there are two different ones."""
    found = {float(number) for number in _RATING.findall(_after_thinking(answer))}
    only = found.pop() if len(found) == 1 else 0.0
    return only if 1 <= only <= HIGHEST else None


def preference(answer: str) -> float | None:
    """How much ``m`` is preferred to ``M``, from 0 to 1.

    Where the server gave probabilities it is the share of ``m`` in those of both, at the first place where one of them
    was written, else at the first place; otherwise 1 or 0 by what was written, and 0.5 where that is ``tie``.
    """
    if isinstance(answer, Weighed) and answer.tokens:
        at = next((tops for token, tops in answer.tokens if token.strip() in ("m", "M")), answer.tokens[0][1])
        ours, theirs = _mass(at, "m"), _mass(at, "M")
        if ours + theirs >= LEAST_MASS:
            return ours / (ours + theirs)
    return {"m": 1.0, "M": 0.0, "tie": 0.5}.get(_after_thinking(answer).strip("\"'`*.() \n"))


def _mass(tops: dict[str, float], letter: str) -> float:
    """Probability of a letter; what a server gives that is no probability counts nothing."""
    return sum(math.exp(logprob) for token, logprob in tops.items() if token.strip() == letter and logprob < 1)
