"""One training behind ``train``: settings, weights and steps, in the order in which they are quick to fail."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, TrainerCallback

from instdiff.artifact import environment
from instdiff.config.train import TrainSettings, hf_arguments, split_batch
from instdiff.core import Log
from instdiff.engine.load import DTYPES
from instdiff.errors import ConfigError, EngineError, PlanError
from instdiff.losses import IGNORED, TargetLoss
from instdiff.render import Rows

Progress = Callable[[int, int], None]
"""Told after each optimizer step: steps done, steps in all."""

CHECKPOINTS = "checkpoints"
LOG_EVERY_S = 10.0
CPU_ROWS, GPU_TOKENS = 8, 16_384
"""Most rows, or padded tokens, per forward pass where the settings do not say."""
WIDTHS = 32
"""Batches are padded to a multiple of this: kernels are compiled and kept for each shape, in memory that then grows."""
RECOMPUTE_ABOVE = 1_000_000_000
"""Weights from which on a GPU recomputes activations in the backward pass instead of keeping them."""


@dataclass
class Job:
    """One training of usable rows; see ``train`` for the parts."""

    rows: Rows
    base: Path
    tokenizer: Any
    settings: TrainSettings
    seed: int
    device: str
    log: Log
    progress: Progress | None

    def arguments(self, place: Path) -> Any:
        """The trainer's own settings, as TRL's ``SFTConfig``.

        Raises:
            ConfigError: one is unknown or does not fit.
            PlanError: TRL is not installed.
        """
        try:
            from trl import SFTConfig
        except ImportError:
            raise PlanError('training needs TRL, which is missing; run: pip install "instdiff[train]"') from None
        known = [field.name for field in dataclasses.fields(SFTConfig)]
        given = hf_arguments(self.settings, known)
        device = _device(self.device)
        limit = CPU_ROWS if device == "cpu" else max(1, GPU_TOKENS // int(self.rows.ids.lengths().max()))
        size, passes = split_batch(self.settings, int(os.environ.get("WORLD_SIZE", "1")), limit)
        own = {
            "output_dir": str(place), "seed": self.seed, "use_cpu": device == "cpu", "max_length": None,
            "bf16": self.settings.dtype == "bfloat16" or (self.settings.dtype == "auto" and _fast_bf16(device)),
            "per_device_train_batch_size": size, "gradient_accumulation_steps": passes, "logging_steps": 1,
            "save_strategy": "no", "save_total_limit": 1, "disable_tqdm": True, "logging_nan_inf_filter": False,
            "dataloader_pin_memory": device == "cuda", "dataset_kwargs": {"skip_prepare_dataset": True},
        }  # fmt: skip
        recompute = next(key for key in ("activation_checkpointing", "gradient_checkpointing") if key in known)
        try:
            args = SFTConfig(**{recompute: None if device == "cuda" else False} | given | own)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"training settings: {_line(error)}") from None
        args._n_gpu = min(args.n_gpu, 1)  # several devices take a process each; TRL refuses the trainer's own way
        return args

    def load(self) -> Any:
        """The base model, with weights in fp32 whatever the checkpoint's dtype: small steps get lost in bf16.

        Raises:
            EngineError: it cannot be loaded, is an adapter, lacks weights, or does not know the rows' tokens.
        """
        if (self.base / "adapter_config.json").is_file():
            raise EngineError(f"'{self.base}' is an adapter; train from its base model, or merge it first")
        dtype = torch.bfloat16 if self.settings.dtype == "pure_bf16" else torch.float32
        try:
            model, found = AutoModelForCausalLM.from_pretrained(str(self.base), dtype=dtype, output_loading_info=True)
        except Exception as error:  # the library raises many kinds for unreadable weights
            raise EngineError(f"cannot load model '{self.base}': {_line(error)}") from error
        if found["missing_keys"]:
            raise EngineError(f"model '{self.base}' lacks weights: {', '.join(sorted(found['missing_keys'])[:3])}")
        known, highest = model.get_input_embeddings().num_embeddings, int(self.rows.ids.values.max())
        if highest >= known:
            raise EngineError(f"the rows hold token {highest}, but '{self.base}' knows {known}; take its own tokenizer")
        try:
            model.generation_config.validate(strict=True)
        except ValueError:  # published models name a temperature without sampling, and then cannot be saved
            model.generation_config.do_sample = True
        return model

    def run(self, args: Any, model: Any, folder: Path, start: Path | None) -> dict[str, Any]:
        """Train from a checkpoint or from the base, write the model to the folder, and tell what was done.

        Raises:
            EngineError: a loss is no number (the folder is removed), or memory does not suffice.
        """
        args.output_dir = str(folder / CHECKPOINTS)
        said = {"activation_checkpointing", "gradient_checkpointing"} & set(self.settings.model_extra or {})
        if args.device.type == "cuda" and not said and model.num_parameters() > RECOMPUTE_ABOVE:
            args.activation_checkpointing = args.gradient_checkpointing = True
        watch = _Watch(self.settings, self.log, self.progress)
        use_cache = getattr(
            model.config, "use_cache", True
        )  # the trainer turns it off, which would slow every later generation
        trainer = self._trainer(args, model, watch)
        try:
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
        except torch.OutOfMemoryError:
            raise EngineError(
                f"out of memory with {args.per_device_train_batch_size} rows per pass; set a lower "
                "per_device_train_batch_size (the result stays the same), activation_checkpointing or use_lora"
            ) from None
        except EngineError:
            shutil.rmtree(folder, ignore_errors=True)  # the same call would come to the same end
            raise
        if not (self.settings.use_lora or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            trainer.model.to(self._save_dtype())
        model.config.use_cache = use_cache
        trainer.save_model(str(folder))
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        return {
            "target_tokens": int(self.rows.target.sum()), "steps": trainer.state.global_step,
            "losses": [entry["loss"] for entry in history],
            "learning_rates": [entry["learning_rate"] for entry in history],
            "resumed_at": watch.first, "wall_s": round(time.monotonic() - watch.began, 3),
            "batch": {"rows_per_pass": args.per_device_train_batch_size, "passes": args.gradient_accumulation_steps,
                      "processes": args.world_size},
            "device": args.device.type, "bf16_autocast": args.bf16, "environment": environment(),
        }  # fmt: skip

    def _save_dtype(self) -> Any:
        if self.settings.save_dtype != "base":
            return DTYPES[self.settings.save_dtype]
        return AutoConfig.from_pretrained(str(self.base)).dtype or torch.float32

    def _trainer(self, args: Any, model: Any, watch: _Watch) -> Any:
        from datasets import Dataset
        from trl import SFTTrainer

        class Trainer(SFTTrainer):  # type: ignore[misc]
            loss_is_scaled_for_ga = True

            def _send_telemetry(self) -> None: ...
            def create_model_card(self, *args: Any, **kwargs: Any) -> None: ...

            def compute_loss(
                self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
            ) -> Any:
                watch.tokens += int(inputs["attention_mask"].sum()) * self.args.world_size
                # Gradients are averaged over processes, so each brings its share times their number.
                return model(**inputs)["loss"] * self.args.world_size / num_items_in_batch

        ids, offsets = self.rows.ids.values, pa.array(self.rows.ids.offsets)
        labels = np.where(self.rows.target, ids, IGNORED)
        lists = [pa.LargeListArray.from_arrays(offsets, values) for values in (ids, labels)]
        table = pa.table(lists, names=["input_ids", "labels"])
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        trainer = Trainer(
            model=model, args=args, processing_class=self.tokenizer, train_dataset=Dataset(table), callbacks=[watch],
            data_collator=Collator(0 if pad is None else pad),
            peft_config=_lora(model, self.settings) if self.settings.use_lora else None,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        causal = trainer.model.get_base_model() if self.settings.use_lora else trainer.model
        causal.forward = TargetLoss(causal, self.settings.mode)
        # Only models that ask are told the number of target tokens of the global batch.
        trainer.model_accepts_loss_kwargs = True
        return trainer


class Collator:
    """Rows of a batch, padded on the right; padding is neither seen nor learnt."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Tensors of (rows, tokens of the longest row)."""
        ids, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
        width = -(-max(map(len, ids)) // WIDTHS) * WIDTHS

        def filled(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (width - len(row)) for row in values])

        seen = filled([[1] * len(row) for row in ids], 0)
        return {"input_ids": filled(ids, self.pad), "attention_mask": seen, "labels": filled(labels, IGNORED)}


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells how it goes, asks for checkpoints, and stops at a loss that is no number."""

    def __init__(self, settings: TrainSettings, log: Log, progress: Progress | None) -> None:
        self.settings, self.log, self.progress = settings, log, progress
        self.first, self.tokens, self.began, self.saved, self.told = 0, 0, 0.0, 0.0, -math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first, self.began, self.saved = state.global_step, time.monotonic(), time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        every, since = self.settings.checkpoint_steps, time.monotonic() - self.saved
        due = bool(every and state.global_step % every == 0) or since > 60 * self.settings.checkpoint_minutes
        if args.world_size > 1:  # clocks differ, and a checkpoint needs every process
            flag = torch.tensor(int(due), device=args.device)
            torch.distributed.broadcast(flag, 0)
            due = bool(flag)
        if due and state.global_step < state.max_steps:
            control.should_save, self.saved = True, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return
        step, steps, now = state.global_step, state.max_steps, time.monotonic()
        for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
            if not math.isfinite(logs.get(name, 0.0)):
                raise EngineError(
                    f"the {what} is {logs[name]} at step {step} of {steps}; nothing is saved; set a lower "
                    f"learning_rate (now {self.settings.learning_rate:g}), or dtype: float32"
                )
        if not state.is_world_process_zero:
            return
        if self.progress is not None:
            self.progress(step, steps)
        if now - self.told >= LOG_EVERY_S:
            took = max(now - self.began, 1e-9)
            left = round((steps - step) * took / (step - self.first))
            self.log(
                f"step {step}/{steps}  loss {logs['loss']:.2f}  lr {logs['learning_rate']:.1e}  "
                f"{self.tokens / took:,.0f} tokens/s  ETA {left // 60}:{left % 60:02d}"
            )
            self.told = now


def _lora(model: Any, settings: TrainSettings) -> Any:
    from peft import LoraConfig

    asked, head = settings.lora_target_modules, model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head}

    def hit(name: str) -> bool:
        if isinstance(asked, str):
            return asked == "all-linear" or re.fullmatch(asked, name) is not None
        return any(name == end or name.endswith("." + end) for end in asked)

    hits = [module for name, module in linear.items() if hit(name)]
    if not hits:
        names = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(f"no module matches lora_target_modules {asked}; known: all-linear, {', '.join(names)}")
    return LoraConfig(
        task_type="CAUSAL_LM", bias="none", r=settings.lora_r, lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout, target_modules=asked,
        fan_in_fan_out=all(type(module).__name__ == "Conv1D" for module in hits),
    )  # fmt: skip


def _device(name: str) -> str:
    """The kind of device that the trainer will take.

    Raises:
        EngineError: it is not there, or one of several is named.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, usable in there.items() if usable)
    kind = name.removesuffix(":0")
    if not there.get(kind, False):
        raise EngineError(f"device '{name}' cannot be trained on; here are {', '.join(k for k in there if there[k])}")
    return kind


def _fast_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and any(flags.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
