"""Successive halving: fewer recipes and more seeds from rung to rung, each recipe against random rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instdiff.errors import ConfigError, DataError, EngineError, did_you_mean
from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.evaluation.subject import PartedSuite, Suite
from instdiff.experiments.inputs import place_of
from instdiff.experiments.summary import TaskScores

Found = dict[str, Any]
"""What is known of a recipe in a rung; ``gain`` is its distance to random rows, above 0 where it is better."""
Judge = Callable[[Sequence[str], int], Mapping[str, Found]]
"""Of recipes with the first so many seeds what was found; a recipe that failed is not there."""


@dataclass(frozen=True)
class Rung:
    """So many recipes are judged by the first ``seeds`` seeds each."""

    recipes: int
    seeds: int


@dataclass(frozen=True)
class Bracket:
    """What a search came to: of each rung its recipes, best first, and the last one's best with its gain.

    ``hopeless`` says that no recipe of the last rung was better than random rows.
    """

    rungs: list[dict[str, Any]]
    best: str
    gain: float
    hopeless: bool


def _sizes(recipes: int) -> list[int]:
    sizes = [recipes]
    while sizes[-1] // 2 > 1:
        sizes.append(sizes[-1] // 2)
    return sizes


def trainings_of(recipes: int, final_seeds: int) -> int:
    """How many trainings a search needs at least: random rows have one in each rung too, and the last judgement two."""
    return sum(size + 1 for size in _sizes(recipes)) + 2 * final_seeds


def rungs_of(recipes: int, trainings: int, final_seeds: int) -> list[Rung]:
    """The rungs of a search; what the least leaves of the trainings gives more seeds, late rungs first.

    Raises a ConfigError where the trainings are too few.
    """
    least = trainings_of(recipes, final_seeds)
    if least > trainings:
        raise ConfigError(
            f"a search among {recipes} recipes takes {least} trainings at least, and 'trainings' is {trainings}; "
            "give more, or fewer recipes or final_seeds"
        )
    sizes, left = _sizes(recipes), trainings - least
    more = [1] * len(sizes)
    while left > sizes[-1]:
        for at in reversed(range(len(sizes))):
            if left > sizes[at]:
                more[at] += 1
                left -= sizes[at] + 1
    return [Rung(size, sum(more[: at + 1])) for at, size in enumerate(sizes)]


def halve(recipes: Sequence[str], rungs: Sequence[Rung], judge: Judge) -> Bracket:
    """Judge recipes rung by rung, and go on with the better half of each; equal ones stay in their order.

    A search is over when no recipe is better than random rows, by two seeds at least or in the last rung. Raises an
    EngineError where all recipes of a rung failed.
    """
    alive, told = list(recipes), list[dict[str, Any]]()
    best, gain, hopeless = "", 0.0, False
    for number, rung in enumerate(rungs, 1):
        found = judge(alive, rung.seeds)
        ranked = sorted((name for name in alive if name in found), key=lambda name: -found[name]["gain"])
        if not ranked:
            raise EngineError(f"all recipes of rung {number} failed ({', '.join(alive)}); the log says why")
        best, last = ranked[0], number == len(rungs)
        gain = found[best]["gain"]
        hopeless = gain <= 0 and (rung.seeds > 1 or last)
        kept = [] if hopeless else ranked[: 1 if last else rungs[number].recipes]
        lines = [{"name": name, **found[name], "kept": name in kept} for name in ranked]
        told.append({"seeds": rung.seeds, "recipes": lines, "failed": [name for name in alive if name not in found]})
        alive = [name for name in recipes if name in kept]
        if hopeless:
            break
    return Bracket(told, best, gain, hopeless)


# ── what a search looks at ────────────────────────────────────────────────────────────────────────────────────────────


def gain(one: TaskScores, control: TaskScores) -> float:
    """How much better a line is than its control, on the items that both have."""
    known = set(control.ids)
    both = [name for name in one.ids if name in known]
    if not both:
        raise DataError(f"no item of {one.task.name} has a score under both models")
    gap = one.only(both).value - control.only(both).value
    return gap if one.task.higher_is_better else -gap


def half(task: TaskResult, untouched: bool) -> TaskResult:
    """A task's items of one half: those that a search sees, or those that it never does.

    The hash of an item's id decides, which for rows is that of their content, so that copies lie in one half.
    """
    return task.take([n for n, name in enumerate(task.ids) if is_untouched(name) is untouched])


def is_untouched(item: str) -> bool:
    """Whether an item, by its id, is of the half that a search does not see."""
    return place_of(item.partition("#")[0], "untouched") < 0.5


def half_of(suite: Suite, untouched: bool) -> Suite:
    """A suite that asks one half of its items; all of them where it cannot be parted, or one half has none."""
    if not isinstance(suite, PartedSuite):
        return suite
    seen, other = suite.part(lambda item: not is_untouched(item)), suite.part(is_untouched)
    if not (len(seen.pool) and len(other.pool)):
        return suite
    return other if untouched else seen


def halved(results: Sequence[SuiteResult], untouched: bool) -> list[SuiteResult]:
    """One half of all tasks."""
    return [replace(one, tasks=tuple(half(task, untouched) for task in one.tasks)) for one in results]


def deciding(results: Sequence[SuiteResult], tasks: Sequence[str]) -> TaskResult:
    """The task that decides; of several their mean, in which each counts alike.

    Without names these are all tasks of the first suite. Raises a ConfigError for a name that there is not, or tasks of
    which some are better when higher and others when lower.
    """
    known = {task.name: task for one in results for task in one.tasks}
    for name in tasks:
        if name not in known:
            raise ConfigError(f"'decide' names '{name}', which no suite has{did_you_mean(name, known)}")
    chosen = [known[name] for name in tasks] or list(results[0].tasks)
    if len({task.higher_is_better for task in chosen}) > 1:
        raise ConfigError(
            f"{', '.join(task.name for task in chosen)} have no common direction; name the tasks with decide: [...]"
        )
    if len(chosen) == 1:
        return chosen[0]
    return TaskResult(
        "mean of " + ", ".join(task.name for task in chosen),
        chosen[0].metric,
        [f"{task.name}/{name}" for task in chosen for name in task.ids],
        np.concatenate([task.score for task in chosen]),
        np.concatenate([task.weights / max(task.weights.sum(), 1e-12) for task in chosen]),
        higher_is_better=chosen[0].higher_is_better,
    )
