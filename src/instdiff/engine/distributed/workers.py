"""A pass by several processes of one machine: each holds the model, takes runs of rows and gives back batches.

Workers write nothing and keep nothing but the model, so any of them may die at any moment: what it has not given back
is dealt out again. ``worker.py`` is what they do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing import Pipe, connection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Log, Measure
from instdiff.engine.allocator import worker_environment
from instdiff.engine.models import DTYPES, Resident
from instdiff.engine.prefix_tree import Some, in_order
from instdiff.engine.sources import Source
from instdiff.engine.sweep import BLOCK, BatchResult, default_batch_tokens
from instdiff.errors import EngineError
from instdiff.rendering.renderer import Rows

MOST_BATCHES = 128
"""Batches in the longest run."""
TRIES = 3
"""Workers that may die in a row over the same rows."""


@dataclass
class Run:
    """Rows that are dealt to one worker; ``open`` are those that it has not given back yet."""

    at: npt.NDArray[np.int64]
    open: npt.NDArray[np.bool_]
    deaths: int = 0

    @classmethod
    def of(cls, at: npt.NDArray[np.int64], deaths: int = 0) -> Run:
        """All of these rows are open."""
        return cls(at, np.ones(len(at), bool), deaths)


@dataclass
class Worker:
    """A process, our end of its pipe, and what it has to do; ``ready`` when it has imported what it needs."""

    process: subprocess.Popen[bytes]
    pipe: Any
    run: Run | None = None
    ready: bool = False


@dataclass(frozen=True)
class Task:
    """What is read off which model, in batches of at most so many tokens."""

    source: Source
    measures: tuple[Measure, ...]
    batch_tokens: int | None


class Workers:
    """Processes that keep a model between passes, as ``Resident`` does in this one; they start when there is work.

    ``devices`` are dealt out to ``count`` of them in turn; ``dtype`` is that of the weights.
    """

    def __init__(self, count: int, devices: list[str], dtype: torch.dtype) -> None:
        self.count, self.devices, self.dtype = count, devices, str(dtype).removeprefix("torch.")
        self._team: dict[int, Worker] = {}

    def local(self) -> Resident:
        """A host in this process: embedders and judges stay here."""
        return Resident(torch.device(self.devices[0]), DTYPES[self.dtype])

    def close(self) -> None:
        """End all processes."""
        for number in list(self._team):
            self._end(number)

    def sweep(
        self, source: Source, rows: Rows, measures: tuple[Measure, ...], log: Log, batch_tokens: int | None = None
    ) -> Generator[BatchResult]:
        """Deal out rows and yield batches in any order; an EngineError from a worker, or where rows kill several."""
        try:
            yield from self._sweep(Task(source, measures, batch_tokens), rows, log)
        finally:
            # Whoever is still at work was interrupted; what it gives back must not come in the middle of the next pass.
            for number in [n for n, worker in self._team.items() if worker.run is not None]:
                self._end(number)

    def _sweep(self, task: Task, rows: Rows, log: Log) -> Iterator[BatchResult]:
        batch = task.batch_tokens or default_batch_tokens(torch.device(self.devices[0]).type)
        todo, said = runs(rows, batch, self.count), set[str]()
        while True:
            self._deal(todo, task, rows)
            busy = {worker.pipe: number for number, worker in self._team.items() if worker.run is not None}
            if not busy:
                return
            for pipe in connection.wait(list(busy)):
                worker = self._team[busy[pipe]]
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    todo = chain([self._bury(busy[pipe], log)], todo)
                    continue
                if message is None:
                    worker.ready = True
                    _hand(worker, task, rows)
                elif isinstance(message, Exception):
                    raise message
                elif isinstance(message, str):
                    if message not in said:  # what holds for all of them is said once
                        log(message)
                    said.add(message)
                else:
                    yield _to_pass_rows(worker, message)

    def _deal(self, todo: Iterator[Run], task: Task, rows: Rows) -> None:
        """Give runs to workers that have none, and start workers where there are too few."""
        idle = [worker for worker in self._team.values() if worker.run is None]
        while (idle or len(self._team) < self.count) and (run := next(todo, None)) is not None:
            worker = idle.pop() if idle else self._start()
            worker.run = run
            if worker.ready:
                _hand(worker, task, rows)

    def _start(self) -> Worker:
        number = next(n for n in range(self.count) if n not in self._team)
        ours, theirs = Pipe()
        fd = theirs.fileno()
        device = self.devices[number % len(self.devices)]
        # Control-C goes to every process of a terminal; this one alone answers it. A child inherits what is blocked.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen(
                # -P: a file in the working folder must not stand in for a module.
                [sys.executable, "-P", "-m", "instdiff.engine.distributed.worker", str(fd), device, self.dtype],
                env=self._environment(),
                pass_fds=(fd,),
                stdin=subprocess.PIPE,  # never written to: its end is the end of this process
                stdout=subprocess.DEVNULL,
            )
            self._team[number] = Worker(process, ours)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        return self._team[number]

    def _environment(self) -> dict[str, str]:
        """The cores are shared out, and threads that wait must not spin on those of other workers."""
        return {
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "2000",
            "KMP_BLOCKTIME": "0",
            **worker_environment(os.environ),
            "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // self.count)),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def _bury(self, number: int, log: Log) -> Run:
        """Take what a dead worker left open; an EngineError where it never started or these rows killed one before."""
        worker = self._team[number]
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(10)
        code = worker.process.returncode
        how = _death(code)
        self._end(number)
        run = worker.run
        assert run is not None
        if not worker.ready and (code or 0) > 0:
            raise EngineError(f"a worker process could not start ({how}); what it said is above; use --workers 1")
        deaths = 1 + (run.deaths if run.open.all() else 0)
        if deaths >= TRIES:
            raise EngineError(
                f"{deaths} worker processes died one after another over the same {len(run.at)} rows (the last: {how}); "
                "where memory is short, lower --workers, --batch-tokens or --max-length"
            )
        log(f"a worker process died ({how}) and is replaced; the {int(run.open.sum())} rows that it had are done again")
        return Run.of(run.at[run.open], deaths)

    def _end(self, number: int) -> None:
        worker = self._team.pop(number)
        worker.process.kill()
        worker.process.wait()
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        worker.pipe.close()


def runs(rows: Rows, batch: int, workers: int, most: int = MOST_BATCHES) -> Iterator[Run]:
    """Rows in the order in which they share their beginnings, cut into runs of one batch at least, and ``most``.

    Each run is half of a worker's share of what is left: long ones first, so that little is shared across an end, and
    short ones last, so that the workers end together.
    """
    left = int(rows.ids.offsets[-1])
    for first in range(0, len(rows), BLOCK):
        block = first + in_order(Some(rows.ids, np.arange(first, min(first + BLOCK, len(rows)))))
        ends = np.concatenate([[0], np.cumsum(rows.ids.lengths_of(block))])
        start = 0
        while start < len(block):
            size = min(max(left // (2 * workers), batch), most * batch)
            stop = max(int(np.searchsorted(ends, ends[start] + size, "right")) - 1, start + 1)
            left -= int(ends[stop] - ends[start])
            yield Run.of(block[start:stop])
            start = stop


def _hand(worker: Worker, task: Task, rows: Rows) -> None:
    assert worker.run is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # it is dead, which shows when its pipe is read
        worker.pipe.send((task, rows.take(worker.run.at)))


def _to_pass_rows(worker: Worker, swept: BatchResult) -> BatchResult:
    """A batch in the numbers of the whole pass; the worker is free when it was the last of its run."""
    run = worker.run
    assert run is not None
    run.open[swept.at] = False
    if not run.open.any():
        worker.run = None
    return replace(swept, at=run.at[swept.at])


def _death(code: int | None) -> str:
    if code is None:
        return "it closed its pipe"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
