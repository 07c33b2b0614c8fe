"""Answers that were written, kept line by line, so that none is written or paid for twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instdiff.core.files import unwritable
from instdiff.errors import StoreError


@dataclass(frozen=True)
class Reply:
    """One answer with what it cost; ``text`` is None where none came, and ``reason`` says so."""

    text: str | None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    reason: str = ""


class AnswerCache:
    """The answers of one model under one folder, each found by the hash of all that it depends on.

    Lines are only ever appended. One that was torn by a kill is passed over, and its answer written anew.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.path = folder / f"answers-{model}.jsonl"
        self._known: dict[str, Reply] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._all()

    def __getitem__(self, key: str) -> Reply:
        return self._all()[key]

    def keep(self, answers: Iterable[tuple[str, Reply]]) -> None:
        """Append answers.

        Raises:
            StoreError: the file cannot be written.
        """
        known = self._all()
        new = [(key, round_times(reply)) for key, reply in answers if reply.text is not None and key not in known]
        if not new:
            return
        lines = "".join(json.dumps(_line(key, reply), ensure_ascii=False) + "\n" for key, reply in new)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                if file.tell() and _last_byte(file) != b"\n":
                    file.write(b"\n")
                file.write(lines.encode(errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        known.update(new)

    def _all(self) -> dict[str, Reply]:
        if self._known is None:
            self._known = dict(self._read())
        return self._known

    def _read(self) -> Iterable[tuple[str, Reply]]:
        try:
            with open(self.path, "rb") as file:
                for line in file:
                    try:
                        told = json.loads(line)
                        numbers = int(told["prompt"]), int(told["generated"]), float(told["seconds"])
                        found = str(told["key"]), Reply(str(told["text"]), *numbers)
                    except (ValueError, KeyError, TypeError):
                        continue
                    yield found
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"cannot read '{self.path}': {error.strerror}; give another folder as answers") from None


def round_times(reply: Reply) -> Reply:
    """As it is kept, so that a bill is the same whether an answer was read or written."""
    return replace(reply, seconds=round(reply.seconds, 4))


def _line(key: str, reply: Reply) -> dict[str, Any]:
    return {
        "key": key,
        "text": reply.text,
        "prompt": reply.prompt_tokens,
        "generated": reply.generated_tokens,
        "seconds": reply.seconds,
    }


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last
