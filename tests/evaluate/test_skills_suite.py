"""The suite `skills`: right answers count, in a task for each kind of skill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff import load
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.core.progress import Quiet
from instdiff.data.builtin import path
from instdiff.data.builtin.skills import KNOWN, LEARNABLE, SKILLS
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.errors import ConfigError, DataError
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.skills import Skills, by_skill, same, skills_suite
from instdiff.evaluation.subject import Subject
from instdiff.store import Store
from skilled import Greedy


class Told:
    """Answers as a function of the prompt says."""

    name = "told"

    def __init__(self, say: Callable[[str], str]) -> None:
        self.say = say
        self.samplings: list[Sampling] = []

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        self.samplings.append(sampling)
        return [[self.say(prompt.text)] for prompt in prompts]


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., dict[str, TaskResult]]:
    def run(suite: Skills, generator: Any) -> dict[str, TaskResult]:
        subject = Subject(
            "base", ModelRef("builtin:skills"), Settings(), Store(tmp_path), tmp_path, generator, print, Quiet()
        )
        return {task.name: task for task in suite.run(subject)}

    return run


ASKED = {ask: skill for skill in SKILLS.values() for ask in skill.asks}


def right(text: str) -> str:
    instruction, said = text.split("\n")
    return ASKED[instruction].answer(said)


def test_everything_right(ask: Callable[..., dict[str, TaskResult]]) -> None:
    teller = Told(right)
    found = ask(skills_suite(EvalConfig()), teller)
    assert list(found) == ["known", "learnable"]
    for name, skills in (("known", KNOWN), ("learnable", LEARNABLE)):
        task = found[name]
        assert (task.metric, task.value, len(task.ids), task.higher_is_better) == ("accuracy", 1.0, 400, True)
        assert task.details["skills"] == {skill.name: 1.0 for skill in skills}
        assert list(task.details["skills"]) == [skill.name for skill in skills]
    assert teller.samplings == [Sampling(max_new_tokens=24, stop=("\n",))], "greedy, all at once"


def test_what_is_wrong_is_counted_by_skill(ask: Callable[..., dict[str, TaskResult]]) -> None:
    def some(text: str) -> str:
        skill = ASKED[text.split("\n")[0]].name
        return {"copy": "", "sort": f"{right(text)} 0", "rival": f"  {right(text)} "}.get(skill, right(text))

    found = ask(skills_suite(EvalConfig()), Told(some))
    assert found["known"].value == found["learnable"].value == 7 / 8
    assert found["known"].details["skills"]["copy"] == 0.0
    assert found["learnable"].details["skills"] | {"sort": 0.0, "rival": 1.0} == found["learnable"].details["skills"]
    wrong = [name for name, score in zip(found["known"].ids, found["known"].score, strict=True) if not score]
    assert len(wrong) == 50 and all(name.startswith("copy/") for name in wrong)


def test_items_are_the_same_for_every_model_and_differ_between_draws(ask: Callable[..., dict[str, TaskResult]]) -> None:
    first = ask(skills_suite(EvalConfig()), Told(right))["known"].ids
    assert first == ask(skills_suite(EvalConfig()), Told(lambda text: ""))["known"].ids
    other = ask(skills_suite(EvalConfig(task_data={"skills": "builtin:skills/test@1"})), Told(right))["known"].ids
    assert not set(first) & set(other)


def test_options(ask: Callable[..., dict[str, TaskResult]]) -> None:
    suite = skills_suite(EvalConfig(task=["learnable"], limit=40, max_new_tokens=9))
    teller = Told(right)
    found = ask(suite, teller)
    assert list(found) == ["learnable"] and 5 < len(found["learnable"].ids) < 35
    assert teller.samplings[0].max_new_tokens == 9
    assert [task for task in ask(skills_suite(EvalConfig(limit=200)), teller)] == ["known", "learnable"]


def test_user_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'learnables'; did you mean 'learnable'"):
        skills_suite(EvalConfig(task=["learnables"]))
    with pytest.raises(DataError, match="no row of kind learnable; use builtin:skills/test"):
        skills_suite(EvalConfig(task=["learnable"], task_data={"skills": "builtin:skills/known"}))
    with pytest.raises(DataError, match="kind"):
        skills_suite(EvalConfig(task_data={"skills": "builtin:demo"}))


def test_spaces_do_not_matter() -> None:
    assert same(" ant  bat\n", "ant bat") and not same("ant", "ant bat") and not same("Ant", "ant")
    score = np.array([1.0, 0.0, 1.0, 0.5])
    assert by_skill(["sort", "mine", "copy", "sort"], score) == {"copy": 1.0, "sort": 0.75, "mine": 0.0}


def test_the_base_through_the_suite(ask: Callable[..., dict[str, TaskResult]]) -> None:
    test = load("builtin:skills/test", limit=160)
    found = ask(Skills(test), Greedy(path("skills")))
    assert found["known"].value > 0.95 and found["learnable"].value < 0.2
