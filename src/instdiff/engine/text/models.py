"""Models that take text: embedders, classifiers and judges, behind one face."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Protocol

import torch

from instdiff.core import Classified, Embedding, Log, Measure, ModelRef, Settings
from instdiff.engine.models import Resident
from instdiff.engine.sources import TEXT, Source, load_tokenizer, resolve
from instdiff.engine.sweep import BatchResult
from instdiff.engine.text.batches import BatchEndpoint
from instdiff.engine.text.classifier import Classifier
from instdiff.engine.text.embedder import Embedder, resolve_embedder
from instdiff.engine.text.endpoint import CONCURRENCY, Endpoint
from instdiff.engine.text.forms import Judging
from instdiff.engine.text.judge import MAX_TOKENS, Judge, JudgeRef, judge_fingerprint, parse_judge
from instdiff.engine.text.local_judge import Writer
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError
from instdiff.rendering.texts import Texts
from instdiff.store import ColumnId, Store
from instdiff.store.claims import Claims


class TextModel(Protocol):
    """What reads measures off texts."""

    fingerprint: str

    def sweep(self, texts: Texts, measures: tuple[Measure, ...], log: Log) -> Iterator[BatchResult]:
        """Values batch by batch, in any order; the model is loaded when the first is asked for."""
        ...


def text_model(
    ref: ModelRef, measure: Measure, store: Store, resident: Resident, device: torch.device, settings: Settings
) -> TextModel:
    """What reads a measure, not yet loaded; a ConfigError for a faulty address, an EngineError for no model."""
    if isinstance(measure, Classified):
        return Classifier(ref, store.memo, device)
    if isinstance(measure, Embedding):
        return VectorModel(resolve_embedder(ref, store.memo), device)
    return JudgeModel(ref, store, resident, settings)


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

    def __init__(self, ref: ModelRef, store: Store, resident: Resident, settings: Settings) -> None:
        self.store, self.resident, self.settings = store, resident, settings
        self.max_tokens = settings.judge_max_tokens or MAX_TOKENS
        self.endpoint = parse_judge(ref.where)
        if settings.judge_batch and self.endpoint is None:
            raise ConfigError(f"judge_batch is for a server, and '{ref}' is a model of this machine; leave it out")
        self.source = None if self.endpoint else resolve(ref, store.memo)
        name = self.endpoint.model if self.endpoint is not None else ""
        if self.source is not None:
            dtype = str(resident.dtype).removeprefix("torch.")
            name = f"{self.source.fingerprint}+{self._tokenizer(self.source).fingerprint}+{dtype}"
        self.fingerprint = judge_fingerprint(name, self.max_tokens)

    def sweep(self, texts: Texts, measures: tuple[Measure, ...], log: Log) -> Iterator[BatchResult]:
        """Numbers that the judge wrote; none for rows that another process asked about meanwhile."""
        if self.endpoint is not None:
            columns = [ColumnId(self.fingerprint, TEXT, measure) for measure in measures]
            with closing(Claims.of_columns(self.store, columns, texts.keys(), log)) as claims:
                yield from Judge(self._asked(self.endpoint, claims, log), log)(texts, measures)
            return
        assert self.source is not None
        with self.resident.use(self.source) as model:
            told = str(self.source.ref), model, self._tokenizer(self.source), log
            yield from Judge(Writer(*told, max_tokens=self.max_tokens), log)(texts, measures)

    def _asked(self, endpoint: JudgeRef, claims: Claims, log: Log) -> Endpoint:
        how = self.settings
        return (BatchEndpoint if how.judge_batch else Endpoint)(
            endpoint,
            log,
            concurrency=how.judge_concurrency or CONCURRENCY,
            timeout=how.judge_timeout,
            tries=how.judge_tries,
            form=Judging(self.max_tokens),
            claims=claims,
        )

    def _tokenizer(self, source: Source) -> HFTokenizer:
        return load_tokenizer(source, self.settings.template_date)
