"""The suites that there are, and the one that needs no generation: NLL of held-out responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Self

import numpy as np

from instdiff.config.evaluate import EvalConfig
from instdiff.core import Log, Nll, Prompted
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, did_you_mean
from instdiff.evaluation.results import TaskResult, distinct
from instdiff.evaluation.subject import BenchmarkItem, Subject, Suite
from instdiff.rendering.texts import words
from instdiff.scoring.planner import Pass
from instdiff.scoring.workbench import Workbench

SUITES: dict[str, str] = {
    "heldout": "instdiff.evaluation.suites:heldout_suite",
    "math": "instdiff.evaluation.math.suite:math_suite",
    "med": "instdiff.evaluation.harness.suite:med_suite",
    "openllm": "instdiff.evaluation.harness.suite:openllm_suite",
    "code": "instdiff.evaluation.code.suite:code_suite",
    "general": "instdiff.evaluation.llm_judge.suite:general_suite",
    "skills": "instdiff.evaluation.skills:skills_suite",
}
"""Name to the function that builds the suite from a configuration; its module is imported when it is asked for."""


def make_suites(config: EvalConfig) -> list[Suite]:
    """The suites that a configuration names, checked before any of them runs.

    Raises:
        ConfigError: none, an unknown one, or a task that none of them has.
    """
    if not config.suite:
        raise ConfigError(f"no suite is named; give --suite, one or several of {', '.join(SUITES)}")
    for name in config.suite:
        if name not in SUITES:
            raise ConfigError(f"unknown suite '{name}'{did_you_mean(name, SUITES)}")
    for task in config.task:
        owner = task.rpartition(".")[0]
        if owner and owner not in config.suite:
            raise ConfigError(f"task '{task}' is of suite '{owner}', which is not asked for; write SUITE.TASK or TASK")
    return [_builder(name)(config.model_copy(update={"task": tasks_of(name, config.task)})) for name in config.suite]


def tasks_of(suite: str, tasks: Sequence[str]) -> list[str]:
    """The tasks that are asked of a suite: those named for it, as ``math.gsm8k``, and those named for none."""
    parts = [task.rpartition(".") for task in tasks]
    return [task for owner, _, task in parts if owner in ("", suite)]


def _builder(name: str) -> Callable[[EvalConfig], Suite]:
    module, _, function = SUITES[name].partition(":")
    build: Callable[[EvalConfig], Suite] = getattr(import_module(module), function)
    return build


@dataclass(frozen=True)
class HeldOutSuite:
    """NLL in nats per response token of rows that were not trained on, by our own sweep."""

    pool: Pool
    where: str
    name: str = "heldout"

    def part(self, keep: Callable[[str], bool]) -> Self:
        """Of the items that it keeps, by their ids; copies of a row stay together."""
        return replace(self, pool=self.pool.take([at for at, name in enumerate(self.pool.ids) if keep(name)]))

    def items(self, log: Log) -> list[BenchmarkItem]:
        """The prompts of the rows."""
        samples = zip(distinct(self.pool.ids), self.pool.samples(), strict=True)
        return [BenchmarkItem("heldout", name, words(one, "instruction", self.pool.turns)) for name, one in samples]

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """Of each row the mean over its response, weighted by its tokens; rows that cannot be scored count none."""
        name, store = subject.name, subject.store
        models = {name: subject.model}
        bench = Workbench(self.pool, models, subject.settings, store, resident=subject.resident, log=subject.log)
        with closing(bench):
            bench.run(Pass(name, Prompted(), (Nll(),)), subject.progress)
        values = store.read(bench.column(name, Nll()), bench.render(name, Prompted()).keys)
        empty = int((values.lengths() == 0).sum())
        if empty:
            subject.log(f"{empty} of {len(self.pool)} held-out rows cannot be scored and do not count")
        total, count = values.sum(), values.count()
        subject.spend("prompt_tokens", float(count.sum()))
        score = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        reason = [None if number else "no_response" for number in count.tolist()]
        weight = count.astype(np.float64)
        details: dict[str, Any] = {"data": self.where, "data_fingerprint": self.pool.fingerprint}
        ids = distinct(self.pool.ids)
        return (TaskResult("heldout", "nll", ids, score, weight, reason, higher_is_better=False, details=details),)


def heldout_suite(config: EvalConfig) -> HeldOutSuite:
    """The suite as configured.

    Raises:
        ConfigError: no rows are named.
    """
    if not config.data:
        raise ConfigError("suite 'heldout' needs rows that were not trained on; give --data FILE")
    how = {"format": config.format, "longest_line_mb": config.longest_line_mb, **config.turns()}
    pool = load(config.data, map=config.mapping(), limit=config.limit, **how)
    return HeldOutSuite(pool, pool.origin)
