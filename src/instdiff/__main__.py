"""Where the program starts, also as ``python -m instdiff``."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def main() -> None:
    """Entry point: Control-C ends it in a word also while the program is read."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's background job does not hear it
    if heard:
        signal.signal(signal.SIGINT, _leave)
    from instdiff.cli.entry import main as run

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(*_: object) -> None:
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
