"""Sources become modules: the base is resident once, adapters sit on top of it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from instdiff.core import Log, Measure, Settings
from instdiff.engine.allocator import keep_pages
from instdiff.engine.sources import Source, first_line, unloadable
from instdiff.engine.sweep import BatchResult, Sweep
from instdiff.errors import EngineError
from instdiff.rendering.rows import Rows


def pick_device(name: str) -> torch.device:
    """``auto`` takes the first GPU, else Apple's, else the CPU; an EngineError where the device named is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EngineError(f"device '{name}' cannot be used: {first_line(error)}") from None
    return device


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the weights; ``auto`` is bf16 where the hardware multiplies it faster, else fp32."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bf16() else torch.float32


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has no instructions for a precision: products are then many times slower than in fp32."""
    if device.type != "cpu" or dtype is torch.float32:
        return False
    return dtype is not torch.bfloat16 or not _cpu_multiplies_bf16()


def _cpu_multiplies_bf16() -> bool:
    capability = getattr(torch.cpu, "get_capabilities", None)
    if capability is not None:
        flags = capability()
        return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def work_seconds(device: torch.device) -> float:
    """Seconds of work so far: on a CPU those of this process, whatever else runs there; else by the clock."""
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2, size: int = 1024) -> float:
    """Floating-point operations per second of a square matrix product, the best of repeated runs."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best, spent = 0.0, 0.0
    with torch.inference_mode():
        a @ b
        while spent < seconds:
            start = work_seconds(device)
            a @ b
            took = max(work_seconds(device) - start, 1e-9)
            best, spent = max(best, 2 * size**3 / took), spent + took
    return best


class Resident:
    """The models in memory: one base at a time, with the adapters that sit on it.

    ``over_gpus`` lays a model that is larger than a GPU over all of them, one layer after another.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, over_gpus: bool = False) -> None:
        self.device, self.dtype, self.over_gpus = device, dtype, over_gpus
        self.devices = [str(device)]
        if device.type == "cpu":
            keep_pages()
            keep_few_products()
        self.loads = 0
        self._key: str | None = None
        self._module: Any = None
        self._adapters: dict[str, str] = {}

    @contextmanager
    def use(self, source: Source) -> Iterator[torch.nn.Module]:
        """The causal language model of a source, ready for inference; an EngineError where it cannot be loaded."""
        if self._key != source.base_key:
            self._module, self._adapters, self._key = None, {}, None
            self._module = self._load(source.folder)
            self._key = source.base_key
        if source.adapter is None:
            off = self._module.disable_adapter() if self._adapters else nullcontext()
            with off:
                yield self._module.get_base_model() if self._adapters else self._module
            return
        self._adapt(source.adapter)
        yield self._module.get_base_model()

    def sweep(
        self, source: Source, rows: Rows, measures: tuple[Measure, ...], log: Log, batch_tokens: int | None = None
    ) -> Generator[BatchResult]:
        """Values of rows under a model, batch by batch, in any order."""
        with self.use(source) as model:
            yield from Sweep(model, log, batch_tokens)(rows, measures)

    def local(self) -> Resident:
        """This one."""
        return self

    def close(self) -> None:
        """Nothing: there are no other processes."""

    def _adapt(self, adapter: Path) -> None:
        from peft import PeftModel

        name = self._adapters.get(str(adapter.resolve()))
        try:
            if name is None:
                name = f"adapter{len(self._adapters)}"
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                    if self._adapters:
                        self._module.load_adapter(str(adapter), adapter_name=name)
                    else:
                        self._module = PeftModel.from_pretrained(self._module, str(adapter), adapter_name=name)
                self._module.to(self.dtype).eval()
                self._adapters[str(adapter.resolve())] = name
        except Exception as error:
            raise unloadable(f"adapter '{adapter}'", error) from error
        self._module.set_adapter(name)

    def _load(self, folder: Path) -> Any:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        layout = {"device_map": "auto"} if self.over_gpus else {}
        try:
            module = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=self.dtype,
                use_safetensors=has_safetensors(folder),
                trust_remote_code=False,
                **layout,
            )
        except Exception as error:
            raise unloadable(f"model '{folder}'", error) from error
        self.loads += 1
        module = _rejoin(module) if self.over_gpus else module.to(self.device)
        return module.eval().requires_grad_(False)


def _rejoin(module: Any) -> Any:
    """Let backbone and head, which are called by themselves, give back what they compute where their input was."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for part in (getattr(module, module.base_model_prefix, None), module.get_output_embeddings()):
        if part is not None:
            add_hook_to_module(part, AlignDevicesHook(io_same_device=True), append=True)
    return module


def keep_few_products() -> None:
    """Bound what is kept of compiled bf16 products: a quarter of a megabyte for every size that was met.

    oneDNN keeps 1,024 of them, and once more in each thread, where nothing is gained by it. Both read the environment
    at the first product; what the user has set there stands.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")


def has_safetensors(folder: Path) -> bool:
    """True; an EngineError for a model folder that has only pickled weights."""
    if any(folder.glob("*.safetensors")):
        return True
    raise EngineError(f"'{folder}' has only pickled weights (*.bin), which are not read; convert them to safetensors")


def host_of(settings: Settings) -> Resident:
    """Memory for models as settings have it."""
    device = pick_device(settings.device)
    return Resident(device, pick_dtype(settings.dtype, device))
