"""The four losses, written by hand; packed rows; chunks; what a model must be able to do for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import EOS, distance, make_rows, run, same, weights
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from instdiff.errors import ConfigError, EngineError, PlanError
from instdiff.training import losses
from instdiff.training.collators import IGNORED, WIDTHS, Filled, Packer
from instdiff.training.losses import Halves

SGD = {"optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
ONE_STEP = {**SGD, "global_batch_size": 12, "num_train_epochs": 1}
MODES = ["sft", "dft", "sft+kl", "asft"]


def by_hand(model: Any, start: Any, rows: Any, mode: str, weight: float) -> torch.Tensor:
    """Mean loss over all targets, each row alone, by the formulas."""
    token: list[torch.Tensor] = []
    for row in range(len(rows)):
        ids = torch.tensor(rows.ids[row].astype(np.int64))
        hit = torch.tensor(rows.target[rows.ids.offsets[row] : rows.ids.offsets[row + 1]])[1:]
        log_p = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)[hit]
        with torch.no_grad():
            log_ref = start(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)[hit]
        nll = -log_p.gather(-1, ids[1:][hit][:, None])[:, 0]
        kl = (log_ref.exp() * (log_ref - log_p)).sum(-1)
        own = {"sft": 1.0, "sft+kl": 1.0}.get(mode, (-nll.detach()).exp())
        token.append(own * nll + (weight * kl if mode in ("sft+kl", "asft") else 0.0))
    return torch.cat(token).mean()


@pytest.mark.parametrize("mode", MODES)
def test_losses_are_those_written_by_hand(base: Path, tmp_path: Path, mode: str) -> None:
    """Three steps on all rows: in the first the model is still the reference, later it is not."""
    rows = make_rows()
    report = run(
        base, tmp_path / "out", rows, **{**ONE_STEP, "num_train_epochs": 3, "learning_rate": 1.0}, mode=mode,
        kl_weight=0.7,
    )  # fmt: skip
    model, start = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) for _ in range(2))
    expected = []
    for _ in range(3):
        loss = by_hand(model, start, rows, mode, 0.7)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 1.0 * weight.grad
        expected.append(float(loss.detach()))
    assert report.losses == pytest.approx(expected, rel=1e-5)
    after = weights(tmp_path / "out")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(after[name], weight.detach(), rtol=1e-4, atol=1e-5)


def test_the_reference_is_the_base_without_the_adapter(base: Path, tmp_path: Path) -> None:
    """A huge weight on the divergence holds the adapter at the base; without it the same steps lead away."""
    how = {**SGD, "use_lora": True, "lora_dropout": 0.0, "learning_rate": 0.5, "num_train_epochs": 6}
    free = run(base, tmp_path / "free", **how, mode="sft")
    none = run(base, tmp_path / "none", **how, mode="sft+kl", kl_weight=0.0)
    held = run(base, tmp_path / "held", **how, mode="sft+kl", kl_weight=20.0)
    assert none.losses == free.losses and same(tmp_path / "none", tmp_path / "free")
    assert held.losses[0] == pytest.approx(free.losses[0], rel=1e-6)  # an adapter begins as nothing
    moved = {name: sum(float(w.norm()) for k, w in weights(tmp_path / name).items() if "lora_B" in k)
             for name in ("free", "held")}  # fmt: skip
    assert 0 < moved["held"] < 0.7 * moved["free"] and held.losses[-1] > free.losses[-1]


@pytest.mark.parametrize("mode", ["sft", "asft"])
def test_chunks_do_not_matter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    whole = run(base, tmp_path / "whole", mode=mode, num_train_epochs=1)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 64 * 3)
    parts = run(base, tmp_path / "parts", mode=mode, num_train_epochs=1)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-6)
    assert distance(tmp_path / "whole", tmp_path / "parts") < 1e-6


def test_a_model_with_logits_of_its_own(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the head of the last state is not the logits, the model is asked for them."""
    own = LlamaForCausalLM.forward

    def capped(self: Any, *args: Any, **more: Any) -> Any:
        out = own(self, *args, **more)
        out.logits = 0.5 * torch.tanh(out.logits)
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    assert not Halves(AutoModelForCausalLM.from_pretrained(base)).plain
    rows = make_rows()
    report = run(base, tmp_path / "out", rows, **ONE_STEP, mode="asft")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert report.losses == [pytest.approx(by_hand(model, model, rows, "asft", 0.1).item(), rel=1e-6)]


# ── packing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_packed_rows_stand_end_to_end() -> None:
    out = Packer(EOS)([{"input_ids": [1, 5, 6], "labels": [1, 5, 6]}, {"input_ids": [1, 7], "labels": [IGNORED, 7]}])
    rest = WIDTHS - 5
    assert out["input_ids"].tolist() == [[1, 5, 6, 1, 7] + [EOS] * rest]
    assert out["labels"].tolist() == [[IGNORED, 5, 6, IGNORED, 7] + [IGNORED] * rest]
    assert out["position_ids"].tolist() == [[0, 1, 2, 0, 1, *range(rest)]] and "attention_mask" not in out


@pytest.mark.parametrize("how", [{}, {"mode": "asft", "activation_checkpointing": True}, {"use_lora": True}])
def test_packed_training_is_the_same(base: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    how = {"lora_dropout": 0.0, "global_batch_size": 6, "num_train_epochs": 2, **how}
    plain = run(base, tmp_path / "plain", **how)
    packed = run(base, tmp_path / "packed", packing=True, per_device_train_batch_size=3, **how)
    assert packed.losses == pytest.approx(plain.losses, rel=1e-5) and len(plain.losses) == 4
    assert distance(tmp_path / "plain", tmp_path / "packed") < 1e-5


def test_a_model_that_mixes_packed_rows_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = LlamaModel.forward

    def deaf(self: Any, *args: Any, position_ids: Any = None, **more: Any) -> Any:
        self.config._attn_implementation = "sdpa"
        return inner(self, *args, **more)

    monkeypatch.setattr(LlamaModel, "forward", deaf)
    with pytest.raises(EngineError, match=r"does not keep packed rows apart: .* differ by .*; write packing: false"):
        run(base, tmp_path / "out", packing=True)
    assert run(base, tmp_path / "padded", num_train_epochs=1).steps == 3

    def refuses(self: Halves, rows: Any) -> float:
        raise TypeError("forward() got an unexpected keyword argument 'position_ids'")

    monkeypatch.setattr(Halves, "difference_packed", refuses)
    with pytest.raises(EngineError, match=r"takes no packed rows: .*position_ids.*; write packing: false"):
        run(base, tmp_path / "out", packing=True)


def test_killed_asft_on_packed_rows_goes_on_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    from test_folders import interrupted

    how = {"mode": "asft", "packing": True}
    run(base, tmp_path / "whole", **how)
    interrupted(base, tmp_path / "out", **how)
    assert run(base, tmp_path / "out", **how).resumed_at == 4
    assert same(tmp_path / "out", tmp_path / "whole")


def test_several_processes_take_the_rows_of_one_and_empty_ones() -> None:
    order = Filled(5, 3, seed=7)
    assert len(order) == 8
    first, second = list(order), list(order)
    assert sorted(first[:5]) == sorted(second[:5]) == [0, 1, 2, 3, 4] and first[5:] == second[5:] == [5, 5, 5]
    assert first != second == list(Filled(5, 3, seed=7, epoch=1))


# ── what is not there ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_four_bits_say_what_they_lack(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="load_in_4bit needs use_lora: true"):
        run(base, tmp_path / "out", load_in_4bit=True)
    monkeypatch.setattr("instdiff.training.trainer.find_spec", lambda name: None)
    monkeypatch.setattr("instdiff.training.trainer._device", lambda name: "cpu")
    with pytest.raises(PlanError, match=r"lacks an NVIDIA GPU with CUDA and bitsandbytes \(run: pip install"):
        run(base, tmp_path / "out", load_in_4bit=True, use_lora=True)
    monkeypatch.setattr("instdiff.training.trainer._device", lambda name: "cuda")
    with pytest.raises(PlanError, match=r"load_in_4bit lacks bitsandbytes"):
        run(base, tmp_path / "out", load_in_4bit=True, use_lora=True)


def test_four_bits_are_asked_for(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_llama import settings

    from instdiff.training.trainer import _quantisation

    monkeypatch.setenv("LOCAL_RANK", "3")
    how = _quantisation(settings(load_in_4bit=True, use_lora=True, dtype="auto"))
    config = how["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == how["dtype"] == torch.bfloat16 and how["device_map"] == {"": 3}


def test_trackers(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    seen: list[float] = []

    class Notes(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.extend([logs["loss"]] if "loss" in logs else [])

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "notes", Notes)
    report = run(base, tmp_path / "out", report_to="notes", run_name="first")
    assert seen == report.losses and len(seen) == 6
    assert not run(base, tmp_path / "out", report_to="none").fresh  # who watches is not part of a training
    with pytest.raises(ConfigError, match="unknown tracker 'wandbb'; did you mean 'wandb'"):
        run(base, tmp_path / "other", report_to="wandbb")
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    with pytest.raises(PlanError, match=r"tracker 'tensorboard' of report_to: .*install tensorboard.*report_to: none"):
        run(base, tmp_path / "other", report_to=["tensorboard"])
