"""What a worker on a cluster does: it holds a model, takes a block of rows and gives back a block of values.

It writes nothing but results in the shared folder, where there is one, and reads no clock.
"""

from __future__ import annotations

import os
import socket
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from instdiff.core import ModelRef
from instdiff.engine.distributed.arrow_blocks import Shared, results_of, rows_of
from instdiff.engine.distributed.workers import Task
from instdiff.engine.models import DTYPES, WEIGHTS, Resident, Source, resolve
from instdiff.engine.sweep import Sweep
from instdiff.errors import EngineError, InstDiffError
from instdiff.version import __version__


@dataclass(frozen=True)
class Errand:
    """What is read off which model, and how a worker knows that it has the same one."""

    task: Task
    weights: tuple[tuple[str, int], ...]
    shared: Shared | None = None

    @classmethod
    def of(cls, task: Task, shared: Shared | None) -> Errand:
        """For a model that is on this machine."""
        return cls(task, weights(task.source), shared)


@dataclass(frozen=True)
class Reply:
    """A block of values, or its name in the shared folder; what there was to say; or what went wrong."""

    block: pa.Table | str | None
    says: tuple[str, ...] = ()
    error: Exception | None = None


class Scorer:
    """One worker of a cluster.

    Args:
        dtype: of the weights.
        gpus: that it has; above one the model's layers are dealt out to them.
        threads: that it may use on a CPU.
    """

    def __init__(self, dtype: str, gpus: int, threads: int) -> None:
        import torch

        self.device = torch.device("cuda", 0) if gpus else torch.device("cpu")
        torch.set_num_threads(threads)
        kind = Spread if gpus > 1 else Resident
        self.resident = kind(self.device, DTYPES[dtype])
        self._sweep: Sweep | None = None
        self._mine: Any = None
        self._says: list[str] = []

    def facts(self) -> dict[str, Any]:
        """Where it is and what it runs."""
        return {"host": socket.gethostname(), "pid": os.getpid(), "version": __version__}

    def sweep(self, errand: Errand, block: pa.Table | str, name: str) -> Reply:
        """Score a block; whatever goes wrong is in the reply.

        Args:
            errand: what to read.
            block: rows, or their name in the shared folder.
            name: of the results there.
        """
        self._says.clear()
        try:
            shared = errand.shared
            rows = rows_of(shared.get(block) if shared is not None else block)
            task = replace(errand.task, source=at_hand(errand.task.source, errand.weights))
            if self._mine != (task.source, task.batch_tokens):
                self._sweep = None  # it holds the old model, for which there may be no room beside the new one
                self._mine = task.source, task.batch_tokens
            with self.resident.use(task.source) as model:
                self._sweep = self._sweep or Sweep(model, self._says.append, task.batch_tokens)
                given = results_of(list(self._sweep(rows, task.measures)), task.measures)
            return Reply(given if shared is None else shared.put(name, given), tuple(self._says))
        except InstDiffError as error:
            return Reply(None, tuple(self._says), type(error)(f"{error} (on {socket.gethostname()})"))
        except Exception:  # noqa: BLE001 - it is a bug, which the driver shows
            return Reply(None, (), RuntimeError(f"a worker failed:\n{traceback.format_exc()}"))


def weights(source: Source) -> tuple[tuple[str, int], ...]:
    """Names and sizes of a model's weights: what tells a stale or half copy without reading it."""
    folders = [folder for folder in (source.folder, source.adapter) if folder is not None]
    found = {(file.name, file.stat().st_size) for f in folders for pattern in WEIGHTS for file in f.glob(pattern)}
    return tuple(sorted(found))


def at_hand(source: Source, expected: tuple[tuple[str, int], ...]) -> Source:
    """The same model on this machine: in the same folder, or found again by its name.

    Raises:
        EngineError: it is not here, or is another one.
    """
    if source.folder.is_dir() and (source.adapter is None or source.adapter.is_dir()):
        here = source
    elif _named(source.ref):
        here = resolve(source.ref)
        if here.fingerprint != source.fingerprint:
            raise EngineError(f"'{source.ref.where}' is not the model here that it is at the driver; name a revision")
        here = replace(here, commit=source.commit)
    else:
        raise EngineError(
            f"there is no model folder '{source.folder}' here; put it where every node sees it under the same "
            "name, or give a hub id"
        )
    if weights(here) != expected:
        raise EngineError(
            f"the weights in '{here.folder}' have other names or sizes here than at the driver; copy them again"
        )
    return here


def _named(ref: ModelRef) -> bool:
    """Whether a model can be found by name on another machine."""
    return not Path(ref.where).expanduser().is_absolute() and not ref.where.startswith((".", "~"))


class Spread(Resident):
    """A model that is larger than a GPU: its layers lie on several, one after another."""

    def _load(self, folder: Path) -> Any:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        if not any(folder.glob("*.safetensors")):
            raise EngineError(f"'{folder}' has only pickled weights (*.bin); convert them to safetensors")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            module = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=self.dtype, use_safetensors=True, device_map="auto"
            )
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise EngineError(f"cannot load model '{folder}' over several GPUs: {reason}") from error
        self.loads += 1
        return rejoined(module).eval().requires_grad_(False)


def rejoined(module: Any) -> Any:
    """Let backbone and head, which are called by themselves, give back what they compute where their input was."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for part in (getattr(module, module.base_model_prefix, None), module.get_output_embeddings()):
        if part is not None:
            add_hook_to_module(part, AlignDevicesHook(io_same_device=True), append=True)
    return module
