"""The suite `skills`: which of the built-in skills a model can do, word for word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instdiff.config.evaluate import EvalConfig
from instdiff.core import Floats, Log
from instdiff.data import Pool, Sample, load
from instdiff.data.builtin.skills import SKILLS
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.errors import DataError
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.subject import BenchmarkItem, Subject
from instdiff.evaluation.task_data import choose_tasks

DATA = "builtin:skills/test"
TASKS = ("known", "learnable")
LONGEST = 24
"""Tokens after which an answer is cut: the longest right one has six words."""


@dataclass(frozen=True)
class Skills:
    """Exact match with the right answer, greedily written, in a task for each kind of skill.

    Args:
        pool: test rows with the columns ``kind`` and ``skill``.
        tasks: kinds to evaluate.
        longest: most tokens of an answer.
    """

    pool: Pool
    tasks: tuple[str, ...] = TASKS
    longest: int = LONGEST
    name: str = "skills"

    def part(self, keep: Callable[[str], bool]) -> Skills:
        """Of the items that it keeps, by their ids."""
        return replace(self, pool=self.pool.take([at for at, name in enumerate(self._ids()) if keep(name)]))

    def _ids(self) -> list[str]:
        # The content stands in the id, so that another draw of the tests has no item in common with this one.
        parts = zip(self.pool.column("skill"), self.pool.rows.tolist(), self.pool.ids, strict=True)
        return [f"{skill}/{row}/{name[:8]}" for skill, row, name in parts]

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """One question for each row; all tasks are asked together."""
        kind, skill, samples = self.pool.column("kind"), self.pool.column("skill"), self._samples()
        ((prompts, sampling),) = self.asked(subject.log)
        answers = subject.generator.write(prompts, sampling)
        right = {
            row: float(same(said, sample.response)) for (row, sample), (said, *_) in zip(samples, answers, strict=True)
        }
        found, names = [], self._ids()
        for task in self.tasks:
            rows = [row for row in right if kind[row] == task]
            score = np.array([right[row] for row in rows], np.float64)
            ids = [names[row] for row in rows]
            details = {"skills": by_skill([skill[row] for row in rows], score)}
            found.append(TaskResult(task, "accuracy", ids, score, details=details))
        return tuple(found)

    def items(self, log: Log) -> list[BenchmarkItem]:
        """The questions, task by task."""
        kind, names, ((prompts, _),) = self.pool.column("kind"), self._ids(), self.asked(log)
        asked = zip(self._samples(), prompts, strict=True)
        return [BenchmarkItem(kind[row], names[row], prompt.text) for (row, _), prompt in asked]

    def _samples(self) -> list[tuple[int, Sample]]:
        kind = self.pool.column("kind")
        return [(row, sample) for row, sample in enumerate(self.pool.samples()) if kind[row] in self.tasks]

    def asked(self, log: Log) -> list[tuple[list[Prompt], Sampling]]:
        """What the model is asked."""
        # As templates without a place for the input have it, such as the one that the base model knows.
        prompts = [Prompt("\n".join(filter(None, (one.instruction, one.input)))) for _, one in self._samples()]
        return [(prompts, Sampling(max_new_tokens=self.longest, stop=("\n",)))]


def skills_suite(config: EvalConfig) -> Skills:
    """The suite as configured: ``task_data.skills`` names other test rows, ``limit`` takes the first of them.

    Raises:
        ConfigError: a task that the suite does not have.
        DataError: the rows cannot be read or have no labels.
    """
    asked = choose_tasks(TASKS, config.task, "skills")
    pool = load(config.task_data.get("skills", DATA), limit=config.limit)
    kinds = set(pool.column("kind"))
    tasks = tuple(task for task in asked if task in kinds)
    if not tasks:
        raise DataError(f"{pool.origin}: no row of kind {' or '.join(asked)}; use {DATA}")
    return Skills(pool, tasks, min(config.max_new_tokens, LONGEST))


def same(said: str, want: str) -> bool:
    """Whether an answer is right; how its words are spaced does not matter."""
    return said.split() == want.split()


def by_skill(skill: Sequence[str], score: Floats) -> dict[str, float]:
    """Accuracy of each skill, in the order in which the skills are defined."""
    names = np.array(skill, object)
    order = list(SKILLS)
    there = sorted(set(skill), key=lambda name: (order.index(name) if name in SKILLS else len(order), name))
    return {name: float(score[names == name].mean()) for name in there}
