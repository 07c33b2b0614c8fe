"""What embedders and judges see of a row: text, not tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from instdiff.core import Asked, Reasons, View, Words
from instdiff.core.columns import no_reasons
from instdiff.core.signals import EachLabel
from instdiff.data import Pool, Sample, Turns
from instdiff.data.labels import each_label, labels_of
from instdiff.errors import PlanError
from instdiff.rendering.questions import asked_about, questions
from instdiff.rendering.templates import said, why_nothing


@dataclass(frozen=True)
class Texts:
    """One text per sample, empty where there is a reason why there is none.

    ``system`` is what a judge is told before each of them.
    """

    said: pa.LargeStringArray
    reason: Reasons
    system: str = ""

    def __len__(self) -> int:
        return len(self.said)

    def __getitem__(self, row: int) -> str:
        return str(self.said[row].as_py())

    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes per text."""
        return np.diff(np.frombuffer(self.said.buffers()[1], np.int64)[self.said.offset :][: len(self) + 1])

    def keys(self) -> npt.NDArray[np.bytes_]:
        """16 bytes per row: the hash of all that can change its numbers."""
        start = hashlib.blake2b(self.system.encode(), digest_size=16, key=b"text")
        digests = []
        for text in self._texts():
            digest = start.copy()
            digest.update(b"\0" + text.encode())
            digests.append(digest.digest())
        return np.frombuffer(b"".join(digests), "S16")

    def take(self, rows: npt.NDArray[np.int64]) -> Texts:
        """Those of the rows named, in that order."""
        return Texts(self.said.take(pa.array(rows)), self.reason[rows], self.system)

    def _texts(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self.said.slice(start, 4096).to_pylist()


def texts(view: View, pool: Pool) -> Texts:
    """The texts of a view; a ConfigError where a prompt file is missing or faulty, a PlanError for a view of tokens."""
    reason = np.full(len(pool), None, object)
    told: list[str] = []
    if isinstance(view, Words):
        for row, sample in enumerate(pool.samples()):
            told.append(words(sample, view.part, pool.turns))
            if not told[-1].strip():
                lacks = why_nothing(sample, pool.turns.targets) or "empty_response"
                reason[row] = lacks if view.part == "response" else "empty_instruction"
        return Texts(pa.array(told, pa.large_string()), reason)
    if isinstance(view, Asked):
        asked = questions(view.prompt)
        for row, sample in enumerate(pool.samples()):
            about = asked_about(view, sample)
            reason[row] = None if about else "empty_response"
            told.append(asked.ask(view.number, about) if about else "")
        return Texts(pa.array(told, pa.large_string()), reason, asked.system)
    if isinstance(view, EachLabel):
        told = each_label(labels_of(pool, view.column))
        return Texts(pa.array(told, pa.large_string()), no_reasons(len(told)))
    raise PlanError(f"{type(view).__name__} is a view for language models; embedders and judges take text")


def words(sample: Sample, part: str, how: Turns | None = None) -> str:
    """The text of a part of a sample: ``instruction`` with its input, the ``first`` one, ``response`` or ``row``.

    Thoughts are a part of responses unless they are dropped; calls, as JSON text, of rows, and of responses where they
    are learnt.
    """
    how = how or Turns()
    if part == "first":
        return sample.instruction + (f"\n{sample.input}" if sample.input else "")
    out: list[str] = []
    for at, turn in enumerate(sample.messages):
        if turn.role == "assistant" and part != "instruction":
            parts = said(sample.messages, at, how)
            calls = parts[-1:] if turn.calls else []
            out += [one.thought + one.text for one in parts[: len(parts) - len(calls)]]
            out += [one.text for one in calls if part == "row" or one.learnt]
        elif part == "row" or (turn.role == "user" and part == "instruction"):
            out.append(turn.content + (f"\n{turn.input}" if turn.input else ""))
    return "\n".join(out)


def text_column(pool: Pool, part: str) -> npt.NDArray[np.object_]:
    """The text of each row: ``source`` is the input's own line, other parts are those of ``Words``."""
    if part == "source":
        told = [json.dumps(row, ensure_ascii=False) for row in pool.source_rows(np.arange(len(pool)))]
    else:
        told = [words(sample, part, pool.turns) for sample in pool.samples()]
    out = np.empty(len(told), object)
    out[:] = told
    return out
