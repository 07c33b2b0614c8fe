"""A thread beside a command: no stage is silent, and Control-C ends the process also where nothing listens to it."""

from __future__ import annotations

import _thread
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress

from instdiff.cli.console import Console

GRACE_SECONDS = 1.5
"""After Control-C, until the process is ended from beside."""
INTERRUPTED = "interrupted; what was computed is kept: give the same command again to go on"
_told = threading.Event()


def start(console: Console) -> None:
    """Beat until the process ends.

    The thread is none of ``threading``: ``Thread.start`` waits for a sign that a thread without memory never gives.
    """
    with suppress(RuntimeError, MemoryError, OSError):  # a command does without
        heard, signalled = os.pipe()
        os.set_blocking(signalled, False)
        signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
        _thread.start_new_thread(_beat, (console, heard))


def tell_interrupted() -> None:
    """The last words of an interrupted command."""
    _told.set()
    with suppress(OSError):  # nobody reads them
        print(INTERRUPTED, file=sys.stderr, flush=True)


def _beat(console: Console, heard: int) -> None:
    with suppress(Exception):  # whatever befalls it, the command goes on
        while signal.SIGINT not in (os.read(heard, 64) if select.select([heard], [], [], 0.5)[0] else b""):
            console.beat()
        try:
            console.end()
        finally:
            time.sleep(GRACE_SECONDS)
            if not _told.is_set():
                tell_interrupted()
            os._exit(130)
