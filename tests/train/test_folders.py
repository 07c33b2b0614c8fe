"""What a training leaves: whole folders, equal reruns, and after a kill the weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import ENV, RESUME, make_base, make_rows, run, same, settings, tokenizer_of, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from instdiff.errors import StoreError
from instdiff.training.sft import fit

# ── what is left ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_model_folder(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    steps: list[tuple[int, int]] = []
    report = run(
        base, tmp_path / "out", log=lines.append, progress=lambda a, b: steps.append((a, b)), checkpoint_steps=2
    )
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training.json",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(lines) == 1 and lines[0].startswith("step 1/6  loss 4.") and "tokens/s  ETA 0:" in lines[0]
    assert steps == [(step, 6) for step in range(1, 7)]
    record = json.loads((tmp_path / "out/training.json").read_text())
    assert record["settings"]["learning_rate"] == 0.01 and record["seed"] == 3 and record["base"] == "base"
    assert record["losses"] == report.losses and report.losses[-1] < report.losses[0] and len(report.losses) == 6
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_text() == (base / name).read_text()
    kept = ("vocab_size", "eos_token_id", "pad_token_id", "use_cache")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out"))
    assert [after[key] for key in kept] == [before[key] for key in kept]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token is None
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_padding_token_is_used_where_there_is_one(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", pad=True)
    other = make_base(tmp_path / "other")
    run(base, tmp_path / "out")
    run(other, tmp_path / "without")
    assert same(tmp_path / "out", tmp_path / "without")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapter_folder(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    report = run(base, tmp_path / "out", use_lora=True, learning_rate=0.1, num_train_epochs=4)
    assert report.losses[-1] < report.losses[0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"
    }  # fmt: skip
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert (config["task_type"], config["bias"], config["r"], config["lora_alpha"]) == ("CAUSAL_LM", "none", 8, 16)
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 6, 7]])
    before = plain(input_ids=ids).logits
    after = PeftModel.from_pretrained(plain, tmp_path / "out")(input_ids=ids).logits
    assert not torch.allclose(before, after)


def test_all_linear_leaves_the_head(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", use_lora=True, lora_target_modules="all-linear")
    names = {name.split(".")[-3] for name in weights(tmp_path / "out")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_two_runs_are_equal_and_the_seed_counts(base: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(base, tmp_path / name, seed=seed, use_lora=False)
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", tmp_path / "c")
    fit(make_rows(), base, tokenizer_of(base), settings(seed=3), tmp_path / "d", seed=9, log=lambda line: None)
    assert same(tmp_path / "a", tmp_path / "d")


# ── interrupted ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("one_thread")  # as in the program
@pytest.mark.parametrize("kinds", [["full"], pytest.param(["full", "lora"], marks=pytest.mark.slow)], ids=str)
def test_killed_training_goes_on_to_the_same_weights(base: Path, tmp_path: Path, kinds: list[str]) -> None:
    program = str(Path(__file__).with_name("tiny_llama.py"))
    killed = {
        kind: subprocess.Popen([sys.executable, program, str(base), str(tmp_path / kind), kind], env=ENV)
        for kind in kinds
    }
    for kind in kinds:
        run(base, tmp_path / f"{kind}_whole", **RESUME, use_lora=kind == "lora")
    for kind, process in killed.items():
        checkpoints = tmp_path / f".{kind}.partial/checkpoints"
        while not any(checkpoints.glob("*/trainer_state.json")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert not (tmp_path / kind).exists()
        (checkpoints / "checkpoint-22").mkdir()
        (checkpoints / "checkpoint-20").mkdir()
        (checkpoints / "checkpoint-20/trainer_state.json").write_text('{"global_st')
        lines: list[str] = []
        report = run(base, tmp_path / kind, **RESUME, use_lora=kind == "lora", log=lines.append)
        assert 2 <= report.resumed_at < report.steps == 24 == len(report.losses)
        assert lines[0] == f"going on after step {report.resumed_at}"
        assert same(tmp_path / kind, tmp_path / f"{kind}_whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name for kind in kinds for name in (kind, f"{kind}_whole")
    )


class Stop(Exception):
    pass


def interrupted(base: Path, output: Path, at: int = 5, **changes: Any) -> None:
    def stop(step: int, steps: int) -> None:
        if step == at:
            raise Stop

    with pytest.raises(Stop):
        run(base, output, progress=stop, checkpoint_steps=1, **changes)


def test_resume_within_an_epoch_and_not_when_unwanted(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "whole")
    interrupted(base, tmp_path / "out")
    interrupted(base, tmp_path / "anew")
    assert run(base, tmp_path / "out").resumed_at == 4
    assert run(base, tmp_path / "anew", resume=False).resumed_at == 0
    assert same(tmp_path / "out", tmp_path / "whole") and same(tmp_path / "anew", tmp_path / "whole")


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"seed": 4}, {"rows": make_rows(seed=1)}])
def test_another_training_does_not_resume(base: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    interrupted(base, tmp_path / "out")
    assert run(base, tmp_path / "out", **change).resumed_at == 0


def test_a_changed_base_does_not_resume(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    interrupted(base, tmp_path / "out")
    os.utime(base / "model.safetensors", (1, 1))
    assert run(base, tmp_path / "out").resumed_at == 0


def test_a_finished_output_is_kept(base: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    first = run(base, tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").stat().st_mtime_ns
    again = run(base, tmp_path / "out", log=lines.append)
    assert first.fresh and not again.fresh and again.losses == first.losses and lines == []
    with pytest.raises(StoreError, match="was trained with other settings; remove it, or give another output"):
        run(base, tmp_path / "out", learning_rate=1e-3)
    assert (tmp_path / "out/model.safetensors").stat().st_mtime_ns == before


def test_a_full_disk_is_said_and_leaves_no_model(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that writes the weights has an error of its own for it; the next run goes on."""
    import transformers.modeling_utils as place

    def full(*args: object, **more: object) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(place, "safe_save_file", full)
        with pytest.raises(StoreError, match=r"cannot write '.*out': .*No space left on device.*Free space"):
            run(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run(base, tmp_path / "out").fresh


def test_another_error_while_building_stays_what_it_is(tmp_path: Path) -> None:
    from instdiff.core.files import building

    with pytest.raises(ZeroDivisionError), building(tmp_path / "out"):
        raise ZeroDivisionError
