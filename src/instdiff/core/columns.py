"""The columns that a method gets, whole or in part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.arrays.ids import Ids
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.caps import Caps
from instdiff.core.display import Shown, some

Floats = npt.NDArray[np.float64]
Reasons = npt.NDArray[np.object_]
"""Per row None, or the one word that says why the row has no value."""


def no_reasons(rows: int) -> Reasons:
    """No row has a reason: takes no room and is not to be written to."""
    return np.broadcast_to(np.array(None, object), rows)


def compact_reasons(reason: Reasons) -> Reasons:
    """The same reasons, without room for them where no row has one."""
    return reason if any(word is not None for word in reason) else no_reasons(len(reason))


def first_reason(one: Reasons, other: Reasons) -> Reasons:
    """Per row the reason of ``one``, else that of ``other``; not to be written to."""
    if one.strides == (0,) or other.strides == (0,):
        return other if one.strides == (0,) else one
    return np.where(one == None, other, one)  # noqa: E711 - elementwise


def concat_reasons(parts: Sequence[Reasons]) -> Reasons:
    """Reasons end to end."""
    if all(part.strides == (0,) for part in parts):
        return no_reasons(sum(map(len, parts)))
    return np.concatenate(parts)


class Signals(Shown):
    """The columns that a method asked for, under the names it gave them.

    ``ids`` are content hashes; ``occurrence`` counts rows with the same id in input order, so that (id, occurrence)
    tells rows apart whatever their order. ``reason`` holds, per row, the reason for which some column has no value.
    ``prior`` are the scores by which an earlier method chose these rows, where there is one. ``caps`` bound how many
    rows of each value of a column may be taken.

    A column is looked up when it is asked for, so that a mapping may read it from disk only then. Those named in
    ``aside`` are of other rows, such as the targets of a targeted method.
    """

    def __init__(
        self,
        columns: Mapping[str, Ragged | npt.NDArray[Any]],
        ids: Sequence[str],
        reason: Reasons,
        prior: Floats | None = None,
        aside: Iterable[str] = (),
        caps: Caps | None = None,
    ) -> None:
        self._columns = columns
        self.ids, self.reason, self.prior, self.aside = Ids.of(ids), reason, prior, frozenset(aside)
        self.caps = caps

    def __getattr__(self, name: str) -> Any:
        columns = self.__dict__.get("_columns", {})
        if name not in list(columns):  # by its names alone: `in` on a mapping may read the column
            raise AttributeError(f"no signal {name!r}; declared are {sorted(columns)}")
        return columns[name]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Signals of {len(self):,} rows: {some(self._columns)}>"

    def take(self, rows: npt.NDArray[np.int64], prior: Floats | None = None) -> Signals:
        """The sub-problem of these rows, in that order; ``prior`` replaces theirs."""
        if prior is None and self.prior is not None:
            prior = self.prior[rows]
        columns = _Columns({name: name for name in self._columns}, self._columns, rows, self.aside)
        caps = None if self.caps is None else self.caps.take(rows)
        return Signals(columns, self.ids.take(rows), self.reason[rows], prior, self.aside, caps)

    def capped(self, caps: Caps | None) -> Signals:
        """The same columns with these ``caps``."""
        return Signals(self._columns, self.ids, self.reason, self.prior, self.aside, caps)

    def part(self, prefix: str) -> Signals:
        """The columns ``PREFIX.NAME`` under ``NAME``: those of one of several methods in one."""
        names = {name.removeprefix(f"{prefix}."): name for name in self._columns if name.startswith(f"{prefix}.")}
        aside = {name for name, whole in names.items() if whole in self.aside}
        return Signals(_Columns(names, self._columns), self.ids, self.reason, self.prior, aside, self.caps)

    @property
    def occurrence(self) -> npt.NDArray[np.int64]:
        """How many earlier rows have the same id."""
        return self.ids.occurrence()


class _Columns(Mapping[str, Any]):
    """Columns under other names, or some of their rows, made when they are asked for."""

    def __init__(
        self,
        names: dict[str, str],
        columns: Mapping[str, Any],
        rows: npt.NDArray[np.int64] | None = None,
        whole: frozenset[str] = frozenset(),
    ) -> None:
        self._names, self._columns, self._rows, self._whole = names, columns, rows, whole

    def __getitem__(self, name: str) -> Any:
        column = self._columns[self._names[name]]
        if self._rows is None or name in self._whole:
            return column
        return column.take(self._rows) if isinstance(column, Ragged) else column[self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def vectors(column: Ragged) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """A column of vectors as a matrix of its full rows [full, width], and the mask of them.

    Rows without a value, or with one that is not finite, are left out. Nothing is copied where all others are whole and
    float32 already. Rows of several widths are a ValueError.
    """
    width = int(column.lengths().max(initial=0))
    full = (column.lengths() == width) & (column.count() == width) if width else np.zeros(len(column), bool)
    if not np.isin(column.lengths(), (0, width)).all():
        raise ValueError(f"a vector has {width} values, another {int(column.lengths()[column.lengths() > 0].min())}")
    if int(full.sum()) * width != len(column.values):
        column = column.take(np.flatnonzero(full))
    return np.asarray(column.values, np.float32).reshape(int(full.sum()), max(width, 1)), full
