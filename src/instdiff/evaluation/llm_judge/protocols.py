"""How a judge decides the tasks of ``general``: asked in both orders, read, and brought to one score for each item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from instdiff.core import Floats
from instdiff.core.files import fingerprint
from instdiff.evaluation.llm_judge.items import Item, Reference
from instdiff.evaluation.llm_judge.judge import (
    ARENA,
    PAIR,
    PREFERENCE,
    RATING,
    JudgePrompt,
    JudgeRequest,
    LLMJudge,
    Verdict,
)
from instdiff.evaluation.llm_judge.parsing import HIGHEST
from instdiff.evaluation.llm_judge.win_rate import WinCounts, games, length_controlled, margins, outcomes
from instdiff.evaluation.results import TaskResult

NO_REFERENCE = "no_reference"
Pair = tuple[Verdict, Verdict]
"""What the judge found with the model's answer first, and with the other's first."""


@dataclass(frozen=True)
class TaskAnswers:
    """A task with what was written for it.

    Args:
        name: of the task.
        where: the file of what was asked.
        items: what was asked.
        ours: of each item the model's answers, turn by turn.
        reference: what they are compared with; None where they are rated.
        guides: of some items right answers, turn by turn, that the judge is shown.
    """

    name: str
    where: str
    items: list[Item]
    ours: list[tuple[str, ...]]
    reference: Reference | None = None
    guides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def theirs(self) -> list[str | None]:
        """What is compared with."""
        return self.reference.answers if self.reference else [None] * len(self.items)


def score_pairwise(match: TaskAnswers, referee: LLMJudge) -> TaskResult:
    """By two scores: won, tied or lost in both orders together."""
    pairs = _pairs(match, PAIR, referee)
    nothing = [np.nan, np.nan]
    first, swapped = (np.array([pair[order].value or nothing for pair in pairs]) for order in (0, 1))
    result = outcomes(*margins(first, swapped))
    seen = ((first + swapped[:, ::-1]) / 2)[np.isfinite(result)]
    told = dict(zip(("mean_score", "reference_mean_score"), seen.mean(0).tolist(), strict=True)) if len(seen) else {}
    return _result(match, pairs, (result + 1) / 2, result, referee, told)


def score_preference(match: TaskAnswers, referee: LLMJudge) -> TaskResult:
    """By how much the judge prefers an answer, the mean of both orders."""
    pairs = _pairs(match, PREFERENCE, referee)
    first, swapped = (np.array([pair[order].value for pair in pairs], np.float64) for order in (0, 1))
    return _result(match, pairs, (first + 1 - swapped) / 2, outcomes(first - 0.5, 0.5 - swapped), referee)


def score_arena(match: TaskAnswers, referee: LLMJudge) -> TaskResult:
    """By two games with one of five verdicts; an item counts as many games as its verdicts do."""
    pairs = _pairs(match, ARENA, referee)
    share, count = games([(as_a.value, as_b.value) for as_a, as_b in pairs])
    verdicts = {
        f"verdicts_as_{letter}": dict(sorted(Counter(pair[order].value or "none" for pair in pairs).items()))
        for order, letter in enumerate("ab")
    }
    return _result(match, pairs, share, np.sign(share - 0.5), referee, verdicts, count)


def score_ratings(match: TaskAnswers, referee: LLMJudge) -> TaskResult:
    """By a rating of each turn, which is an item of its own."""
    ids: list[str] = []
    asked: list[JudgeRequest] = []
    places: list[int] = []
    for item, ours in zip(match.items, match.ours, strict=True):
        guide = match.guides.get(item.id, ())
        turns = [{"question": said, "answer": answer} for said, answer in zip(item.turns, ours, strict=True)]
        for place in range(len(turns)):
            ids.append(f"{item.id}/{place + 1}")
            reference = guide[place] if place < len(guide) else ""
            asked.append(JudgeRequest(RATING.ask(turns=turns[: place + 1], reference=reference)))
            places.append(place)
    found = referee.ask(RATING, asked, match.name)
    rating, turn = np.array([one.value for one in found], np.float64), np.array(places)
    parts = {"rating": turn >= 0, "first_turn": turn == 0, "second_turn": turn == 1}
    means = {name: float(np.nanmean(rating[at])) for name, at in parts.items() if np.isfinite(rating[at]).any()}
    reason = [one.reason for one in found]
    details = {**_origin(match, referee), **means}
    return TaskResult(match.name, "rating/10", ids, rating / HIGHEST, None, reason, details=details)


def _origin(match: TaskAnswers, referee: LLMJudge) -> dict[str, Any]:
    """What the scores depend on beside the model."""
    return {
        "data": match.where,
        "data_fingerprint": fingerprint([[item.id, *item.turns] for item in match.items]),
        "judge": referee.name,
    }


def _pairs(match: TaskAnswers, sheet: JudgePrompt, referee: LLMJudge) -> list[Pair]:
    """What the judge finds in both orders."""
    asked = []
    for item, ours, theirs in zip(match.items, match.ours, match.theirs, strict=True):
        if theirs is not None:
            asked.append(JudgeRequest(sheet.ask(question=item.question, first=ours[0], second=theirs), 0))
            asked.append(JudgeRequest(sheet.ask(question=item.question, first=theirs, second=ours[0]), 1))
    found = iter(referee.ask(sheet, asked, match.name))
    none = Verdict(None, NO_REFERENCE)
    return [(none, none) if theirs is None else (next(found), next(found)) for theirs in match.theirs]


def _result(
    match: TaskAnswers,
    pairs: list[Pair],
    score: Floats,
    result: Floats,
    referee: LLMJudge,
    told: Mapping[str, Any] | None = None,
    weight: Floats | None = None,
) -> TaskResult:
    """A task's result with what all comparisons tell. Lengths are characters."""
    assert match.reference is not None
    known = np.isfinite(score)
    ours = np.array([len(answers[0]) for answers in match.ours])
    theirs = np.array([len(answer or "") for answer in match.theirs])
    lengths = {"mean_length": ours[known], "reference_mean_length": theirs[known]}
    details = {
        **_origin(match, referee),
        "reference": match.reference.name,
        "reference_fingerprint": fingerprint(match.reference.answers),
        **WinCounts.of(result).record(),
        "length_controlled_win_rate": length_controlled(score, ours, theirs),
        **{name: float(values.mean()) for name, values in lengths.items() if known.any()},
        **(told or {}),
    }
    words = [next((one.reason for one in pair if one.reason), None) for pair in pairs]
    reason = [None if fine else word for fine, word in zip(known, words, strict=True)]
    ids = [item.id for item in match.items]
    return TaskResult(match.name, "win_rate", ids, score, weight, reason, details=details)
