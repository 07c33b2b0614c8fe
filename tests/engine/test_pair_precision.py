"""A short training is not lost in a coarse precision: pairs of models and trained folders are read in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import instdiff
from helpers import Lab, some_rows
from instdiff.config.train import TrainSettings
from instdiff.core import ModelRef, Settings
from instdiff.core.arrays.correlation import spearman
from instdiff.engine.precision import is_trained_in_full, reverted_share
from instdiff.evaluation.evaluator import evaluate
from instdiff.methods import IFD, InstructDiff, Perplexity
from instdiff.scoring.precision import settle_precision
from instdiff.scoring.scorer import score
from instdiff.store import Store
from instdiff.store.store import info
from instdiff.training.sft import train

BASE = ModelRef("builtin:tiny")
ROWS = instdiff.load(some_rows(24))


@pytest.fixture(autouse=True)
def _fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` is bf16 for a single model."""
    monkeypatch.setattr("instdiff.engine.models._cpu_multiplies_bf16", lambda: True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def calibrated(home: Path) -> ModelRef:
    """The base after four steps at the published rate."""
    how = TrainSettings(learning_rate=2e-5, num_train_epochs=2, global_batch_size=16, warmup_ratio=0, dtype="float32")
    pool = instdiff.load(some_rows(32, seed=1))
    return train(pool, BASE, how, Settings(device="cpu"), home / "model", store=Store(home / "st"), seed=0, log=print)


def scored(home: Path, calibrated: ModelRef, dtype: str, said: list[str] | None = None) -> instdiff.ScoreTable:
    return score(
        ROWS,
        [InstructDiff(), Perplexity()],
        {"base": BASE, "calibrated": calibrated},
        settings=Settings(device="cpu", dtype=dtype),
        store=Store(home / "st"),
        log=(said if said is not None else []).append,
    )


def test_auto_keeps_the_order_of_a_short_calibration(home: Path, calibrated: ModelRef) -> None:
    auto, full = (scored(home, calibrated, dtype) for dtype in ("auto", "float32"))
    delta = [table["instructdiff"].details["diff_entropy"] for table in (auto, full)]
    assert spearman(*delta) >= 0.99
    assert auto.meta["settings"]["dtype"] == "float32"  # for every pass of the base, the single ones too
    assert {column.dtype for column in info(Store(home / "st"))} == {"float32"}
    found = auto.meta["precision"]
    assert found["reverted"] == {}
    assert found["differences"]["nll of prompted, base minus calibrated"] == {
        "noise": 1e-5,
        "sd": pytest.approx(float(auto["instructdiff"].details["diff_nll"].std()), rel=1e-6),
    }


def test_half_precision_that_is_asked_for_warns_of_what_it_takes_back(home: Path, calibrated: ModelRef) -> None:
    said: list[str] = []
    half = scored(home, calibrated, "bfloat16", said)
    share = half.meta["precision"]["reverted"]["calibrated"]
    assert 0.5 < share < 1.0
    told = [line for line in said if "are the same again" in line]
    assert told == [
        f"warning: in bfloat16 {share:.0%} of the weights in which {calibrated} differs from the model it is compared "
        "with are the same again; --dtype float32 keeps the difference"
    ]
    found = half.meta["precision"]["differences"]["nll of prompted, base minus calibrated"]
    full = scored(home, calibrated, "float32")["instructdiff"].details["diff_nll"]
    error = half["instructdiff"].details["diff_nll"] - full
    assert found["sd"] > 0 and 0.3 < found["noise"] / float(np.sqrt((error**2).mean())) < 3


def test_the_share_counts_moved_weights_alone(home: Path, calibrated: ModelRef) -> None:
    from instdiff.data.builtin import path

    base, trained = path("tiny"), Path(calibrated.where)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, trained))
    moved = back = 0
    for name in before.keys() & after.keys():
        old, new = before[name].float(), after[name].float()
        changed = old != new
        moved += int(changed.sum())
        back += int((changed & (old.bfloat16() == new.bfloat16())).sum())
    assert reverted_share(base, trained, torch.bfloat16) == pytest.approx(back / moved)
    assert reverted_share(base, trained, torch.float32) == 0
    assert reverted_share(base, base, torch.bfloat16) == 0


def test_one_model_alone_may_be_in_half_precision(lab: Lab) -> None:
    one = {"base": ModelRef(str(lab.models["llama"]))}
    two = one | {"calibrated": ModelRef(str(lab.models["other"]))}
    auto = Settings()
    assert settle_precision(auto, [IFD()], two).dtype == "auto"
    assert settle_precision(auto, [InstructDiff()], two).dtype == "float32"
    assert settle_precision(Settings(dtype="bfloat16"), [InstructDiff()], two).dtype == "bfloat16"
    assert settle_precision(auto, [InstructDiff()], one | {"calibrated": one["base"]}).dtype == "auto"


def test_a_trained_folder_alone_is_read_in_full(home: Path, calibrated: ModelRef) -> None:
    assert is_trained_in_full(calibrated) and not is_trained_in_full(BASE)
    assert settle_precision(Settings(), [Perplexity()], {"base": calibrated}).dtype == "float32"


def test_a_trained_folder_is_evaluated_in_full(home: Path, calibrated: ModelRef, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    ROWS.write(data, range(6))
    said: list[str] = []

    def found(model: ModelRef, **options: str) -> str:
        options |= {"data": str(data), "device": "cpu"}
        (result,) = evaluate(model, suite=["heldout"], store=Store(home / "st"), log=said.append, **options)
        return str(result.settings["dtype"])

    assert found(calibrated) == "float32" and found(BASE) == "bfloat16"
    assert not said
    assert found(calibrated, dtype="bfloat16") == "bfloat16"
    assert said == [
        f"warning: {calibrated} was trained in fp32, and bfloat16 may take back a part of what it has learnt; "
        "--dtype float32 keeps it"
    ]


def test_an_adapter_keeps_its_own_numbers(models: dict[str, Path], tmp_path: Path) -> None:
    from instdiff.engine.models import Resident
    from instdiff.engine.sources import resolve

    how = TrainSettings(
        learning_rate=2e-5, num_train_epochs=2, global_batch_size=16, warmup_ratio=0, dtype="float32", use_lora=True
    )
    pool = instdiff.load(some_rows(32, seed=1))
    base = ModelRef(str(models["llama"]))
    made = train(
        pool, base, how, Settings(device="cpu"), tmp_path / "a", store=Store(tmp_path / "st"), seed=0, log=print
    )
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    grown = [tensor for name, tensor in stored.items() if "lora_B" in name]  # zero before the training
    with Resident(torch.device("cpu"), torch.bfloat16).use(resolve(made)) as model:
        kept = [tensor for name, tensor in model.named_parameters() if "lora_B" in name]
        assert len(kept) == len(grown) > 0
        for one, other in zip(sorted(kept, key=norm), sorted(grown, key=norm), strict=True):
            assert float(norm(one)) == pytest.approx(float(norm(other)), rel=0.01)
            assert int((one == 0).sum()) == int((other == 0).sum())


def norm(tensor: torch.Tensor) -> float:
    return float(tensor.detach().float().norm())
