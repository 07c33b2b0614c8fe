"""A model behind an OpenAI-compatible endpoint: several calls at once, each tried again while that can help.

Which call is tried again, and when, is decided here and not by a package, because it depends on the other calls: a slow
server gets fewer at once, and a row that fails alone is told from a server that is away.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from instdiff.core import Log
from instdiff.engine.text.exchange import NO_COMPLETION, CallFailed, Reply, http, post, words_of
from instdiff.engine.text.forms import STREAM, Form, Judging, stream_options
from instdiff.engine.text.judge import KEY, Answer, JudgeRef, Question, Taken, read_key
from instdiff.errors import EngineError

CONCURRENCY = 8
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for more is not waited for."""
TELL_EVERY = 30.0
"""Seconds between two lines on how far a judge is."""
LOOK_AGAIN = 2.0
"""Seconds until a row that another process asks about is looked at again."""
KINDS, OTHERWISE = 8, "other reasons"
"""Kinds of trouble that are told one by one."""
FATAL = (401, 402, 403, 404, 405)
PASSING = (408, 409, 425, 429)
"""Statuses that may be gone the next time, with all from 500 on."""
MOST_TOKENS = 1 << 40
"""A server that counts more has not counted."""


@dataclass
class _Call:
    """A question on its way."""

    question: Question
    text: str
    tries: int = 0
    due: float = 0.0
    failed: float = math.inf
    ways: dict[str, int] = field(default_factory=dict)


class Endpoint:
    """Writes answers by ``POST URL/chat/completions``, or as another form has it.

    The key of ``OPENAI_API_KEY`` goes into the request and nowhere else; one that cannot be sent is an EngineError.
    What the server refuses by name (``response_format``, ``temperature``) is left out from then on.

    Args:
        ref: model and address.
        log: is told how far it is, and why a call is made again.
        concurrency: calls at once; after a time-out half as many, and one more for each round that went well.
        timeout: seconds until an answer, or without another piece of it.
        tries: calls for a question until it is given up.
        pause: seconds before the second; twice as long before each further one.
        form: how it is asked.
        claims: of rows, where other processes may ask about the same ones.
    """

    attempts = 3

    def __init__(
        self,
        ref: JudgeRef,
        log: Log,
        *,
        concurrency: int = CONCURRENCY,
        timeout: float = 120.0,
        tries: int = 5,
        pause: float = 1.0,
        form: Form | None = None,
        claims: Taken | None = None,
    ) -> None:
        self.ref, self.name, self.log = ref, f"{ref.model}@{ref.url}", log
        self.concurrency, self.timeout, self.tries, self.pause = concurrency, timeout, tries, pause
        self.form: Form = form or Judging()
        self.claims = claims
        self._key = read_key()
        self._refusable = self.form.ways | STREAM
        self.ways = dict.fromkeys(self._refusable, 0)

    def answers(
        self, work: deque[Question], say: Callable[[Question], str], system: str
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Answers as they come; then an EngineError where the server is away, or refuses the key or the model."""
        with self._lines() as send:
            yield from _Round(self, send, work, say, system).run()

    @contextmanager
    def _lines(self) -> Iterator[Callable[[dict[str, Any]], Future[Reply]]]:
        """What makes calls, in a thread of its own; leaving it ends those that are under way."""
        client_of = http()
        from anyio.from_thread import start_blocking_portal

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        waits = client_of.Timeout(None, connect=min(self.timeout, 10.0))
        limits = client_of.Limits(max_connections=None, max_keepalive_connections=self.concurrency)
        flying: set[Future[Reply]] = set()
        with start_blocking_portal() as portal:
            client = client_of.AsyncClient(headers=headers, timeout=waits, limits=limits)

            def send(body: dict[str, Any]) -> Future[Reply]:
                url, whole = f"{self.ref.url}{self.form.path}", {"model": self.ref.model, **body}
                made = portal.start_task_soon(post, client, url, whole, self.timeout, self.form.enough)
                flying.add(made)
                made.add_done_callback(flying.discard)
                return made

            try:
                yield send
            finally:
                for one in list(flying):
                    one.cancel()
                portal.call(client.aclose)

    # ── what a reply means ────────────────────────────────────────────────────────────────────────────────────────

    def read(self, reply: Reply) -> Answer:
        """The answer in a reply, or why there is none; a CallFailed where another try may help."""
        if reply.status != 200:
            return self._refusal(reply, self.words(reply))
        try:
            text = self.form.read(reply.body)
            usage = reply.body.get("usage")
        except NO_COMPLETION:
            raise CallFailed(f"this is no chat completion: {self.words(reply)}") from None
        read, wrote = (read_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        return Answer(text if isinstance(text, str) else "", "", read, wrote)

    def _refusal(self, reply: Reply, said: str) -> Answer:
        status, url, model = reply.status, self.ref.url, self.ref.model
        if status in FATAL:
            key = f"{KEY} is not accepted there" if self._key else f"{KEY} is not set"
            hint = {
                401: f"{key}; set it to a valid key",
                403: f"the key may not use '{model}', or {key}",
                404: f"check the model's name '{model}' and the address, which often ends in /v1",
            }.get(status, "check the address and the account")
            raise EngineError(f"{self.form.who} at {url} answered {status} ({said}): {hint}")
        if status in PASSING or status >= 500:
            after = _seconds(reply.headers.get("retry-after", ""))
            if after > LONGEST_WAIT:
                raise EngineError(
                    f"{self.form.who} at {url} answered {status} ({said}) and asks to wait {after:.0f} s; "
                    "what it answered is kept: run the same command again then"
                )
            raise CallFailed(f"{status} ({said})", after)
        if status < 400:
            raise EngineError(f"{url} answered {status} instead of a chat completion; check the address")
        return Answer(None, f"{status} ({said})")

    def gave_way(self, ways: dict[str, int], reply: Reply) -> bool:
        """Whether the server's words name something that can be left out; from now on it is."""
        if reply.status not in (400, 422):
            return False
        if self.ways != ways:
            return True  # another call was told meanwhile
        said = self.words(reply)
        for name, (words, count) in self._refusable.items():
            if re.search(words, said) and ways[name] + 1 < count:
                self.ways[name] += 1
                if name == "temperature":
                    self.log(f"{self.form.who} takes no temperature: {self.ref.model} answers with its own")
                return True
        return False

    def words(self, reply: Reply) -> str:
        """What a server says of an error, without the key, which some repeat."""
        return self.printable(words_of(reply.body, reply.text)) or "no words"

    def printable(self, text: str) -> str:
        """A server's words on one line, without the key."""
        said = " ".join(text.split())
        return (said.replace(self._key, "***") if self._key else said)[:300]


class _Round:
    """The calls for one lot of questions.

    A call that is tried again waits for its time and holds its place meanwhile, so that a server in trouble is not
    asked the next question at once.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        send: Callable[[dict[str, Any]], Future[Reply]],
        work: deque[Question],
        say: Callable[[Question], str],
        system: str,
    ) -> None:
        self.endpoint, self.send, self.work, self.say, self.system = endpoint, send, work, say, system
        self.form, self.claims = endpoint.form, endpoint.claims
        self.flying: dict[Future[Reply], _Call] = {}
        self.waiting: list[_Call] = []
        self.elsewhere: deque[Question] = deque()
        self.look = 0.0
        self.limit, self.well = endpoint.concurrency, 0
        self.answered, self.last_answer = 0, -math.inf
        self.failed: EngineError | None = None
        self.told: float | None = None
        self.troubles: dict[str, int] = {}

    def run(self) -> Iterator[list[tuple[Question, Answer]]]:
        """Answers as they come; then the error that ended it."""
        asked = len(self.work)
        while self.flying or (self.failed is None and (self.waiting or self.work or self.elsewhere)):
            if self.failed is None:
                self._start()
            self._tell(asked)
            found = [self._answer(future) for future in self._ready()]
            if good := [one for one in found if one is not None]:
                yield good
        if self.failed is not None:
            raise self.failed

    # ── making calls ──────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        now = time.monotonic()
        for call in sorted((c for c in self.waiting if c.due <= now), key=lambda c: c.due):
            if len(self.flying) < self.limit:
                self.waiting.remove(call)
                self._send(call)
        while len(self.flying) + len(self.waiting) < self.limit:
            question = self._next(now)
            if question is None:
                break
            self._send(_Call(question, self.say(question)))

    def _next(self, now: float) -> Question | None:
        """A question that no other process asks."""
        if self.elsewhere and now >= self.look:
            self.work.extend(self.elsewhere)
            self.elsewhere.clear()
        while self.work:
            question = self.work.popleft()
            ours = self.claims.take(question.row) if self.claims is not None else True
            if ours:
                return question
            if ours is False:
                self.elsewhere.append(question)
                self.look = now + LOOK_AGAIN
        return None

    def _send(self, call: _Call) -> None:
        call.ways = dict(self.endpoint.ways)
        body = self.form.body(call.question, call.text, self.system, call.ways)
        self.flying[self.send(body | stream_options(call.ways))] = call

    def _ready(self) -> list[Future[Reply]]:
        """Calls that are over; waits for one, or until there is something else to do."""
        now = time.monotonic()
        times = [call.due for call in self.waiting] if len(self.flying) < self.limit else []
        times += [self.look] if self.elsewhere else []
        until = min([now + TELL_EVERY, *times])
        if self.flying:
            return list(wait(self.flying, max(0.0, until - now), FIRST_COMPLETED).done)
        if times:  # else other processes have answered all that was left
            time.sleep(max(0.0, until - now))
        return []

    # ── what came of them ─────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, future: Future[Reply]) -> tuple[Question, Answer] | None:
        """The answer to a question; None where it is asked again, or ends the round."""
        call = self.flying.pop(future)
        try:
            reply = future.result()
            if self.endpoint.gave_way(call.ways, reply):
                call.due = 0.0
                self.waiting.append(call)
                return None
            answer = self.endpoint.read(reply)
        except CallFailed as trouble:
            return self._again(call, trouble)
        except EngineError as error:
            self.failed = self.failed or error
            return None
        if answer.text is not None:
            self.answered, self.last_answer = self.answered + 1, time.monotonic()
            self._went_well()
        elif not self.answered and self.failed is None and not self._alive(1):
            where = f"{self.form.who} at {self.endpoint.ref.url}"
            self.failed = EngineError(f"{where} refuses what it is asked: {answer.reason}")
            return None
        return self._over(call, answer)

    def _again(self, call: _Call, trouble: CallFailed) -> tuple[Question, Answer] | None:
        """Put a call off, or give its question or the server up."""
        endpoint, reason = self.endpoint, self.endpoint.printable(str(trouble))
        before, call.failed, call.tries = call.failed, time.monotonic(), call.tries + 1
        if trouble.slow:
            self.limit, self.well = max(1, self.limit // 2), 0
        if self.failed is not None:
            return None
        if call.tries < endpoint.tries:
            pause = max(trouble.after, endpoint.pause * 2 ** (call.tries - 1) * random.uniform(1.0, 1.25))
            call.due = call.failed + pause
            self.waiting.append(call)
            self._tell_trouble(reason, f"try {call.tries + 1} of {endpoint.tries} in {pause:.1f} s")
            return None
        if self.last_answer >= before or self._alive(endpoint.tries):
            return self._over(call, Answer(None, reason))
        self.failed = EngineError(
            f"{self.form.who} at {endpoint.ref.url} did not answer after {endpoint.tries} tries: {reason}; "
            "what it answered is kept: run the same command again when it is back"
        )
        return None

    def _over(self, call: _Call, answer: Answer) -> tuple[Question, Answer]:
        if self.claims is not None:
            (self.claims.free if answer.text is None else self.claims.done)(call.question.row)
        return call.question, answer

    def _alive(self, tries: int) -> bool:
        """Whether the server answers anything: is it the server, or this row?"""
        for number in range(tries):
            if number:
                time.sleep(self.endpoint.pause * 2 ** (number - 1))
            if any(one.done() and one.exception() is None and one.result().status == 200 for one in self.flying):
                return True
            try:
                ways = self.endpoint.ways
                reply = self.send(self.form.probe(ways) | stream_options(ways)).result()
                if self.endpoint.read(reply).text is not None:
                    self.last_answer = time.monotonic()
                    return True
            except (CallFailed, EngineError) as trouble:
                self._tell_trouble(self.endpoint.printable(str(trouble)), "is it there at all?")
        return False

    def _went_well(self) -> None:
        self.well += 1
        if self.limit < self.endpoint.concurrency and self.well >= self.limit:
            self.limit, self.well = self.limit + 1, 0

    # ── what the user sees ────────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, asked: int) -> None:
        """A line at once and each half minute."""
        now, calls = time.monotonic(), f"calls under way: {len(self.flying)}"
        if self.told is not None and now < self.told + TELL_EVERY:
            return
        if self.claims is not None:
            self.claims.renew()
        if self.told is None:
            said = f"questions: {asked}, {calls}"
        else:
            left = len(self.work) + len(self.flying) + len(self.waiting)
            said = f"answers: {self.answered}, questions left: {left}, {calls}"
        if self.elsewhere:
            said += f", asked by other processes: {len(self.elsewhere)}"
        if again := [f"{n} more times for {why}" for why, n in self.troubles.items() if n]:
            said += f"; tried again {', '.join(again)}"
        self.troubles = dict.fromkeys(self.troubles, 0)
        self.told = now
        self.endpoint.log(f"{self.endpoint.name}: {said}")

    def _tell_trouble(self, reason: str, then: str) -> None:
        """The first of a kind at once, the others with the next line."""
        if reason not in self.troubles and len(self.troubles) >= KINDS:
            reason = OTHERWISE
        if reason not in self.troubles:
            self.endpoint.log(f"{self.endpoint.name}: {reason}; {then}")
            self.troubles[reason] = 0
        else:
            self.troubles[reason] += 1


def read_count(usage: Any, name: str) -> int:
    """Tokens that a server counted; zero where it is no number of them."""
    number = usage.get(name) if isinstance(usage, Mapping) else None
    return number if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < MOST_TOKENS else 0


def _seconds(retry_after: str) -> float:
    """What a Retry-After header asks for: seconds, or a date; zero where it is neither."""
    try:
        asked = float(retry_after)
    except ValueError:
        try:
            asked = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return asked if math.isfinite(asked) and asked > 0 else 0.0
