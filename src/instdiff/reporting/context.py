"""What the sections of a report share, and what a section is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats
from instdiff.reporting import statistics
from instdiff.reporting.examples import Examples, examples
from instdiff.reporting.sources import Part, ReportSources

Indices = npt.NDArray[np.int64]
INTERVAL = re.compile(r"[-+]?[0-9.,]+( to [-+]?[0-9.,]+)?")
POINTS = 50_000
"""Points of a picture; of more rows a seeded sample is shown."""


@dataclass(frozen=True)
class Table:
    """Cells under a header; numbers and intervals stand to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    @cached_property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers or intervals alone."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        return [any(v is not None for v in column) and all(map(_is_number, column)) for column in columns]


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or bool(INTERVAL.fullmatch(str(value)))


@dataclass
class Section:
    """A part of the page: sentences, stages and pictures by label, tables, and the same as plain facts.

    ``alerts`` link to other sections; ``reads`` are lists of rows under their titles.
    """

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    bars: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    figures: list[tuple[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    alerts: Sequence[Any] = ()
    reads: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)


@dataclass
class ReportContext:
    """The material with what is looked up in it more than once."""

    material: ReportSources

    @property
    def part(self) -> Part | None:
        """The newest scores."""
        return self.material.last

    @cached_property
    def at(self) -> Indices:
        """The rows that are points of the pictures."""
        return statistics.sample(self.count, POINTS)

    @property
    def count(self) -> int:
        """Rows in all."""
        if self.part is not None:
            return len(self.part.table)
        return len(self.material.pool) if self.material.pool is not None else 0

    @cached_property
    def groups(self) -> tuple[str, list[str]] | None:
        """The column of domains and its values."""
        return None if self.material.pool is None else statistics.groups(self.material.pool)

    @cached_property
    def lengths(self) -> dict[str, Floats]:
        """Lengths of all rows."""
        assert self.part is not None
        return statistics.lengths(self.material.pool, self.part.table.n_tokens, self.part.table.n_thought)

    @cached_property
    def shown(self) -> Examples | None:
        """The rows whose texts are shown."""
        return None if self.part is None else examples(self.part)

    @property
    def sampled(self) -> list[str]:
        """What a picture of points must say."""
        if self.count <= POINTS:
            return []
        return [f"A seeded sample of {POINTS:,} of the {self.count:,} rows is drawn; counts and lines are of all."]
