"""Weights of rows: a factor on each row's loss, of any scale, in padded and packed passes and in lanes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import distance, make_rows, run, same, weights
from transformers import AutoModelForCausalLM

import instdiff
from instdiff.errors import DataError, StoreError
from instdiff.training import lanes
from instdiff.training.collators import Collator, Packer, pack
from instdiff.training.lanes import deal
from instdiff.training.losses import IGNORED
from instdiff.training.sft import _scaled, weights_of

SGD: dict[str, Any] = {
    "optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "warmup_ratio": 0.0,
    "global_batch_size": 12, "num_train_epochs": 1, "learning_rate": 1.0,
}  # fmt: skip
FACTORS = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])


@pytest.mark.parametrize("mode", ["sft", "dft"])
@pytest.mark.parametrize("packing", [False, True])
def test_a_step_with_weights_is_the_one_written_by_hand(base: Path, tmp_path: Path, packing: bool, mode: str) -> None:
    rows = make_rows()
    factors = np.resize(FACTORS, len(rows))
    report = run(base, tmp_path / "out", rows, **SGD, packing=packing, mode=mode, factors=factors)
    model, losses, scale = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), [], []
    for row in range(len(rows)):
        ids = torch.tensor(rows.ids[row].astype(np.int64))
        hit = torch.tensor(rows.target[rows.ids.offsets[row] : rows.ids.offsets[row + 1]])[1:]
        nll = -model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0][hit]
        losses.append((nll * (1 if mode == "sft" else (-nll.detach()).exp())) * factors[row])
        scale += [factors[row]] * int(hit.sum())
    loss = torch.cat(losses).mean() / float(np.mean(scale))
    loss.backward()
    assert report.losses == pytest.approx([float(loss.detach())], rel=1e-5)
    after = weights(tmp_path / "out")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(after[name], (weight - weight.grad).detach(), rtol=1e-4, atol=1e-5)


def test_equal_weights_change_nothing_and_their_scale_does_not_matter(base: Path, tmp_path: Path) -> None:
    rows = make_rows()
    some = np.resize(FACTORS, len(rows))
    plain = run(base, tmp_path / "plain", rows, **SGD)
    equal = run(base, tmp_path / "equal", rows, **SGD, factors=np.full(len(rows), 0.3))
    assert equal.losses == pytest.approx(plain.losses, rel=1e-6)
    assert distance(tmp_path / "plain", tmp_path / "equal") < 1e-5
    one = run(base, tmp_path / "one", rows, **SGD, factors=some)
    ten = run(base, tmp_path / "ten", rows, **SGD, factors=10 * some)
    assert ten.losses == pytest.approx(one.losses, rel=1e-6) and not same(tmp_path / "one", tmp_path / "plain")


@pytest.mark.usefixtures("two_threads")
def test_lanes_have_the_weights_of_their_rows(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    factors = np.resize(FACTORS, len(rows))
    two = run(base, tmp_path / "two", rows, **SGD, factors=factors)
    monkeypatch.setattr(lanes, "MOST_WEIGHTS", 0)
    one = run(base, tmp_path / "one", rows, **SGD, factors=factors)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert distance(tmp_path / "one", tmp_path / "two") < 1e-4


def test_every_token_has_the_weight_of_its_row() -> None:
    rows = [{"input_ids": [1] * n, "labels": [1] * n, "weight": float(n)} for n in (2, 5, 3)]
    padded = Collator(0)(rows)
    assert padded["weights"].shape == padded["labels"].shape and padded["weights"][:, 0].tolist() == [2, 5, 3]
    packed = Packer(0)(rows)
    assert packed["weights"][0, :11].tolist() == [2] * 2 + [5] * 5 + [3] * 3 + [0]
    for part in deal(packed, 2, 0):
        said = part["labels"][0] != IGNORED
        assert set(part["weights"][0][said].tolist()) <= {2.0, 5.0, 3.0}
        starts = torch.nonzero(part["position_ids"][0] == 0)[:, 0].tolist()
        sizes = np.diff([*starts, part["labels"].shape[1]])
        assert part["weights"][0, starts[:-1]].tolist() == sizes[:-1].tolist()
    assert "weights" not in pack([(torch.ones(2), torch.ones(2))], 0)


def test_weights_are_read_from_a_column() -> None:
    rows = [{"instruction": "a?", "output": "b", "weight": value} for value in (0.5, 0, 2)]
    assert weights_of(instdiff.load(rows), None) is None
    np.testing.assert_array_equal(weights_of(instdiff.load(rows), "weight"), [0.5, 0, 2])  # type: ignore[arg-type]
    for bad in (None, "high", -1, True, 10**400):
        with pytest.raises(DataError, match=r"row 1 of .*: 'weight' is .*; a weight is a number that is 0 or more"):
            weights_of(instdiff.load([rows[0], rows[1] | {"weight": bad}]), "weight")


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1.0, 1e308])
def test_weights_of_any_scale(scale: float) -> None:
    rows = make_rows()
    factors = np.resize([1.0, 0.5], len(rows))
    found = _scaled(factors * scale, rows)
    np.testing.assert_allclose(found, _scaled(factors, rows), rtol=1e-3)  # type: ignore[arg-type]


def test_weights_of_nothing_and_other_weights(base: Path, tmp_path: Path) -> None:
    rows = make_rows()
    with pytest.raises(DataError, match=r"the weights of all rows .* are 0; give another train.weights"):
        run(base, tmp_path / "out", rows, **SGD, factors=np.zeros(len(rows)))
    run(base, tmp_path / "out", rows, **SGD, factors=np.ones(len(rows)))
    with pytest.raises(StoreError, match=r"was trained with other data"):
        run(base, tmp_path / "out", rows, **SGD, factors=np.arange(1.0, len(rows) + 1))
