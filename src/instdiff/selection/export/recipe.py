"""How to train on an export: as the run did, or by the defaults, in each trainer's own words."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from instdiff.config.train import TrainSettings, split_batch
from instdiff.core.display import in_one_line
from instdiff.errors import ConfigError
from instdiff.selection.record import Found

Trainer = Literal["trl", "llamafactory", "axolotl"]
AT_ONCE = 8
"""The most rows of a forward pass, where nobody says."""
AXOLOTL = {
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "lr_scheduler_type": "lr_scheduler",
}


@dataclass(frozen=True)
class Recipe:
    """Settings of a training, and whose they are."""

    settings: TrainSettings = field(default_factory=TrainSettings)
    whose: str = "the defaults of instdiff"

    def keys(self, trainer: Trainer) -> dict[str, Any]:
        """What a trainer's configuration says of it, on one device."""
        s = self.settings
        rows, passes = split_batch(s, 1, AT_ONCE)
        keys: dict[str, Any] = {
            "num_train_epochs": s.num_train_epochs,
            "learning_rate": s.learning_rate,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": passes,
            "lr_scheduler_type": s.lr_scheduler_type,
            # Of TRL's steps a number below 1 is a share.
            "warmup_steps" if trainer == "trl" else "warmup_ratio": s.warmup_ratio,
            "weight_decay": s.weight_decay,
            "max_grad_norm": s.max_grad_norm,
        }
        if trainer == "axolotl":
            keys = {AXOLOTL.get(name, name): value for name, value in keys.items()}
        return keys | (self._adapter(trainer) if s.use_lora else {})

    def _adapter(self, trainer: Trainer) -> dict[str, Any]:
        s, every = self.settings, self.settings.lora_target_modules == "all-linear"
        named = s.lora_target_modules
        size = {"lora_alpha": int(s.lora_alpha), "lora_dropout": s.lora_dropout}
        match trainer:
            case "trl":
                return {"use_peft": True, "lora_r": s.lora_r, **size, "lora_target_modules": named}
            case "axolotl":
                which = {"lora_target_linear": True} if every else {"lora_target_modules": named}
                return {"adapter": "lora", "lora_r": s.lora_r, **size, **which}
        target = "all" if every else named if isinstance(named, str) else ",".join(named)
        return {"finetuning_type": "lora", "lora_rank": s.lora_r, **size, "lora_target": target}

    def remark(self) -> str:
        """Whose it is, in a line."""
        s = self.settings
        mode = "" if s.mode == "sft" else f"; that training had mode {s.mode}, which is not written here"
        return f"Epochs, rate and batch are {self.whose}: {s.global_batch_size} rows a step, on one device{mode}."


def recipe_of(found: Found) -> Recipe:
    """The training of the run that a selection lies in, or the defaults where it lies in none."""
    for folder in list(found.files[0].absolute().parents)[:3] if found.files else ():
        if (folder / "config.yaml").is_file() and (folder / "environment.json").is_file():
            with suppress(OSError, ValueError, yaml.YAMLError, ConfigError):
                known = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
                settings = (known.get("select_train") or {}).get("train") or known.get("train") or {}
                return Recipe(TrainSettings(**settings), f"those of the run '{in_one_line(folder.name)}'")
    return Recipe()
