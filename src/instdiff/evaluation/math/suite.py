"""Suite ``math``: problems with one right answer, several samples each, graded by what the answers mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instdiff.config.evaluate import EvalConfig
from instdiff.core import Log
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.errors import ConfigError, DataError
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.subject import BenchmarkItem, Subject
from instdiff.evaluation.task_data import Found, Place, choose_tasks, column, find
from instdiff.grading.mathematics import last_boxed
from instdiff.grading.processes import Solution, check_math_verify, grade_all

ASK = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
SHOT = "Problem: {problem}\nSolution: {solution}\n\n"
STOPS = ("\nProblem:", "\n\n\n")
Problems = Sequence[tuple[str, tuple[str, ...]]]
"""Each with its right answers."""

EXAMPLES = (
    (
        "A baker fills 6 trays with 12 rolls each and sells 50 of the rolls. How many rolls are left?",
        "There are 6 * 12 = 72 rolls. After the sale 72 - 50 = 22 are left. The answer is $\\boxed{22}$.",
    ),
    (
        "Solve $3x - 7 = 11$ for $x$.",
        "Adding 7 gives $3x = 18$, and dividing by 3 gives $x = 6$. The answer is $\\boxed{6}$.",
    ),
    (
        "What is the probability that two fair dice show a sum of 4?",
        "Of the 36 outcomes, $(1,3)$, $(2,2)$ and $(3,1)$ have this sum, so the probability is "
        "$\\frac{3}{36} = \\frac{1}{12}$. The answer is $\\boxed{\\frac{1}{12}}$.",
    ),
    (
        "A cyclist rides 45 km in 2.5 hours. How far does she ride in 4 hours at the same speed?",
        "Her speed is $45 / 2.5 = 18$ km per hour, so in 4 hours she rides $18 \\cdot 4 = 72$ km. "
        "The answer is $\\boxed{72}$.",
    ),
    (
        "Find the area of a right triangle whose legs are $\\sqrt{8}$ and $\\sqrt{2}$.",
        "The area is half the product of the legs: $\\frac{1}{2} \\sqrt{8} \\cdot \\sqrt{2} = "
        "\\frac{1}{2} \\sqrt{16} = 2$. The answer is $\\boxed{2}$.",
    ),
    (
        "A jacket costs \\$80. Its price is cut by 25% and then raised by \\$5. What does it cost now?",
        "A quarter of 80 is 20, so after the cut it costs 80 - 20 = 60 dollars, and then 60 + 5 = 65. "
        "The answer is $\\boxed{65}$.",
    ),
    (
        "Factor $x^2 - 5x + 6$.",
        "Two numbers with sum $-5$ and product $6$ are $-2$ and $-3$, so $x^2 - 5x + 6 = (x-2)(x-3)$. "
        "The answer is $\\boxed{(x-2)(x-3)}$.",
    ),
    (
        "What is the remainder when $7^{10}$ is divided by 8?",
        "As $7$ is one less than $8$, $7^{10}$ leaves the remainder of $(-1)^{10} = 1$. The answer is $\\boxed{1}$.",
    ),
)
"""Worked examples for models that follow no instructions."""


@dataclass(frozen=True)
class MathTask:
    """A set of problems; of the columns that may hold a problem, or its answer, the first that is there counts.

    ``gold`` makes the right answers out of that column. With ``number`` answers are numbers, and the last number of a
    solution may stand for its answer. ``tolerance`` is the share by which a number may differ.
    """

    place: Place
    problem: tuple[str, ...] = ("problem", "question")
    answer: tuple[str, ...] = ("answer", "final_answer", "solution")
    gold: Callable[[Any], tuple[str, ...]] | None = None
    number: bool = False
    tolerance: float = 0.0


def after_hashes(answer: Any) -> tuple[str, ...]:
    """``... #### 42`` as GSM8K has it; nothing where there are none."""
    text = str(answer)
    return (text.rpartition("####")[2].strip(),) if text.strip() else ()


def one_or_all(answer: Any) -> tuple[str, ...]:
    """An answer as it is, or what the last box of a solution holds; the parts of a list belong together."""
    if isinstance(answer, (list, tuple, np.ndarray)):
        parts = [str(part).strip().strip("$") for part in answer]
        return (", ".join(parts),) if parts else ()
    text = str(answer).strip()
    inside = last_boxed(text)
    if inside is None and len(text.splitlines()) > 1:
        return ()
    return (inside or text.strip("$"),)


TASKS = {
    "gsm8k": MathTask(
        Place("gsm8k", "openai/gsm8k/main:test", ("gsm8k/test", "gsm8k_test")), gold=after_hashes, number=True
    ),
    "math500": MathTask(
        Place("math500", "HuggingFaceH4/MATH-500:test", ("math/math_oai__test", "math_oai__test", "math_oai/test"))
    ),
    "minerva": MathTask(
        Place(
            "minerva",
            "math-ai/minervamath:test",
            ("math/minerva_math__test", "minerva_math__test", "minerva_math/test"),
        ),
        tolerance=1e-4,
    ),
    "olympiadbench": MathTask(
        Place(
            "olympiadbench",
            "Hothan/OlympiadBench/OE_TO_maths_en_COMP:train",
            ("math/olympiadbench__test", "olympiadbench__test", "olympiadbench/test"),
        ),
        problem=("question", "problem"),
        answer=("final_answer", "answer"),
    ),
    "aime24": MathTask(
        Place("aime24", "HuggingFaceH4/aime_2024:train", ("math/aime24__test", "aime24__test", "aime24/test")),
        number=True,
    ),
    "amc23": MathTask(
        Place("amc23", "math-ai/amc23:test", ("math/amc23__test", "amc23__test", "amc23/test")), number=True
    ),
}


@dataclass(frozen=True)
class MathSuite:
    """Accuracy, of each problem the mean over its samples; ``tasks`` are names out of ``TASKS``.

    ``shots`` are worked examples before a problem; with any, the model continues a text and follows no instruction.
    ``limit`` takes the first so many problems of each task.
    """

    tasks: tuple[str, ...]
    sampling: Sampling
    shots: int = 0
    limit: int | None = None
    data_dir: str | None = None
    task_data: Mapping[str, str] | None = None
    name: str = "math"

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """Write and grade, task by task.

        Raises a DataError where a task's data are not there, a PlanError where math-verify is not installed.
        """
        check_math_verify()
        tasks = self._read(subject.log)  # all data are found before the first answer is written
        return tuple(self._task(name, data, problems, subject) for name, (data, problems) in tasks.items())

    def _read(self, log: Log) -> dict[str, tuple[Found, Problems]]:
        found = {n: find(TASKS[n].place, self.task_data or {}, self.data_dir, self.limit, log) for n in self.tasks}
        return {name: (data, read_problems(TASKS[name], data)) for name, data in found.items()}

    def items(self, log: Log) -> list[BenchmarkItem]:
        """The problems."""
        return [
            BenchmarkItem(name, f"{name}/{number}", problem)
            for name, (_, problems) in self._read(log).items()
            for number, (problem, _) in enumerate(problems)
        ]

    def asked(self, log: Log) -> list[tuple[list[Prompt], Sampling]]:
        """What the model is asked, task by task."""
        return [([self.prompt(one) for one, _ in problems], self.sampling) for _, problems in self._read(log).values()]

    def _task(self, name: str, data: Found, problems: Problems, subject: Subject) -> TaskResult:
        task = TASKS[name]
        answers = subject.generator.write([self.prompt(problem) for problem, _ in problems], self.sampling)
        solutions = [
            Solution(text, gold, task.number, task.tolerance)
            for (_, gold), texts in zip(problems, answers, strict=True)
            for text in texts
        ]
        label = f"grading {name}"
        with subject.progress.task(label, rows=len(set(solutions)), tokens=0) as advance:
            verdicts = grade_all(solutions, advance=lambda: advance(1, 0))
        right = np.array([verdict.right for verdict in verdicts], np.float64).reshape(len(problems), -1)
        details = {
            "samples": self.sampling.n,
            "graded": dict(Counter(verdict.reason or ("right" if verdict.right else "wrong") for verdict in verdicts)),
            "any_right": float((right.max(1) > 0).mean()),
            "data": data.where,
            "data_fingerprint": data.fingerprint,
        }
        ids = [f"{name}/{number}" for number in range(len(problems))]
        return TaskResult(name, "accuracy", ids, right.mean(1), details=details)

    def prompt(self, problem: str) -> Prompt:
        """What a model is asked."""
        if not self.shots:
            return Prompt(ASK.format(problem=problem))
        told = "".join(SHOT.format(problem=asked, solution=said) for asked, said in EXAMPLES[: self.shots])
        return Prompt(told + SHOT.format(problem=problem, solution="").rstrip(), raw=True)


def read_problems(task: MathTask, data: Found) -> Problems:
    """Problems with their right answers; a DataError where a row has no problem, or no answer can be found in it."""
    out = []
    for number, row in enumerate(data.rows):
        where = f"task '{task.place.name}', row {number} of {data.where}"
        gold = (task.gold or one_or_all)(column(row, task.answer, where))
        if not gold or not gold[0]:
            raise DataError(f"{where}: there is no answer in its column; correct it or leave the row out")
        out.append((str(column(row, task.problem, where)), gold))
    return out


def math_suite(config: EvalConfig) -> MathSuite:
    """The suite as configured; a ConfigError for an unknown task, or more examples than there are."""
    shots = config.shots or 0
    if shots > len(EXAMPLES):
        raise ConfigError(f"suite 'math' has {len(EXAMPLES)} worked examples; shots is {shots}")
    sampling = Sampling.of(config, STOPS if shots else ())
    tasks = tuple(choose_tasks(list(TASKS), config.task, "math"))
    return MathSuite(tasks, sampling, shots, config.limit, config.data_dir, config.task_data)
