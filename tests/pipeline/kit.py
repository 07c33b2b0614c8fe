"""A pipeline on forty rows with a model of a few kilobytes, and how to look at what it left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from cli.shell import Ran, cli, files, ok, read_jsonl, write_jsonl
from helpers import make_llama, some_rows
from instdiff.core.files import without_sum

LIMIT = 200
POOL = some_rows(40, seed=3)
HELD_OUT = [{**row, "instruction": f"{row['instruction']} of the others"} for row in some_rows(12, seed=4)]
TRAIN = {
    "model_max_length": LIMIT,
    "num_train_epochs": 1,
    "learning_rate": 0.01,
    "warmup_ratio": 0.0,
    "global_batch_size": 4,
    "dtype": "float32",
    "checkpoint_steps": 1,
}
CONFIG: dict[str, Any] = {
    "seed": 7,
    "base_model": "base",
    "data_path": "pool.jsonl",
    "output_dir": "run",
    "store": "store",
    "iterations": 2,
    "dtype": "float32",
    "max_length": LIMIT,
    "warmup": {"sample_size": 10, "limit": 30},
    "select": {"method": "instructdiff", "nll_reject_ratio": 0.1, "select_ratio": 0.2, "budget": "tokens"},
    "train": TRAIN,
    "eval": {"suite": "heldout", "data_path": "heldout.jsonl", "baselines": ["random", "longest", "full"],
             "seeds": [0, 1]},
}  # fmt: skip


def set_up(folder: Path, **changes: Any) -> Path:
    """Rows, held-out rows, a model and ``config.yaml`` in a folder; ``changes`` to the configuration's top."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "pool.jsonl", POOL)
    write_jsonl(folder / "heldout.jsonl", HELD_OUT)
    if not (folder / "base").is_dir():
        make_llama(folder / "base", chat=None, num_hidden_layers=1)
    configure(folder, **changes)
    return folder


def configure(folder: Path, **changes: Any) -> None:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "my.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """The working folder; one thread, since sums in another order have other last bits."""
    old, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    try:
        yield folder
    finally:
        os.chdir(old)
        torch.set_num_threads(threads)


def pipeline(folder: Path, *overrides: object) -> Ran:
    """The command, in this process and this folder; it must succeed."""
    with inside(folder):
        return ok("pipeline", "--config", "my.yaml", *overrides)


def refused(folder: Path, *overrides: object) -> str:
    """The command's one message for the user."""
    with inside(folder):
        return cli("pipeline", "--config", "my.yaml", *overrides).error


def read_json(path: Path) -> Any:
    """A record without its sum, which is checked."""
    return without_sum(json.loads(path.read_text(encoding="utf-8")))


def scores(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def by_instruction(rows: list[dict[str, Any]]) -> list[str]:
    return [row["instruction"] for row in rows]


def weights(model: Path) -> bytes:
    """The trained weights as they lie on the disk."""
    (file,) = model.glob("*.safetensors")
    return file.read_bytes()


def stray(folder: Path) -> list[str]:
    """Files that are no result: hidden ones, half-written ones."""
    return sorted(name for name in files(folder) if any(part.startswith(".") for part in Path(name).parts))


class Work:
    """Counts the trainings and the passes that are really done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from instdiff.engine.models import Resident
        from instdiff.training.trainer import Job

        self.trained: list[str] = []
        self.passes = 0
        self.loads = 0
        run, use, load = Job.run, Resident.use, Resident._load

        def counted_run(job: Any, args: Any, model: Any, folder: Path, start: Path | None) -> Any:
            self.trained.append(folder.name)
            return run(job, args, model, folder, start)

        def counted_use(resident: Any, source: Any) -> Any:
            self.passes += 1
            return use(resident, source)

        def counted_load(resident: Any, folder: Path) -> Any:
            self.loads += 1
            return load(resident, folder)

        monkeypatch.setattr(Job, "run", counted_run)
        monkeypatch.setattr(Resident, "use", counted_use)
        monkeypatch.setattr(Resident, "_load", counted_load)


__all__ = [
    "CONFIG", "HELD_OUT", "LIMIT", "POOL", "TRAIN", "Work", "by_instruction", "cli", "configure", "files", "inside",
    "ok", "pipeline", "read_json", "read_jsonl", "refused", "scores", "set_up", "stray", "weights", "write_jsonl",
]  # fmt: skip
