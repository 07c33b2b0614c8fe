"""Texts become numbers of a sequence-classification head, such as QuRater's or a reward model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Classified, Log, Measure, ModelRef
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine.batch import batches
from instdiff.engine.forward import out_of_memory
from instdiff.engine.models import has_safetensors
from instdiff.engine.sources import Source, resolve, unloadable
from instdiff.engine.sweep import BatchResult
from instdiff.errors import ConfigError, EngineError
from instdiff.rendering.texts import Texts

CHUNK = 512
"""Tokens that the head reads at once, as published."""
QURATER = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
"""The labels of a head of four that names none: those of QuRater, in its order."""
BATCH_TOKENS = {"cpu": 4096}
GPU_BATCH_TOKENS = 65536
AT_ONCE = 512
"""Texts that are cut into chunks together."""
APART = 1e-3
"""How far a chunk's numbers may lie from those of the chunk without padding, relative to the largest."""

Chunks = list[npt.NDArray[np.int64]]


class Classifier:
    """A classification model that is loaded when it is needed; numbers are float32.

    A text without special tokens is cut into chunks of 512 tokens. A row's number is the mean of the chunks' logits,
    weighted by their tokens. An EngineError where the model has no such head, or its numbers depend on padding.
    """

    def __init__(self, ref: ModelRef, memo: Path | None, device: torch.device) -> None:
        if ref.adapter is not None:
            raise EngineError(f"a classifier takes no adapter, but '{ref}' names one; merge it into the model first")
        found = resolve(ref, memo, adapters=False)
        names = {path.name for pattern in _TOKENIZER for path in found.folder.glob(pattern)}
        self.source: Source = replace(found, ref=ref, beside=tuple(sorted(names)))
        self.name, self.device, self.fingerprint = str(ref), device, self.source.fingerprint
        self.batch_tokens = BATCH_TOKENS.get(device.type, GPU_BATCH_TOKENS)
        self._model: Any = None
        self._checked = False

    def sweep(self, texts: Texts, measures: tuple[Measure, ...], log: Log) -> Iterator[BatchResult]:
        """A number for each text and label; a ConfigError for a label that the head does not have."""
        if self._model is None:
            self._load()
        at = {one: self._place(one.label) for one in measures if isinstance(one, Classified)}
        for start in range(0, len(texts), AT_ONCE):
            rows = np.arange(start, min(start + AT_ONCE, len(texts)))
            chunks = [self._cut(texts[int(row)]) for row in rows]
            own = np.repeat(np.arange(len(rows)), [len(some) for some in chunks])
            flat = [chunk for some in chunks for chunk in some]
            sizes = np.array([len(chunk) for chunk in flat], np.float64)
            logits = self._logits(flat)
            weights = np.bincount(own, sizes, len(rows))
            with np.errstate(invalid="ignore"):
                means = {
                    one: np.bincount(own, sizes * logits[:, place], len(rows)) / weights for one, place in at.items()
                }
            if flat and not all(np.isfinite(mean).any() for mean in means.values()):
                raise EngineError(f"classifier {self.name} gives no finite number; its weights are damaged")
            columns: dict[Measure, Ragged] = {
                one: Ragged.of_matrix(mean[:, None].astype(np.float32)) for one, mean in means.items()
            }
            yield BatchResult(rows, columns, int(sizes.sum()))

    def _load(self) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        folder = self.source.folder
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                dtype=torch.float32,
                use_safetensors=has_safetensors(folder),
                trust_remote_code=False,
                output_loading_info=True,
            )
        except EngineError:
            raise
        except Exception as error:  # the library raises many kinds for unreadable weights
            raise unloadable(f"classifier '{folder}'", error) from error
        if found["missing_keys"]:
            lacks = ", ".join(sorted(found["missing_keys"])[:3])
            raise EngineError(f"'{self.name}' has no classification head (it lacks {lacks}); give a model that rates")
        config = model.config.get_text_config()
        known = (config.pad_token_id, self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        config.pad_token_id = self._pad = next(token for token in known if token is not None)
        self._limit = min(CHUNK, int(getattr(config, "max_position_embeddings", None) or CHUNK))
        self._model = model.to(self.device).eval().requires_grad_(False)

    def _place(self, label: str | int) -> int:
        """Where the head has a label, by its name or number; one label is any."""
        config = self._model.config
        count = int(config.num_labels)
        names = [str(config.id2label.get(at, at)) for at in range(count)]
        if count == len(QURATER) and all(name == f"LABEL_{at}" for at, name in enumerate(names)):
            names = list(QURATER)
        if count == 1:
            return 0
        if str(label) in names:
            return names.index(str(label))
        if str(label).isdigit() and int(label) < count:
            return int(label)
        raise ConfigError(f"classifier {self.name} has no label '{label}'; it has {', '.join(names)}")

    def _cut(self, text: str) -> Chunks:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return [np.array(ids[at : at + self._limit], np.int64) for at in range(0, len(ids), self._limit)]

    def _logits(self, chunks: Chunks) -> npt.NDArray[np.float64]:
        """Of each chunk, [chunks, labels]; longest first, smaller batches where memory does not suffice."""
        sizes = np.array([len(chunk) for chunk in chunks], np.int64)
        out = np.full((len(chunks), int(self._model.config.num_labels)), np.nan)
        left = np.arange(len(chunks))
        while len(left):
            at = left[next(batches(sizes[left], self.batch_tokens))]
            try:
                out[at] = self._forward([chunks[one] for one in at])
            except RuntimeError as error:
                if not out_of_memory(error) or len(at) == 1:
                    raise
                self.batch_tokens = max(self._limit, self.batch_tokens // 2)
                continue
            left = np.setdiff1d(left, at, assume_unique=True)
            if not self._checked and len(at) > 1 and sizes[at].min() < sizes[at].max():
                self._check(chunks[at[int(sizes[at].argmin())]], out[at[int(sizes[at].argmin())]])
        return out

    def _forward(self, chunks: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
        width = max(map(len, chunks))
        ids = torch.full((len(chunks), width), self._pad)
        mask = torch.zeros_like(ids)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)], mask[row, : len(chunk)] = torch.from_numpy(chunk), 1
        with torch.inference_mode():
            logits = self._model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
        return np.asarray(logits.float().cpu().numpy(), np.float64)

    def _check(self, chunk: npt.NDArray[np.int64], padded: npt.NDArray[np.float64]) -> None:
        alone = self._forward([chunk])[0]
        if np.abs(alone - padded).max() > APART * max(1.0, float(np.abs(alone).max())):
            raise EngineError(f"classifier {self.name} gives other numbers beside longer texts; it cannot be used")
        self._checked = True


_TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "*.model")
