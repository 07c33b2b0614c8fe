"""How to train: the published keys with the paper's defaults, and every key that the trainer itself knows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Self

from pydantic import ConfigDict, PositiveFloat, field_validator, model_validator

from instdiff.config.base import Config, key
from instdiff.errors import ConfigError, did_you_mean

MODES = {"sft": "nll", "dft": "dft", "sft+kl": "nll", "asft": "dft"}
"""Training mode to the nearest of the trainer's own losses; ``losses`` has the formulas."""

REFERRED = ("sft+kl", "asft")
"""Modes that keep near the base model."""

LATER = ("packing", "load_in_4bit", "weights", "saves")
"""Keys that older records lack; where they are false, none or empty nothing has changed."""

FIXED = {
    "assistant_only_loss": "the rows say which tokens are learnt",
    "auto_find_batch_size": "give per_device_train_batch_size; the global batch must stay what it is",
    "average_tokens_across_devices": "the loss is always the mean over the target tokens of the global batch",
    "bf16": "write dtype: bfloat16, or dtype: float32",
    "chat_template_path": "the rows are rendered already; give the template to the command",
    "completion_only_loss": "the rows say which tokens are learnt",
    "dataset_kwargs": "the rows are tokenised already",
    "dataset_text_field": "the rows are tokenised already",
    "disable_tqdm": "progress is shown by instdiff",
    "eos_token": "the tokenizer says it",
    "eval_strategy": "there is no evaluation within training; use `instdiff eval`",
    "fp16": "write dtype: bfloat16, or dtype: float32",
    "gradient_accumulation_steps": "it follows from global_batch_size and per_device_train_batch_size",
    "label_names": "the rows say which tokens are learnt",
    "load_best_model_at_end": "there is no evaluation within training; use `instdiff eval`",
    "logging_nan_inf_filter": "a loss that is no number ends the training",
    "logging_steps": "the loss of every step is kept",
    "logging_strategy": "the loss of every step is kept",
    "loss_type": "write mode: sft, dft, sft+kl or asft",
    "model_init_kwargs": "the model is loaded by instdiff",
    "output_dir": "it belongs to the command, not to the training settings",
    "packing_strategy": "write packing: true, or packing: false; rows are never cut to fit",
    "pad_token": "padding is masked, with any token",
    "padding_free": "write packing: true",
    "push_to_hub": "training makes a local folder; upload it afterwards",
    "remove_unused_columns": "the rows hold ids and labels alone",
    "resume_from_checkpoint": "write resume: true, or resume: false",
    "save_only_model": "write resume: false for a training that starts again",
    "save_strategy": "write checkpoint_minutes or checkpoint_steps",
    "save_total_limit": "only the newest checkpoint is kept, and none at the end",
    "shuffle_dataset": "the sampler shuffles by the seed",
    "trust_remote_code": "code that comes with a model is never run",
    "use_cpu": "give the device to the command",
}
"""Keys of the trainer that cannot be set, and what to do instead."""


class TrainSettings(Config):
    """Settings of one training; keys that are not listed here are passed to the trainer."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), defer_build=True)

    model_max_length: int = key(2048, "Tokens after which a row is cut (also `max_length`).", ge=2, also="max_length")
    num_train_epochs: float = key(3, "Passes over the rows; may be a fraction.", gt=0)
    learning_rate: float = key(2e-5, "The highest one, reached when the warm-up ends.", ge=0)
    global_batch_size: int = key(64, "Rows per optimizer step, over all devices and accumulation steps.", ge=1)
    per_device_train_batch_size: int | None = key(None, "Rows per forward pass; by default what fits.", ge=1)
    mode: str = key(
        "sft",
        "`sft` (cross-entropy), `dft` (cross-entropy weighted with the token's own probability), or with `kl_weight` "
        "times the divergence from the base model added: `sft+kl`, and `asft` to `dft`.",
    )
    kl_weight: float = key(0.1, "Of the divergence, in the modes that have one.", ge=0)
    weights: str | None = key(
        None,
        "Column of the rows with a factor on each row's loss, as `select` writes it; scaled to a mean of 1 over the "
        "target tokens.",
        metavar="COLUMN",
    )
    packing: bool = key(
        False, "Rows end to end without padding; each sees itself alone, for which the model is tested at the start."
    )
    lr_scheduler_type: str = key("cosine", "The trainer's name of the decay.")
    warmup_ratio: float = key(
        0.05, "Share of all steps in which the rate rises from zero; `warmup_steps` takes precedence.", ge=0, lt=1
    )
    weight_decay: float = key(0.01, "AdamW's, not applied to biases and norms.", ge=0)
    max_grad_norm: float = key(1.0, "Gradients are clipped to this norm; 0 never clips.", ge=0)
    use_lora: bool = key(False, "Train low-rank adapters instead of all weights.")
    lora_r: int = key(8, "Rank of the adapters.", ge=1)
    lora_alpha: float = key(16, "The adapters' scale is `lora_alpha / lora_r`.", gt=0)
    lora_dropout: float = key(0.05, "Dropout before the adapters.", ge=0, lt=1)
    load_in_4bit: bool = key(False, "Four bits for the base (QLoRA); needs `use_lora`, bitsandbytes and CUDA.")
    lora_target_modules: list[str] | str = key(
        ["q_proj", "v_proj"], "Names of the modules that get an adapter, a regular expression, or `all-linear`."
    )
    seed: int | None = key(None, "Of order, dropout and adapter weights; None takes the command's.")
    dtype: Literal["auto", "float32", "bfloat16", "pure_bf16"] = key(
        "auto",
        "`auto` keeps fp32 weights and multiplies in bf16 where the hardware is faster; `bfloat16` does so anywhere; "
        "`float32` never; `pure_bf16` keeps the weights in bf16 too, as published.",
    )
    save_dtype: Literal["float32", "bfloat16", "float16", "base"] = key(
        "float32",
        "Of the saved weights of a full training: bf16 tells weights near 0.02 apart by 1e-4 only, and would take back "
        "much of what steps of 2e-5 have learnt. `base` is the base model's own dtype.",
    )
    checkpoint_minutes: float = key(10, "Minutes between checkpoints.", gt=0)
    checkpoint_steps: int | None = key(
        None, "Steps between checkpoints, beside the minutes (also `save_steps`).", ge=1, also="save_steps"
    )
    saves: tuple[PositiveFloat, ...] = key(
        (),
        "Passes below the last after which the model so far is kept too, as `saves/1` and so on in its folder.",
    )
    resume: bool = key(True, "Go on from an interrupted training's newest checkpoint; False starts again.")
    cache_dir: str | None = key(None, "Published key, unused: models are resolved by the command.")
    alpha: float | None = key(None, "Published key, unused there as here.")
    clip_min: float | None = key(None, "Published key, unused there as here.")
    clip_max: float | None = key(None, "Published key, unused there as here.")

    @field_validator("mode")
    @classmethod
    def _check_mode(cls, mode: str) -> str:
        # A ConfigError passes through pydantic as it is; a ValueError would get a prefix that says nothing to a user.
        if mode not in MODES:
            raise ConfigError(f"unknown training mode '{mode}'{did_you_mean(mode, MODES)}")
        return mode

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.load_in_4bit and not self.use_lora:
            raise ConfigError("load_in_4bit needs use_lora: true, because weights of four bits cannot be trained")
        if list(self.saves) != sorted({*self.saves}) or any(one >= self.num_train_epochs for one in self.saves):
            raise ConfigError(
                f"saves {list(self.saves)} do not fit; they rise, and lie below num_train_epochs, which is "
                f"{self.num_train_epochs:g}"
            )
        if (self.model_extra or {}).get("deepspeed") and self.referred and not self.use_lora:
            raise ConfigError(
                f"mode {self.mode} keeps a whole copy of the base model, which DeepSpeed would take apart; write "
                "use_lora: true, or train with FSDP"
            )
        return self

    @property
    def referred(self) -> bool:
        """Whether the loss asks the base model."""
        return self.mode in REFERRED and self.kl_weight > 0

    def seed_of(self, given: int) -> int:
        """The seed of a training: its own, where it has one, before the command's."""
        return given if self.seed is None else self.seed

    def learning(self) -> dict[str, Any]:
        """What decides the trained weights, as plain values; not when checkpoints are made."""
        aside = {"checkpoint_minutes", "checkpoint_steps", "resume", "cache_dir", "seed", "report_to", "run_name"}
        aside |= {key for key in LATER if not getattr(self, key)}
        # A verb's subclass has more fields, such as paths; they are not the training's.
        return self.model_dump(mode="json", include={*TrainSettings.model_fields, *(self.model_extra or {})} - aside)


def hf_arguments(settings: TrainSettings, known: Collection[str]) -> dict[str, Any]:
    """The settings as arguments of TRL's ``SFTConfig``; batch sizes, paths and device are the caller's.

    ``known`` are the names of ``SFTConfig``'s fields; given, because reading them costs seconds of import. Raises a
    ConfigError for a key that nobody knows, or one that is fixed here.
    """
    extra = dict(settings.model_extra or {})
    open_keys = [*TrainSettings.model_fields, *TrainSettings.aliases(), *(set(known) - set(FIXED))]
    for name in extra:
        if name in FIXED:
            raise ConfigError(f"training key '{name}' cannot be set: {FIXED[name]}")
        if name not in known:
            raise ConfigError(f"unknown training key '{name}'{_hint(name, open_keys)}")
    checkpointing = {
        new: extra.pop(old)
        for old, new in (
            ("gradient_checkpointing", "activation_checkpointing"),
            ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        )
        if old in extra and new in known
    }
    return {
        "num_train_epochs": settings.num_train_epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_ratio,  # below 1 it is a share of the steps
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "loss_type": MODES[settings.mode],
        "report_to": "none",
        "ddp_find_unused_parameters": False,
        **checkpointing,
        **extra,
    }


def _hint(key: str, known: Collection[str]) -> str:
    # The trainer has over a hundred keys: without a close one, the whole list would bury the message.
    hint = did_you_mean(key, known)
    return hint if "did you mean" in hint else "; it is no key of instdiff and none of Hugging Face's TrainingArguments"


def split_batch(settings: TrainSettings, world: int, limit: int) -> tuple[int, int]:
    """Rows per forward pass on each device, and forward passes per optimizer step, such that nothing is left over.

    ``world`` is the number of processes, ``limit`` the most rows per forward pass where the settings do not say. Raises
    a ConfigError where the global batch cannot be split so.
    """
    total, given = settings.global_batch_size, settings.per_device_train_batch_size
    if given is None:
        share, rest = divmod(total, world)
        if rest or not share:
            raise ConfigError(f"global_batch_size {total} cannot be shared by {world} devices; give a multiple")
        size = max(n for n in range(1, min(limit, share) + 1) if share % n == 0)
        return size, share // size
    if total % (given * world):
        raise ConfigError(
            f"global_batch_size {total} is no multiple of per_device_train_batch_size {given} x {world} device"
            f"{'s' * (world > 1)} = {given * world}; change one of them, or leave per_device_train_batch_size out"
        )
    return given, total // (given * world)
