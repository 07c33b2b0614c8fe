"""Finished cells kept apart from the run folder, so that a comparison goes on over days and machines."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instdiff.core import Log
from instdiff.core.files import read_json, with_sum, without_sum, write_record, writing
from instdiff.experiments.run_folder import CELL, Cell, differences
from instdiff.selection.chosen import OUTPUT_SUM
from instdiff.selection.record import RECORD

PLACES = ("where", "models", "packages", "data", "data_dir", "task_data", OUTPUT_SUM)
"""Keys that say where something lay, or what was installed: a record is the same on every machine."""


@dataclass(frozen=True)
class Records:
    """A folder with a compressed file for each finished cell: what it is made of, and the files of its results."""

    folder: Path
    log: Log

    def path(self, cell: Cell) -> Path:
        """Where a cell is kept."""
        return self.folder / cell.place.with_name(f"{cell.place.name}.json.gz")

    def keep(self, cell: Cell, made_of: Mapping[str, Any], place: Path) -> None:
        """Write a finished cell, whose files lie in ``place``; the same cell gives the same bytes."""
        names = [CELL, *(f"{suite}.json" for suite in read_json(place / CELL)["suites"]), RECORD]
        files = {name: _without_places(read_json(place / name)) for name in names if (place / name).is_file()}
        text = json.dumps(with_sum({"made_of": dict(made_of), "files": files}), ensure_ascii=False)
        with writing(self.path(cell)) as aside:
            aside.write_bytes(gzip.compress(text.encode(), mtime=0))

    def fit(self, cell: Cell, made_of: Mapping[str, Any]) -> str | None:
        """Why a cell is not taken from its record; None where it is."""
        kept = self._read(cell)
        if isinstance(kept, str):
            return kept
        found = differences(json.loads(json.dumps(made_of)), kept["made_of"])
        return f"it was made with {found[0][0]}={found[0][2]!r}, now it is {found[0][1]!r}" if found else None

    def take(self, cell: Cell, made_of: Mapping[str, Any], place: Path) -> None:
        """Write the files of a kept cell to ``place``; the log is told of one that does not fit."""
        if not self.path(cell).is_file():
            return
        kept, why = self._read(cell), self.fit(cell, made_of)
        if why is not None or isinstance(kept, str):
            self.log(f"warning: '{self.path(cell)}' is not the record of this cell: {why}; {cell} is made again")
            return
        for name, facts in reversed(kept["files"].items()):  # that of the cell says that all are there
            write_record(place / name, facts)

    def _read(self, cell: Cell) -> dict[str, Any] | str:
        """A record, or why there is none."""
        path = self.path(cell)
        try:
            kept: dict[str, Any] = without_sum(json.loads(gzip.decompress(path.read_bytes())))
            return {"made_of": kept["made_of"], "files": kept["files"]}
        except FileNotFoundError:
            return "it is not there"
        except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
            return f"it cannot be read ({error})"


def _without_places(facts: Any) -> Any:
    if not isinstance(facts, Mapping):
        return facts
    return {key: _without_places(value) for key, value in facts.items() if key not in PLACES}
