"""The model under test, and how it is asked to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from instdiff.core import Log, ModelRef, Settings
from instdiff.core.progress import Progress
from instdiff.data import Pool
from instdiff.engine.distributed.hosts import ModelHost, make_model_host
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.engine.generation.generator import Generator, Spend, make_backend
from instdiff.evaluation.results import TaskResult
from instdiff.store import Store


class Generates(Protocol):
    """What writes answers: a model on this machine, vLLM, or a server."""

    name: str

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        """Of each prompt its ``n`` answers."""
        ...


@dataclass(frozen=True)
class Subject:
    """A model under test with all that suites need.

    Args:
        name: what the user calls it.
        model: where it is.
        settings: lengths, precision, device, templates.
        store: for what is scored.
        folder: for what is paid for and must survive an interruption, such as answers and judgements.
        generator: writes answers; keeps those it has written.
        resident: models already in memory.
        log: is told what happens.
        progress: shows it.
        cost: tokens and seconds spent so far, added to by whoever spends them.
    """

    name: str
    model: ModelRef
    settings: Settings
    store: Store
    folder: Path
    generator: Generates
    log: Log
    progress: Progress
    resident: ModelHost | None = None
    cost: dict[str, float] = field(default_factory=dict)

    @property
    def host(self) -> ModelHost:
        """Where models are in memory: the one that is given, or a new one."""
        return self.resident or make_model_host(self.settings)

    def spend(self, what: str, amount: float) -> None:
        """Add to the bill."""
        self.cost[what] = self.cost.get(what, 0.0) + amount


@dataclass(frozen=True)
class BenchmarkItem:
    """What an item of a task asks, without examples and without the words that a suite puts around it.

    Args:
        task: its name.
        id: of the item, as in the task's results.
        text: the question.
    """

    task: str
    id: str
    text: str


class Suite(Protocol):
    """A set of tasks; what else it needs, such as data and judges, are its own fields."""

    name: str

    def items(self, log: Log) -> list[BenchmarkItem]:
        """What all items ask; nothing is answered."""
        ...

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """Evaluate a model on every task."""
        ...


@runtime_checkable
class PartedSuite(Suite, Protocol):
    """A suite that can ask some of its items alone, which are the rows of a pool."""

    pool: Pool

    def part(self, keep: Callable[[str], bool]) -> PartedSuite:
        """The suite of the items that ``keep`` takes, by their ids."""
        ...


def make_generator(spec: str, subject: Subject, *, concurrency: int = 8, spend: Spend | None = None) -> Generator:
    """The generator that a configuration names, for a subject's model; see ``make_backend``.

    ``concurrency`` are calls at once, of a server; ``spend`` is told what it costs, by default the subject.
    """
    resident = subject.resident.local() if subject.resident else None
    where = subject.model, subject.settings, subject.store.memo, subject.log
    backend = make_backend(spec, *where, resident=resident, concurrency=concurrency)
    return Generator(backend, subject.folder, spend or subject.spend, subject.log, subject.progress)
