"""Several processes on one store do not compute the same rows."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from instdiff.core import Judged, ModelRef, Settings
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine.text.models import TEXT, JudgeModel
from instdiff.rendering.texts import Texts
from instdiff.scoring.run_pass import run_pass
from instdiff.store import ColumnId, Store
from instdiff.store.claims import FILE, Claims
from judging import Reply, Server, completion

MEASURE = Judged(0, 5)
COLUMN = ColumnId("model", "text", MEASURE)
KEYS = np.array([bytes([65 + i]) * 16 for i in range(4)], "S16")


def claims(root: Path, log: list[str] | None = None, **options: Any) -> Claims:
    return Claims.of_columns(Store(root), [COLUMN], KEYS, (log if log is not None else []).append, **options)


def test_a_row_is_one_process_s_until_it_gives_it_up(tmp_path: Path) -> None:
    ours, theirs = claims(tmp_path), claims(tmp_path)
    assert ours.take(0) is True and theirs.take(0) is False and theirs.take(1) is True
    assert ours.take(0) is True, "the same process may ask again"
    ours.free(0)
    assert theirs.take(0) is True and ours.take(0) is False
    theirs.close()
    assert ours.take(0) is True and ours.take(1) is True
    ours.close()


def test_a_row_that_the_store_has_is_nobody_s(tmp_path: Path) -> None:
    ours, theirs = claims(tmp_path), claims(tmp_path)
    assert ours.take(0) is True
    Store(tmp_path).append(COLUMN, KEYS[:1], Ragged.of([[3.0]], np.float32))
    ours.done(0)
    ours.close()
    assert theirs.take(0) is None
    assert claims(tmp_path).take(0) is None


def test_what_was_computed_stays_claimed_until_the_store_has_it(tmp_path: Path) -> None:
    """Values are written in the background: between the two nobody may begin again."""
    ours, theirs = claims(tmp_path), claims(tmp_path)
    ours.take(0)
    ours.done(0)
    ours.close()
    assert theirs.take(0) is False


def test_a_claim_that_is_not_renewed_is_void(tmp_path: Path) -> None:
    ours, theirs = claims(tmp_path, lease=0.2), claims(tmp_path)
    assert ours.take(0) is True and ours.take(1) is True
    ours.lease = 60.0
    ours.renew()
    time.sleep(0.25)
    assert theirs.take(0) is False
    ours.lease = 0.01
    ours.renew()
    time.sleep(0.05)
    assert theirs.take(0) is True and theirs.take(1) is True


def test_the_claims_of_a_killed_process_are_void_for_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from store.test_claims import *; "
        "assert claims(Path(sys.argv[1])).take(0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    tests = str(Path(__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), tests], env=os.environ)
    assert killed.returncode == -9
    assert claims(tmp_path).take(0) is True


@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_a_file_that_cannot_be_used_is_said_and_stops_nothing(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / FILE).mkdir() if content is None else (tmp_path / FILE).write_bytes(content)
    log: list[str] = []
    ours = claims(tmp_path, log)
    assert ours.take(0) is True and ours.take(1) is True
    ours.renew()
    ours.free(0)
    ours.close()
    assert len(log) == 1 and f"'{tmp_path / FILE}' cannot be used" in log[0]


def test_a_file_that_breaks_meanwhile_stops_nothing(tmp_path: Path) -> None:
    log: list[str] = []
    ours = claims(tmp_path, log)
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("DROP TABLE claims")
    assert ours.take(0) is True and len(log) == 1
    ours.close()


# ── judges ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    yield playing
    playing.close()


def score(server: Server, root: Path, said: list[str], log: list[str], **how: Any) -> None:
    """What a pass of ``score`` does with a judge."""
    nobody: Any = None
    ref, store = ModelRef(f"openai:m@{server.url}"), Store(root)
    judge = JudgeModel(ref, store, nobody, Settings(judge_concurrency=4, **how))
    texts = Texts(pa.array(said, pa.large_string()), np.full(len(said), None, object), "")
    columns = {MEASURE: ColumnId(judge.fingerprint, TEXT, MEASURE)}
    run_pass(judge.sweep(texts, (MEASURE,), log.append), texts.keys(), columns, store)
    assert not store.missing(columns[MEASURE], texts.keys()).any()


def test_several_runs_at_once_pay_each_question_once(server: Server, tmp_path: Path) -> None:
    """Also one that the judge has to be asked twice."""

    def play(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.01)
        said = body["messages"][-1]["content"]
        return completion("hm" if said == "row 7" else '{"score": 3}')

    server.play = play
    said, log = [f"row {i}" for i in range(60)], list[str]()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            score(server, tmp_path, said, log)
        except BaseException as error:
            failed.append(error)
            raise

    runs = [threading.Thread(target=run) for _ in range(4)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert not failed
    asked = [body["messages"][-1]["content"] for body in server.bodies]
    assert len(asked) == 61 and set(said) <= set(asked)


def test_a_run_waits_for_a_row_that_another_one_asks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instdiff.engine.text import endpoint

    monkeypatch.setattr(endpoint, "LOOK_AGAIN", 0.02)
    monkeypatch.setattr(endpoint, "TELL_EVERY", 0.1)
    server.play = lambda body, number: completion("3") if server.released.wait(0.5) or True else None
    first, log = list[str](), list[str]()
    slow = threading.Thread(target=score, args=(server, tmp_path, ["a", "b"], first))
    slow.start()
    while len(server.bodies) < 2:
        time.sleep(0.01)
    score(server, tmp_path, ["a", "b", "c"], log)
    slow.join()
    assert len(server.bodies) == 3
    assert any("asked by other processes: 2" in line for line in log)


def test_what_a_pass_could_not_ask_is_free(server: Server, tmp_path: Path) -> None:
    from instdiff.errors import EngineError

    server.play = lambda body, number: (401, "no", {})
    with pytest.raises(EngineError):
        score(server, tmp_path, ["a"], [])
    server.play = lambda body, number: completion("3")
    score(server, tmp_path, ["a"], [])
    assert len(server.bodies) == 2
