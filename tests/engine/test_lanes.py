"""Several batches at once: the numbers, their order and what goes wrong are those of one after another."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Lab, causal, some_rows
from instdiff.core import Entropy, Measure, Neurons, Nll, Noisy, Pooled, Prompted, Top1, View
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.batch import Batch
from instdiff.engine.forward import Forward
from instdiff.engine.lanes import MOST, lanes_of, twin
from instdiff.engine.prefix_tree import LEAST_EVEN
from instdiff.engine.sweep import BatchResult, Sweep, default_batch_tokens
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import EngineError
from instdiff.rendering.renderer import Renderer, Rows
from instdiff.rendering.templates import template

MEASURES: tuple[Measure, ...] = (Nll(), Entropy(), Top1(), Pooled("mean", 0), Neurons(1))


def quiet(line: str) -> None: ...


def rows_of(lab: Lab, name: str, view: View | None = None, count: int = 24) -> Rows:
    tokenizer = HFTokenizer(lab.tokenizer(name), 180)
    return Renderer(load(some_rows(count, seed=5)), tokenizer).rows(view or Prompted(), template("alpaca"), 180)


@pytest.mark.parametrize("packs", [None, False], ids=["packed", "padded"])
@pytest.mark.parametrize("view", [Prompted(), Noisy(Prompted(), 0)], ids=["clean", "noisy"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_same_numbers_in_the_same_order(
    lab: Lab, models: dict[str, Path], name: str, view: View, packs: bool | None
) -> None:
    def swept(lanes: int) -> list[BatchResult]:
        sweep = Sweep(causal(models[name]), quiet, 400, lanes)
        sweep.forward.packs = packs
        found = list(sweep(rows, MEASURES))
        assert len(sweep.lanes.forwards) == lanes and all(one.forwards for one in sweep.lanes.forwards)
        return found

    rows = rows_of(lab, name, view)
    for one, other in zip(swept(1), swept(3), strict=True):
        assert one.at.tolist() == other.at.tolist() and (one.tokens, one.budget) == (other.tokens, other.budget)
        for measure in MEASURES:
            np.testing.assert_allclose(other.columns[measure].values, one.columns[measure].values, rtol=1e-6, atol=1e-7)


def test_batches_are_computed_at_once(lab: Lab, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batches of two lanes wait for each other, which would never end if one followed the other."""
    meeting, met, call = threading.Barrier(2, timeout=30), set[str](), Forward.__call__

    def meets(self: Forward, batch: Batch, measures: Any) -> Any:
        thread = threading.current_thread()
        if thread is not threading.main_thread() and thread.name not in met:
            met.add(thread.name)
            meeting.wait()
        return call(self, batch, measures)

    monkeypatch.setattr(Forward, "__call__", meets)
    assert len(list(Sweep(causal(models["llama"]), quiet, 400, 2)(rows_of(lab, "llama"), (Nll(),)))) > 3
    assert met == {"lane_0", "lane_1"}


def test_weights_are_shared_and_hooks_are_not(models: dict[str, Path]) -> None:
    forward = Forward(causal(models["llama"]), quiet)
    other = twin(forward)
    assert other.model is not forward.model and other.backbone is other.model.model
    for (name, mine), (_, its) in zip(forward.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert its is mine, name
    handle = other.model.model.layers[0].register_forward_hook(lambda *args: None)
    assert not forward.model.model.layers[0]._forward_hooks
    handle.remove()


def test_out_of_memory_in_a_lane(lab: Lab, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, said = rows_of(lab, "llama"), list[str]()
    plain = {int(row): part.columns[Nll()][at] for part in Sweep(causal(models["llama"]), quiet, 400)(rows, (Nll(),))
             for at, row in enumerate(part.at)}  # fmt: skip
    call = Forward.__call__

    def scarce(self: Forward, batch: Batch, measures: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and batch.ids.size > 200:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return call(self, batch, measures)

    monkeypatch.setattr(Forward, "__call__", scarce)
    sweep, seen = Sweep(causal(models["llama"]), said.append, 400, 2), list[int]()
    for part in sweep(rows, (Nll(),)):
        for at, row in enumerate(part.at.tolist()):
            seen.append(row)
            np.testing.assert_allclose(part.columns[Nll()][at], plain[row], rtol=1e-5, atol=1e-6)
    assert sorted(seen) == list(range(len(rows))) and sweep.batch_tokens == 200
    assert [line.partition(":")[0] for line in said] == ["out of memory with batches of 400 tokens"]


def test_a_row_that_fits_alone_is_computed_alone(
    lab: Lab, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, said, running, call = rows_of(lab, "llama"), list[str](), list[int](), Forward.__call__
    entered = threading.Lock()

    def scarce(self: Forward, batch: Batch, measures: Any) -> Any:
        with entered:
            running.append(1)
            crowded = len(running) > 1
        try:
            time.sleep(0.02)
            if crowded:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return call(self, batch, measures)
        finally:
            with entered:
                running.pop()

    monkeypatch.setattr(Forward, "__call__", scarce)
    sweep = Sweep(causal(models["llama"]), said.append, 1, 2)
    assert sorted(row for part in sweep(rows, (Nll(),)) for row in part.at.tolist()) == list(range(len(rows)))
    assert sweep.lanes.count == 1 and not said


@pytest.mark.parametrize("own", [False, True], ids=["fast head", "own head"])
def test_a_head_is_chosen_once(lab: Lab, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """Though hidden states were read in lanes before there was anything to choose."""
    rows, said, chosen, choose = rows_of(lab, "llama"), list[str](), list[str](), Forward._choose_head

    def chooses(self: Forward, batch: Batch) -> None:
        chosen.append(threading.current_thread().name)
        choose(self, batch)
        if own:
            self.fast = False

    monkeypatch.setattr(Forward, "_choose_head", chooses)
    sweep = Sweep(causal(models["llama"]), said.append, 400, 3)
    list(sweep(rows, (Pooled("mean", 0),)))
    assert len(sweep.lanes.forwards) == 3 and not chosen
    before = sweep.lanes.tokens
    plain = {int(row): part.columns[Nll()][at] for part in Sweep(causal(models["llama"]), quiet, 400)(rows, (Nll(),))
             for at, row in enumerate(part.at)}  # fmt: skip
    chosen.clear()
    for part in sweep(rows, (Nll(),)):
        for at, row in enumerate(part.at.tolist()):
            np.testing.assert_allclose(part.columns[Nll()][at], plain[row], rtol=1e-5, atol=1e-6)
    assert chosen == ["MainThread"] and sweep.lanes.tokens == 2 * before
    assert len(sweep.lanes.forwards) == (1 if own else 3)  # all logits in memory are enough once


def test_an_error_in_a_lane_is_raised(lab: Lab, models: dict[str, Path]) -> None:
    rows = rows_of(lab, "llama")
    ids = rows.ids.values.copy()
    ids[rows.ids.offsets[3]] = 40_000
    broken, seen = Rows(Ragged(ids, rows.ids.offsets), rows.target, rows.truncated, rows.reason), 0
    with pytest.raises(EngineError, match="token id 40000 is outside the model's"):
        for part in Sweep(causal(models["llama"]), quiet, 400, 2)(broken, (Nll(),)):
            seen += len(part.at)
    assert 0 < seen < len(rows)


def test_whoever_stops_early_leaves_nothing_at_work(lab: Lab, models: dict[str, Path]) -> None:
    before, rows = torch.get_num_threads(), rows_of(lab, "llama", count=60)
    sweep = Sweep(causal(models["llama"]), quiet, 400, 2)
    batches: Iterator[BatchResult] = sweep(rows, (Nll(),))
    for _ in range(3):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert sweep.lanes.tokens < rows.ids.lengths().sum() / 2 and torch.get_num_threads() == before
    assert sum(part.tokens for part in sweep(rows, (Nll(),))) == rows.ids.lengths().sum()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("lane")]
    assert len(threads) == 2
    del sweep, batches
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_one_batch_has_all_threads(lab: Lab, models: dict[str, Path]) -> None:
    sweep, rows = Sweep(causal(models["llama"]), quiet, 100_000, 2), rows_of(lab, "llama").take(np.arange(4))
    assert rows.ids.lengths().sum() < 2 * LEAST_EVEN  # more would be a batch for each lane
    for _ in range(2):
        assert len(list(sweep(rows, (Nll(),)))) == 1
    assert len(sweep.lanes.forwards) == 1 and sweep.lanes.tokens == sweep.forward.tokens


def test_a_model_that_cannot_be_copied_has_one_lane(lab: Lab, models: dict[str, Path]) -> None:
    model, rows = causal(models["llama"]), rows_of(lab, "llama")
    model.lock = threading.Lock()
    sweep = Sweep(model, quiet, 400, 2)
    assert sorted(row for part in sweep(rows, (Nll(),)) for row in part.at.tolist()) == list(range(len(rows)))
    assert sweep.lanes.count == 1


def test_a_model_over_several_devices_has_one_lane(lab: Lab, models: dict[str, Path]) -> None:
    model, rows = causal(models["llama"]), rows_of(lab, "llama")
    model.hf_device_map = {"": 0}
    sweep = Sweep(model, quiet, 400, 2)
    assert sorted(row for part in sweep(rows, (Nll(),)) for row in part.at.tolist()) == list(range(len(rows)))
    assert len(sweep.lanes.forwards) == 1


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for threads, count, tokens in ((1, 1, 4096), (2, 2, 4096), (3, 3, 2048), (64, MOST, 1024)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert lanes_of(cpu) == count and lanes_of(torch.device("cuda")) == 2
        assert default_batch_tokens("cpu") == tokens and default_batch_tokens("cuda") == 32768
