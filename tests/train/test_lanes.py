"""Lanes of a training: rows dealt by length to copies on shared weights give the gradients of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_folders import interrupted
from tiny_llama import distance, run, same

from instdiff.engine.batch import EVEN
from instdiff.training import lanes
from instdiff.training.collators import pack
from instdiff.training.lanes import deal, twin
from instdiff.training.losses import IGNORED

HOW: list[dict[str, Any]] = [{}, {"mode": "asft"}, {"use_lora": True}, {"use_lora": True, "mode": "sft+kl"}]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 4))
def test_every_row_is_dealt_once_and_lanes_are_even(lengths: list[int], count: int) -> None:
    rows = [(torch.full((n,), at + 1), torch.full((n,), at + 1)) for at, n in enumerate(lengths)]
    parts = deal(pack(rows, 0), count, 0)
    found = sorted(int(n) for part in parts for n in part["labels"].unique() if n != IGNORED)
    taught = [at + 1 for at, n in enumerate(lengths) if n > 1]  # a first token is learnt from none
    assert found == taught and parts
    for at in taught:
        assert sum(int((part["input_ids"] == at).sum()) for part in parts) == lengths[at - 1]
    sizes = [int((part["input_ids"] > 0).sum()) for part in parts]
    assert max(sizes) - min(sizes) <= max(lengths) and sum(sizes) <= sum(lengths)
    assert all(part["labels"].shape[1] % EVEN == 0 for part in parts)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("how", HOW, ids=str)
def test_two_lanes_train_as_one(
    base: Path, tmp_path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"lora_dropout": 0.0, "global_batch_size": 8, "per_device_train_batch_size": 4, **how}
    used: list[int] = []
    backward = lanes.Lanes.backward

    def watched(self: lanes.Lanes, *args: Any) -> Any:
        used.append(len(self.losses))
        return backward(self, *args)

    monkeypatch.setattr(lanes.Lanes, "backward", watched)
    two = run(base, tmp_path / "two", **how)
    assert set(used) == {2}
    monkeypatch.setattr("instdiff.training.trainer.lanes_of", lambda *_: 1)
    one = run(base, tmp_path / "one", **how)
    assert two.losses == pytest.approx(one.losses, rel=1e-6)
    assert distance(tmp_path / "one", tmp_path / "two") < 1e-6


@pytest.mark.usefixtures("two_threads")
def test_the_gradients_are_the_sum(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of plain descent without clipping shows them."""
    how = {"optim": "sgd", "max_grad_norm": 0, "warmup_ratio": 0, "global_batch_size": 12, "num_train_epochs": 1}
    run(base, tmp_path / "two", **how)
    monkeypatch.setattr("instdiff.training.trainer.lanes_of", lambda *_: 1)
    run(base, tmp_path / "one", **how)
    assert distance(tmp_path / "one", tmp_path / "two") < 1e-7


@pytest.mark.usefixtures("two_threads")
def test_killed_lanes_go_on_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"mode": "asft", "packing": True}
    run(base, tmp_path / "whole", **how)
    interrupted(base, tmp_path / "out", **how)
    assert run(base, tmp_path / "out", **how).resumed_at == 4
    assert same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.usefixtures("two_threads")
def test_dropout_and_large_models_keep_to_one_lane(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(4, 4)
    assert lanes.lanes_of(model, 8) == 2 and lanes.lanes_of(model, 3) == 1
    assert lanes.lanes_of(torch.nn.Sequential(model, torch.nn.Dropout(0.1)), 8) == 1
    assert lanes.lanes_of(torch.nn.Sequential(model, torch.nn.Dropout(0.0)), 8) == 2
    monkeypatch.setattr(lanes, "MOST_WEIGHTS", 10)
    assert lanes.lanes_of(model, 8) == 1


def test_a_twin_has_the_weights_and_gradients_of_its_own() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3).requires_grad_(False))
    other = twin(model)
    other(torch.ones(1, 3)).sum().backward()
    assert all(weight.grad is None for weight in model.parameters())
    assert other[1].weight is model[1].weight and other[0].weight.grad is not None
    with torch.no_grad():
        model[0].weight.fill_(7)
    assert bool((other[0].weight == 7).all())
