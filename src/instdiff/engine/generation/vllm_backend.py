"""Answers of a model in vLLM, which is an extra that brings a torch of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from instdiff.core import Log, ModelRef, Settings
from instdiff.core.files import fingerprint
from instdiff.engine.generation.backend import GenerationRequest, Prompt, Sampling, cut_at_stop
from instdiff.engine.generation.transformers_backend import PromptEncoder
from instdiff.engine.text.judge import Answer
from instdiff.errors import EngineError, PlanError, lacking

AT_ONCE = 1024
"""Answers between two times that they are kept."""
WAYS = 1
LARGEST_SEED = 2**31


class VLLM:
    """Writes with vLLM's offline engine, which batches by itself; every answer has its own seed.

    Args:
        model: a causal language model, with or without an adapter.
        settings: precision and templates.
        memo: where hashes of model files are remembered.
        log: is told what happens.

    Raises:
        PlanError: vLLM is not installed.
    """

    def __init__(self, model: ModelRef, settings: Settings, memo: Path, log: Log) -> None:
        if find_spec("vllm") is None:
            raise PlanError(
                f"{lacking('the generator vllm', 'vllm')} in an environment of its own; or serve the model elsewhere "
                "and give --generator openai:MODEL@http://host:port/v1"
            )
        self._side, self.log = PromptEncoder(model, settings, memo), log
        self.name, self.dtype = self._side.name, settings.dtype
        source = self._side.source
        self.fingerprint = fingerprint("vllm", WAYS, source.fingerprint, self._side.fingerprint, settings.dtype)
        self._engine: Any = None

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt in its template."""
        return self._side.text(prompt)

    def write(
        self, asked: Sequence[GenerationRequest], sampling: Sampling
    ) -> Iterator[list[tuple[GenerationRequest, Answer]]]:
        """Answers, so many at once."""
        sampling = self._side.stops(sampling)
        rows, lost = self._side.split(asked, sampling.max_new_tokens)
        if lost:
            yield lost
        rows.sort(key=lambda found: -len(found[0][1]))
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            began = time.monotonic()
            out = self._load().generate(
                [{"prompt_token_ids": ids} for (_, ids), _ in some],
                [self._params(one, room, sampling) for (one, _), room in some],
                use_tqdm=False,
                lora_request=self._adapter(),
            )
            seconds = (time.monotonic() - began) / len(some)
            done = []
            for ((one, ids), _), told in zip(some, out, strict=True):
                text, cut = cut_at_stop(told.outputs[0].text, sampling.stop), told.outputs[0].finish_reason == "length"
                done.append((one, Answer(text, "", len(ids), len(told.outputs[0].token_ids), seconds, cut)))
            yield done

    def _params(self, one: GenerationRequest, room: int, sampling: Sampling) -> Any:
        return import_module("vllm").SamplingParams(
            n=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
            max_tokens=room,
            stop=list(sampling.stop) or None,
            stop_token_ids=sorted(self._side.end.tokens) or None,
            seed=one.seed % LARGEST_SEED,
        )

    def _adapter(self) -> Any:
        adapter = self._side.source.adapter
        return import_module("vllm.lora.request").LoRARequest("adapter", 1, str(adapter)) if adapter else None

    def _load(self) -> Any:
        if self._engine is None:
            source = self._side.source
            lora = {"enable_lora": True, "max_lora_rank": _rank(source.adapter)} if source.adapter else {}
            try:
                self._engine = import_module("vllm").LLM(
                    model=str(source.folder), dtype=self.dtype, trust_remote_code=False, **lora
                )
            except Exception as error:
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise EngineError(f"vLLM cannot load '{self.name}': {first}") from error
        return self._engine


def _rank(adapter: Path) -> int:
    """The adapter's rank, up to one that vLLM knows."""
    told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = int(told.get("r", 8))
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)
