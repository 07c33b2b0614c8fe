"""Train on rows of a pool: rendered once more by the very code that scores them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from instdiff.config.train import TrainSettings
from instdiff.core import Log, ModelRef, Settings
from instdiff.data import Pool
from instdiff.engine.load import load_tokenizer, resolve
from instdiff.errors import ConfigError
from instdiff.render import training_rows
from instdiff.store import Store
from instdiff.templates import template


def train(
    pool: Pool,
    base: ModelRef,
    train_settings: TrainSettings,
    settings: Settings,
    output: Path,
    *,
    store: Store,
    seed: int,
    log: Log,
    say: Callable[[dict[str, Any]], None] | None = None,
) -> ModelRef:
    """Supervised fine-tuning of a base model on all rows of a pool.

    Returns:
        The trained model; for LoRA the base with the adapter on it.

    Raises:
        ConfigError: the base has an adapter.
    """
    from instdiff.sft import train as fit

    if base.adapter:
        raise ConfigError(f"'{base}' has an adapter; merge it into its base before training on top of it")
    source = resolve(base, store.memo, adapters=False)
    tokenizer = load_tokenizer(source)
    layout = template(base.template or settings.templates["*"])
    rows = training_rows(pool, tokenizer, layout, train_settings.model_max_length)
    report = fit(
        rows,
        source.folder,
        tokenizer.hf,
        train_settings,
        output,
        seed=seed,
        device=settings.device,
        mark=source.fingerprint,
        log=log,
    )
    if say is not None:
        losses = report.losses
        say({"rows": report.rows, "steps": report.steps, "last_loss": round(losses[-1], 4) if losses else None})
    if train_settings.use_lora:
        return ModelRef(base.where, base.revision, str(output), base.template)
    return ModelRef(str(output), template=base.template)
