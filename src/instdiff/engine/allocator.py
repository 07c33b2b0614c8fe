"""What is asked of glibc's allocator, from which torch has its memory on a CPU; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType

NAME = "GLIBC_TUNABLES"
NO_SMALL_CACHES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""Torch aligns every tensor. What is cut off at its ends would go to caches for small pieces, and the hole that the
tensor leaves be too small for the next of its size, so that each batch would touch far more memory than it needs."""


def keep_pages() -> None:
    """Let freed activations stay with the process: every page that glibc gives back is cleared by the kernel next time.

    Of the time of a sweep of a small model on a CPU that is about a tenth. What all threads keep is in one place: in
    places of their own it grows for long.
    """
    trim, top_pad, mmap_threshold, arenas = -1, -2, -3, -8  # numbers of malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim, 1 << 30)
        mallopt(top_pad, 64 << 20)
        mallopt(arenas, 1)


def drop_pages() -> None:
    """Give back what is free, once in many batches: in pieces between what is used it would grow for long."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def tuned(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that computes; what the user has set for glibc stands."""
    return {NAME: NO_SMALL_CACHES, **environ}


def restart() -> None:
    """Start the program again, once, without caches for small pieces: only at its start can a process be told so.

    Not where instdiff is a library, or the user has settings for glibc. Programs that it starts do not inherit this.
    """
    if os.environ.get(NAME) == NO_SMALL_CACHES:
        del os.environ[NAME]
    elif NAME not in os.environ and _is_glibc() and _is_program(sys.modules["__main__"]) and sys.executable:
        with suppress(OSError):  # then it goes on as it is
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], tuned(os.environ))


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False


def _is_program(main: ModuleType) -> bool:
    """Whether a process is ``instdiff`` or ``python -m instdiff``, and can be started again by its command line."""
    if main.__spec__ is not None:
        return main.__spec__.name == "instdiff.cli.__main__"
    return Path(getattr(main, "__file__", None) or "").name == "instdiff"
