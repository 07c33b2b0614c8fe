"""One call to a server that may do anything: the whole of it has a limit of size and of time.

The call itself is httpx2's. The ``openai`` package, which could make it too, limits each read and not the call, has no
limit of size, and tries again by itself at full speed.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from instdiff.errors import EngineError, lacking

LARGEST = 1 << 20
"""Bytes of an answer after unpacking, and of one line of a stream."""
LARGEST_STREAM = 32 * LARGEST
"""Bytes of a stream, in which each piece of an answer has its own wrapping."""
LONGEST_SCORE = 4096
"""Characters; whether a longer answer is enough is not looked at before its end."""
LONGEST = 5.0
"""A call in which words keep coming may last so many times as long as a silent one."""
JSON = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
NO_COMPLETION = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError)
"""What reading something else than a completion may raise."""


class CallFailed(Exception):
    """A call that may succeed when it is tried again, after so many seconds at least; ``slow`` is a time-out."""

    def __init__(self, reason: str, after: float = 0.0, *, slow: bool = False) -> None:
        super().__init__(reason)
        self.after, self.slow = after, slow


@dataclass
class Reply:
    """What a server answered; ``body`` is None where it is no JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any
    text: str


async def post(
    client: Any, url: str, body: dict[str, Any], timeout: float, enough: Callable[[str], bool] = lambda text: False
) -> Reply:
    """Ask, and read the answer; a stream becomes the body that would have come at once.

    Args:
        client: an asynchronous one of httpx2.
        url: of the call.
        body: of the request.
        timeout: seconds until the answer, or without another piece of it; never more than ``LONGEST`` times as many.
        enough: whether an answer that begins so need not be read to its end.

    Raises:
        CallFailed: no answer came, or one that is too long, is packed in an unknown way, or breaks off.
    """
    loop, words, sent = asyncio.get_running_loop(), False, json.dumps(body).encode()
    end = loop.time() + LONGEST * timeout
    try:
        async with asyncio.timeout(timeout) as limit, client.stream("POST", url, content=sent, headers=JSON) as reply:
            reading = _Reading(reply, enough)
            async with aclosing(reply.aiter_raw()) as pieces:
                async for piece in pieces:
                    if reading.take(piece):
                        words = True
                        limit.reschedule(min(end, loop.time() + timeout))
                    if reading.done:
                        break
            return reading.reply()
    except TimeoutError:
        if loop.time() >= end:
            raise CallFailed(f"its answer did not end within {LONGEST * timeout:g} s", slow=True) from None
        raise CallFailed(f"no {'more of its ' if words else ''}answer within {timeout:g} s", slow=True) from None
    except http().TimeoutException:
        raise CallFailed("no connection came about in time", slow=True) from None
    except (http().RequestError, zlib.error) as error:
        raise CallFailed(_cause(error)) from None


def call(client: Any, method: str, url: str, timeout: float, **sent: Any) -> Reply:
    """Any other call, without waiting for other ones; ``client`` is a plain one. The same limits and CallFailed."""
    with _pieces(client, method, url, timeout, LONGEST * timeout, **sent) as (reply, pieces):
        reading = _Reading(reply, lambda text: False)
        for piece in pieces:
            reading.take(piece)
        return reading.reply()


def read_lines(client: Any, url: str, timeout: float, count: int) -> Iterator[bytes]:
    """The lines of a file of answers as they come, a file of at most ``count`` of them.

    A line of more than ``LARGEST`` bytes is left out. A second for each line is added to the time that a call may last.

    Raises:
        CallFailed: the file does not come, or has no end.
    """
    line, begun, length = bytearray(), 0, 0
    with _pieces(client, "GET", url, timeout, LONGEST * timeout + count) as (reply, pieces):
        unpacked = _unpacker(reply.headers.get("content-encoding", "").strip().lower())
        if reply.status_code != 200:
            raise CallFailed(f"{reply.status_code} instead of its file of answers")
        for piece in (part for raw in pieces for part in unpacked(raw)):
            first, *more = piece.split(b"\n")
            line += first[: LARGEST + 1 - len(line)]
            for part in more:
                if len(line) <= LARGEST:
                    yield bytes(line)
                line, begun = bytearray(part[: LARGEST + 1]), begun + 1
            length += len(piece)
            if begun > count or length > (count + 1) * LARGEST:
                raise CallFailed("its file of answers has no end")
    if len(line) <= LARGEST:
        yield bytes(line)


@contextmanager
def _pieces(
    client: Any, method: str, url: str, timeout: float, longest: float, **sent: Any
) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """A reply and its bytes, until they have taken too long."""
    end = time.monotonic() + longest

    def in_time(reply: Any) -> Iterator[bytes]:
        for piece in reply.iter_raw():
            yield piece
            if time.monotonic() > end:
                raise CallFailed(f"its answer did not end within {longest:g} s", slow=True)

    try:
        with client.stream(method, url, headers={"Accept-Encoding": "identity"}, **sent) as reply:
            yield reply, in_time(reply)
    except http().TimeoutException:
        raise CallFailed(f"no answer within {timeout:g} s", slow=True) from None
    except (http().RequestError, zlib.error) as error:
        raise CallFailed(_cause(error)) from None


def _cause(error: BaseException) -> str:
    """What an error comes down to: the system's own words where it has any."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.errno is not None and inner.errno > 0:
            return os.strerror(inner.errno)
        grouped = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else None
        inner = grouped or inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__


class _Reading:
    """An answer as its bytes come."""

    def __init__(self, reply: Any, enough: Callable[[str], bool]) -> None:
        self.status, self.headers = reply.status_code, reply.headers
        streamed = self.status == 200 and "event-stream" in reply.headers.get("content-type", "")
        self.stream = _Stream(enough) if streamed else None
        self._unpacked = _unpacker(reply.headers.get("content-encoding", "").strip().lower())
        self._bytes, self._count = bytearray(), 0

    @property
    def done(self) -> bool:
        """Whether the rest need not be read."""
        return self.stream is not None and self.stream.done

    def take(self, raw: bytes) -> bool:
        """More bytes; whether they brought words of an answer."""
        words = False
        for piece in self._unpacked(raw):
            self._count += len(piece)
            if self._count > (LARGEST if self.stream is None else LARGEST_STREAM):
                raise CallFailed("its answer has no end: more than 1 MB")
            if self.stream is None:
                self._bytes += piece
            else:
                words |= self.stream.take(piece)
        return words

    def reply(self) -> Reply:
        """What came."""
        if self.stream is not None:
            return Reply(self.status, self.headers, self.stream.body(), "")
        text, body = self._bytes.decode(errors="replace"), None
        with suppress(ValueError, RecursionError):
            body = json.loads(text)
        return Reply(self.status, self.headers, body, text)


@dataclass
class _Stream:
    """Server-sent events with pieces of a completion."""

    enough: Callable[[str], bool]
    done: bool = False
    said: list[str] = field(default_factory=list)
    length: int = 0
    pieces: int = 0
    ended: bool = False
    usage: Any = None
    tokens: list[Any] = field(default_factory=list)
    line: bytearray = field(default_factory=bytearray)

    def take(self, piece: bytes) -> bool:
        """More bytes; whether they brought words."""
        before = self.pieces
        first, *more = piece.split(b"\n")
        self.line += first
        for part in more:
            if self.line.startswith(b"data:"):
                self._event(bytes(self.line[5:]).strip())
            self.line = bytearray(part)
            if self.done:
                break
        if len(self.line) + self.length > LARGEST:
            raise CallFailed("its answer has no end: more than 1 MB")
        return self.pieces > before

    def _event(self, said: bytes) -> None:
        if said == b"[DONE]":
            self.done = self.ended = True
            return
        try:
            told = json.loads(said)
            if told.get("error"):
                raise CallFailed(words_of(told))
            before = len(self.tokens)
            self._merge(told)
            self.length += len(said) * (len(self.tokens) > before)  # what is kept of them takes more room still
        except NO_COMPLETION:
            raise CallFailed(f"this is no piece of a chat completion: {said[:200].decode(errors='replace')}") from None

    def _merge(self, told: dict[str, Any]) -> None:
        self.usage = told.get("usage") or self.usage
        for choice in (told.get("choices") or [])[:1]:
            delta = choice.get("delta") or {}
            said = delta.get("content") or choice.get("text") or ""
            self.pieces += any(isinstance(words, str) and words for key, words in delta.items() if key != "role")
            self.pieces += bool(choice.get("text"))
            self.ended |= choice.get("finish_reason") is not None
            self.tokens += (choice.get("logprobs") or {}).get("content") or []
            if said.strip() and self.length <= LONGEST_SCORE and self.enough("".join(self.said)):
                self.done = self.ended = True  # a model that goes on after all that counts
                return
            self.said.append(said)
            self.length += len(said)

    def body(self) -> dict[str, Any]:
        """The completion; a CallFailed where the server stopped in the middle."""
        if not self.ended:
            raise CallFailed("its answer breaks off")
        text = "".join(self.said)
        choice = {"message": {"content": text}, "text": text, "logprobs": {"content": self.tokens}}
        return {"choices": [choice], "usage": self.usage or {"completion_tokens": self.pieces}}


def _unpacker(packing: str) -> Callable[[bytes], Iterator[bytes]]:
    """What unpacks an answer piece by piece, so that a small one cannot fill memory."""
    if packing in ("", "identity"):
        return lambda raw: iter((raw,))
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise CallFailed(f"its answer is packed as '{packing[:20]}', which it was not asked for")
    opened = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def unpack(raw: bytes) -> Iterator[bytes]:
        while raw:
            yield opened.decompress(raw, LARGEST)
            raw = opened.unconsumed_tail

    return unpack


def words_of(body: Any, text: str = "") -> str:
    """What a server says of an error, in its own words."""
    said: Any = body or text
    if isinstance(body, dict):
        said = body.get("error") or body.get("message") or body.get("detail") or body
        said = said.get("message") or said if isinstance(said, dict) else said
    return said if isinstance(said, str) else text or str(said)


def http() -> Any:
    """The client: httpx2, or httpx, which earlier versions of huggingface_hub bring; else an EngineError."""
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            return import_module(name)
    raise EngineError(lacking("a judge behind an endpoint", "httpx2"))
