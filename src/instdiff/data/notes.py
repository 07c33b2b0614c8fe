"""What the log says once about many rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator


class Notes(Counter[tuple[str, str]]):
    """Counts of what was seen while rows were read, by what it is and the key that it was seen at."""

    IGNORED, NUMBER, MEDIA, PAIR, NULLS, SEMICOLON = "ignored", "number", "media", "pair", "nulls", "semicolon"
    RAW, QUOTED = "raw", "quoted"

    def see(self, what: str, name: str = "") -> None:
        """Count one."""
        self[what, name] += 1

    def lines(self) -> Iterator[str]:
        """One line for each kind."""
        if ignored := self._named(self.IGNORED):
            yield f"keys of turns that are not read: {ignored}"
        if numbers := self._named(self.NUMBER):
            yield f"learn flags that are neither 0 nor 1: {numbers}; above 0 the turn is learnt"
        if media := self._named(self.MEDIA):
            yield f"media are not read: {media}"
        if pairs := self[self.PAIR, ""]:
            yield f"{pairs:,} rows are pairs; methods that know no pairs see the chosen side as the response"
        if nulls := self[self.NULLS, ""]:
            yield f"{nulls:,} rows: nulls in tools and calls, which the columns of the file put there, are dropped"

        if raw := self._named(self.RAW):
            yield f"columns with times that no calendar has, kept as the file's numbers: {raw}"
        if quoted := self._named(self.QUOTED):
            yield f"rows over several lines, each of which looks like a row; is a quote astray? {quoted}"
        for what, name in self:
            if what == self.SEMICOLON:
                yield f"{name}: its columns stand between semicolons"

    def _named(self, what: str) -> str:
        found = [(name, count) for (kind, name), count in self.items() if kind == what]
        shown = ", ".join(f"{name} ({count:,})" for name, count in found[:20])
        return shown + (", …" if len(found) > 20 else "")
