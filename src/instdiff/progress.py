"""What a long step tells while it runs. Showing it is the caller's business."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Advance = Callable[[int, int], None]
"""Told how many more rows and tokens are done."""


class Progress(Protocol):
    """Shows long steps."""

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """A step of so many rows and tokens; ``cached`` rows needed no work."""


class Quiet:
    """Shows nothing."""

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """Nothing to show."""
        yield lambda rows, tokens: None
