"""Models that take text: embedders and judges, behind one face."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import torch

from instdiff.core import TEMPLATE_DATE, Embedding, Log, Measure, ModelRef
from instdiff.engine.models import Resident, Source, load_tokenizer, resolve
from instdiff.engine.sweep import BatchResult
from instdiff.engine.text.embedder import PACKAGED, Embedder, resolve_embedder
from instdiff.engine.text.endpoint import Endpoint
from instdiff.engine.text.judge import Judge, judge_fingerprint, parse_judge
from instdiff.engine.text.local_judge import Writer
from instdiff.rendering.texts import Texts

__all__ = ["PACKAGED", "JudgeModel", "TextModel", "VectorModel", "text_model"]


class TextModel(Protocol):
    """What reads measures off texts."""

    fingerprint: str

    def sweep(self, texts: Texts, measures: tuple[Measure, ...], log: Log) -> Iterator[BatchResult]:
        """Values batch by batch, in any order; the model is loaded when the first is asked for."""
        ...


def text_model(
    ref: ModelRef,
    measure: Measure,
    memo: Path,
    resident: Resident,
    device: torch.device,
    concurrency: int | None = None,
    template_date: date = TEMPLATE_DATE,
) -> TextModel:
    """An embedder or judge, not yet loaded; a ConfigError for a faulty address, an EngineError for no model."""
    if isinstance(measure, Embedding):
        return VectorModel(resolve_embedder(ref, memo), device)
    return JudgeModel(ref, memo, resident, concurrency, template_date)


class VectorModel:
    """An embedder that is loaded when it is needed."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source, self.device, self.fingerprint = source, device, source.fingerprint
        self._embedder: Embedder | None = None

    def sweep(self, texts: Texts, measures: tuple[Measure, ...], log: Log) -> Iterator[BatchResult]:
        """Vectors."""
        self._embedder = self._embedder or Embedder(self.source, log, self.device)
        yield from self._embedder(texts, measures)


class JudgeModel:
    """A judge behind an endpoint, or a language model of this machine that writes."""

    def __init__(
        self,
        ref: ModelRef,
        memo: Path,
        resident: Resident,
        concurrency: int | None = None,
        template_date: date = TEMPLATE_DATE,
    ) -> None:
        self.resident, self.template_date = resident, template_date
        self.calls: dict[str, Any] = {} if concurrency is None else {"concurrency": concurrency}
        self.endpoint = parse_judge(ref.where)
        self.source = None if self.endpoint else resolve(ref, memo)
        if self.endpoint is not None:
            self.fingerprint = judge_fingerprint(self.endpoint.model)
        elif self.source is not None:
            dtype = str(resident.dtype).removeprefix("torch.")
            self.fingerprint = judge_fingerprint(
                f"{self.source.fingerprint}+{load_tokenizer(self.source, self.template_date).fingerprint}+{dtype}"
            )

    def sweep(self, texts: Texts, measures: tuple[Measure, ...], log: Log) -> Iterator[BatchResult]:
        """Numbers that the judge wrote."""
        if self.endpoint is not None:
            yield from Judge(Endpoint(self.endpoint, log, **self.calls), log)(texts, measures)
            return
        assert self.source is not None
        with self.resident.use(self.source) as model:
            writer = Writer(str(self.source.ref), model, load_tokenizer(self.source, self.template_date), log)
            yield from Judge(writer, log)(texts, measures)
