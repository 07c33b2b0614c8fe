"""Files and commands that start a training on several GPUs or machines: torchrun, FSDP2, DeepSpeed ZeRO-3, Slurm."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from instdiff.config.base import has_stdin
from instdiff.config.commands import TrainConfig
from instdiff.config.train import split_batch
from instdiff.core.files import writing
from instdiff.errors import ConfigError, StoreError

FSDP2 = {
    "version": 2,
    "reshard_after_forward": True,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "state_dict_type": "FULL_STATE_DICT",
    "cpu_ram_efficient_loading": False,
}
"""The trainer's ``fsdp_config``."""

ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
"""DeepSpeed's configuration; the trainer fills in what is ``auto`` from the training settings."""

RECOMPUTE = ("activation_checkpointing", "gradient_checkpointing")
PORT = 29500


@dataclass(frozen=True)
class Launch:
    """What was written, in the order in which it is named, and the commands that start it, by what they do."""

    files: list[Path]
    commands: dict[str, str]

    def as_text(self) -> str:
        """For a terminal."""
        parts = [f"# {what}\n{command}" for what, command in self.commands.items()]
        return "\n\n".join([*parts, "# written: " + ", ".join(map(str, self.files))])


def write_launch(config: TrainConfig, folder: Path) -> Launch:
    """Write a training's launch files into a folder; those of an earlier call are replaced.

    Raises a ConfigError where the data are on standard input or so many processes cannot share the global batch, a
    StoreError where a file cannot be written.
    """
    if has_stdin(config.data):
        raise ConfigError("the data come from standard input, which several processes cannot read; give a file")
    split_batch(config.train, config.nodes * config.gpus_per_node, limit=1)
    plain = config.model_dump(
        mode="json", exclude_unset=True, exclude_none=True, exclude={"print_launch", "nodes", "gpus_per_node"}
    )
    sharded = not config.train.referred or config.train.use_lora
    files = {"train.yaml": _yaml(plain), "train_fsdp2.yaml": _yaml(_with_fsdp2(plain))}
    files["accelerate_fsdp2.yaml"] = _yaml(_accelerate(config))
    if sharded:
        files["train_zero3.yaml"] = _yaml(_with(plain, deepspeed=str(folder / "zero3.json")))
        files["zero3.json"] = json.dumps(ZERO3, indent=2) + "\n"
    files["train.sbatch"] = _slurm(config, folder)
    for name, text in files.items():
        try:
            with writing(folder / name) as aside:
                aside.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StoreError(f"cannot write '{folder / name}': {error.strerror}") from None
    return Launch([folder / name for name in files], _commands(config, folder, sharded))


def _with(plain: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**plain, "train": {**plain.get("train", {}), **more}}


def _with_fsdp2(plain: dict[str, Any]) -> dict[str, Any]:
    """FSDP recomputes activations by itself, and refuses that the trainer does too."""
    train = dict(plain.get("train", {}))
    said = [train.pop(key) for key in RECOMPUTE if key in train]
    recompute = bool(said[0]) if said else True
    return _with({**plain, "train": train}, fsdp=True, fsdp_config={**FSDP2, "activation_checkpointing": recompute})


def _accelerate(config: TrainConfig) -> dict[str, Any]:
    """The same sharding as a configuration of ``accelerate launch``."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "mixed_precision": "no" if config.train.dtype in ("float32", "pure_bf16") else "bf16",
        "num_machines": config.nodes,
        "num_processes": config.nodes * config.gpus_per_node,
        "machine_rank": 0,
        "rdzv_backend": "static" if config.nodes == 1 else "c10d",
        "same_network": True,
        "fsdp_config": {f"fsdp_{key}": value for key, value in FSDP2.items()},
    }


def _torchrun(config: TrainConfig, host: str, job: str, file: Path) -> str:
    """One process for each GPU of a machine; those of several machines meet at the first one."""
    where = "--standalone"
    if config.nodes > 1:
        where = f'--nnodes {config.nodes} --rdzv-id {job} --rdzv-backend c10d --rdzv-endpoint "{host}:{PORT}"'
    program = f"-m instdiff train --config {shlex.quote(str(file))}"
    return f"torchrun {where} --nproc-per-node {config.gpus_per_node} {program}"


def _commands(config: TrainConfig, folder: Path, sharded: bool) -> dict[str, str]:
    ways = {"train.yaml": "the whole model on each GPU", "train_fsdp2.yaml": "the model shared out by FSDP2"}
    if sharded:
        ways["train_zero3.yaml"] = "the model shared out by DeepSpeed ZeRO-3 (needs: pip install deepspeed)"
    many, first = config.nodes > 1, "" if config.nodes == 1 else "HEAD=name-of-the-first-machine; "
    place = f"on each of {config.nodes} machines" if many else "on this machine"
    out = {
        f"{place}, {way}": first + _torchrun(config, "$HEAD", "instdiff", folder / name) for name, way in ways.items()
    }
    rank = f' --machine_rank 0 --main_process_ip "$HEAD" --main_process_port {PORT}' if many else ""
    out[f"{place}, FSDP2 through accelerate" + (" (machine_rank counts the machines)" if many else "")] = (
        first + f"accelerate launch --config_file "
        f"{shlex.quote(str(folder / 'accelerate_fsdp2.yaml'))}{rank} "
        f"-m instdiff train --config {shlex.quote(str(folder / 'train.yaml'))}"
    )
    out["with Slurm, FSDP2"] = f"sbatch {shlex.quote(str(folder / 'train.sbatch'))}"
    return out


def _slurm(config: TrainConfig, folder: Path) -> str:
    return f"""#!/bin/bash
#SBATCH --job-name=instdiff
#SBATCH --nodes={config.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={config.gpus_per_node}
#SBATCH --output=%x-%j.log
#SBATCH --requeue
# Add what your cluster asks for: --partition, --account, --time, --cpus-per-task.
# The output must lie on a disk that all machines see. A job that is started again goes on from its newest checkpoint.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {_torchrun(config, "$HEAD", '"$SLURM_JOB_ID"', folder / "train_fsdp2.yaml")}
"""


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
