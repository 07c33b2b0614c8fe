"""Servers that a judge may sit behind and that cannot be trusted: slow, endless, unlucky, or wrong in a field."""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import threading
import time
import tracemalloc
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from instdiff.core import Judged
from instdiff.engine.text import endpoint as endpoints
from instdiff.engine.text import exchange
from instdiff.engine.text.endpoint import Endpoint, _seconds
from instdiff.engine.text.forms import Judging
from instdiff.engine.text.judge import Answer, JudgeRef, Question, number_in
from instdiff.errors import EngineError
from instdiff.evaluation.llm_judge.judge import PAIR, PREFERENCE, Reviewing
from instdiff.evaluation.llm_judge.parsing import Weighed, preference
from judging import Reply, Server, completion, refusal

MEASURE = Judged(0, 5)
Send = Callable[[bytes], None]
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
PLAIN = OK + b"Content-Type: application/json\r\n"
EVENTS = OK + b"Content-Type: text/event-stream\r\n\r\n"


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    yield playing
    playing.close()


@pytest.fixture
def lines() -> list[str]:
    return []


@contextmanager
def raw_server(play: Callable[[Send], None]) -> Iterator[str]:
    """A server that writes bytes; its address. What it writes ends when the client has gone."""

    def serve() -> None:
        while True:
            try:
                line, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(line,), daemon=True).start()

    def talk(line: socket.socket) -> None:
        with line:
            read_request(line)
            try:
                play(line.sendall)
            except OSError:
                gone.release()

    gone = threading.Semaphore(0)
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def read_request(line: socket.socket) -> None:
    """All of a request: a connection that is closed before that is reset."""
    head, end, body = b"", b"", b""
    while not end and (more := line.recv(1 << 20)):
        head, end, body = (head + more).partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    while length and len(body) < int(length[1]) and (more := line.recv(1 << 20)):
        body += more


def asked(url: str, said: list[str], log: list[str], **options: Any) -> list[Answer]:
    """The answer to each question."""
    options = {"pause": 0.005, "timeout": 5.0, "concurrency": 2, **options}
    endpoint = Endpoint(JudgeRef("m", url), log.append, **options)
    work = deque(Question(row) for row in range(len(said)))
    found = {q.row: a for got in endpoint.answers(work, lambda q: said[q.row], "") for q, a in got}
    return [found[row] for row in range(len(said))]


def failure(url: str, log: list[str], **options: Any) -> str:
    with pytest.raises(EngineError) as error:
        asked(url, ["one"], log, **options)
    return str(error.value)


def event(content: str | None = None, **more: Any) -> bytes:
    choices = [] if content is None else [{"index": 0, "delta": {"content": content}, "finish_reason": None}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


DONE = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'

# ── wrong fields ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": "many"},
        [1],
        "none",
        {"prompt_tokens": None, "completion_tokens": -3},
        {"prompt_tokens": 10**300},
        {"prompt_tokens": True},
        {"prompt_tokens": float("nan")},
        7,
    ],
)
def test_wrong_usage_counts_as_unknown(server: Server, lines: list[str], usage: Any) -> None:
    server.play = lambda body, number: (200, {"choices": [{"message": {"content": "3"}}], "usage": usage}, {})
    (answer,) = asked(server.url, ["one"], lines)
    assert answer == Answer("3", "", 0, 0) and len(server.bodies) == 1


@pytest.mark.parametrize(
    "body",
    [
        "[" * 200_000,
        '{"choices": ' + "[" * 200_000,
        "null",
        "7",
        '"text"',
        "[]",
        '{"choices": {}}',
        '{"choices": [null]}',
        '{"choices": [{"message": []}]}',
        '{"choices": [{"message": {"content": "3"}}], "usage": ' + "9" * 5000 + "}",
        '{"error": {"message": ["a"]}}',
        "",
    ],
)
@pytest.mark.parametrize("status", [200, 500])
def test_a_bad_body_is_tried_again_and_then_the_row_has_a_reason(
    server: Server, lines: list[str], body: str, status: int
) -> None:
    def play(told: dict[str, Any], number: int) -> Reply:
        return completion("3") if told["messages"][-1]["content"] != "bad" else (status, body, {})

    server.play = play
    bad, good = asked(server.url, ["bad", "good"], lines, tries=3)
    assert bad.text is None and bad.reason.startswith("this is no chat completion" if status == 200 else "500 (")
    assert len(bad.reason) < 400 and good.text == "3"
    assert [told["messages"][-1]["content"] for told in server.bodies].count("bad") == 3


ODD: list[Any] = [
    None,
    True,
    -1,
    10**400,
    float("nan"),
    1e308,
    "",
    "\ud800",
    "\x1b]52;c;\x07",
    [],
    {},
    [[]],
    [None],
    "x" * 999,
]


def bent(told: Any, draw: random.Random) -> Any:
    """The same with one value at some depth replaced, dropped or doubled."""
    if not told or not isinstance(told, dict | list) or draw.random() < 0.2:
        return draw.choice(ODD)
    out = dict(told) if isinstance(told, dict) else list(told)
    key = draw.choice(list(out) if isinstance(out, dict) else range(len(out)))
    out[key] = bent(out[key], draw)
    return out


@pytest.mark.parametrize("form", [Judging(), Reviewing(PREFERENCE), Reviewing(PAIR)])
@pytest.mark.parametrize("streamed", [False, True])
def test_whatever_is_wrong_in_an_answer_is_a_reason(form: Any, streamed: bool) -> None:
    """Bodies that are wrong at any level give an answer, none, or a trouble; and what is read of them is a number."""
    draw = random.Random(7)
    weights = [{"token": "m", "logprob": -0.1}, {"token": "M", "logprob": -3}]
    tops = [{"token": "m", "logprob": -0.1, "top_logprobs": weights}]
    said = {"content": '{"score": 3}', "role": "assistant"}
    choice = {"message": said, "delta": said, "logprobs": {"content": tops}, "finish_reason": "stop", "index": 0}
    whole = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "error": None}
    endpoint = Endpoint(JudgeRef("m", "http://x/v1"), print, form=form)
    outcomes = Counter[str]()
    for _ in range(1500):
        body = bent(bent(whole, draw), draw)
        try:
            if streamed:
                stream = exchange._Stream(form.enough)
                stream.take(b"data: " + json.dumps(body).encode() + b"\n\ndata: [DONE]\n\n")
                body = stream.body()
            answer = endpoint.read(exchange.Reply(200, {}, body, ""))
        except exchange.CallFailed:
            outcomes["trouble"] += 1
            continue
        assert isinstance(answer.text, str) and 0 <= answer.prompt_tokens + answer.completion_tokens < 2**42
        numbers = [number_in(answer.text, 0, 5), preference(answer.text)]
        assert all(number is None or 0 <= number <= 5 for number in numbers)
        outcomes["answer"] += 1
    assert min(outcomes["trouble"], outcomes["answer"]) > 100


@pytest.mark.parametrize("text", ['{"score": 1' + "0" * 400 + "}", "1" + "0" * 400, '{"score": -1' + "0" * 400 + "}"])
def test_a_number_that_no_float_can_hold_is_none(text: str) -> None:
    assert number_in(text, 0, 5) is None


def test_probabilities_that_are_none_count_nothing() -> None:
    huge = {"token": "m", "top_logprobs": [{"token": "m", "logprob": 10**400}]}
    told = {"choices": [{"message": {"content": "M"}, "logprobs": {"content": [huge]}}]}
    assert preference(Reviewing(PREFERENCE).read(told)) == 0.0
    for wrong in (1e308, float("nan"), float("inf")):
        assert preference(Weighed.of("m", [("m", {"m": wrong, "M": wrong})])) == 1.0
    assert preference(Weighed.of("m", [("m", {"m": 0.0, "M": float("-inf")})])) == 1.0


# ── endless answers ───────────────────────────────────────────────────────────────────────────────────────────────────


def bomb(packing: bytes, packed: Callable[[bytes], bytes]) -> Callable[[Send], None]:
    bad = packed(b" " * (64 << 20))

    def play(send: Send) -> None:
        send(PLAIN + b"Content-Encoding: " + packing + b"\r\n\r\n" + bad)

    return play


def chunks(send: Send) -> None:
    send(PLAIN + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def words_without_end(send: Send) -> None:
    send(EVENTS)
    while True:
        send(event("x" * 10_000))


def line_without_end(send: Send) -> None:
    send(EVENTS + b"data: ")
    while True:
        send(b"x" * 10_000)


def comments_without_end(send: Send) -> None:
    send(EVENTS)
    while True:
        send(b": " + b"wait" * 10_000 + b"\n\n")


@pytest.mark.parametrize(
    "play",
    [
        bomb(b"gzip", lambda raw: gzip.compress(raw, 1)),
        bomb(b"deflate", lambda raw: zlib.compress(raw, 1)),
        chunks,
        words_without_end,
        line_without_end,
        comments_without_end,
    ],
    ids=["gzip", "deflate", "chunks", "words", "line", "comments"],
)
def test_an_answer_of_more_than_a_megabyte_is_no_answer(play: Callable[[Send], None], lines: list[str]) -> None:
    tracemalloc.start()
    try:
        with raw_server(play) as url:
            assert "its answer has no end: more than 1 MB" in failure(url, lines, tries=1, timeout=60)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def drip(before: bytes, piece: bytes) -> Callable[[Send], None]:
    def play(send: Send) -> None:
        send(before)
        while True:
            time.sleep(0.02)
            send(piece)

    return play


@pytest.mark.parametrize(
    "play",
    [
        drip(PLAIN + b"Content-Length: 999999\r\n\r\n", b" "),
        drip(OK, b"X"),
        drip(EVENTS, b": wait\n\n"),
        drip(EVENTS, b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'),
    ],
    ids=["body", "headers", "comments", "empty"],
)
def test_a_byte_now_and_then_does_not_keep_a_call_alive(play: Callable[[Send], None], lines: list[str]) -> None:
    with raw_server(play) as url:
        assert "no answer within 0.3 s" in failure(url, lines, tries=1, timeout=0.3)


def test_words_now_and_then_have_an_end_too(lines: list[str]) -> None:
    with raw_server(drip(EVENTS, event("x"))) as url:
        assert "its answer did not end within 0.5 s" in failure(url, lines, tries=1, timeout=0.1)


def test_an_unknown_packing_is_no_answer(lines: list[str]) -> None:
    with raw_server(lambda send: send(PLAIN + b"Content-Encoding: br\r\n\r\nxxxx")) as url:
        assert "packed as 'br', which it was not asked for" in failure(url, lines, tries=1)


def test_a_packed_answer_is_read(lines: list[str]) -> None:
    body = gzip.compress(json.dumps({"choices": [{"message": {"content": "3"}}]}).encode())
    with raw_server(lambda send: send(PLAIN + b"Content-Encoding: gzip\r\n\r\n" + body)) as url:
        assert asked(url, ["one"], lines) == [Answer("3")]


# ── answers piece by piece ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_under_way_is_no_time_out(lines: list[str]) -> None:
    """The whole takes three times the limit, and no pause in it reaches the limit."""

    def play(send: Send) -> None:
        send(EVENTS)
        for word in ("{", '"score"', ":", " 3", ",", '"reason": "', "fine", '"', "}"):
            time.sleep(0.1)
            send(event(word))
        send(event(usage={"prompt_tokens": 40, "completion_tokens": 9}) + DONE)

    with raw_server(play) as url:
        (answer,) = asked(url, ["one"], lines, timeout=0.35, tries=1)
    assert answer == Answer('{"score": 3,"reason": "fine"}', "", 40, 9)


def test_a_complete_score_ends_the_call(lines: list[str]) -> None:
    """The server would write on for ever."""

    def play(send: Send) -> None:
        send(EVENTS + event('{"score": 3, ') + event('"reason": "}"}'))
        while True:
            time.sleep(0.005)
            send(event(" and so on"))

    with raw_server(play) as url:
        (answer,) = asked(url, ["one"], lines, timeout=30.0, tries=1)
    assert answer == Answer('{"score": 3, "reason": "}"}', "", 0, 3)


def test_a_score_in_thoughts_does_not_end_the_call(lines: list[str]) -> None:
    said = ['Is it {"score": 1}?', " No.", "</think>", '{"score": 5}']
    with raw_server(lambda send: send(EVENTS + b"".join(map(event, said)) + DONE)) as url:
        (answer,) = asked(url, ["one"], lines)
    assert number_in(answer.text or "", 0, 5) == 5


def test_an_answer_that_breaks_off_is_asked_for_again(lines: list[str]) -> None:
    plays = iter([EVENTS + event("3"), EVENTS + event("4") + DONE])
    with raw_server(lambda send: send(next(plays))) as url:
        assert asked(url, ["one"], lines, tries=2)[0].text == "4"
    assert "its answer breaks off; try 2 of 2" in lines[1]


@pytest.mark.parametrize("bad", [b"data: [[[\n\n", b"data: 7\n\n", b'data: {"choices": [3]}\n\n', b"data: {\n\n"])
def test_a_bad_piece_is_no_answer(lines: list[str], bad: bytes) -> None:
    with raw_server(lambda send: send(EVENTS + event("3") + bad + DONE)) as url:
        assert "this is no piece of a chat completion" in failure(url, lines, tries=1)


def test_an_error_in_the_middle_is_a_reason(lines: list[str]) -> None:
    with raw_server(lambda send: send(EVENTS + event("3") + event(error={"message": "CUDA is tired"}))) as url:
        assert "CUDA is tired" in failure(url, lines, tries=1)


# ── pauses, and who is to blame ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("asks", ["nan", "inf", "-inf", "-5", "", "soon", "Fri, 31 Dec 99999 23:59:59 GMT", "1e999"])
def test_only_finite_numbers_count_as_a_time_to_wait(asks: str) -> None:
    assert _seconds(asks) == 0.0


def test_a_wait_that_is_no_number_leaves_the_pause(
    server: Server, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.play = lambda body, number: refusal(429, "slow", Retry_After="nan") if number < 3 else completion("3")
    slept: list[float] = []
    monkeypatch.setattr(endpoints.time, "sleep", slept.append)
    assert asked(server.url, ["one"], lines, pause=0.02)[0].text == "3"
    assert max(slept) > 0.05  # the third pause is at least 0.08 s


@pytest.mark.parametrize("calls", [1, 64])
def test_a_server_that_fails_now_and_then_ends_no_run(server: Server, lines: list[str], calls: int) -> None:
    """One row fails each of its five tries, and so does the first look whether the server is there."""
    draws, rows = np.random.default_rng(3).random(20_000) < 0.4, 600 if calls > 1 else 30
    probes: list[int] = []

    def play(body: dict[str, Any], number: int) -> Reply:
        said = str(body["messages"][-1]["content"])
        if "row" not in said:
            probes.append(number)
        failing = draws[number] or said == "row 7" or (len(probes) == 1 and "row" not in said)
        return refusal(503, "busy") if failing else completion("3")

    server.play = play
    got = asked(server.url, [f"row {i}" for i in range(rows)], lines, concurrency=calls, pause=0.001)
    lost = [row for row, answer in enumerate(got) if answer.text is None]
    assert 7 in lost and len(lost) < 0.07 * rows
    assert {got[row].reason for row in lost} == {"503 (busy)"}
    assert {answer.text for row, answer in enumerate(got) if row not in lost} == {"3"}


def test_a_server_that_is_away_ends_the_run_and_what_it_answered_is_kept(server: Server, lines: list[str]) -> None:
    server.play = lambda body, number: completion("3") if number < 20 else None
    endpoint = Endpoint(JudgeRef("m", server.url), lines.append, concurrency=4, pause=0.002, tries=3)
    got: list[Answer] = []
    with pytest.raises(EngineError, match=r"did not answer after 3 tries.*what it answered is kept"):
        for some in endpoint.answers(deque(Question(row) for row in range(200)), lambda q: str(q.row), ""):
            got += [answer for _, answer in some]
    assert sum(answer.text == "3" for answer in got) == 20 and len(got) < 40


# ── slow servers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_a_time_out_fewer_calls_are_made_at_once(server: Server, lines: list[str]) -> None:
    """The first eight are not answered; then one call is made, and one more at once for each round that went well."""
    lock, busy, done, seen = threading.Lock(), [0], [0], list[tuple[int, int]]()

    def play(body: dict[str, Any], number: int) -> Reply:
        if number < 8:
            server.released.wait(20)
            return None
        with lock:
            busy[0] += 1
            seen.append((busy[0], done[0]))
        time.sleep(0.02)
        with lock:
            busy[0] -= 1
            done[0] += 1
        return completion("3")

    server.play = play
    got = asked(server.url, [f"row {i}" for i in range(16)], lines, concurrency=8, timeout=1.0, tries=9)
    assert {answer.text for answer in got} == {"3"} and len(server.bodies) == 8 + 16
    assert seen[0] == (1, 0) and all(together <= answered + 1 for together, answered in seen)
    assert max(together for together, _ in seen) > 1
    assert any("no answer within 1 s; try 2 of 9 in" in line for line in lines)


def test_progress_is_told_at_once_and_then_regularly(
    server: Server, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "TELL_EVERY", 0.1)

    def play(body: dict[str, Any], number: int) -> Reply:
        server.released.wait(0.5)
        return completion("3")

    server.play = play
    asked(server.url, ["one", "two"], lines)
    assert lines[0] == f"m@{server.url}: questions: 2, calls under way: 2"
    assert lines[1] == f"m@{server.url}: answers: 0, questions left: 2, calls under way: 2"


def test_each_kind_of_trouble_is_told_once_and_counted(
    server: Server, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "TELL_EVERY", 0.3)
    server.play = lambda body, number: refusal(503, "busy") if number < 4 else completion("3")
    asked(server.url, ["one"], lines, pause=0.05)
    assert [line.partition("v1: ")[2].partition(" in ")[0] for line in lines[:2]] == [
        "questions: 1, calls under way: 1",
        "503 (busy); try 2 of 5",
    ]
    assert sum("503 (busy); try" in line for line in lines) == 1
    assert any("; tried again " in line and line.endswith(" more times for 503 (busy)") for line in lines[2:])


def test_the_length_of_an_answer_is_asked_for(server: Server, lines: list[str]) -> None:
    asked(server.url, ["one"], lines, form=Judging(40))
    assert server.bodies[0]["max_tokens"] == 40


def test_words_of_a_server_are_short() -> None:
    assert exchange.words_of({"error": {"message": "no"}}) == "no"
    assert exchange.words_of({"detail": [1]}, "raw") == "raw"
    assert exchange.words_of(None, "raw") == "raw"
