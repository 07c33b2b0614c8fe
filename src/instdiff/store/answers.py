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

    Several processes may append to it, and ``refresh`` reads what others did.

    A line that was torn by a kill, or that is not what its sum is of, is passed over.

    Args:
        path: of the file; None keeps answers in memory alone.
        read: the answer in a line; a KeyError, TypeError or ValueError says that there is none.
    """

    def __init__(self, path: Path | None, read: Callable[[dict[str, Any]], T]) -> None:
        self.path, self._read = path, read
        self._known: dict[str, list[T]] = {}
        self._read_to: int | None = None

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
        if self.path is None:
            for line in lines:
                self._known.setdefault(line["key"], []).append(self._read(line))
        elif lines:
            self._all()
            text = "".join(json.dumps(with_sum(line), ensure_ascii=False) + "\n" for line in lines)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a+b", buffering=0) as file:  # in one piece, whoever else appends
                    torn = file.tell() and _last_byte(file) != b"\n"
                    left = memoryview(b"\n" * bool(torn) + text.encode(errors="backslashreplace"))
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
            except OSError as error:
                raise unwritable(self.path, error) from error
            self.refresh()

    def refresh(self) -> None:
        """Read what was appended since the file was last read; a StoreError where it cannot be."""
        begin = self._read_to or 0
        self._read_to = begin
        try:
            if self.path is None or self.path.stat().st_size <= begin:
                return
            with open(self.path, "rb") as file:
                file.seek(begin)
                appended = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"cannot read '{self.path}': {error.strerror}; give another folder as answers") from None
        for line in appended.splitlines(keepends=True):
            kept = self._take(line)
            if kept or line.endswith(b"\n"):  # else another process may be about to write the rest
                self._read_to += len(line)

    def _all(self) -> dict[str, list[T]]:
        if self._read_to is None:
            self.refresh()
        return self._known

    def _take(self, line: bytes) -> bool:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            told = without_sum(json.loads(line))
            key, answer = str(told["key"]), self._read(told)
            self._known.setdefault(key, []).append(answer)
            return True
        return False


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last
