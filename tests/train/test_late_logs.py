"""Losses that are fetched several at a time are those that are fetched one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import run

from instdiff.errors import EngineError
from instdiff.training import late_logs
from instdiff.training.losses import TargetLoss


def late(monkeypatch: pytest.MonkeyPatch, steps: int = 3) -> None:
    monkeypatch.setattr(late_logs, "LATE_ON", ("cpu",))
    monkeypatch.setattr(late_logs, "LATE", steps)


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_every_step_is_recorded(base: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    plain = run(base, tmp_path / "plain")
    late(monkeypatch, steps)
    other = run(base, tmp_path / "late", progress=lambda done, of: told.append((done, of)))
    assert other.losses == pytest.approx(plain.losses, rel=1e-6) and len(plain.losses) == plain.steps
    assert other.learning_rates == plain.learning_rates
    assert told == [(step + 1, plain.steps) for step in range(plain.steps)]


class Stop(Exception):
    pass


def test_a_checkpoint_holds_the_losses_before_it(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(base, tmp_path / "plain")
    late(monkeypatch, 1000)

    def stop(step: int, steps: int) -> None:
        if step == 5:
            raise Stop

    with pytest.raises(Stop):
        run(base, tmp_path / "late", progress=stop, checkpoint_steps=2)
    (newest,) = tmp_path.glob(".late.partial/checkpoints/checkpoint-*/trainer_state.json")
    history: list[dict[str, Any]] = json.loads(newest.read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
    again = run(base, tmp_path / "late", checkpoint_steps=2)
    assert again.resumed_at == 4 and again.losses == pytest.approx(plain.losses, rel=1e-6)


def test_a_loss_that_is_no_number_is_named_with_its_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(monkeypatch, 3)
    call, calls = TargetLoss.__call__, [0]

    def broken(self: TargetLoss, *given: torch.Tensor, **seen: Any) -> Any:
        calls[0] += 1
        found = call(self, *given, **seen)
        return {"loss": found["loss"] * (torch.nan if calls[0] == 2 else 1.0)}

    monkeypatch.setattr(TargetLoss, "__call__", broken)
    with pytest.raises(EngineError, match=r"^the (loss|gradient) is nan at step 2 of "):
        run(base, tmp_path / "out", global_batch_size=1, per_device_train_batch_size=1)
    assert not (tmp_path / "out").exists()
