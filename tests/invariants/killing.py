"""As a program: gives a command again and again, and kills it after as many seconds as each line of its input says.

    killing.py COMMAND...

A second number on a line bounds the megabytes that the command may have besides what its imports take.

The command is one of ``instdiff`` in the working folder; what it says goes to ``said.txt``. Prints its exit code for
each line, -9 where it was killed, and the seconds that it ran.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from pathlib import Path


def command(words: list[str]) -> None:
    import torch

    from instdiff.cli.entry import main

    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    sys.argv = ["instdiff", *words]
    main()


def imports() -> None:
    """What takes seconds to import is imported once; no thread is started, so that this process can be forked."""
    import peft  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    import instdiff.cli.entry
    import instdiff.experiments.pipeline  # noqa: F401

    gc.freeze()  # the children need not look through it


def bound(megabytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(words: list[str], seconds: float, megabytes: int | None = None) -> int:
    """The exit code of a command that is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if megabytes is not None:
                bound(megabytes)
            command(words)
        except SystemExit as end:
            code = int(end.code or 0)
            sys.stdout.flush()
        finally:
            os._exit(code)
    until, done = time.monotonic() + seconds, 0
    while not done and time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not done:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    imports()
    for line in sys.stdin:
        began = time.monotonic()
        seconds, *most = line.split()
        print(run(sys.argv[1:], float(seconds), *map(int, most)), time.monotonic() - began, flush=True)
