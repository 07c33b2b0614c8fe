"""Several processes give what one gives, also when some of them die."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import PLAIN, Counting, Lab, some_rows
from instdiff.core import ModelRef, Nll, Settings
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.distributed.hosts import make_model_host
from instdiff.engine.distributed.workers import Workers, runs
from instdiff.engine.models import Resident
from instdiff.engine.sources import resolve
from instdiff.errors import EngineError, StoreError
from instdiff.methods import IFD, InstructDiff, Perplexity
from instdiff.rendering.renderer import Rows
from instdiff.scoring.planner import plan
from instdiff.scoring.run_pass import IN_FLIGHT, run_pass
from instdiff.scoring.scorer import Workbench
from instdiff.store import ColumnId, Store

ROWS = some_rows(120, seed=5)
CPU = torch.device("cpu")


def workers_of(parent: int) -> list[int]:
    """Its worker processes that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(state[1]) == parent and state[0] != "Z" and b"instdiff.engine.distributed.worker" in command:
                found.append(int(entry.name))
    return found


@contextmanager
def killing(pauses: Iterator[float]) -> Iterator[list[int]]:
    """Kill one of this process's workers after each pause, in a thread; gives the number of those killed."""
    killed, stop = list[int](), threading.Event()

    def work() -> None:
        for pause in pauses:
            if stop.wait(pause):
                return
            if there := workers_of(os.getpid()):
                killed.append(random.choice(there))
                os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def same(table: Any, clean: Any) -> None:
    for name in clean:
        assert table[name].reason.tolist() == clean[name].reason.tolist()
        for detail, values in clean[name].details.items():
            np.testing.assert_allclose(table[name].details[detail], values, rtol=1e-5, atol=1e-5, err_msg=detail)
        assert table[name].best().tolist() == clean[name].best().tolist()


# ── the same numbers ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_as_one_process(lab: Lab, workers: int) -> None:
    one, several = Counting(), Counting()
    clean = lab.score(ROWS, [InstructDiff(), IFD()], progress=one)
    said: list[str] = []
    table = lab.score(
        ROWS, [InstructDiff(), IFD()], workers=workers, batch_tokens=500, progress=several, log=said.append
    )
    same(table, clean)
    assert (several.rows, several.tokens, several.labels) == (one.rows, one.tokens, one.labels)
    assert said == []
    assert workers_of(os.getpid()) == []


def test_a_model_is_loaded_once_and_processes_are_kept(lab: Lab) -> None:
    rows = load(ROWS[:40])
    store = lab.store()
    bench = Workbench(
        rows,
        {role: ModelRef(str(lab.models[name])) for role, name in (("base", "llama"), ("calibrated", "other"))},
        Settings(**{**PLAIN, "workers": 2, "batch_tokens": 100}),
        store,
    )
    assert isinstance(bench.resident, Workers)
    (wave,) = plan(signal for method in (IFD(), InstructDiff()) for signal in method.signals().values())
    at_work = []
    for step in bench.order(wave):
        bench.run(step, Counting())
        at_work.append(sorted(workers_of(os.getpid())))
    assert len(wave) == 3 and len(at_work[0]) == 2 and at_work[0] == at_work[1] == at_work[2]
    bench.close()
    assert workers_of(os.getpid()) == []
    clean = lab.score(ROWS[:40], [IFD()])
    same(lab.score(ROWS[:40], [IFD()], store=store), clean)


def test_little_work_starts_few_processes_and_none_starts_none(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    store, started, start = lab.store(), list[int](), Workers._start

    def counted(self: Workers) -> Any:
        started.append(1)
        return start(self)

    monkeypatch.setattr(Workers, "_start", counted)
    for _ in range(2):
        lab.score(ROWS[:3], [Perplexity()], workers=64, store=store)
    assert len(started) == 1


def test_runs_hold_every_row_once_and_neighbours_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ids = Ragged.of([np.r_[np.full(20, i % 7), rng.integers(0, 9, rng.integers(1, 60))] for i in range(500)], np.int32)
    rows = Rows(ids, np.ones(len(ids.values), bool), np.zeros(500, bool), np.full(500, None, object))
    dealt = list(runs(rows, 300, 3))
    assert sorted(np.concatenate([run.at for run in dealt]).tolist()) == list(range(500))
    tokens = [int(ids.lengths()[run.at].sum()) for run in dealt]
    assert tokens[0] <= sum(tokens) / 6 + 80 and max(tokens[-3:]) <= 300 + 80
    assert sum(tokens[i] < tokens[i + 1] - 80 for i in range(len(tokens) - 1)) == 0  # they only get shorter
    firsts = [int(ids[int(row)][0]) for run in dealt for row in run.at]
    assert firsts == sorted(firsts)
    monkeypatch.setattr("instdiff.engine.distributed.workers.BLOCK", 90)
    assert sorted(row for run in runs(rows, 300, 3) for row in run.at.tolist()) == list(range(500))


def test_where_models_go() -> None:
    assert isinstance(make_model_host(Settings(), CPU, torch.float32), Resident)
    assert isinstance(make_model_host(Settings(workers=1), CPU, torch.float32), Resident)
    two = make_model_host(Settings(workers=2), CPU, torch.float32)
    assert isinstance(two, Workers) and (two.count, two.devices, two.dtype) == (2, ["cpu"], "float32")


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [
        ("auto", None, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", None, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:1", 2, ["cuda:1"]),
        ("cuda:1", None, None),
    ],
)
def test_where_models_go_with_three_gpus(
    device: str, workers: int | None, expected: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    picked = torch.device("cuda:0" if device == "auto" else device)
    there = make_model_host(Settings(device=device, workers=workers), picked, torch.bfloat16)
    assert (there.devices if isinstance(there, Workers) else None) == expected
    if isinstance(there, Workers):
        assert there.count == (workers or 3)


def test_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # a user's own choice stays
    found = Workers(3, ["cpu"], torch.float32)._environment()
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"], found["KMP_BLOCKTIME"]) == ("5", "ACTIVE", "0")


# ── deaths ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Killing(Counting):
    """Kills a worker each time that another batch has come back, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    @contextmanager
    def task(self, label: str, **facts: Any) -> Iterator[Any]:
        with super().task(label, **facts) as advance:

            def more(rows: int, tokens: int) -> None:
                advance(rows, tokens)
                there = workers_of(os.getpid())
                if self.left and there:
                    self.left -= 1
                    os.kill(random.choice(there), signal.SIGKILL)

            yield more


def killed_and_compared(lab: Lab, times: int) -> None:
    clean_count, count, said = Counting(), Killing(times), list[str]()
    clean = lab.score(ROWS, [Perplexity()], progress=clean_count)
    table = lab.score(ROWS, [Perplexity()], workers=2, batch_tokens=200, progress=count, log=said.append)
    same(table, clean)
    assert count.left == 0
    assert (count.rows, count.tokens) == (clean_count.rows, clean_count.tokens)  # none lost, none doubled
    # One that was killed after its last batch is not missed.
    assert 1 <= len(said) <= times
    for line in said:
        assert line.startswith("a worker process died (SIGKILL) and is replaced; the ")
        assert line.endswith(" rows that it had are done again")
    assert workers_of(os.getpid()) == []


def test_killed_workers_are_replaced(lab: Lab) -> None:
    killed_and_compared(lab, 2)


@pytest.mark.slow
def test_workers_killed_at_twenty_random_moments(lab: Lab) -> None:
    clean_count, clean = Counting(), None
    clean = lab.score(ROWS, [IFD()], progress=clean_count)
    deaths = 0
    for moment in np.random.default_rng(0).uniform(0, 8, 20).tolist():
        count, said = Counting(), list[str]()
        with killing(iter([moment])) as killed:
            table = lab.score(ROWS, [IFD()], workers=2, batch_tokens=50, progress=count, log=said.append)
        same(table, clean)
        assert (count.rows, count.tokens) == (clean_count.rows, clean_count.tokens)
        assert len(said) <= len(killed)
        deaths += len(said)
    assert deaths >= 5


def test_workers_that_always_die_are_an_error(lab: Lab) -> None:
    said: list[str] = []
    message = r"^3 worker processes died one after another over the same \d+ rows \(the last: SIGKILL\); where memory "
    with killing(iter(lambda: 0.02, None)), pytest.raises(EngineError, match=message):
        lab.score(ROWS, [IFD()], workers=2, log=said.append)
    assert 2 <= len(said) <= 4
    assert workers_of(os.getpid()) == []


def test_a_worker_that_cannot_start_is_an_error(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    message = r"^a worker process could not start \(exit code 1\); what it said is above; use --workers 1$"
    with pytest.raises(EngineError, match=message):
        lab.score(ROWS, [IFD()], workers=2)


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_users_error_in_a_worker_is_that_error(lab: Lab, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in lab.models["llama"].iterdir():
        (broken / file.name).write_bytes(
            file.read_bytes()[:2000] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(EngineError) as one:
        lab.score(ROWS[:9], [Perplexity()], base=broken)
    with pytest.raises(EngineError) as two:
        lab.score(ROWS[:9], [Perplexity()], base=broken, workers=2)
    assert str(one.value) == str(two.value) and "cannot load model" in str(two.value)
    assert workers_of(os.getpid()) == []


def test_a_bug_in_a_worker_shows_its_traceback_and_the_processes_go_on(lab: Lab, tmp_path: Path) -> None:
    source = resolve(ModelRef(str(lab.models["llama"])))
    team = Workers(2, ["cpu"], torch.float32)
    good = Rows(Ragged.of([[5, 6, 7]], np.int32), np.array([False, True, True]), np.zeros(1, bool), np.array([None]))
    bad = Rows(Ragged.of([[5, -6]], np.int32), np.array([False, True]), np.zeros(1, bool), np.array([None]))
    columns = {Nll(): ColumnId("m", "float32", Nll())}
    keys = np.array([b"0123456789abcdef"])
    try:
        with pytest.raises(RuntimeError, match=r"(?s)^a worker process failed:\nTraceback .*Error"):
            run_pass(team.sweep(source, bad, (Nll(),), print), keys, columns, Store(tmp_path))
        assert run_pass(team.sweep(source, good, (Nll(),), print), keys, columns, Store(tmp_path)) == set()
        assert Store(tmp_path).read(columns[Nll()], keys).count().tolist() == [2]
    finally:
        team.close()


def test_an_error_of_writing_is_raised_and_the_rest_is_written(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    append, calls, store = Store.append, list[int](), lab.store()

    def failing(self: Store, column: Any, keys: Any, values: Any) -> None:
        calls.append(len(keys))
        if len(calls) == 3:
            raise StoreError("the disk is full")
        append(self, column, keys, values)

    monkeypatch.setattr(Store, "append", failing)
    with pytest.raises(StoreError, match="the disk is full"):
        lab.score(ROWS, [Perplexity()], batch_tokens=1, store=store)
    assert 3 <= len(calls) <= 4 + IN_FLIGHT
    monkeypatch.setattr(Store, "append", append)
    count = Counting()
    same(lab.score(ROWS, [Perplexity()], store=store, progress=count), lab.score(ROWS, [Perplexity()]))
    assert count.rows == len(ROWS) - (len(calls) - 1)
