"""A number that is there: a column of the data, or the scores of another tool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from instdiff.core import Method, Number, Scores, Signal, Signals


@dataclass(frozen=True)
class ByColumn(Method):
    """Rows by a number that they have already, such as another tool's score; highest first.

    ``path`` names the column; dots lead into objects, as in ``__dj__stats__.text_len`` (data-juicer). With ``file`` the
    numbers are read from there, as ``scores.Scorer.score`` of OpenDataArena's ``pointwise_scores.jsonl``, and joined by
    the column ``id``, or by line with ``by: line``. ``FILE.parquet:METHOD`` is a score file of our own. ``order:
    lowest`` takes the lowest first. Numbers, text that is a number, and booleans count; null and absent are
    ``no_value``. Details: ``number``.
    """

    name: ClassVar[str] = "column"
    paper: ClassVar[str] = "ours"

    path: str = ""
    order: Literal["highest", "lowest"] = "highest"
    file: str | None = None
    by: Literal["id", "line"] = "id"

    def signals(self) -> dict[str, Signal]:
        """The number of each row."""
        return {"number": Signal(Number(self.path, self.file, self.by))}

    def score(self, s: Signals) -> Scores:
        """The number, or minus the number for the lowest first."""
        return Scores(s.number if self.order == "highest" else -s.number, number=s.number)
