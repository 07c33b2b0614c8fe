"""One training behind ``train``: settings, weights and steps, in the order in which they are quick to fail."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PrinterCallback, TrainerCallback

from instdiff.config.train import TrainSettings, hf_arguments, split_batch
from instdiff.core import Log
from instdiff.core.files import environment, read_json
from instdiff.engine.allocator import keeping_all_pages
from instdiff.engine.attention import Unsupported
from instdiff.engine.models import DTYPES
from instdiff.engine.sources import unloadable
from instdiff.errors import ConfigError, EngineError, PlanError, did_you_mean, require
from instdiff.rendering.renderer import Rows
from instdiff.training.attention import attending_to_rows
from instdiff.training.collators import Collator, Filled, Packer, dataset
from instdiff.training.lanes import Lanes, lanes_of, twin
from instdiff.training.late_logs import LateLogs
from instdiff.training.losses import Halves, Reference, TargetLoss

Progress = Callable[[int, int], None]
"""Told after each optimizer step: steps done, steps in all."""

CHECKPOINTS, SAVES = "checkpoints", "saves"
LOG_EVERY_S = 10.0
CPU_ROWS, GPU_TOKENS = 8, 16_384
"""Most rows, or padded tokens, per forward pass where the settings do not say."""
PACKED_EXACT, PACKED_ROUNDED = 2e-3, 0.1
"""How far the states of packed rows may lie from those of each alone, relative, by the precision of the weights."""
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
    weights: npt.NDArray[np.float64] | None = None
    """Factors on the rows' losses."""

    def arguments(self, place: Path) -> Any:
        """The trainer's own settings, as TRL's ``SFTConfig``.

        Raises a ConfigError where one is unknown or does not fit, a PlanError where TRL is not installed.
        """
        require("trl", "training")
        from trl import SFTConfig

        known = [field.name for field in dataclasses.fields(SFTConfig)]
        given = hf_arguments(self.settings, known)
        device = _device(self.device)
        limit = CPU_ROWS if device == "cpu" else max(1, GPU_TOKENS // int(self.rows.ids.lengths().max()))
        size, passes = split_batch(self.settings, int(os.environ.get("WORLD_SIZE", "1")), limit)
        own = {
            "output_dir": str(place),
            "seed": self.seed,
            "use_cpu": device == "cpu",
            "max_length": None,
            "bf16": self.settings.dtype == "bfloat16" or (self.settings.dtype == "auto" and fast_bf16(device)),
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": passes,
            "logging_steps": 1,
            "save_strategy": "no",
            "save_total_limit": 1,
            "disable_tqdm": True,
            "logging_nan_inf_filter": False,
            "dataloader_pin_memory": device == "cuda",
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "remove_unused_columns": False,  # the rows hold what is learnt, and the weights that TRL does not know
        }
        recompute = next(key for key in ("activation_checkpointing", "gradient_checkpointing") if key in known)
        if self.settings.load_in_4bit:
            _can_quantise(device)
        try:
            args = SFTConfig(**{recompute: False} | given | own)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"training settings: {_line(error)}") from None
        _can_track(args.report_to)
        args._n_gpu = min(args.n_gpu, 1)  # several devices take a process each; TRL refuses the trainer's own way
        return args

    def load(self) -> Any:
        """The base model, with weights in fp32 whatever the checkpoint's dtype: small steps get lost in bf16.

        Raises an EngineError where it cannot be loaded, is an adapter, lacks weights, or lacks tokens of the rows.
        """
        if (self.base / "adapter_config.json").is_file():
            raise EngineError(f"'{self.base}' is an adapter; train from its base model, or merge it first")
        how: dict[str, Any] = {"dtype": torch.bfloat16 if self.settings.dtype == "pure_bf16" else torch.float32}
        if self.settings.load_in_4bit:
            how = _quantisation(self.settings)
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                str(self.base), output_loading_info=True, trust_remote_code=False, **how
            )
        except Exception as error:  # the library raises many kinds for unreadable weights
            raise unloadable(f"model '{self.base}'", error) from error
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

        Raises an EngineError where a loss is no number (the folder is removed), or memory does not suffice.
        """
        args.output_dir = str(folder / CHECKPOINTS)
        said = {"activation_checkpointing", "gradient_checkpointing"} & set(self.settings.model_extra or {})
        if args.device.type == "cuda" and not said and not args.fsdp and model.num_parameters() > RECOMPUTE_ABOVE:
            args.activation_checkpointing = args.gradient_checkpointing = True
        watch = _Watch(self.settings, self.log, self.progress)
        # The trainer turns it off, which would slow every later generation.
        use_cache = getattr(model.config, "use_cache", True)
        trainer, attention = self._trainer(args, model, watch, start)
        watch.save = lambda number: trainer.save_model(str(folder / SAVES / str(number)))
        try:
            with attention, keeping_all_pages() if args.device.type == "cpu" else nullcontext():
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
            "target_tokens": int(self.rows.target.sum()),
            "steps": trainer.state.global_step,
            "losses": [entry["loss"] for entry in history],
            "learning_rates": [entry["learning_rate"] for entry in history],
            "resumed_at": watch.first,
            "wall_s": round(time.monotonic() - watch.began, 3),
            "batch": {
                "rows_per_pass": args.per_device_train_batch_size,
                "passes": args.gradient_accumulation_steps,
                "processes": args.world_size,
            },
            "device": args.device.type,
            "bf16_autocast": args.bf16,
            "environment": environment(),
        }

    def _save_dtype(self) -> Any:
        if self.settings.save_dtype != "base":
            return DTYPES[self.settings.save_dtype]
        return AutoConfig.from_pretrained(str(self.base), trust_remote_code=False).dtype or torch.float32

    def _trainer(
        self, args: Any, model: Any, watch: _Watch, start: Path | None
    ) -> tuple[Any, AbstractContextManager[Any]]:
        """The trainer, and the attention under which it trains."""
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        pad = 0 if pad is None else pad
        order = None
        if args.world_size > 1 and getattr(args, "train_sampling_strategy", "random") == "random":
            fill = -len(self.rows) % (args.per_device_train_batch_size * args.world_size)
            order = Filled(len(self.rows), fill, args.seed if args.data_seed is None else args.data_seed, _epoch(start))
        trainer = _trainer_class(watch, order)(
            model=model,
            args=args,
            processing_class=self.tokenizer,
            callbacks=[watch],
            train_dataset=dataset(self.rows, empty=pad if order else None, weights=self.weights),
            data_collator=Collator(pad),
            peft_config=_lora(model, self.settings) if self.settings.use_lora else None,
        )
        trainer.remove_callback(PrinterCallback)
        causal = trainer.model.get_base_model() if self.settings.use_lora else trainer.model
        halves = Halves(causal)
        kind, rounded = args.device.type, args.bf16 and args.device.type == "cuda"
        own = kind == "cpu" or (kind == "cuda" and self.settings.packing)
        with torch.autocast(kind, torch.bfloat16, enabled=rounded):  # the GPU's kernel knows no fp32
            own = own and not (args.deepspeed or args.fsdp) and self._follows_rows(halves)
        if self.settings.packing and not (own or args.deepspeed):
            self._check_packing(halves)
        if self.settings.packing or own:
            trainer.data_collator = Packer(pad)
        loss = self._loss(args, halves, trainer.model)
        if own and kind == "cpu" and args.world_size == 1 and not args.gradient_checkpointing:
            trainer.lanes = self._lanes(args, trainer.model, loss, pad)
        causal.forward = loss
        # Only models that ask are told the number of target tokens of the global batch.
        trainer.model_accepts_loss_kwargs = True
        losses = trainer.lanes.losses if trainer.lanes else [loss]
        return trainer, attending_to_rows(*(each.halves.model for each in losses)) if own else nullcontext()

    def _lanes(self, args: Any, whole: Any, loss: TargetLoss, pad: int) -> Lanes | None:
        """Lanes where they win and the model can be copied."""
        count = lanes_of(whole, args.per_device_train_batch_size)
        try:
            twins = [twin(whole) for _ in range(count - 1)]
        except Exception:  # noqa: BLE001 - whatever its author's modules do, one lane is right too
            return None
        causal = [other.get_base_model() if self.settings.use_lora else other for other in twins]
        losses = [self._loss(args, Halves(one), other) for one, other in zip(causal, twins, strict=True)]
        return Lanes(whole, twins, [loss, *losses], bf16=args.bf16, pad=pad) if losses else None

    def _loss(self, args: Any, halves: Halves, whole: Any) -> TargetLoss:
        """The forward of a training step."""
        causal, reference = halves.model, None
        if self.settings.referred and self.settings.use_lora:
            reference = Reference(halves, whole.disable_adapter)
        elif self.settings.referred:
            reference = Reference.copy_of(causal, args.device, torch.bfloat16 if args.bf16 else causal.dtype)
        return TargetLoss(halves, self.settings.mode, reference, self.settings.kl_weight)

    def _some(self) -> list[torch.Tensor]:
        return [torch.from_numpy(self.rows.ids[row].astype(np.int64)) for row in range(min(4, len(self.rows)))]

    def _follows_rows(self, halves: Halves) -> bool:
        """Whether packed rows are kept apart by our own attention, which needs no padding."""
        device = halves.head.weight.device
        drawn = [device] if device.type == "cuda" else []
        seen = {"position_ids": torch.arange(2)[None], "input_ids": self._some()[0][:2][None]}
        try:
            halves.model.train()  # with dropout, if it has any in its attention
            with attending_to_rows(halves.model), torch.random.fork_rng(drawn), torch.no_grad():
                halves.states({name: tensor.to(device) for name, tensor in seen.items()})
            apart = halves.difference_packed(self._some(), attending_to_rows(halves.model))
        except (Unsupported, TypeError, ValueError, AttributeError, RuntimeError):
            return False
        rounded = self.settings.dtype == "pure_bf16" or torch.is_autocast_enabled(device.type)
        return apart <= (PACKED_ROUNDED if rounded else PACKED_EXACT)

    def _check_packing(self, halves: Halves) -> None:
        some = self._some()
        exact = self.settings.dtype != "pure_bf16" and not self.settings.load_in_4bit
        try:
            apart = halves.difference_packed(some)
        except TypeError as error:
            raise EngineError(f"'{self.base}' takes no packed rows: {_line(error)}; write packing: false") from None
        if not apart <= (PACKED_EXACT if exact else PACKED_ROUNDED):
            raise EngineError(
                f"'{self.base}' does not keep packed rows apart: their states differ by {apart:.1g} from those of each "
                "row alone; write packing: false"
            )


def _trainer_class(watch: _Watch, order: Filled | None) -> Any:
    """TRL's trainer with the loss and the order of rows that are ours."""
    from trl import SFTTrainer

    class Trainer(LateLogs, SFTTrainer):  # type: ignore[misc]
        loss_is_scaled_for_ga = True
        lanes: Lanes | None = None

        def _send_telemetry(self) -> None: ...
        def create_model_card(self, *args: Any, **kwargs: Any) -> None: ...

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return order or super()._get_train_sampler(train_dataset)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            seen = inputs.get("attention_mask")  # its sum stays on the device until someone asks
            watch.tokens += (inputs["input_ids"].numel() if seen is None else seen.sum()) * self.args.world_size
            # Gradients are averaged over processes, so each brings its share times their number.
            return model(**inputs)["loss"] * self.args.world_size / num_items_in_batch

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            if self.lanes is None:
                return super().training_step(model, inputs, num_items_in_batch)
            model.train()
            watch.tokens += int(inputs["input_ids"].numel())
            return self.lanes.backward(inputs, 1.0 / float(num_items_in_batch))

    return Trainer


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells how it goes, asks for checkpoints, and stops at a loss that is no number."""

    def __init__(self, settings: TrainSettings, log: Log, progress: Progress | None) -> None:
        self.settings, self.log, self.progress = settings, log, progress
        self.first, self.began, self.saved, self.as_text = 0, 0.0, 0.0, -math.inf
        self.tokens: Any = 0
        self.save: Callable[[int], None] | None = None
        """Keeps the model so far, under a number."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first, self.began, self.saved = state.global_step, time.monotonic(), time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        each = state.max_steps / self.settings.num_train_epochs
        for number, passes in enumerate(self.settings.saves, 1):
            if self.save is not None and state.global_step == max(1, round(passes * each)):
                self.save(number)
        every, since = self.settings.checkpoint_steps, time.monotonic() - self.saved
        due = bool(every and state.global_step % every == 0) or since > 60 * self.settings.checkpoint_minutes
        if args.world_size > 1:  # clocks differ, and a checkpoint needs every process
            flag = torch.tensor(int(due), device=args.device)
            torch.distributed.broadcast(flag, 0)
            due = bool(flag)
        if due and state.global_step < state.max_steps:
            control.should_save, self.saved = True, time.monotonic()
        if self.progress is not None and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps)

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
        if now - self.as_text >= LOG_EVERY_S:
            took = max(now - self.began, 1e-9)
            left = round((steps - step) * took / (step - self.first))
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.log(
                f"step {step}/{steps}  loss {logs['loss']:.2f}  lr {logs['learning_rate']:.1e}  "
                f"{int(self.tokens) / took:,.0f} tokens/s  ETA {left // 60}:{left % 60:02d}  "
                f"{step * batch:,}/{steps * batch:,} rows, {args.per_device_train_batch_size} per pass"
            )
            self.as_text = now


def _epoch(start: Path | None) -> int:
    return 0 if start is None else int(read_json(start / "trainer_state.json")["epoch"])


def _can_track(names: list[str]) -> None:
    """Check the trackers of ``report_to``: a ConfigError for an unknown one, a PlanError for one not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK as known

    for name in names:
        if name not in known:
            raise ConfigError(f"report_to: unknown tracker '{name}'{did_you_mean(name, known)}")
        try:
            known[name]()
        except (ImportError, RuntimeError) as error:
            raise PlanError(f"tracker '{name}' of report_to: {_line(error)} (or write report_to: none)") from None


def _can_quantise(device: str) -> None:
    lacks = ["an NVIDIA GPU with CUDA"] * (device != "cuda")
    lacks += ['bitsandbytes (run: pip install "bitsandbytes")'] * (find_spec("bitsandbytes") is None)
    if lacks:
        raise PlanError(f"load_in_4bit lacks {' and '.join(lacks)}; or write load_in_4bit: false")


def _quantisation(settings: TrainSettings) -> dict[str, Any]:
    """Weights in four-bit normal floats, as QLoRA (Dettmers et al., 2023, arXiv:2305.14314) has them."""
    compute = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    place = int(os.environ.get("LOCAL_RANK", "0"))
    return {"dtype": compute, "quantization_config": how, "device_map": {"": place}}


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
        task_type="CAUSAL_LM",
        bias="none",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=asked,
        fan_in_fan_out=all(type(module).__name__ == "Conv1D" for module in hits),
    )


def _device(name: str) -> str:
    """The kind of device that the trainer will take; an EngineError where it is not there, or is one of several."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, usable in there.items() if usable)
    kind = name.removesuffix(":0")
    if not there.get(kind, False):
        raise EngineError(f"device '{name}' cannot be trained on; here are {', '.join(k for k in there if there[k])}")
    return kind


def fast_bf16(device: str) -> bool:
    """Whether a kind of device multiplies bf16 faster than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and any(flags.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
