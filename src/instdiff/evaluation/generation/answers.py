"""What was written, judged or run, kept line by line, so that nothing is done or paid for twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from instdiff.core.files import unwritable, with_sum, without_sum
from instdiff.errors import StoreError

T = TypeVar("T")


class AnswerCache(Generic[T]):
    """Answers in a file of JSON lines that only grows; the ``key`` of a line is the hash of all that it depends on.

    A line that was torn by a kill, or that is not what its sum is of, is passed over.

    Args:
        path: of the file; None keeps answers in memory alone.
        read: the answer in a line; a KeyError, TypeError or ValueError says that there is none.
    """

    def __init__(self, path: Path | None, read: Callable[[dict[str, Any]], T]) -> None:
        self.path, self._read = path, read
        self._known: dict[str, list[T]] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._all()

    def __getitem__(self, key: str) -> list[T]:
        """All answers under a key, in the order in which they came."""
        return self._all().get(key, [])

    def keep(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append answers.

        Raises:
            StoreError: the file cannot be written.
        """
        known = self._all()
        if self.path is not None and lines:
            text = "".join(json.dumps(with_sum(line), ensure_ascii=False) + "\n" for line in lines)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a+b") as file:
                    if file.tell() and _last_byte(file) != b"\n":
                        file.write(b"\n")
                    file.write(text.encode(errors="backslashreplace"))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise unwritable(self.path, error) from error
        for line in lines:
            known.setdefault(line["key"], []).append(self._read(line))

    def _all(self) -> dict[str, list[T]]:
        if self._known is None:
            self._known = {}
            for line in self._lines():
                with suppress(ValueError, KeyError, TypeError):
                    told = without_sum(json.loads(line))
                    key, answer = str(told["key"]), self._read(told)
                    self._known.setdefault(key, []).append(answer)
        return self._known

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().split(b"\n") if self.path is not None else []
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read '{self.path}': {error.strerror}; give another folder as answers") from None


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last
