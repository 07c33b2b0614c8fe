"""ZIP (Entropy Law, Yin et al., 2024, arXiv:2407.06645): the rows that together compress worst."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from instdiff.core import Budget, Scored, Signal, Signals, Text
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.compression import zip_greedy
from instdiff.methods.shared.set_method import Indices, SetMethod


@dataclass(frozen=True)
class Zip(SetMethod):
    """Greedy, in three stages: add the row that keeps the compression ratio of the selection lowest.

    In each round the ``k1`` rows of lowest ratio are looked at again, and of the ``k2`` best of them a batch of ``k3``
    is taken. A row's text is what is said in it, so that names of columns, ids and escapes do not count. Numbers
    depend on the zlib in use.

    ``compat="official"`` is the published code: the text is Python's ``repr`` of the input's own row; rows of which a
    batch was drawn are set aside and come back when fewer than ``k1`` others are left, the taken ones too, so that rows
    can be selected twice; a selection is filled up to a multiple of ``k3``; and there must be ``k1`` rows at least.
    """

    name: ClassVar[str] = "zip"
    paper: ClassVar[str] = "arXiv:2407.06645"

    k1: int = 10_000
    k2: int = 200
    k3: int = 100
    compat: Literal["default", "official"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k1 >= self.k2 >= self.k3 >= 1:
            raise ConfigError(f"'zip': k1 >= k2 >= k3 >= 1 must hold, not {self.k1}, {self.k2}, {self.k3}")

    def signals(self) -> dict[str, Signal]:
        """The text of each row, or the input's own row."""
        return {"text": Signal(Text("source" if self.compat == "official" else "row"))}

    def ready(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Rows that say anything."""
        said: npt.NDArray[np.bool_] = np.array([bool(text) for text in s.text], bool)
        return super().ready(s) & said

    def order_rows(self, s: Signals, rows: Indices) -> Indices:
        """By content; as published, by row."""
        return rows if self.compat == "official" else super().order_rows(s, rows)

    def choose(self, s: Signals, count: int) -> Indices:
        """The three stages; the published ones may go on beyond ``count`` and repeat rows."""
        official = self.compat == "official"
        if official and len(s) < self.k1:
            raise ConfigError(
                f"'zip': compat official needs k1 = {self.k1} rows or more, and {len(s)} can be taken; give a lower k1"
            )
        texts = [repr(json.loads(text)) if official else str(text) for text in s.text]
        return zip_greedy(texts, count, k1=self.k1, k2=self.k2, k3=self.k3, official=official, caps=s.caps)

    def pick(self, scored: Scored, budget: Budget) -> Indices:
        """The head; as published, up to a multiple of ``k3``, repeated rows included."""
        if self.compat == "default":
            return super().pick(scored, budget)
        order, rank = scored.best(), -scored.value
        whole = len(order) % self.k3 == 0 and np.array_equal(rank[order], np.arange(len(order)))
        # A rank that is missing is that of a row taken again.
        if scored.caps is not None or not whole or not budget.is_filled_by(order, scored):
            count = int(scored.takeable.sum()) if budget.of_tokens else budget.target(scored)
            order = self.order(scored.signals(), count)
        return order[: -(-len(budget.take(order, scored)) // self.k3) * self.k3]
