"""A small calibration of a published model keeps the order of its delta entropies, whatever the hardware offers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import instdiff
from instdiff.config.train import TrainSettings
from instdiff.core import ModelRef, Settings
from instdiff.core.arrays.correlation import spearman
from instdiff.methods import InstructDiff
from instdiff.scoring.scorer import score
from instdiff.store import Store
from instdiff.training.sft import train

MODEL = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models")) / "smollm2-135m"
ROWS, WARMUP = 200, 50


@pytest.mark.slow
@pytest.mark.skipif(not MODEL.is_dir(), reason="the published model is not on this machine")
def test_auto_keeps_the_order_of_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = instdiff.load(Path(os.environ.get("INSTDIFF_SHARED", "")) / "data" / "gsm8k" / "train.jsonl").take(
        np.arange(ROWS + WARMUP)
    )
    base, where, store = ModelRef(str(MODEL), template="chat"), Settings(device="cpu"), Store(tmp_path / "st")
    how = TrainSettings(learning_rate=2e-5, num_train_epochs=1, global_batch_size=16, warmup_ratio=0)
    calibrated = train(
        pool.take(np.arange(ROWS, ROWS + WARMUP)), base, how, where, tmp_path / "model", store=store, seed=0, log=print
    )
    found = {}
    for name, dtype, fast in (
        ("fp32", "float32", True),
        ("on", "auto", True),
        ("off", "auto", False),
        ("bf16", "bfloat16", True),
    ):
        monkeypatch.setattr("instdiff.engine.models._cpu_multiplies_bf16", lambda fast=fast: fast)
        table = score(
            pool.take(np.arange(ROWS)),
            [InstructDiff()],
            {"base": base, "calibrated": calibrated},
            settings=Settings(device="cpu", dtype=dtype),
            store=Store(tmp_path / name),
            log=print,
        )
        found[name] = table["instructdiff"].details["diff_entropy"], table.meta["precision"]
    ranks = {name: spearman(found["fp32"][0], delta) for name, (delta, _) in found.items()}
    print(ranks, found["bf16"][1])
    assert ranks["on"] >= 0.99 and ranks["off"] >= 0.99
    assert ranks["bf16"] < 0.9 and found["bf16"][1]["reverted"]["calibrated"] > 0.5
