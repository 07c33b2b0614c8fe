"""NLL of the published solutions of programming problems: nothing is written, and no program is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from instdiff.config.evaluate import EvalConfig
from instdiff.core import Log
from instdiff.data import load
from instdiff.evaluation.code.programs import TASKS
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.subject import BenchmarkItem, Subject
from instdiff.evaluation.suites import HeldOutSuite
from instdiff.evaluation.task_data import column, find

SOLUTIONS = {
    "humaneval_nll": ("humaneval", ("prompt",), ("canonical_solution",)),
    "mbpp_nll": ("mbpp", ("text", "prompt"), ("code",)),
}
"""Task to its benchmark, and to the columns that may hold the problem and the solution."""
TASK = "task"


@dataclass(frozen=True)
class SolutionSuite(HeldOutSuite):
    """Problems with their solutions as held-out rows, whose column ``task`` says of which benchmark they are.

    ``files`` are those of the tasks.
    """

    name: str = "code"
    files: Mapping[str, str] = field(default_factory=dict)

    def items(self, log: Log) -> list[BenchmarkItem]:
        """The problems."""
        own = self.pool.column(TASK)
        return [replace(one, task=task) for one, task in zip(super().items(log), own, strict=True)]

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """The NLL of all solutions in one pass, a result for each task."""
        (whole,) = super().run(subject)
        own, out = np.array(self.pool.column(TASK), object), []
        for task, where in self.files.items():
            at = np.flatnonzero(own == task)
            details: dict[str, Any] = {"data": where, "data_fingerprint": self.pool.take(at).fingerprint}
            out.append(replace(whole.take(at), name=task, details=details))
        return tuple(out)


def solution_suite(tasks: Sequence[str], config: EvalConfig) -> SolutionSuite:
    """The suite of some tasks out of ``SOLUTIONS``; ``limit`` takes the first so many problems of each.

    The file that is given for a benchmark is that of its solutions too. A DataError where a task's data are not there.
    """
    given = {name: config.task_data[of] for name, (of, *_) in SOLUTIONS.items() if of in config.task_data}
    rows, files = [], {}
    for name in tasks:
        of, asked, said = SOLUTIONS[name]
        place = replace(TASKS[of].place, name=name, files=(of, *TASKS[of].place.files))
        found = find(place, {**given, **config.task_data}, config.data_dir, None, lambda line: None)
        files[name] = found.where
        for where, row in TASKS[of].rows(found, config.limit):
            problem, solution = (_text(column(row, names, where)) for names in (asked, said))
            rows.append({"instruction": problem, "output": solution, TASK: name})
    return SolutionSuite(load(rows), ", ".join(files.values()), files=files)


def _text(value: Any) -> str:
    """MBPP is published with the line ends of Windows, which no solution is about."""
    return str(value).replace("\r\n", "\n").replace("\r", "\n")
