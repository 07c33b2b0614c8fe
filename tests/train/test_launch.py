"""What ``--print-launch`` writes: the trainer and the launchers read it, and the printed command trains the same."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from tiny_llama import ENV, make_rows, tokenizer_of, weights
from transformers import TrainingArguments

from instdiff.cli import entry
from instdiff.config.base import load
from instdiff.config.commands import TrainConfig
from instdiff.config.train import TrainSettings, hf_arguments
from instdiff.errors import ConfigError
from instdiff.training.trainer import Job

NAMES = [
    "train.yaml", "train_fsdp2.yaml", "accelerate_fsdp2.yaml", "train_zero3.yaml", "zero3.json", "train.sbatch"
]  # fmt: skip


def cli(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(entry.app, ["train", *words], prog_name="instdiff")
    assert done.exit_code == code, done.stderr
    return done


@pytest.fixture
def config(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training of twelve rows, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"w{i} w{i + 1}", "input": "", "output": f"w{i + 2} w{3 + i % 7} w9"} for i in range(3, 15)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {
        "model_name_or_path": str(base), "data_path": "rows.jsonl", "output_dir": "out", "global_batch_size": 4,
        "num_train_epochs": 1, "learning_rate": 0.01, "dtype": "float32", "mode": "asft", "use_lora": True,
        "lora_dropout": 0.0, "adam_beta2": 0.9,
    }  # fmt: skip
    Path("my.yaml").write_text(yaml.safe_dump({"seed": 7, "template": "plain", "train": train}))
    return Path("my.yaml")


def test_files_hold_the_training(config: Path) -> None:
    done = cli("--print-launch", "where", "--config", str(config), "train.learning_rate=0.02", "--gpus-per-node", "4")
    where = Path("where")
    assert sorted(path.name for path in where.iterdir()) == sorted(NAMES) and not Path("out").exists()
    plain = yaml.safe_load((where / "train.yaml").read_text())
    asked = yaml.safe_load(config.read_text())
    places = {"data": "rows.jsonl", "model": asked["train"]["model_name_or_path"], "output": "out"}
    assert plain == {**asked, **places, "train": {**asked["train"], "learning_rate": 0.02}}
    for name in ("train", "train_fsdp2", "train_zero3"):
        loaded = load(TrainConfig, where / f"{name}.yaml", {})
        assert (loaded.seed, loaded.train.learning_rate, loaded.train.mode) == (7, 0.02, "asft")
        line = f"torchrun --standalone --nproc-per-node 4 -m instdiff train --config where/{name}.yaml"
        assert line in done.stdout
    assert "accelerate launch --config_file where/accelerate_fsdp2.yaml" in done.stdout
    assert "sbatch where/train.sbatch" in done.stdout


def arguments(file: str) -> Any:
    """What the trainer makes of a written configuration."""
    part = load(TrainConfig, file, {}).train
    fields = {key: getattr(part, key) for key in TrainSettings.model_fields}
    how = TrainSettings(**fields, **(part.model_extra or {}))
    base = Path(part.model_name_or_path)
    return Job(make_rows(), base, tokenizer_of(base), how, 3, "cpu", print, None).arguments(Path("out"))


@pytest.mark.parametrize("recompute", ["true", "false"])
def test_the_trainer_takes_the_keys(config: Path, recompute: str) -> None:
    cli("--print-launch", "--config", str(config), f"train.activation_checkpointing={recompute}")
    args = arguments("launch/train_fsdp2.yaml")
    assert args.fsdp is True and args.adam_beta2 == 0.9
    # Only one of the two may recompute.
    assert not args.activation_checkpointing and not args.gradient_checkpointing
    plugin = args.fsdp_plugin_args
    assert (plugin["fsdp_version"], plugin["reshard_after_forward"]) == (2, True)
    assert (plugin["state_dict_type"], plugin["auto_wrap_policy"]) == ("FULL_STATE_DICT", "TRANSFORMER_BASED_WRAP")
    assert plugin["activation_checkpointing"] is (recompute == "true")
    assert arguments("launch/train.yaml").activation_checkpointing is (recompute == "true")
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    given = hf_arguments(load(TrainSettings, None, {"deepspeed": "launch/zero3.json"}), known)
    assert given["deepspeed"] == "launch/zero3.json"


def test_accelerate_and_deepspeed_configurations(config: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    cli("--print-launch", "--config", str(config), "--nodes", "2", "--gpus-per-node", "2")
    ours = load_config_from_file("launch/accelerate_fsdp2.yaml")
    assert (ours.num_machines, ours.num_processes, ours.distributed_type) == (2, 4, "FSDP")
    assert ours.mixed_precision == "no" and ours.fsdp_config["fsdp_version"] == 2
    options = vars(launch_command_parser().parse_args(["x.py"]))
    assert set(ours.fsdp_config) <= set(options)
    deepspeed = json.loads(Path("launch/zero3.json").read_text())
    assert deepspeed["zero_optimization"]["stage"] == 3 and deepspeed["bf16"] == {"enabled": "auto"}
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert deepspeed[key] == "auto"
    assert load(TrainConfig, "launch/train_zero3.yaml", {}).train.model_extra["deepspeed"] == "launch/zero3.json"


def test_several_machines_meet_at_the_first(config: Path) -> None:
    done = cli("--print-launch", "--config", str(config), "--nodes", "2", "--gpus-per-node", "2", "--json")
    told = json.loads(done.stdout)
    meet = '--nnodes 2 --rdzv-id instdiff --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --nproc-per-node 2'
    assert sum(meet in command for command in told["commands"].values()) == 3
    assert told["files"] == [f"launch/{name}" for name in NAMES]
    batch = Path("launch/train.sbatch").read_text()
    assert "#SBATCH --nodes=2\n" in batch and "#SBATCH --gpus-per-node=2\n" in batch
    assert "srun torchrun --nnodes 2 " in batch and "--config launch/train_fsdp2.yaml" in batch
    assert subprocess.run(["bash", "-n", "launch/train.sbatch"], check=False).returncode == 0


def test_what_cannot_be_launched_is_said(config: Path) -> None:
    done = cli("--print-launch", "--config", str(config), "--gpus-per-node", "3", code=2)
    assert "global_batch_size 4 cannot be shared by 3 devices" in done.stderr
    done = cli("--print-launch", "--config", str(config), "--data", "-", code=2)
    assert "standard input" in done.stderr
    # A whole reference model is not taken apart by ZeRO-3.
    with pytest.raises(ConfigError, match=r"mode asft keeps a whole copy .* use_lora: true, or train with FSDP"):
        TrainSettings(mode="asft", deepspeed="zero3.json")
    done = cli("--print-launch", "--config", str(config), "train.use_lora=false")
    assert "zero3" not in done.stdout and not Path("launch").joinpath("zero3.json").exists()


@pytest.mark.slow
def test_the_printed_command_trains_as_one_process(config: Path, tmp_path: Path) -> None:
    asked = ["--config", str(config), "train.optim=sgd"]
    done = cli("--print-launch", *asked, "--gpus-per-node", "2", "--json")
    command = next(line for line in json.loads(done.stdout)["commands"].values() if line.endswith("launch/train.yaml"))
    words = shlex.split(command)
    assert words[0] == "torchrun"
    env = {**ENV, "INSTDIFF_STORE": os.environ["INSTDIFF_STORE"]}
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    done_two = subprocess.run(
        [*torchrun, *words[1:], "--device", "cpu"], env=env, capture_output=True, text=True, check=False
    )
    assert done_two.returncode == 0, done_two.stderr
    assert done_two.stdout.count("Trained on 12 rows") == 1
    torch.set_num_threads(1)
    cli(*asked, "--output", "alone", "--device", "cpu")
    records = [json.loads(Path(name, "training.json").read_text()) for name in ("alone", "out")]
    assert [record["batch"]["processes"] for record in records] == [1, 2]
    assert records[1]["losses"] == pytest.approx(records[0]["losses"], rel=1e-6)
    # These begin at zero and go straight down: they are the gradients. Adam would divide small ones by their own size,
    # and what rounding differs by, which depends on the processor, with them.
    one, two = (weights(Path(name)) for name in ("alone", "out"))
    gradients = [name for name in one if name.endswith("lora_B.weight")]
    assert len(gradients) == 4 and one.keys() == two.keys()
    for name in gradients:
        assert float((one[name] - two[name]).norm()) < 1e-6 * float(one[name].norm()) > 0


@pytest.mark.slow
def test_shared_out_weights_have_the_gradients_of_one_process() -> None:
    """The trainer shares nothing out on a CPU, so FSDP2 is put around the loss by hand."""
    program = str(Path(__file__).with_name("sharded.py"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, program], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "equal\n", done.stderr
