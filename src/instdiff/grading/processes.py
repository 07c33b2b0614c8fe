"""Processes that grade: one that hangs or dies is replaced, and what it was grading is wrong."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple

from instdiff.errors import EngineError, require
from instdiff.grading.mathematics import Verdict, grade_at_once

TIMEOUT = 10.0
"""Seconds for one verdict."""
START = 300.0
"""Seconds for a new process, which has algebra to import."""
COMMAND = (sys.executable, "-P", "-m", "instdiff.grading.mathematics")


class Solution(NamedTuple):
    """What is tell: see ``grading.grade``."""

    text: str
    gold: tuple[str, ...]
    number: bool = False
    tolerance: float = 0.0


def check_math_verify() -> None:
    """Raise a PlanError with what to install, where the library is not there."""
    require("math_verify", "grading mathematics")


def grade_all(
    solutions: Sequence[Solution],
    *,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    advance: Callable[[], None] | None = None,
    command: Sequence[str] = COMMAND,
) -> list[Verdict]:
    """A verdict for each solution, in their order; those that take algebra are for the processes.

    Equal ones are graded once. ``workers`` are processes, by default as many as there are processors, and no more than
    there is work for. After ``timeout`` seconds a process is killed; its solution is wrong by ``timeout``. ``advance``
    is called after each verdict; ``command`` starts a process.
    """

    def tell() -> None:
        if advance is not None:
            with lock:
                advance()

    lock = threading.Lock()
    said = {solution: grade_at_once(**solution._asdict()) for solution in solutions}
    for verdict in said.values():
        if verdict is not None:
            tell()
    hard = [solution for solution, verdict in said.items() if verdict is None]
    if hard:
        processes = min(workers or _processors(), -(-len(hard) // 32))
        said |= _by_processes(hard, processes, lambda: Grader(command, timeout), tell)
    return [verdict for solution in solutions if (verdict := said[solution]) is not None]


def _processors() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)


def _by_processes(
    solutions: Sequence[Solution], processes: int, make: Callable[[], Grader], tell: Callable[[], None]
) -> dict[Solution, Verdict]:
    """Verdicts of so many processes, each led by a thread."""
    todo: SimpleQueue[Solution] = SimpleQueue()
    for solution in solutions:
        todo.put(solution)
    verdicts: dict[Solution, Verdict] = {}
    failed: list[BaseException] = []

    def work() -> None:
        grader = make()
        try:
            while not failed:
                solution = todo.get_nowait()
                verdicts[solution] = grader(solution)
                tell()
        except Empty:
            return
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            failed.append(error)
        finally:
            grader.close()

    # Daemons, so that an interrupted run need not wait for them.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return verdicts


class Grader:
    """One grading process, started when it is needed."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.command, self.timeout = list(command), timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, solution: Solution) -> Verdict:
        """Its verdict; ``timeout`` where it does not come, ``crashed`` where the process dies of it.

        Raises an EngineError where no process can be started.
        """
        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(solution._asdict()).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process, self.timeout)
        except BrokenPipeError:
            line = b""
        if line is None:
            self.close()
            return Verdict(False, "timeout")
        if not line.endswith(b"\n"):
            self.close()
            return Verdict(False, "crashed")
        return Verdict(*json.loads(line))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            if self._line(self._process, START) != b"ready\n":
                self.close()
                raise EngineError(
                    f"the process that grades cannot be started; see what `{' '.join(self.command)}` says"
                )
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], wait: float) -> bytes | None:
        """What the process writes up to the end of a line; less where it ends before; None where it takes too long."""
        assert process.stdout is not None
        until, got = time.monotonic() + wait, b""
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while not got.endswith(b"\n"):
                if not waiting.select(max(0.0, until - time.monotonic())):
                    return None
                part = os.read(process.stdout.fileno(), 1 << 16)
                if not part:
                    return got
                got += part
        return got
