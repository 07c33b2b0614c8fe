"""What an evaluation found: one score per item, so that models can be compared on the same items."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats
from instdiff.core.display import Shown, html_table, in_one_line, some, visible
from instdiff.core.files import read_json, write_record
from instdiff.errors import ConfigError, DataError, did_you_mean
from instdiff.evaluation.statistics import Interval, bootstrap_token_mean
from instdiff.version import __version__


@dataclass(frozen=True)
class TaskResult(Shown):
    """The scores of one task.

    Args:
        name: of the task, such as ``gsm8k``.
        metric: what a score is, such as ``accuracy``, ``pass@1``, ``win_rate`` or ``nll``.
        ids: of the items, the same for every model that is evaluated on them.
        score: [items], of each item the mean over its samples; NaN where it could not be scored.
        weight: [items], how much an item counts in the mean (response tokens of a mean NLL); None counts all alike.
        why: for each item None, or one word that says why there is no score.
        higher_is_better: False for losses.
        details: further numbers of the task as a whole.
    """

    name: str
    metric: str
    ids: Sequence[str]
    score: Floats
    weight: Floats | None = None
    reason: Sequence[str | None] | None = None
    higher_is_better: bool = True
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.ids, self.score, self.weight, self.reason) if part is not None}
        if len(lengths) > 1:
            raise ValueError(f"task '{self.name}' has parts of different lengths: {sorted(lengths)}")
        if len(set(self.ids)) < len(self.ids):
            twice = next(name for name, count in Counter(self.ids).items() if count > 1)
            raise ValueError(f"task '{self.name}' has item '{twice}' twice")

    def __repr__(self) -> str:
        return f"<TaskResult {self.name}: {self.metric} {self.value:.4g} on {len(self.ids):,} items>"

    @property
    def weights(self) -> Floats:
        """[items], 0 where an item has no score."""
        full = np.ones(len(self.score)) if self.weight is None else np.asarray(self.weight, np.float64)
        return np.where(np.isfinite(self.score), full, 0.0)

    @property
    def value(self) -> float:
        """The weighted mean over the items that have a score."""
        weights = self.weights
        return float(np.nansum(self.score * weights) / weights.sum()) if weights.sum() else math.nan

    def take(self, at: Sequence[int] | npt.NDArray[np.int64]) -> TaskResult:
        """The task on the items at these places alone."""
        return replace(
            self,
            ids=[self.ids[n] for n in at],
            score=self.score[at],
            weight=None if self.weight is None else self.weight[at],
            reason=None if self.reason is None else [self.reason[n] for n in at],
        )

    def interval(self, level: float = 0.95) -> Interval:
        """The mean with its bootstrap interval over items."""
        total = np.where(np.isfinite(self.score), self.score, 0.0) * self.weights
        return bootstrap_token_mean(total, self.weights, level=level)

    def record(self) -> dict[str, Any]:
        """What ``results.json`` says of the task."""
        found = self.interval()
        missing = Counter(str(word) for word in self.reason or [] if word is not None)
        return {
            "metric": self.metric,
            "value": _number(found.value),
            "low": _number(found.low),
            "high": _number(found.high),
            "items": len(self.ids),
            "scored": int(np.isfinite(self.score).sum()),
            "higher_is_better": self.higher_is_better,
            **({"not_scored": dict(missing)} if missing else {}),
            **({"details": self.details} if self.details else {}),
        }


@dataclass(frozen=True)
class SuiteResult:
    """The tasks of one suite on one model.

    Args:
        suite: its name.
        model: what was evaluated, as the user named it.
        tasks: with their items.
        settings: everything that the scores depend on.
        cost: tokens read and written, calls, seconds.
    """

    suite: str
    model: str
    tasks: tuple[TaskResult, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, task: str) -> TaskResult:
        for found in self.tasks:
            if found.name == task:
                return found
        raise DataError(f"these results have no task '{task}'{did_you_mean(task, [one.name for one in self.tasks])}")

    def __repr__(self) -> str:
        tasks = some(f"{task.name} {task.metric} {task.value:.4g}" for task in self.tasks)
        return f"<SuiteResult {self.suite} of {in_one_line(self.model)}: {tasks}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a line for each task."""
        told = [(task, task.interval()) for task in self.tasks]
        lines = [[task.name, task.metric, one.value, one.low, one.high, len(task.ids)] for task, one in told]
        table = html_table(["task", "metric", "value", "low", "high", "items"], lines)
        return f"<p>{html.escape(visible(f'{self.suite} of {self.model}'))}</p>{table}"

    @property
    def value(self) -> float:
        """The mean over tasks, each counting alike; NaN where one has no score."""
        return float(np.mean([task.value for task in self.tasks])) if self.tasks else math.nan

    def record(self) -> dict[str, Any]:
        """What ``results.json`` says."""
        return {
            "instdiff": __version__,
            "suite": self.suite,
            "model": self.model,
            "value": _number(self.value),
            "tasks": {task.name: task.record() for task in self.tasks},
            "settings": self.settings,
            "cost": self.cost,
            "items": {task.name: _items(task) for task in self.tasks},
        }

    def write(self, path: Path) -> None:
        """Write ``results.json``."""
        write_record(path, self.record())


def distinct(ids: Sequence[str]) -> list[str]:
    """Ids of items, with a number behind those that came before."""
    seen: Counter[str] = Counter()
    out = []
    for name in ids:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return out


def read_results(path: str | Path) -> SuiteResult:
    """A suite's results as they were written.

    Raises:
        DataError: the file holds none.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"results are read from a file; not from {type(path).__name__}")
    told = read_json(path)
    try:
        tasks = [_task(name, facts, told["items"][name]) for name, facts in told["tasks"].items()]
        return SuiteResult(told["suite"], told["model"], tuple(tasks), told["settings"], told["cost"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' holds no results of an evaluation ({type(error).__name__}: {error})") from None


def _task(name: str, facts: dict[str, Any], items: dict[str, Any]) -> TaskResult:
    weight = items.get("weight")
    return TaskResult(
        name,
        facts["metric"],
        items["ids"],
        np.array(items["score"], np.float64),
        None if weight is None else np.array(weight, np.float64),
        items.get("why"),
        facts["higher_is_better"],
        facts.get("details", {}),
    )


def _items(task: TaskResult) -> dict[str, Any]:
    reasons = task.reason is not None and any(word is not None for word in task.reason)
    return {
        "ids": list(task.ids),
        "score": [_number(score) for score in task.score],
        **({} if task.weight is None else {"weight": [float(weight) for weight in task.weight]}),
        **({"why": list(task.reason or [])} if reasons else {}),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
