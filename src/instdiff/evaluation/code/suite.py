"""Suite ``code``: programs that a model writes, run against tests that it has not seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

import numpy as np

from instdiff.config.evaluate import EvalConfig
from instdiff.core import Log
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.evaluation.code.programs import TASKS
from instdiff.evaluation.code.solutions import SOLUTIONS, SolutionSuite, solution_suite
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.subject import BenchmarkItem, Subject
from instdiff.evaluation.task_data import Found, choose_tasks, find
from instdiff.grading.programs import SKIPPED, Problem
from instdiff.grading.sandbox import PASSED, Program, Sandbox, Verdict, run_programs

CONTINUE = ("plain", "direct")
"""Templates that say nothing of instructions: a model under them continues the problem's own code."""
KS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class CodeSuite:
    """pass@1, of each problem the share of its samples that pass; ``tasks`` are names out of ``TASKS``.

    With ``raw`` the model continues code, else it follows an instruction. ``limit`` takes the first so many problems of
    each task; ``unsafe`` runs programs even where they cannot be shut in. ``solutions`` are tasks beside these.
    """

    tasks: tuple[str, ...]
    sampling: Sampling
    raw: bool = False
    limit: int | None = None
    data_dir: str | None = None
    task_data: Mapping[str, str] | None = None
    unsafe: bool = False
    solutions: SolutionSuite | None = None
    name: str = "code"

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """Write and run, task by task.

        Raises a DataError where a task's data are not there, an EngineError where programs cannot be run safely here.
        """
        # All that can be refused is refused before the first answer is written.
        lacking = Sandbox(unsafe=self.unsafe).check()
        for words in lacking:
            subject.log(f"warning: programs are run unsafely: {words}")
        tasks = self._read(subject.log)
        written = [self._task(name, data, some, lacking, subject) for name, (data, some) in tasks.items()]
        return (*written, *(self.solutions.run(subject) if self.solutions else ()))

    def _read(self, log: Log) -> dict[str, tuple[Found, Sequence[Problem]]]:
        found = {n: find(TASKS[n].place, self.task_data or {}, self.data_dir, None, log) for n in self.tasks}
        return {name: (data, TASKS[name].problems(data, self.limit)) for name, data in found.items()}

    def items(self, log: Log) -> list[BenchmarkItem]:
        """The problems, as a model that continues code has them."""
        found = [BenchmarkItem(n, one.id, one.start) for n, (_, some) in self._read(log).items() for one in some]
        return found + (self.solutions.items(log) if self.solutions else [])

    def _asked(self, name: str, problems: Sequence[Problem]) -> tuple[list[Prompt], Sampling]:
        sampling = replace(self.sampling, stop=(TASKS[name].stops or ()) if self.raw else ())
        return [problem.prompt(self.raw) for problem in problems], sampling

    def asked(self, log: Log) -> list[tuple[list[Prompt], Sampling]]:
        """What the model is asked, task by task."""
        return [self._asked(name, _able(problems)) for name, (_, problems) in self._read(log).items()]

    def _task(
        self, name: str, data: Found, problems: Sequence[Problem], lacking: list[str], subject: Subject
    ) -> TaskResult:
        task, n = TASKS[name], self.sampling.n
        missing = missing_libraries(problems)
        able = _able(problems)
        if len(able) < len(problems):
            names = sorted({library for needed in missing.values() for library in needed})
            subject.log(f"{name}: {len(problems) - len(able)} problems need libraries that lack: {', '.join(names)}")
        stops = task.stops if self.raw else None
        answers = subject.generator.write(*self._asked(name, able))
        programs = [
            problem.program(problem.code(text, stops))
            for problem, texts in zip(able, answers, strict=True)
            for text in texts
        ]
        sandbox = Sandbox(task.limits, unsafe=self.unsafe)
        own = [problem for problem in able for _ in range(n)]
        verdicts = _excuse(own, _run(programs, sandbox, subject), sandbox, subject)
        subject.spend("programs", len(set(programs)))
        passed = np.array([verdict.passed for verdict in verdicts], np.int64).reshape(len(able), n).sum(1)
        share = dict(zip([problem.id for problem in able], passed / n, strict=True))
        details = {
            "samples": n,
            "style": "continue" if self.raw else "instruct",
            **{f"pass@{k}": _mean(pass_at(k, n, passed)) for k in sorted({*(k for k in KS if k <= n), n})},
            "verdicts": dict(Counter(verdict.reason for verdict in verdicts).most_common()),
            "limits": asdict(task.limits),
            "isolated": not lacking,
            "data": data.where,
            "data_fingerprint": data.fingerprint,
        }
        ids = [problem.id for problem in problems]
        reason = ["missing_library" if missing.get(one) else None for one in ids]
        score = np.array([share.get(one, math.nan) for one in ids])
        return TaskResult(name, "pass@1", ids, score, reason=reason, details=details)


def _run(programs: Sequence[Program], sandbox: Sandbox, subject: Subject) -> list[Verdict]:
    return run_programs(programs, sandbox, subject.folder / "executions.jsonl", subject.progress)


def _excuse(problems: Sequence[Problem], verdicts: list[Verdict], sandbox: Sandbox, subject: Subject) -> list[Verdict]:
    """The verdicts; those that skipped the very tests which the problem's own solution skips have passed."""
    owed = {
        problem: problem.program(problem.reference)
        for problem, verdict in zip(problems, verdicts, strict=True)
        if verdict.detail.startswith(SKIPPED) and problem.reference is not None
    }
    references = dict(zip(owed, _run(list(owed.values()), sandbox, subject), strict=True))
    return [
        Verdict(PASSED) if references.get(problem) == verdict else verdict
        for problem, verdict in zip(problems, verdicts, strict=True)
    ]


def pass_at(k: int, n: int, passed: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[float]:
    """Of each problem the chance that of ``k`` samples one passes, without bias from its ``n`` samples.

    Of all ways to take ``k`` of the samples, it is the share that takes one of those that passed.
    """
    return [1 - math.comb(n - int(right), k) / math.comb(n, k) for right in passed]


def _able(problems: Sequence[Problem]) -> list[Problem]:
    missing = missing_libraries(problems)
    return [problem for problem in problems if not missing.get(problem.id)]


def missing_libraries(problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Of each problem the libraries that it needs and that are not installed."""
    names = {name.partition(".")[0] for problem in problems for name in problem.libraries}
    absent = {name for name in names if find_spec(name) is None}
    return {p.id: [name for name in p.libraries if name.partition(".")[0] in absent] for p in problems}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def code_suite(config: EvalConfig) -> CodeSuite | SolutionSuite:
    """The suite as configured; a ConfigError for an unknown task. Solutions are read where they are named.

    A model continues code under a template that has no instruction, or where worked examples are asked for: the
    problems bring their own, and none is added.
    """
    asked = choose_tasks([*TASKS, *SOLUTIONS], config.task or list(TASKS), "code")
    written = tuple(name for name in asked if name in TASKS)
    named = [name for name in asked if name in SOLUTIONS]
    solutions = solution_suite(named, config) if named else None
    if solutions and not written:
        return solutions
    return CodeSuite(
        written,
        Sampling.of(config),
        raw=bool(config.shots) or config.template in CONTINUE,
        limit=config.limit,
        data_dir=config.data_dir,
        task_data=config.task_data,
        unsafe=config.unsafe,
        solutions=solutions,
    )
