"""What is asked of glibc's allocator, from which torch has its memory on a CPU; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

OPTIONS = {"trim_threshold": -1, "top_pad": -2, "mmap_threshold": -3, "mmap_max": -4, "arena_max": -8}
"""The numbers of malloc.h."""
NAME = "GLIBC_TUNABLES"
NO_SMALL_CACHES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""What workers are started with, since only a process's environment can give it. Torch aligns every tensor: the padding
would land in malloc's cache for small blocks and leave a gap too small for the next tensor of that size."""


def keep_pages() -> None:
    """Let freed activations stay with the process: every page that glibc gives back is cleared by the kernel next time.

    Of the time of a sweep of a small model on a CPU that is about a tenth. What all threads keep is in one place: in
    places of their own it grows for long.
    """
    _ask(mmap_threshold=32 << 20, trim_threshold=1 << 30, top_pad=64 << 20, arena_max=1)


@contextmanager
def keeping_all_pages() -> Iterator[None]:
    """For a training on a CPU: gradients and activations of any size, which each step asks for anew, stay as well.

    A step of a model of 135 million parameters touches a gigabyte of pages that would be cleared for it each time.
    """
    _ask(mmap_max=0, trim_threshold=-1, top_pad=64 << 20, arena_max=1)
    try:
        yield
    finally:
        _ask(mmap_max=1 << 16, trim_threshold=1 << 30)
        drop_pages()


def drop_pages() -> None:
    """Give back what is free, once in many batches: in pieces between what is used it would grow for long."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker process; what the user has set for glibc stands."""
    return {NAME: NO_SMALL_CACHES, **environ}


def _ask(**options: int) -> None:
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in options.items():
            mallopt(OPTIONS[name], value)
