"""What long steps tell: speed, rows, time left, cached share, tokens of a batch; in a bar, in lines, as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from helpers import Counting, Lab, some_rows
from instdiff.cli.console import Console
from instdiff.core.progress import Meter, Quiet, Recorded, learnt, tell_budget, tell_skipped
from instdiff.engine.forward import Forward
from instdiff.methods import Perplexity


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which goes on when a test says so."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def half_done(console: Console, clock: list[float]) -> None:
    """Half of ten rows in twelve seconds, and the rest in twelve more."""
    with console.task("nll", rows=10, tokens=1000, cached=30) as advance:
        console.budget(8192)
        clock[0] += 12
        advance(5, 480)
        console.budget(4096)
        clock[0] += 3  # too soon for another line
        advance(1, 120)
        clock[0] += 9
        advance(4, 400)


LINES = [
    "nll: 5/10 rows  40 tok/s  ETA 12 s  75% cached, batches of 8,192 tokens",
    "nll: 10/10 rows  42 tok/s  ETA 0 s  75% cached, batches of 4,096 tokens",
    "nll: 10 rows, 1,000 tokens in 24 s (42 tok/s), 75% cached, batches of 4,096 tokens",
]


def test_plain_lines(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    half_done(Console(), clock)
    assert capsys.readouterr().err.splitlines() == LINES


def test_lines_as_json(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    half_done(Console(as_json=True), clock)
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in found] == LINES
    assert found[0] == {
        "message": LINES[0], "step": "nll", "rows": 5, "of": 10, "tokens": 480, "of_tokens": 1000, "tokens_per_s": 40,
        "seconds": 12.0, "eta_s": 12, "cached": 30, "cached_share": 0.75, "batch_tokens": 8192,
    }  # fmt: skip
    assert (found[2]["rows"], found[2]["eta_s"], found[2]["batch_tokens"]) == (10, 0, 4096)


def test_a_bar(clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    console = Console()
    console.terminal = True
    half_done(console, clock)
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("nll ") and "10/10 rows  42 tok/s  ETA" in shown
    assert shown.rstrip().endswith("75% cached, batches of 4,096 tokens")


def test_quiet_says_nothing_and_what_is_cached_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    quiet, console = Console(quiet=True), Console()
    with quiet.task("nll", rows=1, tokens=1) as advance:
        quiet.budget(7)
        advance(1, 1)
    for one in (quiet, console, console):
        one.skipped("nll", cached=1200)
    assert capsys.readouterr().err == "nll: all 1,200 rows cached\n"


def test_what_is_left_goes_by_rows_where_tokens_are_bounded_or_not_counted(clock: list[float]) -> None:
    answers, programs, nothing = Meter(10, 10_000), Meter(4, 0), Meter(0, 0, 5)
    assert answers.left is None and answers.share == 0.0
    clock[0] += 10
    answers.add(5, 100)  # answers ended early
    programs.add(1, 0)
    assert (answers.share, answers.left) == (0.5, 10.0)
    assert (programs.share, programs.left) == (0.25, 30.0)
    assert (nothing.share, nothing.cached_share) == (1.0, 1.0)


def test_what_passes_came_to_is_kept(clock: list[float]) -> None:
    shown = Counting()
    seen = Recorded(shown)
    with seen.task("a", rows=2, tokens=30, cached=1) as advance:
        seen.budget(64)
        clock[0] += 3
        advance(2, 30)
    seen.skipped("b", cached=4)
    with pytest.raises(KeyboardInterrupt), seen.task("c", rows=1, tokens=1):
        raise KeyboardInterrupt
    assert (shown.rows, shown.tokens, shown.cached, shown.labels) == (2, 30, 1, ["a", "c"])
    a = {"label": "a", "rows": 2, "tokens": 30, "cached": 1, "seconds": 3.0, "tokens_per_s": 10, "batch_tokens": 64}
    b = {"label": "b", "rows": 0, "tokens": 0, "cached": 4, "seconds": 0.0, "tokens_per_s": None, "batch_tokens": None}
    assert seen.facts() == {
        "rows": 2, "tokens": 30, "cached": 5, "seconds": 3.0, "tokens_per_s": 10, "passes": [a, b]
    }  # fmt: skip
    assert Recorded(shown).facts() == {}
    tell_budget(Quiet(), 5)
    tell_skipped(Quiet(), "b", 4)


def test_what_a_training_learnt_by_its_record() -> None:
    how = {"num_train_epochs": 3.0, "global_batch_size": 4}
    record = {"settings": how, "rows": 8, "steps": 6, "target_tokens": 100, "wall_s": 2.0, "resumed_at": 0}
    assert learnt(record) == {"tokens": 300, "seconds": 2.0, "tokens_per_s": 150}
    assert learnt({**record, "settings": {**how, "max_steps": 6}, "resumed_at": 2}) == {
        "tokens": 300, "seconds": 2.0, "tokens_per_s": None
    }  # fmt: skip


class Watching(Counting):
    """Keeps the tokens of each batch, and the steps that had nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets: list[int] = []
        self.nothing: list[tuple[str, int]] = []

    @contextmanager
    def task(self, label: str, **facts: Any) -> Iterator[Any]:
        with super().task(label, **facts) as advance:
            yield advance

    def budget(self, tokens: int) -> None:
        self.budgets.append(tokens)

    def skipped(self, label: str, *, cached: int) -> None:
        self.nothing.append((label, cached))


def test_a_sweep_tells_its_budget_also_when_memory_is_short(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = Forward.__call__, list[int]()

    def scarce(self: Forward, batch: Any, measures: Any) -> Any:
        calls.append(batch.ids.size)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, measures)

    monkeypatch.setattr(Forward, "__call__", scarce)
    store, seen = lab.store(), Watching()
    lab.score(some_rows(40), [Perplexity()], store=store, batch_tokens=900, progress=seen)
    assert seen.budgets[0] == 900 and set(seen.budgets[1:]) == {450} and seen.nothing == []
    again = Watching()
    lab.score(some_rows(40), [Perplexity()], store=store, progress=again)
    assert (again.nothing, again.budgets, again.labels) == ([("base · prompted", 40)], [], [])


def test_no_stage_is_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.stage("reading my.jsonl")
    for seconds in (0.5, 0.6, 10, 19, 2, 29, 2):  # told after a second, and after each half minute without news
        clock[0] += seconds
        console.beat()
    console.stage("preparing models")
    console.beat()
    clock[0] += 2
    console.beat()
    console.log("news")
    clock[0] += 29
    console.beat()
    clock[0] += 1
    console.beat()
    assert capsys.readouterr().err.splitlines() == [
        "reading my.jsonl …",
        "reading my.jsonl: still at work after 32.1 s",
        "reading my.jsonl: still at work after 1.05 min",
        "preparing models …",
        "news",
        "preparing models: still at work after 32 s",
    ]
    quiet = Console(quiet=True)
    quiet.stage("x")
    clock[0] += 60
    quiet.beat()
    assert capsys.readouterr().err == ""


def test_nothing_is_drawn_after_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    console = Console()
    console.terminal = True
    with console.task("nll", rows=10, tokens=1000) as advance:
        console.end()
        assert "nll" in capsys.readouterr().err
        advance(5, 480)
        clock[0] += 40
        console.beat()
    half_done(console, clock)
    assert capsys.readouterr().err.strip() == ""
