"""A model behind an OpenAI-compatible endpoint: several calls at once, each tried again while that can help."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from importlib import import_module
from queue import SimpleQueue
from typing import Any, Protocol

from instdiff.core import Log
from instdiff.engine.text.judge import KEY, MAX_TOKENS, Answer, JudgeRef, Question
from instdiff.errors import EngineError

WARM = 0.7
"""Temperature from the second attempt on; the first is at 0."""
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for more is not waited for."""
GRACE = 0.25
"""Seconds for calls that are just being made: a client that is closed meanwhile would leave their sockets open."""
FATAL = (401, 402, 403, 404, 405)
PASSING = (408, 409, 425, 429)
"""Statuses that may be gone the next time, with all from 500 on."""

_SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "number"}, "reason": {"type": "string"}},
    "required": ["score", "reason"],
    "additionalProperties": False,
}
_FORMATS: tuple[dict[str, Any], ...] = (
    {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": _SCHEMA}},
    {"type": "json_object"},
)
WAYS: dict[str, tuple[str, int]] = {
    "format": (r"response_format|json_schema|json_object", len(_FORMATS) + 1),
    "tokens": (r"max_completion_tokens", 2),
    "temperature": (r"temperature.*support|support.*temperature", 2),
}
"""What a server may refuse: how its message names it, and how many ways there are to ask."""


class Form(Protocol):
    """How a model is asked and read.

    ``who`` is what messages call the server; ``ways`` is what it may refuse, as ``WAYS`` says it. Bodies are made
    for the ways that are still open, by the number of each.
    """

    who: str
    path: str
    ways: dict[str, tuple[str, int]]

    def body(self, question: Question, text: str, system: str, ways: dict[str, int]) -> dict[str, Any]:
        """What is sent, but for the model's name."""
        ...

    def probe(self, ways: dict[str, int]) -> dict[str, Any]:
        """The same, to see whether the server answers at all."""
        ...

    def read(self, body: dict[str, Any]) -> Any:
        """The text of a completion; other than a text where there is none."""
        ...


class Judging:
    """A judge is asked for a JSON object, at temperature 0 the first time."""

    who = "the judge's server"
    path = "/chat/completions"
    ways = WAYS

    def body(self, question: Question, text: str, system: str, ways: dict[str, int]) -> dict[str, Any]:
        """A system turn where there is one, and the question."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        return {"messages": messages, **_request_options(ways, WARM if question.attempt else 0.0)}

    def probe(self, ways: dict[str, int]) -> dict[str, Any]:
        """A question that every judge can answer."""
        told = [{"role": "user", "content": 'Answer with the JSON {"score": 1, "reason": "none"}.'}]
        return {"messages": told, **_request_options(ways, 0.0)}

    def read(self, body: dict[str, Any]) -> Any:
        """What the message says."""
        return body["choices"][0]["message"].get("content")


class _Trouble(Exception):
    """A call that may succeed when it is tried again, after so many seconds at least."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class Endpoint:
    """Writes answers by ``POST URL/chat/completions``, or as another form has it.

    The key of ``OPENAI_API_KEY`` goes into the request and nowhere else; one that cannot be sent is an EngineError.
    What the server refuses by name (``response_format``, ``temperature``) is left out from then on. ``concurrency``
    calls are made at once, each given up after ``timeout`` seconds without a byte, and tried up to ``calls`` times;
    before the second it waits ``pause`` seconds, and twice as long before each further one.
    """

    attempts = 3

    def __init__(
        self,
        ref: JudgeRef,
        log: Log,
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        calls: int = 5,
        pause: float = 1.0,
        form: Form | None = None,
    ) -> None:
        self.ref, self.name, self.log = ref, f"{ref.model}@{ref.url}", log
        self.concurrency, self.timeout, self.calls, self.pause = concurrency, timeout, calls, pause
        self.form: Form = form or Judging()
        self._key = os.environ.get(KEY, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise EngineError(f"{KEY} has characters that no key has; set it again")
        self._ways = dict.fromkeys(self.form.ways, 0)
        self._lock = threading.Lock()
        self._answered = False

    def answers(
        self, work: deque[Question], say: Callable[[Question], str], system: str
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Answers as they come; then an EngineError where the server is away, or refuses the key or the model."""
        todo: SimpleQueue[tuple[Question, str] | None] = SimpleQueue()
        done: SimpleQueue[tuple[Question, Answer | Exception | None]] = SimpleQueue()
        stop = threading.Event()
        flying = 0
        failed: Exception | None = None
        with closing(self._client()) as client:
            # Daemons, so that an interrupted run need not wait for answers that nobody will read.
            serving = [
                threading.Thread(target=self._serve, args=(client, system, todo, done, stop), daemon=True)
                for _ in range(self.concurrency)
            ]
            for thread in serving:
                thread.start()
            try:
                while flying or (work and failed is None):
                    while work and failed is None and flying < 2 * self.concurrency:
                        question = work.popleft()
                        todo.put((question, say(question)))
                        flying += 1
                    got = [done.get()]
                    while not done.empty():
                        got.append(done.get())
                    flying -= len(got)
                    if (error := next((o for _, o in got if isinstance(o, Exception)), None)) is not None:
                        failed = failed or error
                    if good := [(question, o) for question, o in got if isinstance(o, Answer)]:
                        yield good
                if failed is not None:
                    raise failed
            finally:
                stop.set()
                for _ in range(self.concurrency):
                    todo.put(None)
                until = time.monotonic() + GRACE
                for thread in serving:
                    thread.join(max(0.0, until - time.monotonic()))

    def _serve(self, client: Any, system: str, todo: Any, done: Any, stop: threading.Event) -> None:
        while (task := todo.get()) is not None:
            question, text = task
            try:
                outcome: Any = None if stop.is_set() else self._ask(client, question, text, system, stop)
            except Exception as error:  # noqa: BLE001 - raised where the answers are read
                outcome = error
                stop.set()
            done.put((question, outcome))

    def _ask(self, client: Any, question: Question, text: str, system: str, stop: threading.Event) -> Answer | None:
        reason = ""
        for call in range(self.calls):
            try:
                answer = self._once(client, lambda ways: self.form.body(question, text, system, ways))
            except _Trouble as trouble:
                reason = str(trouble)
                wait = max(trouble.after, self.pause * 2**call * random.uniform(1.0, 1.25))
            else:
                if answer.text is not None:
                    self._answered = True
                elif not self._answered and not self._alive(client):
                    raise EngineError(f"{self.form.who} at {self.ref.url} refuses what it is asked: {answer.reason}")
                return answer
            if call + 1 < self.calls and stop.wait(wait):
                return None
        # Is it the server, or this row?
        if self._alive(client):
            return Answer(None, reason)
        raise EngineError(
            f"{self.form.who} at {self.ref.url} did not answer after {self.calls} tries: {reason}; "
            "what it answered is kept: run the same command again when it is back"
        )

    def _alive(self, client: Any) -> bool:
        try:
            return self._once(client, self.form.probe).text is not None
        except _Trouble:
            return False

    def _client(self) -> Any:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return _http().Client(headers=headers, timeout=_http().Timeout(self.timeout, connect=min(self.timeout, 10.0)))

    def _once(self, client: Any, made: Callable[[dict[str, int]], dict[str, Any]]) -> Answer:
        while True:
            ways = dict(self._ways)
            try:
                reply = client.post(f"{self.ref.url}{self.form.path}", json={"model": self.ref.model, **made(ways)})
            except _http().TimeoutException:
                raise _Trouble(f"no answer within {self.timeout:g} s") from None
            except _http().RequestError as error:
                raise _Trouble(self._printable(str(error)) or type(error).__name__) from None
            if reply.status_code == 200:
                return self._read(reply)
            said = self._words(reply)
            if reply.status_code not in (400, 422) or not self._gave_way(ways, said):
                return self._refusal(reply, said)

    def _refusal(self, reply: Any, said: str) -> Answer:
        status, url, model = reply.status_code, self.ref.url, self.ref.model
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
            raise _Trouble(f"{status} ({said})", after)
        if status < 400:
            raise EngineError(f"{url} answered {status} instead of a chat completion; check the address")
        return Answer(None, f"{status} ({said})")

    def _gave_way(self, ways: dict[str, int], said: str) -> bool:
        """Whether the server's words name something that can be left out; from now on it is."""
        with self._lock:
            if self._ways != ways:
                return True  # another call was told meanwhile
            for name, (words, count) in self.form.ways.items():
                if re.search(words, said) and ways[name] + 1 < count:
                    self._ways[name] += 1
                    if name == "temperature":
                        self.log(f"{self.form.who} takes no temperature: {self.ref.model} answers with its own")
                    return True
        return False

    def _read(self, reply: Any) -> Answer:
        try:
            body = reply.json()
            text = self.form.read(body)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Trouble(f"this is no chat completion: {self._words(reply)}") from None
        spent = [int((body.get("usage") or {}).get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return Answer(text if isinstance(text, str) else "", "", *spent)

    def _words(self, reply: Any) -> str:
        """What a server says of an error, without the key, which some repeat."""
        said: Any = reply.text
        try:
            body = reply.json()
            found = body.get("error") or body.get("message") or body.get("detail") or body
            said = found.get("message") or found if isinstance(found, dict) else found
        except (ValueError, AttributeError):
            said = reply.text
        return self._printable(str(said)) or "no words"

    def _printable(self, text: str) -> str:
        said = " ".join(text.split())
        return (said.replace(self._key, "***") if self._key else said)[:300]


def _request_options(ways: dict[str, int], temperature: float) -> dict[str, Any]:
    asked: dict[str, Any] = {("max_tokens", "max_completion_tokens")[ways["tokens"]]: MAX_TOKENS}
    if ways["temperature"] == 0:
        asked["temperature"] = temperature
    if ways["format"] < len(_FORMATS):
        asked["response_format"] = _FORMATS[ways["format"]]
    return asked


def _seconds(retry_after: str) -> float:
    """What a Retry-After header asks for: seconds, or a date."""
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        try:
            return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
        except ValueError:
            return 0.0


def _http() -> Any:
    """The client: httpx2, or httpx, which earlier versions of huggingface_hub bring; else an EngineError."""
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            return import_module(name)
    raise EngineError("a judge behind an endpoint needs httpx2: pip install 'instdiff[judge]'")
