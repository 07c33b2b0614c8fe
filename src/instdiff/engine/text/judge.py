"""A judge is asked about each row and writes a number.

An answer is read strictly: the first JSON object with a ``score``, else the only line that is nothing but a number. One
without a number in range is asked for again; when that does not help, the row's values are empty, which the store keeps
like any other, so that nothing is paid for twice. A row that no answer came for is NaN: it is not kept, and is tried
again by the next run.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from instdiff.core import Judged, Log, Measure, Reasons, reasons
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.files import fingerprint
from instdiff.engine.sweep import BatchResult
from instdiff.errors import ConfigError, EngineError
from instdiff.rendering.texts import Texts

MAX_TOKENS = 256
"""Tokens that an answer may have."""
WAYS = 1
"""A change of how judges are asked or read gets another number, so that old answers are not taken for new ones."""
REMINDER = '\n\nAnswer with JSON only: {{"score": NUMBER}}, where NUMBER is at least {low:g} and at most {high:g}.'
PREFIX = "openai:"
KEY = "OPENAI_API_KEY"
KEYED = "api.openai.com"
"""A server that is known to refuse calls without a key."""
BRACES = 1000
"""Places of an answer where an object may begin; each costs time that grows with the whole answer."""
THOUGHTS = ("<think>", "</think>")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class JudgeRef:
    """A model behind an endpoint; ``url`` is the address that ``/chat/completions`` follows."""

    model: str
    url: str


def parse_judge(where: str) -> JudgeRef | None:
    """``openai:MODEL@http://host:port/v1``; None for any other model, a ConfigError where a part lacks or is faulty."""
    if not where.startswith(PREFIX):
        return None
    found = re.fullmatch(r"(?P<model>\S+?)@(?P<url>https?://\S+)", where.removeprefix(PREFIX))
    if found is None:
        shown = re.sub(r"//[^/]*@", "//***@", where)
        raise ConfigError(f"judge '{shown}' must be written openai:MODEL@http://host:port/v1")
    try:
        parts = urlsplit(found["url"])
        faulty = not parts.hostname or parts.port == 0
    except ValueError:
        faulty = True
    if faulty or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"the address of judge '{found['model']}' must be http://host:port/path and nothing else; "
            f"a key is read from {KEY}"
        )
    return JudgeRef(found["model"], found["url"].rstrip("/"))


def read_key() -> str:
    """The key of ``OPENAI_API_KEY``, empty where there is none; an EngineError where it cannot be sent."""
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise EngineError(f"{KEY} has characters that no key has; set it again")
    return key


def check_judge(where: str) -> None:
    """Check address and key of a model behind an endpoint; raises a ConfigError or EngineError."""
    ref = parse_judge(where)
    if ref is not None and not read_key() and urlsplit(ref.url).hostname == KEYED:
        raise EngineError(f"{KEY} is not set, and {KEYED} refuses calls without a key; set it")


class Question(NamedTuple):
    """A row that is asked about, and how often it was before."""

    row: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What was written and what it cost; ``text`` is None where no answer came, and ``reason`` says so.

    One that is ``cut`` would have gone on, had it been given more tokens.
    """

    text: str | None
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cut: bool = False


class Taken(Protocol):
    """Who asks about which row, where several processes do."""

    def take(self, row: int) -> bool | None:
        """True where the row is now ours, False where it is another's, None where it has been answered."""
        ...

    def done(self, row: int) -> None:
        """The row is answered."""
        ...

    def free(self, row: int) -> None:
        """The row is given up."""
        ...

    def renew(self) -> None:
        """What is ours stays so for a while."""
        ...


class Writes(Protocol):
    """What writes answers: an endpoint, or a model on this machine."""

    name: str
    attempts: int
    """How often a row is asked about until there is a number."""

    def answers(
        self, work: deque[Question], say: Callable[[Question], str], system: str
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Take from the left until nothing is there, more of which may come with every answer; in any order."""
        ...


def judge_fingerprint(model: str, max_tokens: int = MAX_TOKENS) -> str:
    """Fingerprint of a judge: the model's name (or the fingerprint of a local one), how it is asked, and for how much.

    The address is no part of it, so that a server that moves keeps its answers; two servers that give different models
    the same name share theirs.
    """
    return fingerprint("judge", WAYS, model, max_tokens)


def reasons_unanswered(values: Ragged, missing: npt.NDArray[np.bool_]) -> Reasons:
    """Why rows of a judge's column have no number.

    ``unparsable``: the judge wrote none; ``no_answer``: the store lacks the row.
    """
    return reasons(len(values), no_answer=missing, unparsable=values.lengths() == 0)


def number_in(answer: str, low: float, high: float) -> float | None:
    """The number that an answer gives, where it is one from ``low`` to ``high``."""
    text = answer.rpartition(THOUGHTS[1])[2]
    if THOUGHTS[0] in text:  # it never came to an end of thinking
        return None
    if (found := scored(text)) is not None:
        number = found["score"]
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            return None
    else:
        lines = [line.strip() for line in text.splitlines() if _NUMBER.fullmatch(line.strip())]
        if len(lines) != 1:
            return None
        number = float(lines[0])
    return float(number) if low <= number <= high else None


def scored(text: str) -> dict[str, Any] | None:
    """The first JSON object with a ``score``."""
    return next((found for found in _objects(text) if "score" in found), None)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text that are not part of another, as far as ``BRACES`` allow."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    for _ in range(BRACES):
        if at < 0:
            return
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield found
        at = text.find("{", end)


class Judge:
    """Asks about rows and reads numbers, each batch of answers as soon as it is there; the log gets their sum."""

    def __init__(self, writer: Writes, log: Log) -> None:
        self.writer, self.log = writer, log
        self._rows = self._unparsable = self._prompt = self._completion = 0
        self._lost: list[str] = []

    def __call__(self, texts: Texts, measures: tuple[Measure, ...]) -> Iterator[BatchResult]:
        """One value for each text; none where the judge wrote no number, NaN where it did not answer.

        An EngineError where the measure is none of judges or, after what was answered, the judge is away.
        """
        asked = [measure for measure in measures if isinstance(measure, Judged)]
        if len(asked) < len(measures):
            raise EngineError(f"a judge cannot read {next(m for m in measures if m not in asked)!r}")
        low, high = max(m.low for m in asked), min(m.high for m in asked)

        def say(question: Question) -> str:
            return texts[question.row] + (REMINDER.format(low=low, high=high) if question.attempt else "")

        self._rows = self._unparsable = self._prompt = self._completion = 0
        self._lost = []
        work = deque(Question(int(row)) for row in np.argsort(-texts.lengths(), kind="stable"))
        try:
            for got in self.writer.answers(work, say, texts.system):
                rows = []
                for question, answer in got:
                    values = self._values(answer, asked)
                    if [] in values and question.attempt + 1 < self.writer.attempts:
                        work.appendleft(Question(question.row, question.attempt + 1))
                    else:
                        rows.append((question.row, values))
                        self._count(answer, values)
                if rows:
                    yield _swept(rows, asked, sum(a.prompt_tokens + a.completion_tokens for _, a in got))
        finally:
            self._sum_up()

    def _values(self, answer: Answer, asked: list[Judged]) -> list[list[float]]:
        """What each measure reads off an answer."""
        self._prompt += answer.prompt_tokens
        self._completion += answer.completion_tokens
        if answer.text is None:
            return [[math.nan]] * len(asked)
        numbers = [number_in(answer.text, measure.low, measure.high) for measure in asked]
        return [[] if number is None else [number] for number in numbers]

    def _count(self, answer: Answer, values: list[list[float]]) -> None:
        self._rows += answer.text is not None
        self._unparsable += [] in values
        if answer.text is None:
            self._lost.append(answer.reason)

    def _sum_up(self) -> None:
        said = (
            f"judge {self.writer.name}: {self._rows} rows answered, {self._unparsable} of them without a usable number"
        )
        self.log(f"{said}; {self._prompt} prompt and {self._completion} completion tokens")
        if self._lost:
            self.log(
                f"warning: judge {self.writer.name} did not answer {len(self._lost)} rows (first: {self._lost[0]})"
            )


def _swept(rows: list[tuple[int, list[list[float]]]], asked: list[Judged], tokens: int) -> BatchResult:
    columns: dict[Measure, Ragged] = {
        measure: Ragged.of([values[place] for _, values in rows], np.float32) for place, measure in enumerate(asked)
    }
    return BatchResult(np.array([row for row, _ in rows], np.int64), columns, tokens)
