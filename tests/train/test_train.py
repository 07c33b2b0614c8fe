"""Training: the rows' tokens and no others, and the loss over the whole global batch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import ENV, EOS, GRADIENT, RESUME, UNEVEN, distance, make_base, make_rows, run, weights
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from instdiff.training import trainer
from instdiff.training.collators import Collator, Packer
from instdiff.training.losses import IGNORED

SGD = {"optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
ONE_STEP = {**SGD, "global_batch_size": 12, "num_train_epochs": 1}


def by_hand(base: Path, rows: Any, weigh: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over all targets, each row alone and unpadded, and its gradients."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    losses = []
    for row in range(len(rows)):
        ids = torch.tensor(rows.ids[row].astype(np.int64))
        hit = torch.tensor(rows.target[rows.ids.offsets[row] : rows.ids.offsets[row + 1]])
        log_p = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        token = log_p.gather(-1, ids[1:, None])[:, 0][hit[1:]]
        losses.append(-token * (token.exp().detach() if weigh else 1.0))
    loss = torch.cat(losses).mean()
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in model.named_parameters()}


# ── what is trained on ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("collator", [Collator, Packer])
def test_batches_show_the_rows_and_nothing_else(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collator: type[Collator]
) -> None:
    batches: list[dict[str, torch.Tensor]] = []

    class Spy(collator):  # type: ignore[misc, valid-type]
        def __call__(self, rows: Any) -> Any:
            batches.append(super().__call__(rows))
            return batches[-1]

    monkeypatch.setattr(trainer, collator.__name__, Spy)
    monkeypatch.setattr(trainer.Job, "_follows_rows", lambda self, halves: collator is Packer)
    rows = make_rows(13, reason={2: "empty_response", 5: "too_long", 7: "too_long"}, cut=4)
    report = run(base, tmp_path / "out", rows, num_train_epochs=1)
    assert (report.rows, report.left_out, report.truncated) == (10, {"empty_response": 1, "too_long": 2}, 1)
    assert report.target_tokens == int(rows.target.sum())
    seen = []
    for batch in batches:
        if collator is Packer:
            edges = [*np.flatnonzero(batch["position_ids"][0] == 0).tolist(), batch["input_ids"].shape[1]]
            spans = [(batch["input_ids"][0, a:b], batch["labels"][0, a:b]) for a, b in pairwise(edges)]
            seen += [(ids.tolist(), labels.tolist()) for ids, labels in spans if not (ids == EOS).all()]
            assert all((labels == IGNORED).all() for ids, labels in spans if (ids == EOS).all())
            continue
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert mask[:length].all() and (labels[length:] == IGNORED).all() and (ids[length:] == EOS).all()
            seen.append((ids[:length].tolist(), labels[:length].tolist()))
    expected = []
    for row in np.flatnonzero(rows.reason == None):  # noqa: E711 - elementwise
        ids = rows.ids[row]
        hit = rows.target[rows.ids.offsets[row] : rows.ids.offsets[row + 1]]
        expected.append((ids.tolist(), np.where(hit, ids, IGNORED).tolist()))
    assert sorted(seen) == sorted(expected)
    cut = next(labels for ids, labels in seen if ids == rows.ids[4].tolist())
    assert EOS not in cut and sum(EOS in labels for _, labels in seen) == 9


@pytest.mark.parametrize("mode", ["sft", "dft"])
def test_loss_and_step_are_those_written_by_hand(base: Path, tmp_path: Path, mode: str) -> None:
    rows = make_rows()
    report = run(base, tmp_path / "out", rows, **ONE_STEP, mode=mode)
    loss, gradients = by_hand(base, rows, mode == "dft")
    assert report.losses == [pytest.approx(loss, rel=1e-6)]
    before, after = weights(base), weights(tmp_path / "out")
    for name, gradient in gradients.items():
        torch.testing.assert_close(after[name], before[name] - 0.01 * gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [{}, {"optim": "sgd"}, {"use_lora": True, "lora_dropout": 0.0}, {"mode": "asft"}])
def test_the_split_of_a_batch_does_not_matter(base: Path, tmp_path: Path, kind: dict[str, Any]) -> None:
    """Twelve rows in global batches of eight: the second step has half as many passes."""
    reports = [
        run(base, tmp_path / str(size), global_batch_size=8, per_device_train_batch_size=size, **kind)
        for size in (1, 8)
    ]
    assert reports[0].steps == reports[1].steps == 4
    assert reports[0].losses == pytest.approx(reports[1].losses, rel=1e-6)
    assert distance(tmp_path / "1", tmp_path / "8") < 1e-6


def test_the_split_does_not_matter_to_models_that_know_nothing_of_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    test_the_split_of_a_batch_does_not_matter(base, tmp_path, {})


def test_two_processes_train_as_one(base: Path, tmp_path: Path) -> None:
    program = [str(Path(__file__).with_name("tiny_llama.py")), str(base), str(tmp_path), "several"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, *program], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 1/24") == 1
    one = run(base, tmp_path / "one", **RESUME)
    assert distance(tmp_path / "one", tmp_path / "two") < 1e-6
    two = json.loads((tmp_path / "two/training.json").read_text())
    assert two["batch"]["processes"] == 2 and two["losses"] == pytest.approx(one.losses, rel=1e-6)

    one = run(base, tmp_path / "one_gradient", make_rows(10), **GRADIENT)
    two = json.loads((tmp_path / "two_gradient/training.json").read_text())
    assert two["losses"] == pytest.approx(one.losses, rel=1e-6) and one.steps == two["steps"] == 1
    start = weights(base)
    gradients = [
        torch.cat([(after[name] - start[name]).flatten() for name in start]).double()
        for after in (weights(tmp_path / "one_gradient"), weights(tmp_path / "two_gradient"))
    ]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-6

    one = run(base, tmp_path / "one_uneven", make_rows(10), **UNEVEN)
    two = json.loads((tmp_path / "two_uneven/training.json").read_text())
    assert two["losses"] == pytest.approx(one.losses, rel=1e-5) and one.steps == 9 and two["resumed_at"] == 4
    assert distance(tmp_path / "one_uneven", tmp_path / "two_uneven") < 1e-5


def test_a_global_batch_may_exceed_the_data(base: Path, tmp_path: Path) -> None:
    report = run(base, tmp_path / "out", global_batch_size=64, num_train_epochs=3)
    assert report.steps == 3
    assert json.loads((tmp_path / "out/training.json").read_text())["batch"]["rows_per_pass"] == 8


# ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rates_rise_and_fall(base: Path, tmp_path: Path) -> None:
    report = run(base, tmp_path / "out", global_batch_size=3, num_train_epochs=5, warmup_ratio=0.2)
    expected = [0.01 * step / 4 for step in range(4)]
    expected += [0.005 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert report.learning_rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_training_that_ends_before_its_rate_has_risen_says_so(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = run(base, tmp_path / "out", global_batch_size=64, num_train_epochs=1, warmup_ratio=0.05, log=said.append)
    assert report.learning_rates == [0.0]
    assert any("the learning rate was zero in all of 1 optimizer steps" in line for line in said)


def test_weight_decay_reaches_the_matrices(base: Path, tmp_path: Path) -> None:
    plain = {**ONE_STEP, "optim": "adamw_torch"}
    run(base, tmp_path / "none", **plain)
    run(base, tmp_path / "some", **{**plain, "weight_decay": 0.5})
    start, none, some = weights(base), weights(tmp_path / "none"), weights(tmp_path / "some")
    for name, before in start.items():
        decay = 0.0 if "norm" in name else 0.01 * 0.5
        torch.testing.assert_close(some[name], none[name] - decay * before, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", **{**ONE_STEP, "max_grad_norm": 0.01, "learning_rate": 1.0})
    start, after = weights(base), weights(tmp_path / "out")
    moved = math.sqrt(sum(float((after[name] - start[name]).double().square().sum()) for name in start))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_bf16_base_keeps_small_steps(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", torch.bfloat16)
    run(base, tmp_path / "out", learning_rate=2e-5)
    run(base, tmp_path / "rounded", learning_rate=2e-5, save_dtype="base")
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.float32}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    after, rounded = weights(tmp_path / "out"), weights(tmp_path / "rounded")
    assert {value.dtype for value in rounded.values()} == {torch.bfloat16}
    assert all(torch.equal(after[name].bfloat16(), rounded[name]) for name in after)
    start = weights(base)
    lost = [torch.equal(rounded[name], start[name]) for name in start if "norm" in name]
    kept = [not torch.equal(after[name], start[name].float()) for name in start if "norm" in name]
    assert all(lost) and all(kept)


@pytest.mark.parametrize("dtype", ["bfloat16", "pure_bf16"])
def test_bf16_training(base: Path, tmp_path: Path, dtype: str) -> None:
    report = run(base, tmp_path / "out", dtype=dtype)
    assert report.losses[-1] < report.losses[0]
    if dtype == "pure_bf16":
        assert all(torch.equal(value, value.bfloat16().float()) for value in weights(tmp_path / "out").values())


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize("use_lora", [False, True])
def test_recomputed_activations_give_the_same_weights(base: Path, tmp_path: Path, key: str, use_lora: bool) -> None:
    run(base, tmp_path / "kept", use_lora=use_lora, num_train_epochs=1)
    run(base, tmp_path / "recomputed", use_lora=use_lora, num_train_epochs=1, **{key: True})
    assert distance(tmp_path / "kept", tmp_path / "recomputed") < 1e-6
