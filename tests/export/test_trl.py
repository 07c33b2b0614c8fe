"""TRL takes what is exported for it: `datasets` loads it, and SFTTrainer learns two steps, responses alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from instdiff.selection.export.export import export

from .rows import CALLS, INPUTS, ids, write

pytestmark = pytest.mark.filterwarnings("ignore")


def trained(config: Path, folder: Path, **options: Any) -> tuple[Any, Any]:
    """What the printed command does, in this process: the rows as TRL loads them, and the trainer after two steps."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    (data,) = values["datasets"]
    rows = load_dataset(**data, cache_dir=str(folder / "cache"))
    args = SFTConfig(
        output_dir=str(folder / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        bf16=False,
        disable_tqdm=True,
        **options,
    )
    trainer = SFTTrainer(model=values["model_name_or_path"], args=args, train_dataset=rows)
    trainer.train()
    return rows, trainer


def learnt(trainer: Any, row: int) -> str:
    """The text whose tokens count."""
    found = trainer.train_dataset[row]
    labels = found["labels"] if "labels" in found else found["input_ids"]
    return str(trainer.processing_class.decode([token for token in labels if token >= 0]))


def test_text_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "selected.jsonl", INPUTS)
    done = export(source, "trl", tmp_path / "out", model="builtin:tiny")
    rows, trainer = trained(done.files[1], tmp_path)
    assert rows["completion"][3] == "12" and rows["input"][3] == "5 and 7\n"
    assert trainer.state.global_step == 2 and trainer.state.log_history[-1]["train_loss"] > 0
    assert learnt(trainer, 3).removesuffix("</s>").strip() == "12"


def test_messages(tmp_path: Path, models: dict[str, Path]) -> None:
    chat = str(models["llama"])
    done = export(write(tmp_path / "selected.jsonl", INPUTS), "trl", tmp_path / "out", model=chat)
    assert done.layout == "prompt_completion" and ids(done.files[0]) == ids(tmp_path / "selected.jsonl")
    rows, trainer = trained(done.files[1], tmp_path)
    assert rows["prompt"][3] == [{"role": "user", "content": "Add.\n5 and 7\n"}]
    assert trainer.state.global_step == 2 and learnt(trainer, 3).startswith("12<|im_end|>")
    done = export(write(tmp_path / "calls.jsonl", CALLS), "trl", tmp_path / "out", model=chat)
    rows, trainer = trained(done.files[1], tmp_path)
    assert rows["messages"][2][1]["tool_calls"][0]["function"]["name"] == "find"
    assert trainer.state.global_step == 2 and "Be brief." in learnt(trainer, 1)
