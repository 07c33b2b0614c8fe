"""What goes wrong in training says so; settings that do not fit are found before anything is loaded."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from tiny_llama import make_base, make_rows, run, settings, tokenizer_of
from transformers import AutoModelForCausalLM

from instdiff.config.base import build
from instdiff.config.train import TrainSettings, hf_arguments, split_batch
from instdiff.errors import ConfigError, DataError, EngineError, PlanError, StoreError
from instdiff.training.sft import fit

# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_foreign_folder_is_not_replaced(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("x")
    with pytest.raises(StoreError, match="no finished training"):
        run(base, tmp_path / "out")
    assert (tmp_path / "out/thesis.txt").is_file()


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data[7] = math.inf
    model.save_pretrained(base)
    with pytest.raises(EngineError, match=r"is (nan|inf) at step 1 of 6; nothing is saved; set a lower learning_rate"):
        run(base, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_no_usable_row(base: Path, tmp_path: Path) -> None:
    rows = make_rows(3, reason={0: "too_long", 1: "too_long", 2: "empty_response"})
    with pytest.raises(DataError, match=r"none of 3 rows can be trained on: .*'too_long': 2"):
        run(base, tmp_path / "out", rows)


def test_missing_trl(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(PlanError, match=r'pip install "instdiff\[train\]"'):
        run(base, tmp_path / "out")


def test_models_that_do_not_fit(base: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot load model"):
        fit(make_rows(), tmp_path / "none", tokenizer_of(base), settings(), tmp_path / "out", seed=0)
    run(base, tmp_path / "adapter", use_lora=True)
    with pytest.raises(EngineError, match="is an adapter"):
        run(tmp_path / "adapter", tmp_path / "out")
    rows = make_rows()
    rows.ids.values[3] = 64
    with pytest.raises(EngineError, match=r"hold token 64, but .* knows 64"):
        run(base, tmp_path / "out", rows)
    with pytest.raises(EngineError, match=r"device 'tpu' cannot be trained on; here are .*cpu"):
        fit(make_rows(), base, tokenizer_of(base), settings(), tmp_path / "out", seed=0, device="tpu")
    assert not (tmp_path / "out").exists()


def test_lora_targets_that_the_model_lacks(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no module matches .*'c_attn'.*known: all-linear, down_proj, .*v_proj"):
        run(base, tmp_path / "out", use_lora=True, lora_target_modules=["c_attn"])


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_published_keys_load_and_modes_are_named() -> None:
    given = {
        "max_length": 512,
        "global_batch_size": 256,
        "cache_dir": None,
        "kl_weight": 0.1,
        "alpha": 1,
        "clip_min": 0,
    }
    built = build(TrainSettings, {**given, "clip_max": 1, "adam_beta2": 0.95}, "x.yaml")
    assert built.model_max_length == 512 and built.model_extra == {"adam_beta2": 0.95}
    for mode in ("sft", "dft", "sft+kl", "asft"):
        assert build(TrainSettings, {"mode": mode}, "x.yaml").mode == mode
    with pytest.raises(ConfigError, match="did you mean 'sft'"):
        TrainSettings(mode="sftt")


def test_keys_of_the_trainer(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown training key 'adam_bta1'; did you mean 'adam_beta1'"):
        run(base, tmp_path / "out", adam_bta1=0.8)
    with pytest.raises(ConfigError, match="unknown training key 'learning_rat'; did you mean 'learning_rate'"):
        run(base, tmp_path / "out", learning_rat=0.8)
    with pytest.raises(ConfigError, match="unknown training key 'xyzzy'; it is no key"):
        run(base, tmp_path / "out", xyzzy=1)
    with pytest.raises(ConfigError, match="'padding_free' cannot be set: write packing: true"):
        run(base, tmp_path / "out", padding_free=True)
    with pytest.raises(ConfigError, match=r"training settings: .*cosin"):
        run(base, tmp_path / "out", lr_scheduler_type="cosin")
    assert hf_arguments(settings(adam_beta1=0.8), ["adam_beta1"])["adam_beta1"] == 0.8


def test_batches_split_without_rest() -> None:
    assert split_batch(TrainSettings(global_batch_size=64), 1, 8) == (8, 8)
    assert split_batch(TrainSettings(global_batch_size=12), 1, 8) == (6, 2)
    assert split_batch(TrainSettings(global_batch_size=7), 1, 4) == (1, 7)
    assert split_batch(TrainSettings(global_batch_size=64), 4, 100) == (16, 1)
    assert split_batch(TrainSettings(global_batch_size=64, per_device_train_batch_size=4), 2, 1) == (4, 8)
    for batch, device, world in ((64, 48, 1), (4, 8, 1), (6, 2, 2)):
        with pytest.raises(ConfigError, match=f"global_batch_size {batch} is no multiple of .* {device} x {world}"):
            split_batch(TrainSettings(global_batch_size=batch, per_device_train_batch_size=device), world, 8)
    with pytest.raises(ConfigError, match="global_batch_size 6 cannot be shared by 4 devices"):
        split_batch(TrainSettings(global_batch_size=6), 4, 8)
