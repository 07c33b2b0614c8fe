"""What a long step tells while it runs. Showing it is the caller's business."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable


class Limited(Protocol):
    """A batch that knows how many tokens it might have had."""

    @property
    def budget(self) -> int | None:
        """Tokens."""


Batch = TypeVar("Batch", bound=Limited)
Advance = Callable[[int, int], None]
"""Told how many more rows and tokens are done."""


class Progress(Protocol):
    """Shows long steps."""

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """A step of so many rows and tokens; ``cached`` rows needed no work."""


@runtime_checkable
class Detailed(Protocol):
    """Progress that shows more than it must; one without these methods is not told."""

    def budget(self, tokens: int) -> None:
        """The tokens of a batch from now on, until the step ends."""

    def skipped(self, label: str, *, cached: int) -> None:
        """A step that had nothing to do, since all its rows were there."""


class Quiet:
    """Shows nothing."""

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """Nothing to show."""
        yield lambda rows, tokens: None


def tell_budget(progress: Progress, tokens: int | None) -> None:
    """Tell the tokens of a batch, where they are known and shown."""
    if tokens is not None and isinstance(progress, Detailed):
        progress.budget(tokens)


def telling(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    """The same batches, each told of with the tokens that a batch has by now."""
    for batch in batches:
        tell_budget(progress, batch.budget)
        yield batch


def tell_skipped(progress: Progress, label: str, cached: int) -> None:
    """Tell of a step without work, where that is shown."""
    if isinstance(progress, Detailed):
        progress.skipped(label, cached=cached)


@dataclass
class Meter:
    """What is done of a step, how fast, and how long the rest will take.

    Where tokens are only bounded, such as those of answers, or not counted (zero), the share of rows is the better
    guess; so the larger of both shares counts. ``cached`` rows needed no work.
    """

    rows: int
    tokens: int
    cached: int = 0
    done_rows: int = 0
    done_tokens: int = 0
    budget: int | None = None
    """Tokens of a batch."""
    began: float = field(default_factory=lambda: time.monotonic())

    def add(self, rows: int, tokens: int) -> None:
        """So much more is done."""
        self.done_rows += rows
        self.done_tokens += tokens

    @property
    def seconds(self) -> float:
        """Since the step began."""
        return max(time.monotonic() - self.began, 1e-9)

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.done_tokens / self.seconds

    @property
    def share(self) -> float:
        """Of the work, from 0 to 1."""
        shares = [done / of for done, of in ((self.done_rows, self.rows), (self.done_tokens, self.tokens)) if of]
        return min(1.0, max(shares, default=1.0))

    @property
    def left(self) -> float | None:
        """Seconds until the end; None while nothing is done."""
        return self.seconds * (1 - self.share) / self.share if self.share else None

    @property
    def cached_share(self) -> float:
        """Of all rows, those that needed no work."""
        whole = self.rows + self.cached
        return self.cached / whole if whole else 0.0

    def facts(self) -> dict[str, Any]:
        """Everything, as plain values."""
        left = self.left
        return {
            "rows": self.done_rows,
            "of": self.rows,
            "tokens": self.done_tokens,
            "of_tokens": self.tokens,
            "tokens_per_s": round(self.speed),
            "seconds": round(self.seconds, 3),
            "eta_s": None if left is None else round(left),
            "cached": self.cached,
            "cached_share": round(self.cached_share, 4),
            "batch_tokens": self.budget,
        }


class Recorded:
    """Shows what another shows, and keeps what each step came to."""

    def __init__(self, shown: Progress) -> None:
        self.shown = shown
        self.steps: list[dict[str, Any]] = []
        """Of each step that ended: label, rows, tokens, cached rows, seconds, tokens per second."""
        self._budget: int | None = None

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        """Pass a step on, and keep it when it ends well."""
        meter, self._budget = Meter(rows, tokens, cached), None
        with self.shown.task(label, rows=rows, tokens=tokens, cached=cached) as advance:

            def more(more_rows: int, more_tokens: int) -> None:
                meter.add(more_rows, more_tokens)
                advance(more_rows, more_tokens)

            yield more
        self._keep(label, meter)

    def budget(self, tokens: int) -> None:
        """Pass the tokens of a batch on."""
        self._budget = tokens
        tell_budget(self.shown, tokens)

    def skipped(self, label: str, *, cached: int) -> None:
        """Pass a step without work on, and keep it."""
        tell_skipped(self.shown, label, cached)
        self._budget = None
        self._keep(label, Meter(0, 0, cached))

    def _keep(self, label: str, meter: Meter) -> None:
        worked = bool(meter.done_rows)
        self.steps.append(
            {
                "label": re.sub(r"^\[\d+/\d+\] ", "", label),
                "rows": meter.done_rows,
                "tokens": meter.done_tokens,
                "cached": meter.cached,
                "seconds": round(meter.seconds, 3) if worked else 0.0,
                "tokens_per_s": round(meter.speed) if worked else None,
                "batch_tokens": self._budget,
            }
        )

    def facts(self) -> dict[str, Any]:
        """All steps together, and each as one of ``passes``; nothing where there were none."""
        if not self.steps:
            return {}
        rows, tokens, cached = (sum(step[key] for step in self.steps) for key in ("rows", "tokens", "cached"))
        seconds = round(sum(step["seconds"] for step in self.steps), 3)
        speed = round(tokens / seconds) if seconds else None
        return {
            "rows": rows,
            "tokens": tokens,
            "cached": cached,
            "seconds": seconds,
            "tokens_per_s": speed,
            "passes": self.steps,
        }


def learnt(record: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens that a training learnt by its record, and how many per second; of a resumed one that is not known."""
    how = record["settings"]
    epochs = how["num_train_epochs"]
    if how.get("max_steps", 0) > 0:
        epochs = record["steps"] * how["global_batch_size"] / record["rows"]
    tokens, seconds = round(record["target_tokens"] * epochs), record["wall_s"]
    known = seconds and not record["resumed_at"]
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": round(tokens / seconds) if known else None}
