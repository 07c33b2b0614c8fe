"""Cells of an experiment side by side: processes that train and evaluate one cell at a time on a share of the cores.

The operations of a small model are too short to fill several cores. Rows of a comparison are scored and selected by its
own process; a process here begins where the selection is written, and leaves the same files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from instdiff.core import Log
from instdiff.experiments.run_folder import Cell, CellResult

SMALL = 30_000_000
"""Parameters up to which several cells at once are faster than several cores for one."""
LEAST_CELLS = 6
"""Cells from which on they pay the start of the processes."""
PROCESS_BYTES, WEIGHT_BYTES = 1_200_000_000, 24
"""Memory of a process beside its model, and of each weight with its gradient, optimizer state and copies."""

KILLED = (
    "warning: a process that trained a cell was killed, perhaps for lack of memory; the rest goes one after another "
    "(cells_at_once: 1)"
)
Done = tuple[CellResult, dict[Hashable, Path]]
"""A cell's result, and where the models that it made lie."""


def cells_at_once(parameters: int, threads: int, left: int) -> int:
    """How many cells of a model of so many parameters go side by side on a CPU, where ``left`` are to be made."""
    if parameters > SMALL or left < LEAST_CELLS:
        return 1
    room = _free_memory() // (PROCESS_BYTES + WEIGHT_BYTES * parameters)
    return max(1, min(threads, left, room))


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


class Run(Protocol):
    """An experiment as a process here needs it."""

    @property
    def log(self) -> Log:
        """Is told what happens."""

    @property
    def trained(self) -> dict[Hashable, Path]:
        """Where the models lie that were made."""

    def make_cell(self, cell: Cell) -> CellResult:
        """Train and evaluate."""


class CellWorkers:
    """Processes that make cells; they end with this object, and when the process that began them is gone.

    Each opens the experiment by itself, with a log that is heard here.
    """

    def __init__(self, opened: Callable[[Log], Run], count: int, threads: int, log: Log) -> None:
        context = multiprocessing.get_context("spawn")
        self._lines: Any = context.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, args=(log,), daemon=True)
        self._listener.start()
        asked = opened, self._lines, os.getpid(), max(1, threads // count)
        self._pool = ProcessPoolExecutor(count, context, initializer=_open, initargs=asked)

    def submit(self, cell: Cell, label: str) -> Future[Done]:
        """Have a cell made whose selection is written; BrokenProcessPool where a process was killed."""
        with _nameless_main():
            return self._pool.submit(_make, cell, label)

    def close(self) -> None:
        """End the processes, at once where they are at work."""
        working = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in working:
            process.terminate()
        for process in working:
            process.join()
        self._lines.put(None)
        self._listener.join()

    def _listen(self, log: Log) -> None:
        while (line := self._lines.get()) is not None:
            log(line)


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Processes that start meanwhile do not run the user's script once more, which needs no guard then."""
    main: dict[str, Any] = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


class _Worker:
    """What a process has open."""

    run: Run
    about = ""


def _open(opened: Callable[[Log], Run], lines: Any, parent: int, threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that began it says when to end
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    _Worker.run = opened(lambda line: lines.put(f"{_Worker.about}{line}"))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _make(cell: Cell, label: str) -> Done:
    run = _Worker.run
    _Worker.about = ""
    run.log(label)
    _Worker.about = f"{cell}: "
    return run.make_cell(cell), dict(run.trained)
