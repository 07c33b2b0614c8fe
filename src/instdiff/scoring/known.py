"""How many rows a model knows already, by the floor of `learnability`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from instdiff.core import Floats, Method, Scored
from instdiff.methods import Learnability

if TYPE_CHECKING:
    from instdiff.scoring.workbench import Workbench


@dataclass(frozen=True)
class KnownRows:
    """Of a method's scorable ``rows`` those whose NLL is below the ``floor`` in nats; None before it is computed."""

    name: str
    floor: float
    rows: int
    known: int | None

    def __str__(self) -> str:
        return f"{self.name}: {self.said}"

    @property
    def said(self) -> str:
        """What is known of them."""
        if self.known is None:
            return (
                f"which share of the rows is below the floor of {self.floor:g} nats, and so known, is told after "
                "scoring; the store does not have their NLL yet"
            )
        found = f"{self.known:,} of {self.rows:,} rows ({self.known / max(1, self.rows):.0%})"
        return f"{found} are below the floor of {self.floor:g} nats, and so known"


def tell_known(found: Iterable[KnownRows]) -> list[str]:
    """A line for all methods of which the same is to be said."""
    names: dict[str, list[str]] = {}
    for one in found:
        names.setdefault(one.said, []).append(one.name)
    return [f"{', '.join(some)}: {said}" for said, some in names.items()]


def foresee_known(bench: Workbench, name: str, method: Method) -> Iterator[KnownRows]:
    """What the store says of it before a method, or one inside it, scores; no model is run."""
    signals = method.signals()
    for place, one in _inside(method):
        signal = signals[f"{place}base"]
        if bench.ready_signal(signal):
            yield _count(name, place, one, bench.vectors(signal).mean())
        else:
            yield KnownRows(_label(name, place), one.floor, len(bench.render_for(signal).scorable), None)


def count_known(scored: Scored) -> Iterator[KnownRows]:
    """The same of rows that are scored."""
    for place, one in _inside(scored.method):
        if (nll := scored.details.get(f"{place}nll_base")) is not None:
            yield _count(scored.name, place, one, nll)


def _inside(method: Method, place: str = "") -> Iterator[tuple[str, Learnability]]:
    """Each `learnability` in a method, with what the names of its signals and details begin with."""
    if isinstance(method, Learnability):
        yield place, method
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        parts = {field.name: value} if isinstance(value, Method) else {}
        if isinstance(value, tuple):
            parts = {str(at): part for at, part in enumerate(value) if isinstance(part, Method)}
        for name, part in parts.items():
            yield from _inside(part, f"{place}{name}.")


def _count(name: str, place: str, one: Learnability, nll: Floats) -> KnownRows:
    return KnownRows(_label(name, place), one.floor, int(np.isfinite(nll).sum()), int((nll < one.floor).sum()))


def _label(name: str, place: str) -> str:
    return f"{name} {place[:-1]}" if place else name
