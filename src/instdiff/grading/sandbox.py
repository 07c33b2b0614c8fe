"""Run programs that a model wrote, and say how each ended. ``isolated.py`` is what each runs in."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instdiff.core.files import fingerprint
from instdiff.core.progress import Progress
from instdiff.errors import EngineError
from instdiff.grading.system_calls import call_filter
from instdiff.store.answers import AnswerCache

RUNNER = Path(__file__).with_name("isolated.py")
LATE = 10.0
"""Seconds above the limit after which the sandbox itself is taken for stuck."""
PASSED = "passed"


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    ``cpu`` are seconds of processor time, ``wall`` seconds by the clock: more, so that a busy machine decides nothing.
    ``memory`` are bytes of address space of each process, ``disk`` bytes that it may write; ``processes``, with
    threads, and ``files`` are at once.
    """

    cpu: int = 5
    wall: float = 20.0
    memory: int = 2 << 30
    disk: int = 64 << 20
    processes: int = 32
    files: int = 256


@dataclass(frozen=True)
class Program:
    """What is run: the ``text``, and the ``tests`` that a process of their own puts to it.

    The tests see the function ``entry`` and whatever else of the program they name, and take from ``head`` what stands
    there. Without tests a text judges itself: it has passed when its end is reached.
    """

    text: str
    tests: str = ""
    entry: str = ""
    head: str = ""


@dataclass(frozen=True)
class Verdict:
    """How a program ended: a word, and what it said.

    The words: ``passed``, ``failed`` (an assertion), ``error``, ``syntax``, ``missing_library``, ``memory``, ``disk``,
    ``processes``, ``timeout``, ``killed``, ``exited_early``, ``outlived`` (something it started was still there).
    """

    reason: str
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the end of the tests was reached."""
        return self.reason == PASSED


class Sandbox:
    """Runs programs, several at once, each in a fresh process with nothing of this machine in reach.

    ``workers`` are programs at once, by default the number of cores; ``unsafe`` runs them even where this machine
    cannot shut them in.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int | None = None, unsafe: bool = False) -> None:
        self.limits, self.unsafe = limits or Limits(), unsafe
        self.workers = workers or len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
        # Below a folder that only its owner may enter, programs of another user could not read the interpreter.
        self._open = _world_readable(sys.prefix) and _world_readable(sys.base_prefix)

    def check(self) -> list[str]:
        """Try what a program can do here; what is not shut in, as sentences: an EngineError unless ``unsafe``."""
        if sys.platform != "linux":
            raise EngineError(f"programs that a model wrote can be run on Linux alone, and this is {sys.platform}")
        lacking = self._probe()
        if lacking and not self.unsafe:
            raise EngineError(
                f"programs that a model wrote cannot be run safely here: {'; '.join(lacking)}. Run as root, or where "
                "the kernel (Linux 5.12 or later) allows user namespaces; in a container, give it the capability "
                "SYS_ADMIN; or run them with what there is, at your own risk: --unsafe"
            )
        return lacking

    def run(self, programs: Sequence[Program]) -> Iterator[tuple[int, Verdict]]:
        """Each program's number and verdict, as they end; an EngineError where the sandbox itself failed."""
        with ThreadPoolExecutor(self.workers) as pool, ExitStack() as stack:
            live: set[subprocess.Popen[bytes]] = set()
            stack.callback(_end, live)
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            # A queue of two each, so that little is left to cancel.
            todo, open_ = iter(enumerate(programs)), dict[Future[Verdict], int]()
            while True:
                while len(open_) < 2 * self.workers and (task := next(todo, None)) is not None:
                    open_[pool.submit(self._one, task[1], live)] = task[0]
                if not open_:
                    return
                done, _ = wait(open_, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda future: open_[future]):
                    yield open_.pop(future), future.result()

    def _one(self, program: Program, live: set[subprocess.Popen[bytes]]) -> Verdict:
        told = self._ask(program, live)
        if told["reason"] in ("unsafe", "sandbox"):
            raise EngineError(f"the sandbox failed: {told['detail']}; see docs/sandbox.md for what it needs")
        return Verdict(told["reason"], told["detail"])

    def _ask(self, program: Program, live: set[subprocess.Popen[bytes]]) -> dict[str, Any]:
        """What the keeper says of a program."""
        folder = tempfile.mkdtemp(prefix="instdiff-program-")
        try:
            if os.geteuid() == 0 and self._open:
                os.chown(folder, 65534, 65534)
            secret, calls = secrets.token_hex(16), call_filter(os.uname().machine)
            job = {
                **asdict(self.limits),
                "program": program.text,
                "secret": None if program.tests else secret,
                "folder": folder,
                "unsafe": self.unsafe,
                "open": self._open,
                "libraries": _libraries(),
                "calls": calls.hex() if calls else None,
            }
            tests = {"secret": secret, "tests": program.tests, "entry": program.entry, "head": program.head}
            lines = f"{json.dumps(job)}\n{json.dumps(tests)}".encode()
            # As -I does, but with the seed of hashes that the environment gives: the same run, the same verdict.
            command, pipe = [sys.executable, "-P", "-s", str(RUNNER)], subprocess.PIPE
            environment = _environment()
            with subprocess.Popen(
                command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            ) as process:
                live.add(process)
                try:
                    said, wrong = process.communicate(lines, self.limits.wall + LATE)
                except subprocess.TimeoutExpired:
                    return {"reason": "timeout", "detail": "the sandbox did not answer"}
                finally:
                    _end([process])
                    live.discard(process)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            told: dict[str, Any] = json.loads(said)
        except ValueError:
            return {"reason": "sandbox", "detail": wrong.decode(errors="replace").strip()[-400:] or "it said nothing"}
        return told

    def _probe(self) -> list[str]:
        with (
            tempfile.TemporaryDirectory(prefix="instdiff-probe-") as folder,
            socket.create_server(("127.0.0.1", 0)) as to,
        ):
            secret = Path(folder) / "secret"
            secret.write_text("secret")
            os.chmod(folder, 0o755)
            places = {"secret": str(secret), "home": _at_home(), "port": to.getsockname()[1]}
            told = self._ask(Program(f"P = {places!r}\nMOST = {self.limits.processes}\n{PROBE}"), set())
        if told["reason"] == "unsafe":
            return [str(told["detail"])]
        if told["reason"] != "failed" or "|" not in told["detail"]:
            return [f"the self-test ended with '{told['reason']}' ({told['detail']})"]
        return [words for words in told["detail"].split("|")[1:] if words]


PROBE = """
import ctypes, os, socket, time

found = []


def may(what, do):
    try:
        if do() is not False:
            found.append(what)
    except OSError:
        pass


def forks():
    for _ in range(MOST + 1):
        if os.fork() == 0:
            time.sleep(60)
    return True


may("the network can be reached", lambda: socket.create_connection(("127.0.0.1", P["port"]), 1))
may("files of others can be read", lambda: open(P["secret"]))
may("the home directory can be read", lambda: any(os.access(path, os.R_OK) for path in P["home"]))
may("programs run as root", lambda: os.getuid() == 0)
may("other processes can be seen and killed", lambda: os.getpid() > 2)
may("the host of a virtual machine can be reached", lambda: socket.socket(40, socket.SOCK_STREAM))
may("memory beside the limit can be had", lambda: ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0)
may("system calls are not filtered", lambda: os.memfd_create("probe"))
may("the number of processes has no bound", forks)
raise AssertionError("|" + "|".join(found))
"""
"""A program that tries what none should be able to do."""


def run_programs(programs: Sequence[Program], sandbox: Sandbox, path: Path | None, progress: Progress) -> list[Verdict]:
    """Of each program its verdict; equal ones are run once, and none whose verdict the file has.

    Without a ``path`` no verdict is kept. Raises an EngineError where programs cannot be run here, a StoreError where
    the file cannot be written.
    """
    verdicts = AnswerCache(path, lambda line: Verdict(line["reason"], line["detail"]))
    keys = [fingerprint(asdict(program), asdict(sandbox.limits), sys.version) for program in programs]
    lacking = {key: program for key, program in zip(keys, programs, strict=True) if key not in verdicts}
    if lacking:
        names, cached = list(lacking), len(programs) - len(lacking)
        with progress.task("run programs", rows=len(lacking), tokens=0, cached=cached) as advance:
            for number, verdict in sandbox.run(list(lacking.values())):
                verdicts.keep([{"key": names[number], **asdict(verdict)}])
                advance(1, 0)
    return [verdicts[key][-1] for key in keys]


def _environment() -> dict[str, str]:
    """Nothing of this process's; libraries must not start a thread for each core."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    fixed = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
    elsewhere = {"PYTHONPATH": os.pathsep.join(_libraries()), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**fixed, **dict.fromkeys(threads, "1"), **elsewhere}


def _libraries() -> list[str]:
    """Folders of installed packages that do not lie with the interpreter, such as a user's own."""
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [path for path in folders if not any(Path(path).is_relative_to(p) for p in (sys.prefix, sys.base_prefix))]


def _at_home() -> list[str]:
    """Some of what lies in the home directory; the way to the interpreter and its packages is no secret."""
    ways = [Path(os.path.realpath(path)) for path in (sys.prefix, sys.base_prefix, *_libraries())]
    try:
        there = sorted(
            path for path in Path.home().resolve().iterdir() if not any(w.is_relative_to(path) for w in ways)
        )
    except OSError:
        return []
    return [str(path) for path in there[:100]]


def _world_readable(path: str) -> bool:
    real = Path(os.path.realpath(path))
    return all(part.stat().st_mode & 0o5 == 0o5 for part in [real, *real.parents])


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Kill keepers, with all that is below them."""
    for process in list(processes):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
