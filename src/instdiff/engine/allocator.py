"""What is asked of glibc's allocator, from which torch has its memory on a CPU; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress

NAME = "GLIBC_TUNABLES"
NO_SMALL_CACHES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""What workers are started with, since only a process's environment can give it. Torch aligns every tensor: the padding
would land in malloc's cache for small blocks and leave a gap too small for the next tensor of that size."""


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


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker process; what the user has set for glibc stands."""
    return {NAME: NO_SMALL_CACHES, **environ}
