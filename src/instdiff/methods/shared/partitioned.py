"""Parts and cells: how set methods on vectors do with more rows than their exact way can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy.typing as npt

from instdiff.core import Method
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.effort import check_effort
from instdiff.methods.algorithms.partitioned import run_in_partitions
from instdiff.methods.shared.set_method import Indices, VectorMethod

Parts = int | Literal["auto"] | None
OF_A_CELL = 1024
"""Rows of a cell on average, where parts are ``auto``."""


@dataclass(frozen=True)
class PartitionedMethod(VectorMethod):
    """A set method on vectors whose rows can be dealt out to parts.

    ``parts`` of null is the exact way, and an error where that would take hours on this machine; 1 is the exact way
    whatever it takes. Of several random parts each gives ``oversample`` times its share of the rows that are asked for,
    and above 1 the exact way chooses among these. ``auto`` makes parts of at most ``of_a_part`` rows. With several
    parts a larger budget than scoring ranked is another choice, and not a longer one.
    """

    of_a_part: ClassVar[int] = 8192

    parts: Parts = field(default=None, kw_only=True)
    oversample: float = field(default=1.0, kw_only=True)
    seed: int = field(default=42, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self.name, self.parts)
        if not self.oversample >= 1:
            raise ConfigError(
                f"'{self.name}.oversample' is {self.oversample}; a part gives its share at least, which is 1"
            )

    def pairs(self, n: int, k: int) -> float:
        """Pairs of rows that the exact way compares, about, to take ``k`` of ``n``."""
        raise NotImplementedError

    @property
    def approximation(self) -> str | None:
        """How the rows are not those of the exact way."""
        if self.parts in (None, 1):
            return None
        again = (
            f"; of {self.oversample:g} times as many rows the exact way takes the last" if self.oversample > 1 else ""
        )
        parts = parts_text(self.parts, "random parts", self.of_a_part)
        return f"{self.name}: chosen in {parts}, an equal share of each{again}"

    def choose_rows(
        self, x: npt.NDArray[Any], k: int, choose: Callable[..., Indices], chosen: Indices | None = None, **columns: Any
    ) -> Indices:
        """``k`` rows by ``choose``, in as many parts as are asked for."""
        n = len(x) - (0 if chosen is None else len(chosen))
        parts = parts_of(self.parts, n, self.of_a_part)
        if self.parts is None:
            check_effort(self.name, self.pairs(n, k) * x.shape[1], f"'{self.name}.parts' to auto")
        elif parts > 1 and self.oversample > 1:
            many = int(min(n, self.oversample * k))
            check_effort(self.name, self.pairs(many, k) * x.shape[1], f"'{self.name}.oversample' to 1")
        return run_in_partitions(
            x, k, choose, parts=parts, oversample=self.oversample, seed=self.seed, chosen=chosen, **columns
        )


def check_parts(name: str, parts: Parts) -> None:
    """Whether it is a number of parts.

    Raises:
        ConfigError: it is below 1.
    """
    if isinstance(parts, int) and parts < 1:
        raise ConfigError(f"'{name}.parts' is {parts}; the least is 1, all rows together")


def parts_of(parts: Parts, n: int, size: int = OF_A_CELL) -> int:
    """How many parts ``n`` rows have; those of ``auto`` have ``size``."""
    wanted = 1 if parts is None else -(-n // size) if parts == "auto" else parts
    return max(1, min(wanted, n))


def parts_text(parts: Parts, what: str, size: int) -> str:
    """The parts in words."""
    return f"{what} of {size:,} rows" if parts == "auto" else f"{parts} {what}"


def cells_text(name: str, parts: Parts) -> str | None:
    """What is approximate where only rows of one cell are compared."""
    if parts in (None, 1):
        return None
    return f"{name}: only rows of one cell are compared, of {parts_text(parts, 'cells', OF_A_CELL)}"


def approximations(*methods: Method) -> str | None:
    """What those of them that are approximate say."""
    some = [getattr(method, "approximation", None) for method in methods]
    return "; ".join(text for text in some if text) or None
