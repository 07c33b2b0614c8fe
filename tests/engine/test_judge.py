"""Judges: what is read off an answer, and what happens when the server or the model does not do as it is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from instdiff.core import Judged, ModelRef, Nll
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine.models import Resident
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.text import exchange
from instdiff.engine.text.endpoint import Endpoint
from instdiff.engine.text.judge import Judge, JudgeRef, judge_fingerprint, number_in, parse_judge, reasons_unanswered
from instdiff.engine.text.local_judge import Writer
from instdiff.errors import ConfigError, EngineError
from instdiff.rendering.texts import Texts
from instdiff.scoring.run_pass import BackgroundWriter
from instdiff.store import ColumnId, Store
from judging import Reply, Server, completion, refusal

SECRET = "sk-very-secret-0123456789"
MEASURE = Judged(0, 5)


def texts(said: list[str], system: str = "You grade.") -> Texts:
    return Texts(pa.array(said, pa.large_string()), np.full(len(said), None, object), system)


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    yield playing
    playing.close()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lines: list[str]) -> Iterator[None]:
    """A key that must not come out anywhere."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET + "\n")
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in caplog.text and SECRET not in "\n".join(lines)


def judge(server: Server | str, lines: list[str], **options: Any) -> Judge:
    url = server if isinstance(server, str) else server.url
    options = {"pause": 0.01, "timeout": 5.0, "concurrency": 2, **options}
    return Judge(Endpoint(JudgeRef("gpt-x", url), lines.append, **options), lines.append)


def values(judge: Judge, said: list[str]) -> list[list[float]]:
    """Each row's values, in the order of the rows."""
    found: dict[int, list[float]] = {}
    for swept in judge(texts(said), (MEASURE,)):
        found |= {int(row): swept.columns[MEASURE][place].tolist() for place, row in enumerate(swept.at)}
    assert len(found) == len(said)
    return [found[row] for row in range(len(said))]


def failure(judge: Judge, said: list[str]) -> str:
    with pytest.raises(EngineError) as error:
        values(judge, said)
    shown: BaseException | None = error.value
    while shown is not None:  # nor in what it came from
        assert SECRET not in str(shown) and SECRET not in repr(shown)
        shown = shown.__cause__ or shown.__context__
    return str(error.value)


# ── what is read off an answer ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ('{"score": 3, "reason": "fine"}', 3.0),
        ('Sure! ```json\n{"reason": "a {b} c", "score": 4.5}\n``` as asked', 4.5),
        ('{"note": 1} then {"score": 2} then {"score": 5}', 2.0),
        ("My rating:\n  4.5  \nbecause it is good", 4.5),
        ('<think>{"score": 1}? no</think>{"score": 5}', 5.0),
        ("3", 3.0),
        ("<think>3 or 4?\n3", None),
        ("Score: 4", None),
        ("4/5", None),
        ("4\n5", None),
        ('{"score": 9}', None),
        ('{"score": 9}\n3', None),
        ('{"score": -0.5}', None),
        ('{"score": "4"}', None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ('{"score": 1e999}', None),
        ('{"score": null}\n4', None),
        ('{"rating": {"score": 4}}', None),
        ('{"score": NUMBER}', None),
        ("٣", None),
        ("{" * 20000, None),
        ("{" * 900 + '{"score": 2}', 2.0),
        ("{" * 1_000_000, None),
        ('{"score":' + "[" * 20000, None),
        ('{"score": ' + "9" * 5000 + "}", None),
        ("", None),
    ],
)
def test_an_answer_is_read_strictly(answer: str, number: float | None) -> None:
    assert number_in(answer, 0, 5) == number


def test_references_to_endpoints() -> None:
    assert parse_judge("openai:gpt-4o@https://host/v1/") == JudgeRef("gpt-4o", "https://host/v1")
    assert parse_judge("openai:a/b:c@2024@http://h:80/v1") == JudgeRef("a/b:c@2024", "http://h:80/v1")
    assert parse_judge("owner/name@main") is None and parse_judge("/models/openai:x") is None
    for faulty in (
        "openai:gpt-4o",
        "openai:@http://h/v1",
        "openai:m@h:80/v1",
        "openai:m@http://",
        "openai:m@http://h:x",
    ):
        with pytest.raises(ConfigError, match=r"must be "):
            parse_judge(faulty)
    for secret in (
        "openai:m@http://me:hidden@host/v1",
        "openai:m@ftp://me:hidden@host",
        "openai:m@http://h/v1?key=hidden",
    ):
        with pytest.raises(ConfigError) as error:
            parse_judge(secret)
        assert "hidden" not in str(error.value)


def test_a_fingerprint_is_of_the_model() -> None:
    assert judge_fingerprint("gpt-4o") == judge_fingerprint("gpt-4o") != judge_fingerprint("gpt-4o-mini")


# ── endpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_answers_go_to_their_rows(server: Server, lines: list[str]) -> None:
    said = [f"row {i}" * (1 + i % 4) for i in range(9)]
    server.play = lambda body, number: completion(f'{{"score": {said.index(body["messages"][-1]["content"]) / 2}}}')
    assert values(judge(server, lines), said) == [[i / 2] for i in range(9)]
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "You grade."}
    assert server.bodies[0]["temperature"] == 0 and server.bodies[0]["response_format"]["type"] == "json_schema"
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert lines == [
        f"gpt-x@{server.url}: questions: 9, calls under way: 2",
        f"judge gpt-x@{server.url}: 9 rows answered, 0 of them without a usable number; "
        "90 prompt and 18 completion tokens",
    ]


def test_nonsense_is_asked_again_with_a_reminder(server: Server, lines: list[str]) -> None:
    server.play = lambda body, number: completion("good!" if number == 0 else '{"score": 4}')
    assert values(judge(server, lines), ["one"]) == [[4.0]]
    assert server.asked(0) == "one" and server.asked(1).startswith("one\n\nAnswer with JSON only")
    assert "at least 0 and at most 5" in server.asked(1)
    assert [body["temperature"] for body in server.bodies] == [0.0, 0.7]


@pytest.mark.parametrize("content", ["good!", '{"score": 50}', None, [{"type": "text", "text": "3"}]])
def test_what_has_no_number_after_all_tries_is_empty_and_kept(
    server: Server, lines: list[str], tmp_path: Path, content: Any
) -> None:
    server.play = lambda body, number: completion('{"score": 1}' if body["messages"][-1]["content"] == "b" else content)
    store, column = Store(tmp_path), ColumnId(judge_fingerprint("gpt-x"), "", MEASURE)
    given = texts(["a", "b"])
    with BackgroundWriter(given.keys(), {MEASURE: column}, store) as keeper:
        for swept in judge(server, lines)(given, (MEASURE,)):
            keeper.keep(swept)
    assert not keeper.bad and len(server.bodies) == 4
    keys = np.append(given.keys(), texts(["c"]).keys())
    kept, missing = Store(tmp_path).read(column, keys), Store(tmp_path).missing(column, keys)
    assert missing.tolist() == [False, False, True]
    assert reasons_unanswered(kept, missing).tolist() == ["unparsable", None, "no_answer"]
    assert "2 rows answered, 1 of them without a usable number; 40 prompt and 8 completion tokens" in lines[-1]


def test_a_busy_or_failing_server_is_tried_again(server: Server, lines: list[str]) -> None:
    troubles = [refusal(429, "slow down", Retry_After="0.2"), refusal(500, "oops"), (200, "<html>", {}), (503, "", {})]
    times: list[float] = []

    def play(body: dict[str, Any], number: int) -> Reply:
        times.append(time.monotonic())
        return troubles[number] if number < len(troubles) else completion('{"score": 2}')

    server.play = play
    assert values(judge(server, lines), ["one"]) == [[2.0]]
    assert len(server.bodies) == 5 and times[1] - times[0] >= 0.2


@pytest.mark.parametrize("after", ["4000", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_server_that_asks_for_hours_is_not_waited_for(server: Server, lines: list[str], after: str) -> None:
    server.play = lambda body, number: refusal(429, "quota", Retry_After=after)
    assert "429 (quota) and asks to wait" in failure(judge(server, lines), ["one"])
    assert len(server.bodies) == 1


def test_formats_that_a_server_refuses_are_left_out_from_then_on(server: Server, lines: list[str]) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        if "max_tokens" in body:
            return refusal(400, "Unsupported parameter: use 'max_completion_tokens' instead")
        if "temperature" in body:
            return refusal(400, "'temperature' does not support 0.0 with this model")
        if "stream_options" in body:
            return refusal(400, "Unrecognized request argument supplied: stream_options")
        if "stream" in body:
            return refusal(400, "stream is not supported")
        if "response_format" in body:
            return refusal(422, f"response_format {body['response_format']['type']} is not known")
        return completion('{"score": 1}')

    server.play = play
    assert values(judge(server, lines, concurrency=1), ["one", "two", "three"]) == [[1.0]] * 3
    assert len(server.bodies) == 6 + 3
    assert set(server.bodies[-1]) == {"model", "messages", "max_completion_tokens"}
    assert [line for line in lines if "temperature" in line] == [
        "the judge's server takes no temperature: gpt-x answers with its own"
    ]


def test_a_row_that_the_server_refuses_is_nan_and_the_others_go_on(server: Server, lines: list[str]) -> None:
    server.play = lambda body, number: (
        refusal(400, "context length exceeded")
        if "long" in body["messages"][-1]["content"]
        else refusal(500, "crash")
        if "odd" in body["messages"][-1]["content"]
        else completion('{"score": 1}')
    )
    got = values(judge(server, lines, tries=2), ["too long", "odd", "ok"])
    assert np.isnan(got[0]).all() and np.isnan(got[1]).all() and got[2] == [1.0]
    assert "did not answer 2 rows (first: 400 (context length exceeded))" in lines[-1]


def test_a_server_that_refuses_everything_is_an_error(server: Server, lines: list[str]) -> None:
    server.play = lambda body, number: refusal(400, "no such template")
    assert "refuses what it is asked: 400 (no such template)" in failure(judge(server, lines), ["one", "two"])


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "answered 401 (bad key ***): OPENAI_API_KEY is not accepted there; set it to a valid key"),
        (403, "the key may not use 'gpt-x'"),
        (404, "check the model's name 'gpt-x' and the address, which often ends in /v1"),
        (308, "answered 308 instead of a chat completion; check the address"),
    ],
)
def test_what_cannot_get_better_is_said_at_once(server: Server, lines: list[str], status: int, words: str) -> None:
    server.play = lambda body, number: refusal(status, f"bad key {SECRET}", Location="/elsewhere")
    assert words in failure(judge(server, lines, concurrency=1), ["one", "two", "three"])
    assert len(server.bodies) == 1


def test_keys_that_are_missing_or_cannot_be_sent(
    server: Server, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\nhidden")
    with pytest.raises(EngineError, match="OPENAI_API_KEY has characters that no key has") as error:
        judge(server, lines)
    assert "hidden" not in str(error.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert values(judge(server, lines), ["one"]) == [[3.0]]
    assert "Authorization" not in server.headers[0]
    server.play = lambda body, number: (401, "", {})
    assert "401 (no words): OPENAI_API_KEY is not set" in failure(judge(server, lines), ["one"])


def test_a_server_that_is_not_there(lines: list[str]) -> None:
    said = failure(judge("http://127.0.0.1:9/v1", lines, tries=2), ["one", "two"])
    assert "http://127.0.0.1:9/v1 did not answer after 2 tries" in said and "refused" in said
    assert "run the same command again" in said


def test_a_server_that_hangs(server: Server, lines: list[str]) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        server.released.wait(5)
        return completion("3")

    server.play = play
    assert "no answer within 0.1 s" in failure(judge(server, lines, timeout=0.1, tries=2), ["one"])


def test_what_was_answered_before_the_server_went_away_is_yielded(server: Server, lines: list[str]) -> None:
    server.play = lambda body, number: completion("3") if number < 7 else refusal(503, "going down")
    got: list[int] = []
    with pytest.raises(EngineError, match=r"503 \(going down\)"):
        for swept in judge(server, lines, tries=2)(texts([f"row {i}" for i in range(20)]), (MEASURE,)):
            answered = swept.columns[MEASURE].values == 3
            assert swept.tokens == 12 * answered.sum()
            got += swept.at[answered].tolist()
    assert len(got) == len(set(got)) == 7
    assert any("7 rows answered" in line for line in lines[-2:])


def test_an_answer_is_yielded_while_others_are_still_awaited(server: Server, lines: list[str]) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        if body["messages"][-1]["content"] == "slow":
            server.released.wait(5)
        return completion("3")

    server.play = play
    running = judge(server, lines, concurrency=2)(texts(["slow", "b", "c"]), (MEASURE,))
    first = [next(running).at.tolist() for _ in range(1)]
    assert 0 not in first[0]
    running.close()  # neither waits for the slow one nor complains
    assert "rows answered" in lines[-1]


def test_as_many_calls_at_once_as_allowed(server: Server, lines: list[str]) -> None:
    gate = threading.Barrier(3, timeout=5)

    def play(body: dict[str, Any], number: int) -> Reply:
        gate.wait()  # three come together, or none goes on
        return completion("3")

    server.play = play
    assert values(judge(server, lines, concurrency=3), [str(i) for i in range(9)]) == [[3.0]] * 9
    assert server.most == 3


def test_a_judge_reads_ranges_and_nothing_else(server: Server, lines: list[str]) -> None:
    with pytest.raises(EngineError, match="cannot read Nll"):
        list(judge(server, lines)(texts(["a"]), (Nll(),)))
    server.play = lambda body, number: completion("3")
    narrow = Judged(0, 2)
    (swept,) = judge(server, lines)(texts(["a"]), (MEASURE, narrow))
    assert swept.columns[MEASURE][0].tolist() == [3.0] and swept.columns[narrow][0].tolist() == []
    assert "at most 2" in server.asked(1)


# ── models on this machine ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def llama(models: dict[str, Path]) -> Iterator[tuple[Any, Any]]:
    source = resolve(ModelRef(str(models["llama"])))
    with Resident(torch.device("cpu"), torch.float32).use(source) as model:
        yield model, load_tokenizer(source)


def test_a_local_model_that_writes_nonsense_is_unparsable(llama: tuple[Any, Any], lines: list[str]) -> None:
    writer = Writer("llama", *llama, lines.append, batch_rows=2, max_tokens=8)
    got = values(Judge(writer, lines.append), ["Why?", "the sky", "x" * 400])
    assert got[:2] == [[], []] and np.isnan(got[2]).all()
    assert "2 rows answered, 2 of them without a usable number" in lines[0]
    assert "the question is too long for a model of 256 tokens" in lines[1]


@pytest.mark.parametrize("chat", [True, False])
def test_a_local_model_writes_the_same_alone_and_in_a_batch(
    llama: tuple[Any, Any], lines: list[str], chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = llama
    monkeypatch.setattr(tokenizer.hf, "chat_template", tokenizer.hf.chat_template if chat else None)
    writer = Writer("llama", model, tokenizer, lines.append, max_tokens=6)
    ids = [writer._ids("You grade.", said) for said in ("Why?", "the sky is blue and the grass")]
    assert tokenizer.hf.decode(ids[0]).endswith("assistant\n" if chat else "<s>You grade.\n\nWhy?\n")
    together = writer.generator.write(ids, 6)
    assert together == [(writer.generator.write([row], 6) or [])[0] for row in ids]
    plain = model.generate(torch.tensor([ids[1]]), max_new_tokens=6, do_sample=False)[0, len(ids[1]) :]
    text = tokenizer.hf.decode(plain, skip_special_tokens=True)
    assert writer._answer(ids[1], together[1]).text == text


def test_a_template_without_a_system_turn_and_little_memory(llama: tuple[Any, Any], lines: list[str]) -> None:
    model, tokenizer = llama
    writer = Writer("llama", model, tokenizer, lines.append, batch_rows=4, max_tokens=2)
    kept, chat = (
        tokenizer.hf.chat_template,
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}",
    )
    tokenizer.hf.chat_template = chat + "{{ messages[0]['content'] }}"
    try:
        assert tokenizer.hf.decode(writer._ids("Be strict.", "Why?")) == "Be strict.\n\nWhy?"
    finally:
        tokenizer.hf.chat_template = kept
    write, most = writer.generator.generate, 1

    def tight(prompts: list[list[int]], room: int, *how: Any) -> Any:
        if len(prompts) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return write(prompts, room, *how)

    writer.generator.generate = tight  # type: ignore[assignment]
    assert len(values(Judge(writer, lines.append), ["a", "b", "c", "d"])) == 4
    assert lines[0] == "out of memory: judge llama goes on with 2 answers at once"
    most = 0
    with pytest.raises(EngineError, match="one question does not fit into memory with judge llama"):
        values(Judge(writer, lines.append), ["a"])


def test_empty_rows_are_rows(tmp_path: Path) -> None:
    """The store keeps a row without values, and merges it with others."""
    store, column = Store(tmp_path), ColumnId("m", "", MEASURE)
    keys = np.array([bytes([65 + i]) * 16 for i in range(3)], "S16")
    for place, row in enumerate(([], [2.0], [])):
        store.append(column, keys[place : place + 1], Ragged.of([row], np.float32))
    store.compact(column, 1)
    again = Store(tmp_path)
    assert not again.missing(column, keys).any()
    assert again.read(column, keys).lengths().tolist() == [0, 1, 0]


def test_what_lacks_for_an_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(exchange, "import_module", lacking)
    with pytest.raises(EngineError) as refused:
        exchange.http()
    assert (
        str(refused.value)
        == 'a judge behind an endpoint needs httpx2, which is missing; run: pip install "instdiff[judge]"'
    )
