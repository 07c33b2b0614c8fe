"""A judge behind the batch API: what is begun is taken up, what was answered is kept, what failed is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from instdiff.core import Judged, ModelRef, Settings
from instdiff.core.progress import Quiet
from instdiff.engine.text import batches, exchange
from instdiff.engine.text.batch_records import KEPT_FOR, BatchRecords
from instdiff.engine.text.endpoint import Endpoint
from instdiff.engine.text.models import TEXT, JudgeModel
from instdiff.errors import ConfigError, EngineError
from instdiff.evaluation.llm_judge.judge import PAIR, JudgeRequest, LLMJudge, Waits
from instdiff.evaluation.subject import Subject
from instdiff.rendering.texts import Texts
from instdiff.scoring.run_pass import run_pass
from instdiff.store import ColumnId, Store
from instdiff.store.check import check
from instdiff.store.claims import FILE
from judging import Reply, completion, refusal

MEASURE = Judged(0, 5)


class BatchServer:
    """The files and batches of the protocol; ``play`` answers each question, ``ends`` says how a batch stands."""

    def __init__(self) -> None:
        self.play: Callable[[dict[str, Any], str], Reply] = lambda body, said: completion('{"score": 3}')
        self.ends: Callable[[int], str] = lambda looks: "completed" if looks > 1 else "in_progress"
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.batches: list[dict[str, Any]] = []
        self.singly: list[dict[str, Any]] = []
        self.trouble: Callable[[str], Reply] = lambda call: None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                call = f"{self.command} {self.path.removeprefix('/v1')}"
                server.calls.append(call)
                status, reply, _ = server.trouble(call) or server.answer(call, sent)
                raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                with suppress(OSError):  # killed meanwhile
                    self.wfile.write(raw)

            def log_message(self, *words: Any) -> None:
                """Nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, call: str, sent: bytes) -> Any:
        words = call.split("/")
        if call == "POST /chat/completions":
            self.singly.append(json.loads(sent))
            return self.play(self.singly[-1], self.singly[-1]["messages"][-1]["content"])
        if call == "POST /files":
            assert b'name="purpose"\r\n\r\nbatch\r\n' in sent
            lines = re.findall(rb'^\{"custom_id".*$', sent, re.M)
            return self.file(b"\n".join(line.strip() for line in lines))
        if call == "POST /batches":
            told = json.loads(sent)
            assert told["endpoint"] == "/v1/chat/completions" and told["completion_window"] == "24h"
            self.batches.append({"id": f"batch_{len(self.batches)}", "looks": 0, **told})
            return 200, self.batches[-1], {}
        if words[0] == "GET " and words[1].startswith("batches?"):
            return 200, {"data": self.batches}, {}
        if words[1] == "batches":
            return 200, self.look(next(one for one in self.batches if one["id"] == words[2])), {}
        return 200, self.files[words[2]], {}

    def file(self, content: bytes) -> Any:
        self.files[f"file-{len(self.files)}"] = content
        return 200, {"id": list(self.files)[-1]}, {}

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["looks"] += 1
        batch["status"] = self.ends(batch["looks"])
        if batch["status"] in ("completed", "expired", "cancelled") and "output_file_id" not in batch:
            good, bad = list[bytes](), list[bytes]()
            for told in self.asked(batch):
                played = self.play(told["body"], told["body"]["messages"][-1]["content"])
                line: dict[str, Any] = {"custom_id": told["custom_id"], "response": None, "error": None}
                if played is None:
                    line["error"] = {"code": "batch_expired", "message": "not in time"}
                else:
                    line["response"] = {"status_code": played[0], "body": played[1]}
                (good if played and played[0] == 200 else bad).append(json.dumps(line).encode() + b"\n")
            for key, lines in (("output_file_id", good[::-1]), ("error_file_id", bad)):
                batch[key] = self.file(b"".join(lines))[1]["id"] if lines else None
        return batch

    def asked(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def said(self) -> list[str]:
        """All questions that were paid for."""
        bodies = [one["body"] for batch in self.batches for one in self.asked(batch)] + self.singly
        return sorted(body["messages"][-1]["content"].partition("\n")[0] for body in bodies)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    playing = BatchServer()
    yield playing
    playing.http.shutdown()
    playing.http.server_close()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Endpoint.__init__
    monkeypatch.setattr(
        Endpoint, "__init__", lambda self, *ref, **how: made(self, *ref, **{"pause": 0.005, "timeout": 5.0, **how})
    )


def score(server: BatchServer, root: Path, said: list[str], log: list[str] | None = None, **how: Any) -> list[Any]:
    """What a pass of ``score`` does with a judge: the number of each row, None where there is none."""
    nobody: Any = None
    log = log if log is not None else []
    store = Store(root)
    judge = JudgeModel(ModelRef(f"openai:m@{server.url}"), store, nobody, Settings(judge_batch=True, **how))
    texts = Texts(pa.array(said, pa.large_string()), np.full(len(said), None, object), "")
    column = ColumnId(judge.fingerprint, TEXT, MEASURE)
    run_pass(judge.sweep(texts, (MEASURE,), log.append), texts.keys(), {MEASURE: column}, store)
    there = np.flatnonzero(~store.missing(column, texts.keys()))
    values = store.read(column, texts.keys()[there])
    found: list[Any] = [None] * len(said)
    for place, row in enumerate(there):
        found[row] = values[place].tolist()
    return found


ROWS = [f"row {i:02}" for i in range(12)]


def test_all_questions_but_the_first_go_into_one_batch(server: BatchServer, tmp_path: Path) -> None:
    log: list[str] = []
    server.play = lambda body, said: completion(f'{{"score": {int(said[-2:]) % 6}}}')
    assert score(server, tmp_path, ROWS, log) == [[i % 6] for i in range(12)]
    assert len(server.singly) == 1 and len(server.batches) == 1 and server.said() == ROWS
    first = server.asked(server.batches[0])[0]
    assert first["method"] == "POST" and first["url"] == "/v1/chat/completions"
    assert {key: first["body"][key] for key in ("model", "temperature", "max_tokens")} == {
        **{"model": "m", "temperature": 0.0, "max_tokens": 256}
    }
    assert "stream" not in first["body"] and first["body"]["response_format"]["type"] == "json_schema"
    assert any("batch batch_0: in_progress, questions: 11, answers: 0, failed: 0" in line for line in log)
    assert "12 rows answered" in log[-1] and "; 120 prompt and 24 completion tokens" in log[-1]
    assert score(server, tmp_path, ROWS) == [[i % 6] for i in range(12)] and len(server.batches) == 1


def test_a_file_has_its_limits(server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 4)
    assert score(server, tmp_path, ROWS) == [[3]] * 12
    assert [len(server.asked(one)) for one in server.batches] == [4, 4, 3]
    monkeypatch.setattr(batches, "MOST_BYTES", 3 * len(server.files["file-0"]) // 4 + 10)
    more = [f"now {i:02}" for i in range(6)]
    assert score(server, tmp_path, more) == [[3]] * 6
    assert [len(server.asked(one)) for one in server.batches[3:]] == [3, 2]
    assert server.said() == sorted([*ROWS, *more])


def test_an_answer_without_a_number_is_asked_again_in_a_batch(server: BatchServer, tmp_path: Path) -> None:
    server.play = lambda body, said: completion("2" if "row 05" not in said else "5" if body["temperature"] else "hm")
    assert score(server, tmp_path, ROWS) == [[5 if i == 5 else 2] for i in range(12)]
    assert [len(server.asked(one)) for one in server.batches] == [11, 1]
    assert '{"score": NUMBER}' in server.asked(server.batches[1])[0]["body"]["messages"][-1]["content"]


def test_what_a_server_refuses_by_name_is_left_out(server: BatchServer, tmp_path: Path) -> None:
    """The first question tells it, so that no batch is lost; a batch that is refused all the same is asked again."""

    def play(body: dict[str, Any], said: str) -> Reply:
        if "response_format" in body:
            return refusal(400, "response_format is not supported")
        if body.get("temperature") == 0 and len(server.batches) == 1:
            return refusal(400, "temperature is not supported")
        return completion("3")

    server.play = play
    assert score(server, tmp_path, ROWS) == [[3]] * 12
    assert len(server.singly) == 3 and [len(server.asked(one)) for one in server.batches] == [11, 11]
    assert "temperature" not in server.asked(server.batches[1])[0]["body"]


def test_rows_that_fail_have_a_reason_and_are_asked_by_the_next_run(server: BatchServer, tmp_path: Path) -> None:
    def play(body: dict[str, Any], said: str) -> Reply:
        bad = {"row 03": refusal(400, "too long"), "row 04": refusal(500, "oh"), "row 05": (200, {"choices": 7}, {})}
        return bad.get(said, None if said == "row 06" else completion("3"))

    log: list[str] = []
    server.play = play
    found = score(server, tmp_path, ROWS, log)
    assert [i for i, one in enumerate(found) if one is None] == [3, 4, 5, 6]
    assert "did not answer 4 rows (first: " in log[-1]
    server.play = lambda body, said: completion("4")
    assert score(server, tmp_path, ROWS) == [[4] if i in (3, 4, 5, 6) else [3] for i in range(12)]
    assert server.said() == sorted([*ROWS, *ROWS[3:7]])


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_a_batch_that_ends_early_keeps_what_was_answered(server: BatchServer, tmp_path: Path, end: str) -> None:
    server.ends = lambda looks: end
    server.play = lambda body, said: None if said > "row 08" else completion("3")
    with pytest.raises(EngineError) as error:
        score(server, tmp_path, [*ROWS, "row 00 is the longest"])
    assert str(error.value) == (
        f"batch batch_0 at {server.url} ended as '{end}' with answers to 9 of 12 questions, which are kept; run the "
        "same command again to ask the others, or without judge_batch to ask them one by one"
    )
    server.ends, server.play = lambda looks: "completed", lambda body, said: completion("4")
    assert score(server, tmp_path, ROWS) == [[3]] * 9 + [[4]] * 3
    assert server.said() == sorted([*ROWS, "row 00 is the longest", *ROWS[9:]])


def test_a_batch_that_fails_says_why(server: BatchServer, tmp_path: Path) -> None:
    server.ends = lambda looks: "failed"
    server.trouble = lambda call: (
        (200, {**server.batches[0], "status": "failed", "errors": {"data": [{"message": "Enqueued token limit"}]}}, {})
        if call == "GET /batches/batch_0"
        else None
    )
    with pytest.raises(EngineError, match=r"ended as 'failed' \(Enqueued token limit\) with answers to 0 of 11"):
        score(server, tmp_path, ROWS)
    server.trouble, server.ends = lambda call: None, lambda looks: "completed"
    assert score(server, tmp_path, ROWS) == [[3]] * 12


def test_a_batch_that_the_server_has_forgotten(server: BatchServer, tmp_path: Path) -> None:
    server.trouble = lambda call: refusal(404, "no such batch") if call == "GET /batches/batch_0" else None
    with pytest.raises(EngineError, match="ended as 'forgotten' with answers to 0 of 11 questions"):
        score(server, tmp_path, ROWS)
    assert score(server, tmp_path, ROWS) == [[3]] * 12


def test_a_server_without_the_batch_api_costs_nothing(server: BatchServer, tmp_path: Path) -> None:
    server.trouble = lambda call: refusal(404, "Not Found")
    with pytest.raises(EngineError) as error:
        score(server, tmp_path, ROWS)
    assert str(error.value) == (
        f"the judge's server at {server.url} has no batch API (GET /batches: 404); leave judge_batch out, or check the "
        "address, which often ends in /v1"
    )
    assert server.calls == ["GET /batches?limit=1"]
    server.trouble = lambda call: refusal(404, "Not Found") if call == "POST /files" else None
    with pytest.raises(EngineError, match=r"has no batch API \(POST /files: 404\)"):
        score(server, tmp_path, ROWS)


def test_calls_about_a_batch_are_made_again(server: BatchServer, tmp_path: Path) -> None:
    """Also the one that begins it, which a server may have done without saying so."""
    met: set[str] = set()

    def trouble(call: str) -> Reply:
        if call in met:
            return None
        met.add(call)
        if call == "POST /batches":
            server.answer(call, json.dumps(BEGIN | {"input_file_id": list(server.files)[-1]}).encode())
        return refusal(503, "busy")

    server.trouble = trouble
    log: list[str] = []
    assert score(server, tmp_path, ROWS, log) == [[3]] * 12
    assert server.said() == ROWS and sum("503 (busy); try" in line for line in log) >= 5


BEGIN = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def test_a_server_that_stays_away_ends_the_run_and_the_batch_is_taken_up(server: BatchServer, tmp_path: Path) -> None:
    server.trouble = lambda call: refusal(503, "busy") if call == "GET /batches/batch_0" else None
    with pytest.raises(
        EngineError, match=r"did not answer after 5 tries: 503 \(busy\); a batch that has begun goes on"
    ):
        score(server, tmp_path, ROWS)
    server.trouble, log = lambda call: None, list[str]()
    assert score(server, tmp_path, ROWS, log) == [[3]] * 12
    assert server.said() == ROWS and any("batch batch_0 was begun before and is taken up" in line for line in log)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from engine.test_batches import *
class At:
    url = sys.argv[2]
score(At, Path(sys.argv[3]), ROWS)
"""


@pytest.mark.parametrize("call", ["POST /batches", "GET /batches/batch_0", "GET /files/file-1/content"])
def test_a_kill_at_any_moment_pays_nothing_twice(server: BatchServer, tmp_path: Path, call: str) -> None:
    """The server begins a batch before the command that asked for it is killed."""
    reached, tests = threading.Event(), str(Path(__file__).parents[1])
    server.ends = lambda looks: "completed"

    def trouble(now: str) -> Reply:
        if now != call or reached.is_set():
            return None
        if call == "POST /batches":
            server.answer(now, json.dumps(BEGIN | {"input_file_id": list(server.files)[-1]}).encode())
        reached.set()
        time.sleep(2)
        return refusal(503, "too late")

    server.trouble = trouble
    run = subprocess.Popen([sys.executable, "-c", KILLED, tests, server.url, str(tmp_path)], env=os.environ)
    assert reached.wait(100)
    run.kill()
    run.wait()
    assert score(server, tmp_path, ROWS) == [[3]] * 12
    said = server.said()
    # The first question is a call of its own, whose answer may have been on its way to the disk.
    assert said[-len(ROWS) + 1 :] == ROWS[1:] and set(said[: -len(ROWS) + 1]) == {ROWS[0]}
    assert len(said) <= len(ROWS) + 1 and len(server.batches) == 1


def test_answers_outlive_a_kill_before_they_are_stored(server: BatchServer, tmp_path: Path) -> None:
    """The store of the second run knows nothing; what the batch gave lies beside it."""
    assert score(server, tmp_path, ROWS) == [[3]] * 12
    shutil.rmtree(tmp_path / "columns")
    (tmp_path / FILE).unlink()
    assert score(server, tmp_path, ROWS) == [[3]] * 12
    assert len(server.batches) == 1 and len(server.singly) == 2, "the first question was no part of it"
    (kept,) = (tmp_path / "batches").iterdir()
    assert not check(Store(tmp_path)).damaged
    lines = kept.read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b"score" in line)
    lines[place] = lines[place].replace(b"score", b"scorf")
    kept.write_bytes(b"".join(lines))
    assert [one.rows for one in check(Store(tmp_path)).damaged] == [1]
    shutil.rmtree(tmp_path / "columns")
    (tmp_path / FILE).unlink()
    assert score(server, tmp_path, ROWS) == [[3]] * 12
    assert len(server.singly) + len(server.asked(server.batches[0])) == 14, "a damaged answer is asked for again"
    old = time.time() - KEPT_FOR - 10
    os.utime(kept, (old, old))
    score(server, tmp_path, [*ROWS, "another"])
    assert not kept.exists()


def test_two_runs_at_once_share_a_batch(server: BatchServer, tmp_path: Path) -> None:
    """Also where one of them is about to begin it."""
    gate = threading.Event()
    server.ends = lambda looks: "completed" if gate.is_set() else "in_progress"
    server.trouble = lambda call: time.sleep(0.5) if call == "POST /batches" else None
    found: list[list[Any]] = []
    runs = [threading.Thread(target=lambda: found.append(score(server, tmp_path, ROWS))) for _ in range(3)]
    for one in runs:
        one.start()
    time.sleep(1.5)
    gate.set()
    for one in runs:
        one.join()
    assert found == [[[3]] * 12] * 3 and server.said() == ROWS


def test_a_record_outlives_a_torn_line(tmp_path: Path) -> None:
    records = BatchRecords(tmp_path)
    batch = records.add("u", "f", frozenset("ab"), {"format": 1})
    with batch.path.open("a") as file:
        file.write('{"batch": "to')
    batch.began("b1")
    batch.ended("completed", {"a": {"x": 1}})
    again = BatchRecords(tmp_path)
    again.refresh()
    assert list(again.batches.values()) == [batch] and again.answer("a") == {"x": 1} and again.answer("b") is None


def test_a_file_of_answers_may_be_anything(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LARGEST", 4000)
    server.ends = lambda looks: "completed"

    def trouble(call: str) -> Reply:
        if not call.endswith("/content"):
            return None
        (batch,) = server.batches
        names = [one["custom_id"] for one in server.asked(batch)]
        good = {"custom_id": names[0], "response": {"status_code": 200, "body": completion("3")[1]}}  # type: ignore[index]
        lines = [b"[]", b"\xff\xfe", b"[" * 3000, b"null", json.dumps({"custom_id": names[1], "response": 3}).encode()]
        lines += [json.dumps({"custom_id": names[2], "response": {"status_code": "200"}}).encode()]
        lines += [json.dumps({**good, "custom_id": names[3], "pad": "x" * 5000}).encode()]
        lines += [json.dumps({**good, "custom_id": "nobody"}).encode(), json.dumps(good).encode()]
        return 200, b"\n".join(lines), {}

    server.trouble = trouble
    found = score(server, tmp_path, ROWS)
    assert sum(one == [3] for one in found) == 2 and sum(one is None for one in found) == 10
    server.trouble = lambda call: (200, b"x\n" * 100, {}) if call.endswith("/content") else None
    with pytest.raises(EngineError, match="does not give the answers of a batch: its file of answers has no end"):
        score(server, tmp_path, ROWS)


def test_verdicts_of_an_evaluation(server: BatchServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    author: Any = None
    subject = Subject("mine", ModelRef("mine"), Settings(), store, tmp_path / "answers", author, print, Quiet())
    asked = [JudgeRequest(f"compare {i}", i % 2) for i in range(6)]
    server.play = lambda body, said: completion("hm" if said.startswith("compare 4") else "9 1")
    judge = LLMJudge(f"openai:m@{server.url}", subject, Waits(pause=0.005), batch=True)
    found = judge.ask(PAIR, asked, "t")
    assert [one.reason for one in found] == [None] * 4 + ["unparsable", None]
    assert [len(server.asked(one)) for one in server.batches] == [5, 1, 1]
    assert LLMJudge(f"openai:m@{server.url}", subject, Waits(), batch=True).ask(PAIR, asked, "t") == found
    assert len(server.batches) == 3


def test_a_model_of_this_machine_has_no_batch(tmp_path: Path) -> None:
    nobody: Any = None
    with pytest.raises(ConfigError, match="judge_batch is for a server, and 'some/where' is a model of this machine"):
        JudgeModel(ModelRef("some/where"), Store(tmp_path), nobody, Settings(judge_batch=True))
