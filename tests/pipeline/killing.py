"""As a program: gives the command again and again, and kills it as soon as it has made the next thing.

    killing.py PATTERN...

The command is `instdiff pipeline --config my.yaml` in the working folder. Each pattern is a glob from there; where it
has several parts with `|` between them, the first that is found counts. Prints the patterns at which it killed.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path


def command() -> None:
    import torch

    from instdiff.cli.entry import main

    torch.set_num_threads(1)
    sys.argv = ["instdiff", "pipeline", "--config", "my.yaml", "--quiet"]
    main()


def imports() -> None:
    """What takes seconds to import is imported once; no thread is started, so that this process can be forked."""
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    gc.freeze()  # the children need not look through it


def there(pattern: str) -> bool:
    return any(True for part in pattern.split("|") for _ in Path.cwd().glob(part))


def kill_at(pattern: str) -> int:
    """Run the command until something is there that the pattern names; the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            command()
        finally:
            os._exit(3)  # the command ends the process by itself
    until = time.monotonic() + 60
    while not there(pattern):
        if os.waitpid(child, os.WNOHANG) != (0, 0) or time.monotonic() > until:
            sys.exit(f"the command ended, or took too long, before it had made {pattern}")
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    imports()
    for wanted in sys.argv[1:]:
        if there(wanted):
            sys.exit(f"{wanted} was there before the command was given")
        if kill_at(wanted) != signal.SIGKILL:
            sys.exit(f"the command ended by itself at {wanted}")
        print(wanted, flush=True)
