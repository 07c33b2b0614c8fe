"""What is known of batches at a server, kept so that none is paid for twice.

A batch has a file of JSON lines with sums that only grows: what was asked, the batch's id, the answers, how it ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instdiff.core.files import fingerprint, make_folder, unwritable, with_sum, without_sum

KEPT_FOR = 30 * 86400.0
"""Seconds after which a batch is forgotten: its answers lie in the store by then, and the server has dropped it."""


@dataclass
class Batch:
    """A batch: where it is, which questions it has by their names, and what came of them.

    ``file`` is the server's name of the questions and ``id`` that of the batch, empty until it is told; ``ways`` is
    how they were asked; ``end`` is the word that it ended with.
    """

    path: Path
    url: str
    file: str
    asked: frozenset[str]
    ways: dict[str, int]
    id: str = ""
    end: str = ""
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def began(self, id: str) -> None:
        """The server has given the batch an id."""
        self.id = id
        self._append([{"batch": id}])

    def ended(self, word: str, answers: Mapping[str, dict[str, Any]]) -> None:
        """It is over, with these answers as the server gave them."""
        self.answers.update(answers)
        self.end = word
        self._append([*({"name": name, "body": body} for name, body in answers.items()), {"end": word}])

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n" * bool(file.tell()))  # ends a line that a kill tore
                file.writelines(json.dumps(with_sum(line)) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error


class BatchRecords:
    """The batches of a folder; those of other processes are seen as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches: dict[str, Batch] = {}

    def refresh(self) -> None:
        """Read what is new in the folder, also of batches that had not begun, and drop what is old."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - KEPT_FOR:
                    path.unlink()
                elif not (path.name in self.batches and self.batches[path.name].id) and (found := _read(path)):
                    self.batches[path.name] = found

    def add(self, url: str, file: str, asked: frozenset[str], ways: dict[str, int]) -> Batch:
        """A batch that is about to begin; a StoreError where that cannot be written."""
        path = self.folder / f"{fingerprint(url, file)}.jsonl"
        batch = self.batches[path.name] = Batch(path, url, file, asked, dict(ways))
        try:
            make_folder(self.folder)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        batch._append([{"url": url, "file": file, "asked": sorted(asked), "ways": ways}])
        return batch

    def answer(self, name: str) -> dict[str, Any] | None:
        """What a server answered to a question in a batch that is over."""
        return next((batch.answers[name] for batch in self.batches.values() if name in batch.answers), None)

    def under_way(self, name: str, url: str) -> Batch | None:
        """The batch at a server that a question is in."""
        every = self.batches.values()
        return next((batch for batch in every if not batch.end and batch.url == url and name in batch.asked), None)


def _read(path: Path) -> Batch | None:
    """The batch in a file; None where it does not say what was asked."""
    lines = _lines(path)
    try:
        told = next(lines)
        batch = Batch(path, told["url"], told["file"], frozenset(told["asked"]), dict(told["ways"]))
        for line in lines:
            batch.id, batch.end = line.get("batch", batch.id), line.get("end", batch.end)
            if "name" in line:
                batch.answers[line["name"]] = line["body"]
    except (StopIteration, KeyError, TypeError, AttributeError, ValueError):
        return None
    return batch


def _lines(path: Path) -> Iterator[Any]:
    """The lines that are what their sums are of."""
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                yield without_sum(json.loads(line))
