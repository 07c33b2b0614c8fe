"""A judge that is asked by the batch API of the OpenAI protocol: all questions in files, answers within a day.

A batch is written down before anything is waited for, and its answers are kept when they come, so that a run that is
started again takes it up. Only the first question is a call of its own: it tells what the server takes.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from instdiff.core import Log
from instdiff.core.files import fingerprint
from instdiff.engine.text.batch_records import Batch, BatchRecords
from instdiff.engine.text.endpoint import TELL_EVERY, Endpoint, read_count
from instdiff.engine.text.exchange import CallFailed, Reply, call, http, read_lines, words_of
from instdiff.engine.text.judge import Answer, JudgeRef, Question
from instdiff.errors import EngineError
from instdiff.store.check import BATCHES
from instdiff.store.claims import Claims

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000
"""Of one batch, by the protocol."""
FORGOTTEN, REFUSED = "forgotten", "refused"
ENDS = ("completed", "failed", "expired", "cancelled", FORGOTTEN)
VERSION = "/v1"
"""What stands before the path of a call in a batch, whatever the server's address is."""

Answered = list[tuple[Question, Answer]]


class _Refused(EngineError):
    """The server has understood, and does not do it."""


class BatchEndpoint(Endpoint):
    """Writes answers by ``POST URL/batches``.

    Args:
        ref: model and address.
        log: is told how far it is.
        claims: of rows; the batches are kept beside them.
        how: see ``Endpoint``.
    """

    def __init__(self, ref: JudgeRef, log: Log, *, claims: Claims, **how: Any) -> None:
        super().__init__(ref, log, claims=claims, **how)
        self.names, self.records = claims.name, BatchRecords(claims.folder / BATCHES)
        self.claimed = claims
        self.tested = False

    def answers(
        self, work: deque[Question], say: Callable[[Question], str], system: str
    ) -> Iterator[list[tuple[Question, Answer]]]:
        """Answers of each batch when it is over; then an EngineError where the server is away or a batch ended early.

        Batches that another run began are taken up.
        """
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with http().Client(headers=headers, timeout=self.timeout) as client:
            yield from _Batches(self, client, work, say, system).run()

    def ask_singly(self, question: Question, say: Callable[[Question], str], system: str) -> Iterator[Answered]:
        """One question by a call of its own."""
        yield from super().answers(deque([question]), say, system)

    def call(
        self,
        client: Any,
        method: str,
        path: str,
        *,
        missing: bool = False,
        done: Callable[[], Reply | None] = lambda: None,
        **sent: Any,
    ) -> Reply:
        """A call about batches, made again while that can help, and not where ``done`` has a reply before a try.

        Raises:
            EngineError: it is refused, or nothing comes; with ``missing`` what is not there is a reply like others.
        """
        who = f"{self.form.who} at {self.ref.url}"
        for number in range(1, self.tries + 1):
            if (there := done()) is not None:
                return there
            try:
                reply = call(client, method, self.ref.url + path, self.timeout, **sent)
                if (reply.status // 100 == 2 and isinstance(reply.body, dict)) or (missing and reply.status == 404):
                    return reply
                if reply.status in (404, 405, 501):
                    raise _Refused(
                        f"{who} has no batch API ({method} {path.partition('?')[0]}: {reply.status}); leave "
                        "judge_batch out, or check the address, which often ends in /v1"
                    )
                if reply.status == 200:
                    raise CallFailed(f"this is no JSON object: {self.words(reply)}")
                raise _Refused(f"{who} refuses a batch: {self._refusal(reply, self.words(reply)).reason}")
            except CallFailed as trouble:
                reason = self.printable(str(trouble))
                if number == self.tries:
                    raise EngineError(
                        f"{who} did not answer after {number} tries: {reason}; a batch that has begun goes on there: "
                        "run the same command again when it is back"
                    ) from None
                pause = max(trouble.after, self.pause * 2 ** (number - 1) * random.uniform(1.0, 1.25))
                self.log(f"{self.name}: {reason}; try {number + 1} of {self.tries} in {pause:.1f} s")
                time.sleep(pause)
        raise AssertionError("unreachable")


class _Batches:
    """The batches for one lot of questions."""

    def __init__(
        self,
        endpoint: BatchEndpoint,
        client: Any,
        work: deque[Question],
        say: Callable[[Question], str],
        system: str,
    ) -> None:
        self.endpoint, self.client, self.work, self.say, self.system = endpoint, client, work, say, system
        self.claims, self.records, self.url = endpoint.claimed, endpoint.records, endpoint.ref.url
        self.open: dict[str, tuple[Batch, dict[str, Question]]] = {}
        self.elsewhere: list[Question] = []
        self.failed: str | None = None
        self.told: dict[str, float] = {}

    def run(self) -> Iterator[Answered]:
        """Answers of batches that are over, until nothing is left; then the error of the first that ended early."""
        pause = self.endpoint.pause
        while self.open or (self.failed is None and (self.work or self.elsewhere)):
            if self.failed is None:
                yield from self._start()
            over = [(one, about) for one in list(self.open.values()) if (about := self._look(*one)) is not None]
            for (batch, questions), about in over:
                del self.open[batch.path.name]
                if got := self._collect(batch, questions, about):
                    yield got
            self.claims.renew()
            if over or self.work:
                pause = self.endpoint.pause
            elif self.open or self.elsewhere:
                time.sleep(pause)
                pause = min(2 * pause, TELL_EVERY)
        if self.failed is not None:
            raise EngineError(self.failed)

    # ── beginning ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> Iterator[Answered]:
        """Answers that are there; all other questions are in a batch then, or another process has them."""
        if not self.work and not self.elsewhere:
            return
        self.records.refresh()
        known, new = self._sorted()
        if known:
            yield known
        if not new:
            return
        if not self.endpoint.tested:
            self.endpoint.call(self.client, "GET", "/batches?limit=1")
            self.endpoint.tested = True
            yield from self.endpoint.ask_singly(new.pop(0), self.say, self.system)
            new += self._sorted()[1]
        while new:
            new = self._submit(new)

    def _sorted(self) -> tuple[Answered, list[Question]]:
        """Answers that batches gave before, and questions that nobody has asked."""
        known, new = Answered(), list[Question]()
        questions = [*self.elsewhere, *self.work]
        self.elsewhere = []
        self.work.clear()
        for question in questions:
            name = self._name(question)
            if (body := self.records.answer(name)) is not None:
                known.append(self._over(question, self._read(Reply(200, {}, body, ""))))
                continue
            batch = self.records.under_way(name, self.url)
            # A batch without an id is about to begin; where that is a live process's work, the question is its too.
            ours = self.claims.take(question.row) if batch is None or not batch.id else True
            if ours and batch is not None:
                self._take_up(batch)[name] = question
            elif ours:
                new.append(question)
            elif ours is False:
                self.elsewhere.append(question)
        return known, new

    def _take_up(self, batch: Batch) -> dict[str, Question]:
        """The questions of a batch that are waited for; one that a killed run did not begin is begun."""
        if batch.path.name not in self.open:
            if not batch.id:
                self._begin(batch)
            self.endpoint.log(f"{self.endpoint.name}: batch {batch.id} was begun before and is taken up")
            self.open[batch.path.name] = batch, {}
        return self.open[batch.path.name][1]

    def _submit(self, questions: list[Question]) -> list[Question]:
        """Begin a batch with as many questions as it takes; the others."""
        asked: dict[str, Question] = {}
        ways, size = dict(self.endpoint.ways), 0
        with tempfile.TemporaryFile() as lines:
            for question in questions:
                line = self._line(question, ways)
                size += len(line)
                if asked and (len(asked) == MOST_REQUESTS or size > MOST_BYTES):
                    break
                lines.write(line)
                asked[self._name(question)] = question
            lines.flush()  # the length that is announced is the file's
            sent: dict[str, Any] = {
                "data": {"purpose": "batch"},
                "files": {"file": ("batch.jsonl", lines, "application/jsonl")},
            }
            file = self._id(self.endpoint.call(self.client, "POST", "/files", **sent))
        batch = self.records.add(self.url, file, frozenset(asked), ways)
        self._begin(batch)
        self.open[batch.path.name] = batch, asked
        return questions[len(asked) :]

    def _begin(self, batch: Batch) -> None:
        """Let the server begin; where a call for it was lost, it may have done so already."""
        endpoint = self.endpoint

        def done() -> Reply | None:
            listed = endpoint.call(self.client, "GET", "/batches?limit=100").body.get("data")
            every = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
            return next((Reply(200, {}, one, "") for one in every if one.get("input_file_id") == batch.file), None)

        told = {"input_file_id": batch.file, "endpoint": VERSION + endpoint.form.path, "completion_window": "24h"}
        try:
            batch.began(self._id(endpoint.call(self.client, "POST", "/batches", json=told, done=done)))
        except _Refused:
            batch.ended(REFUSED, {})
            raise

    def _line(self, question: Question, ways: dict[str, int]) -> bytes:
        form = self.endpoint.form
        body = {"model": self.endpoint.ref.model, **form.body(question, self.say(question), self.system, ways)}
        told = {"custom_id": self._name(question), "method": "POST", "url": VERSION + form.path, "body": body}
        return json.dumps(told).encode() + b"\n"

    def _name(self, question: Question) -> str:
        return fingerprint("batch", self.endpoint.names(question.row), question.attempt)

    def _id(self, reply: Reply) -> str:
        id = reply.body.get("id")
        if not isinstance(id, str) or not re.fullmatch(r"[!-~]{1,200}", id):
            raise _Refused(f"{self.endpoint.form.who} at {self.url} gives a batch no id; leave judge_batch out")
        return id

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, batch: Batch, questions: dict[str, Question]) -> dict[str, Any] | None:
        """What the server says of a batch that is over; of another a line tells each half minute how far it is."""
        reply = self.endpoint.call(self.client, "GET", f"/batches/{quote(batch.id, safe='')}", missing=True)
        about: dict[str, Any] = {"status": FORGOTTEN} if reply.status == 404 else reply.body
        status, now = self.endpoint.printable(str(about.get("status"))), time.monotonic()
        if status not in ENDS and now >= self.told.get(batch.id, 0.0):
            done = [read_count(about.get("request_counts"), name) for name in ("completed", "failed")]
            self.told[batch.id] = now + TELL_EVERY
            self.endpoint.log(
                f"{self.endpoint.name}: batch {batch.id}: {status}, questions: {len(questions)}, answers: {done[0]}, "
                f"failed: {done[1]}; it goes on if this command ends, and the same command takes it up"
            )
        return about if status in ENDS else None

    # ── what came of it ───────────────────────────────────────────────────────────────────────────────────────────

    def _collect(self, batch: Batch, questions: dict[str, Question], about: dict[str, Any]) -> Answered:
        """The answers of a batch that is over, which are kept before they are used."""
        replies: dict[str, Reply] = {}
        for key in ("output_file_id", "error_file_id"):
            if isinstance(about.get(key), str):
                replies.update(self._replies(about[key], batch.asked))
        read = {name: self._read(reply) for name, reply in replies.items()}
        good = {name: replies[name].body for name, answer in read.items() if answer.text is not None}
        end = str(about["status"])
        batch.ended(end, good)
        got = Answered()
        for name, question in questions.items():
            answer = read.get(name, Answer(None, "its batch has no answer to it"))
            if name in replies and self.endpoint.gave_way(batch.ways, replies[name]):
                self.work.append(question)
            elif answer.text is not None or end == "completed":
                got.append(self._over(question, answer))
            else:
                self.claims.free(question.row)
        if end != "completed" and self.failed is None:
            self.failed = self._early(batch, about, len(good))
        return got

    def _replies(self, file: str, asked: frozenset[str]) -> dict[str, Reply]:
        """What a file says of each question, tried again as a whole where it breaks off."""
        url, endpoint = f"{self.url}/files/{quote(file, safe='')}/content", self.endpoint
        for number in range(1, endpoint.tries + 1):
            try:
                lines = read_lines(self.client, url, endpoint.timeout, len(asked))
                return {name: reply for name, reply in map(_reply, lines) if name in asked}
            except CallFailed as trouble:
                reason = endpoint.printable(str(trouble))
                endpoint.log(f"{endpoint.name}: {reason}; try {number} of {endpoint.tries}")
                time.sleep(endpoint.pause * 2 ** (number - 1))
        raise EngineError(
            f"{endpoint.form.who} at {self.url} does not give the answers of a batch: {reason}; run the same command "
            "again, which asks for the answers only"
        )

    def _read(self, reply: Reply) -> Answer:
        if reply.status == 0:
            return Answer(None, self.endpoint.words(reply))
        try:
            return self.endpoint.read(reply)
        except (CallFailed, EngineError) as trouble:
            return Answer(None, self.endpoint.printable(str(trouble)))

    def _early(self, batch: Batch, about: dict[str, Any], answered: int) -> str:
        """What is said of a batch that failed, expired or was cancelled."""
        errors = about.get("errors")
        first = (errors.get("data") if isinstance(errors, dict) else None) or [None]
        why = self.endpoint.printable(words_of(first[0])) if isinstance(first, list) and first[0] else ""
        return (
            f"batch {batch.id} at {self.url} ended as '{batch.end}'{f' ({why})' if why else ''} with answers to "
            f"{answered:,} of {len(batch.asked):,} questions, which are kept; run the same command again to ask the "
            "others, or without judge_batch to ask them one by one"
        )

    def _over(self, question: Question, answer: Answer) -> tuple[Question, Answer]:
        (self.claims.free if answer.text is None else self.claims.done)(question.row)
        return question, answer


def _reply(line: bytes) -> tuple[str, Reply]:
    """The question's name in a line of a batch's files, and the reply to it."""
    try:
        told = json.loads(line)
        response = told.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if not isinstance(status, int) or isinstance(status, bool):
            status, body = 0, {"error": told.get("error")}
        return str(told.get("custom_id")), Reply(status, {}, body, "")
    except (ValueError, AttributeError, RecursionError):
        return "", Reply(500, {}, None, "")
