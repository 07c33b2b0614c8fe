"""Rungs, the better half, the stop rule and the halves of the items, with planted numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from helpers import some_rows
from instdiff.config.evaluate import EvalConfig
from instdiff.data import load
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.errors import ConfigError, DataError, EngineError
from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.evaluation.skills import skills_suite
from instdiff.evaluation.suites import HeldOutSuite
from instdiff.experiments.halving import (
    Found,
    Rung,
    deciding,
    gain,
    half,
    half_of,
    halve,
    is_untouched,
    rungs_of,
    trainings_of,
)
from instdiff.experiments.summary import sample


@pytest.mark.parametrize(
    ("recipes", "trainings", "final", "want"),
    [
        (10, 30, 5, [(10, 1), (5, 2), (2, 3)]),
        (12, 30, 3, [(12, 1), (6, 2), (3, 3)]),
        (4, 15, 3, [(4, 1), (2, 2)]),
        (3, 10, 3, [(3, 1)]),
        (1, 8, 3, [(1, 1)]),
        (2, 30, 5, [(2, 6)]),  # what is left gives the only rung more seeds
        (10, 60, 5, [(10, 2), (5, 5), (2, 8)]),
    ],
)
def test_rungs(recipes: int, trainings: int, final: int, want: list[tuple[int, int]]) -> None:
    assert rungs_of(recipes, trainings, final) == [Rung(*one) for one in want]


@given(some.integers(1, 40), some.integers(3, 9), some.integers(0, 60))
def test_no_more_trainings_than_allowed(recipes: int, final: int, more: int) -> None:
    allowed = trainings_of(recipes, final) + more
    rungs = rungs_of(recipes, allowed, final)
    spent, before = 2 * final, 0
    for rung in rungs:
        assert rung.seeds > before
        spent += (rung.seeds - before) * (rung.recipes + 1)
        before = rung.seeds
    assert spent <= allowed < spent + rungs[-1].recipes + 1
    for one, then in pairwise(rungs):
        assert then.recipes == one.recipes // 2
    with pytest.raises(ConfigError, match=f"takes {trainings_of(recipes, final)} trainings at least"):
        rungs_of(recipes, trainings_of(recipes, final) - 1, final)


class Planted:
    """A judge whose gains are known; it counts what it is asked to train."""

    def __init__(self, gains: dict[str, float], failing: Sequence[str] = ()) -> None:
        self.gains, self.failing, self.trained = gains, failing, set[tuple[str, int]]()

    def __call__(self, names: Sequence[str], seeds: int) -> dict[str, Found]:
        self.trained |= {(name, seed) for name in ("random", *names) for seed in range(seeds)}
        return {name: {"gain": self.gains[name]} for name in names if name not in self.failing}


NAMES = [f"r{n}" for n in range(10)]


def test_the_better_half_goes_on() -> None:
    judge = Planted({name: float(n) for n, name in enumerate(NAMES)})
    found = halve(NAMES, rungs_of(10, 30, 5), judge)
    assert (found.best, found.gain, found.hopeless) == ("r9", 9.0, False)
    kept = [[one["name"] for one in rung["recipes"] if one["kept"]] for rung in found.rungs]
    assert kept == [["r9", "r8", "r7", "r6", "r5"], ["r9", "r8"], ["r9"]]
    assert [len(rung["recipes"]) for rung in found.rungs] == [10, 5, 2]
    assert len(judge.trained) == 20  # and ten more for the last judgement are thirty
    assert {seed for name, seed in judge.trained if name == "random"} == {0, 1, 2}


def test_equal_recipes_stay_in_their_order() -> None:
    judge = Planted(dict.fromkeys(NAMES, 1.0))
    assert halve(NAMES, rungs_of(10, 30, 5), judge).best == "r0"
    assert halve(NAMES[::-1], rungs_of(10, 30, 5), judge).best == "r9"


def test_it_stops_where_nothing_beats_random() -> None:
    judge = Planted({name: -float(n) for n, name in enumerate(NAMES)})
    found = halve(NAMES, rungs_of(10, 30, 5), judge)
    assert (found.best, found.gain, found.hopeless) == ("r0", 0.0, True)
    assert len(found.rungs) == 2  # one seed decides nothing
    assert not any(one["kept"] for one in found.rungs[-1]["recipes"])
    assert halve(NAMES[1:3], rungs_of(2, 9, 3), judge).hopeless  # but in the only rung it does


def test_a_recipe_that_fails_is_out() -> None:
    gains = {name: float(n) for n, name in enumerate(NAMES)}
    found = halve(NAMES, rungs_of(10, 30, 5), Planted(gains, ["r9"]))
    assert found.best == "r8" and found.rungs[0]["failed"] == ["r9"]
    with pytest.raises(EngineError, match="all recipes of rung 1 failed"):
        halve(NAMES, rungs_of(10, 30, 5), Planted(gains, NAMES))


@given(some.lists(some.floats(-1, 1), min_size=1, max_size=20))
def test_the_best_of_all_wins_where_gains_do_not_change(gains: list[float]) -> None:
    names = [f"r{n}" for n in range(len(gains))]
    found = halve(names, rungs_of(len(names), 200, 3), Planted(dict(zip(names, gains, strict=True))))
    assert found.gain == max(gains) and found.hopeless == (max(gains) <= 0)


# ── halves and what decides ───────────────────────────────────────────────────────────────────────────────────────────


def task(name: str = "a", count: int = 100, **more: object) -> TaskResult:
    rng = np.random.default_rng(count)
    return TaskResult(name, "m", [f"{name}{n}" for n in range(count)], rng.random(count), **more)  # type: ignore[arg-type]


@given(some.sets(some.text(max_size=6), max_size=60), some.text(max_size=6))
def test_the_halves_are_apart_and_copies_together(ids: set[str], twice: str) -> None:
    names = sorted(ids | {twice, f"{twice}#2"})
    whole = TaskResult("a", "m", names, np.arange(float(len(names))), weight=np.ones(len(names)))
    seen, untouched = half(whole, False), half(whole, True)
    assert sorted([*seen.ids, *untouched.ids]) == names
    assert (twice in seen.ids) == (f"{twice}#2" in seen.ids)
    for part in (seen, untouched):
        assert [names[int(value)] for value in part.score] == list(part.ids)


def test_suites_ask_one_half() -> None:
    rows = some_rows(30)
    heldout = HeldOutSuite(load([*rows, rows[3]]), "rows")
    parts: Any = [half_of(heldout, side) for side in (False, True)]
    assert sorted(name for one in parts for name in one.pool.ids) == sorted(heldout.pool.ids)
    for side, one in enumerate(parts):
        assert len(one.pool) and all(is_untouched(name) == bool(side) for name in one.pool.ids)
    skills = skills_suite(EvalConfig(limit=200))
    whole, *halves = (asked(one) for one in (skills, half_of(skills, False), half_of(skills, True)))
    for task in ("known", "learnable"):
        for side, found in enumerate(halves):
            same = half(whole[task], bool(side))
            assert list(found[task].ids) == list(same.ids) and 10 < len(same.ids) < 90
            assert found[task].score.tolist() == same.score.tolist() and 0 < same.value < 1


def asked(suite: Any) -> dict[str, TaskResult]:
    """Tasks by a writer that knows the answers to questions of even length."""
    answers = {"\n".join(filter(None, (one.instruction, one.input))): one.response for one in suite.pool.samples()}

    class Writer:
        def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
            return [["" if len(one.text) % 2 else answers[one.text]] for one in prompts]

    subject: Any = SimpleNamespace(generator=Writer(), log=print)
    return {task.name: task for task in suite.run(subject)}


def test_suites_that_cannot_be_halved_ask_everything() -> None:
    one: Any = SimpleNamespace(name="fixed", run=lambda subject: ())
    other = HeldOutSuite(load(some_rows(1)), "a row")
    assert half_of(one, True) is one and half_of(other, True) is other


def test_both_halves_have_about_half() -> None:
    assert 430 < len(half(task(count=1000), True).ids) < 570


def test_of_several_tasks_each_counts_alike() -> None:
    results = [SuiteResult("one", "m", (task("a", 10), task("b", 90))), SuiteResult("two", "m", (task("c", 7),))]
    mean = deciding(results, [])
    assert mean.name == "mean of a, b" and len(mean.ids) == 100
    assert mean.value == pytest.approx((task("a", 10).value + task("b", 90).value) / 2)
    assert deciding(results, ["c"]).ids == task("c", 7).ids
    assert deciding(results, ["c", "a"]).value == pytest.approx((task("c", 7).value + task("a", 10).value) / 2)
    with pytest.raises(ConfigError, match="'decide' names 'd', which no suite has"):
        deciding(results, ["d"])
    mixed = [SuiteResult("one", "m", (task("a", 10), task("b", 9, higher_is_better=False)))]
    with pytest.raises(ConfigError, match="a, b have no common direction"):
        deciding(mixed, [])


def test_a_gain_is_above_0_where_a_line_is_better() -> None:
    one, other = task(count=10), task(count=10)
    low = TaskResult("a", "m", one.ids, one.score - 0.25)
    assert gain(sample([low]), sample([other])) == pytest.approx(-0.25)
    losses = [TaskResult("a", "nll", t.ids, t.score, higher_is_better=False) for t in (low, other)]
    assert gain(sample([losses[0]]), sample([losses[1]])) == pytest.approx(0.25)
    # Items that one side lacks do not count.
    part = TaskResult("a", "m", one.ids[:5], one.score[:5] + 1)
    assert gain(sample([part]), sample([other])) == pytest.approx(1)
    with pytest.raises(DataError, match="no item of a has a score under both"):
        gain(sample([task(count=3)]), sample([TaskResult("a", "m", ["x"], np.ones(1))]))
