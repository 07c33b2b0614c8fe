"""What a trial says of a token that is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from instdiff.engine.speed import Machine


def test_a_trial_is_short_and_never_faster_than_reading_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, tried = Machine(torch.device("cpu")), list[int]()
    machine._copies = 1e9
    source: Any = SimpleNamespace(folder=Path("model"), parameters=1_000_000)
    took = {torch.float32: -0.5, torch.bfloat16: 0.25}

    def trial(_: Any, __: Any, prompts: list[list[int]], dtype: torch.dtype) -> float:
        tried.extend(map(len, prompts))
        return took[dtype]  # below zero where other work disturbed the first of two times

    monkeypatch.setattr(machine, "_write", trial)
    prompts = [[1] * 300, [1] * 5]
    assert machine.writing(source, None, prompts, torch.float32) == pytest.approx(4e6 / 1e9)
    assert machine.writing(source, None, prompts, torch.bfloat16) == 0.25
    assert tried == [16, 5] * 2
