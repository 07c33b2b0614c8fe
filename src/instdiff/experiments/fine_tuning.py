"""Training from Python: rows, a model and a folder, with the defaults of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instdiff.config.base import build
from instdiff.config.train import TrainSettings
from instdiff.core import Log, ModelRef, Settings
from instdiff.data.load import as_pool
from instdiff.scoring.given import given_folder, given_model, given_settings, given_store
from instdiff.store import Store
from instdiff.training.pairs import refuse_pairs
from instdiff.training.sft import train as fit


def train(
    data: Any,
    model: Any,
    output: str | Path,
    *,
    template: str | Path | None = None,
    device: str | None = None,
    settings: Settings | None = None,
    store: Store | str | Path | None = None,
    seed: int = 42,
    strict: bool = False,
    log: Log | None = None,
    **training: Any,
) -> ModelRef:
    """Fine-tune a model on rows, and write it to a folder that is whole or absent.

    Args:
        data: a selection, a pool, or what ``load`` reads.
        model: a folder, a hub id, or a loaded one as ``(model, tokenizer)``, which is not changed.
        output: the folder of the model, or of the adapter.
        template: how rows are rendered, such as ``chat``.
        device: by default the first GPU, else the CPU.
        settings: these two and more.
        store: where hashes of model files are remembered.
        seed: of order, dropout and adapter weights.
        strict: a ConfigError where no row has an end to learn.
        log: is told what happens.
        training: keys of the training settings, such as ``num_train_epochs``, ``learning_rate`` and ``use_lora``.

    Returns the trained model, which ``score``, ``evaluate`` and ``train`` take; for LoRA the base with its adapter.

    Raises:
        ConfigError: a key is unknown, a value has a type that is not taken, or rows are preference pairs.
        DataError: no row can be trained on.
        StoreError: something else is in the folder.
        PlanError: the training extra is missing.
    """
    place, folder = given_store(store), given_folder(output)
    return fit(
        refuse_pairs(as_pool(data)),
        given_model(model, place),
        build(TrainSettings, training, "the keywords"),
        given_settings(settings, template=template, device=device),
        folder,
        store=place,
        seed=seed,
        strict=strict,
        log=log or (lambda line: None),
    )
