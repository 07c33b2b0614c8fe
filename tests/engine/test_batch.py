"""Batches: every row once, longest first, within the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import Lab, some_rows
from instdiff.engine import sweep
from instdiff.engine.batch import EVEN, Batch, batches
from instdiff.engine.forward import Forward
from instdiff.methods import IFD


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 200))
def test_batches(lengths: list[int], budget: int) -> None:
    parts = [part.tolist() for part in batches(np.array(lengths, np.int64), budget)]
    assert sorted(at for part in parts for at in part) == list(range(len(lengths)))
    flat = [lengths[at] for part in parts for at in part]
    assert flat == sorted(lengths, reverse=True)
    for part in parts:
        assert len(part) * lengths[part[0]] <= budget or len(part) == 1


def test_a_batch_is_padded_on_the_right() -> None:
    rows = [([5, 6, 7], [False, True, True]), ([9], [False]), ([8, 4], [False, True])]
    arrays = [(np.array(ids), np.array(target)) for ids, target in rows]
    batch = Batch.pad(np.arange(3), arrays, 3)
    assert batch.ids.tolist() == [[5, 6, 7], [9, 0, 0], [8, 4, 0]]
    assert batch.predictors().tolist() == [0, 1, 6]  # the tokens before the targets, counted through the ids
    assert batch.target.tolist() == [6, 7, 4] and batch.counts.tolist() == [2, 0, 1]
    for most, width in ((None, 16), (16, 16), (15, 3), (1, 3), (2, 2)):  # sizes are even, unless no position is there
        batch = Batch.pad(np.arange(3), arrays, most)
        assert batch.ids.shape == (3, width) and batch.predictors().tolist() == [0, 1, 2 * width]


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_sizes_of_products_are_even(lab: Lab, base: str, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(40, seed=3)
    expected = lab.score(rows, [IFD()], base=base, batch_tokens=1)["ifd"]
    monkeypatch.setattr(Forward, "can_pack", lambda self, batch: packs)
    seen, run = list[tuple[int, ...]](), Forward._run

    def watched(self: Forward, module: Any, batch: Batch) -> torch.Tensor:
        layer = next(m for m in self.backbone.modules() if type(m).__name__ in ("LlamaDecoderLayer", "GPT2Block"))
        with layer.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2]))):
            return run(self, module, batch)

    monkeypatch.setattr(Forward, "_run", watched)
    found = lab.score(rows, [IFD()], base=base, batch_tokens=600)["ifd"]
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
    assert len(seen) > 4 and all(tokens % EVEN == 0 for _, tokens in seen)
    assert all((count == 1) == packs for count, _ in seen)


# ── the budget of a batch ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fails", [None, 512], ids=["all fit", "1024 tokens do not"])
def test_the_budget_is_measured_on_the_first_rows(lab: Lab, monkeypatch: pytest.MonkeyPatch, fails: int | None) -> None:
    rows = some_rows(300, seed=8)
    clean = lab.score(rows, [IFD()], batch_tokens=500)["ifd"]
    monkeypatch.setattr(sweep, "TRIALS", {"cpu": (256, 512, 1024)})
    forward, budgets = Forward.__call__, list[tuple[int, int]]()
    made: list[sweep.Sweep] = []
    init = sweep.Sweep.__init__

    def known(self: sweep.Sweep, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    def scarce(self: Forward, batch: Any, measures: Any) -> Any:
        if fails and batch.ids.size > fails and len(batch.rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        budgets.append((made[-1].batch_tokens, len(batch.rows)))
        return forward(self, batch, measures)

    monkeypatch.setattr(sweep.Sweep, "__init__", known)
    monkeypatch.setattr(Forward, "__call__", scarce)
    said = list[str]()
    table = lab.score(rows, [IFD()], store=lab.store(), log=said.append)["ifd"]
    np.testing.assert_allclose(table.value, clean.value, rtol=1e-5)
    tried = [budget for budget, _ in budgets]
    if fails is None:
        assert tried[0] == 256 and {256, 512, 1024} <= set(tried) and not said
    else:
        assert all("out of memory" in line for line in said) and len(said) == len(made)
        assert max(tried) == fails


def test_a_short_sweep_is_not_measured(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[int]()
    forward = sweep.Sweep._through

    def through(self: sweep.Sweep, *args: Any) -> Any:
        seen.add(self.batch_tokens)
        return forward(self, *args)

    monkeypatch.setattr(sweep.Sweep, "_through", through)
    lab.score(some_rows(20), [IFD()])
    assert seen == {sweep.default_batch_tokens("cpu")}
