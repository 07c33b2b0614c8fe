"""One batch through the model: backbone, then the head where a target is predicted.

Shapes: B rows, T tokens, n packed tokens, D hidden size, V vocabulary, N target positions of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Entropy, Log, Measure, Nll
from instdiff.engine.attention import Unsupported, attending, buckets
from instdiff.engine.head import Head, heads, token_stats
from instdiff.engine.tree import Places, Tree
from instdiff.errors import EngineError

CHECKED = 64
"""Positions on which two ways are compared."""

Row = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]
"""Token ids of a row, and which of them are targets."""


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them: padded side by side, or packed end to end as a tree of shared prefixes.

    Args:
        rows: the rows' numbers.
        ids: token ids, [B, T] padded or [1, n] packed.
        position: position of each packed token in its row; None where rows are padded.
        tree: how a packed batch is laid out; None where rows are padded.
        predictor: per target, the place of the token that predicts it, counted through ``ids`` row by row.
        target: per target its token id; rows in the order of ``rows``.
        counts: targets per row.
        sample: the ids of one row and the places of its tokens, for checks against the row alone.
    """

    rows: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64] | None
    tree: Tree | None
    predictor: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    sample: tuple[Places, Places]

    @classmethod
    def padded(cls, numbers: npt.NDArray[np.int64], rows: list[Row]) -> Batch:
        """Pad on the right: with causal attention nothing before a pad can see it, so no mask is needed."""
        width = max(len(ids) for ids, _ in rows)
        padded = np.zeros((len(rows), width), np.int64)
        for at, (ids, _) in enumerate(rows):
            padded[at, : len(ids)] = ids
        places = [at * width + np.arange(len(ids)) for at, (ids, _) in enumerate(rows)]
        predictor, target, counts = _targets(rows, places)
        sample = np.asarray(rows[0][0], np.int64), places[0]
        return cls(numbers, padded, None, None, predictor, target, counts, sample)

    @classmethod
    def packed(cls, numbers: npt.NDArray[np.int64], rows: list[Row], tree: Tree) -> Batch:
        """Rows in the order of the tree."""
        longest = int(np.argmax([len(where) for where in tree.where]))
        sample = np.asarray(rows[longest][0], np.int64), tree.where[longest]
        ids, position = tree.ids[None], tree.position[None]
        predictor, target, counts = _targets(rows, tree.where)
        return cls(numbers, ids, position, tree, predictor, target, counts, sample)


def _targets(rows: list[Row], places: list[Places]) -> tuple[Places, Places, Places]:
    hits = [np.flatnonzero(target) for _, target in rows]
    predictor = np.concatenate([place[hit - 1] for place, hit in zip(places, hits, strict=True)])
    ids = np.concatenate([np.asarray(row, np.int64)[hit] for (row, _), hit in zip(rows, hits, strict=True)])
    return predictor, ids, np.array([len(hit) for hit in hits], np.int64)


class Forward:
    """Reads measures off a causal language model.

    On the first batch the fast path (backbone, then the output embedding on target positions, then a cap or scale that
    the configuration names) is compared with the model's own logits; a model that does something else to them goes
    through its own head, with the logits of all positions in memory, and the log says so.
    In the same way packed trees are compared with a row alone; a model whose attention cannot follow a tree gets padded
    batches.
    """

    def __init__(self, model: Any, log: Log) -> None:
        self.model, self.log = model, log
        self.device = next(model.parameters()).device
        self.backbone = getattr(model, model.base_model_prefix, None)
        self.output = model.get_output_embeddings()
        self.fast: bool | None = False if self.backbone is None or self.output is None else None
        self.head: Head = self.output
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.packs: bool | None = None if self.backbone is not None else False
        self.forwards = self.tokens = 0

    @torch.inference_mode()
    def __call__(self, batch: Batch, measures: tuple[Measure, ...]) -> dict[Measure, npt.NDArray[np.float32]]:
        """A value per target [N] for each measure, rows in batch order."""
        self._check_ids(batch)
        predictor = torch.from_numpy(batch.predictor).to(self.device)
        target = torch.from_numpy(batch.target).to(self.device)
        if self.fast is None:
            self._choose_head(batch)
        self.forwards += 1
        self.tokens += batch.ids.size
        head: Head = self.head if self.fast else torch.nn.Identity()
        states = self._run(self.backbone if self.fast else self.model, batch)
        hidden = states.flatten(0, 1)[predictor]
        nll, entropy = token_stats(hidden, target, head, self.vocabulary, entropy=Entropy() in measures)
        read = {Nll(): nll, Entropy(): entropy}
        out = {}
        for measure in measures:
            values = read.get(measure)
            if values is None:
                raise EngineError(f"the engine does not know the measure {measure!r}")
            out[measure] = values.cpu().numpy()
        return out

    def _check_ids(self, batch: Batch) -> None:
        known, highest = self.model.get_input_embeddings().num_embeddings, int(batch.ids.max())
        if highest >= known:
            raise EngineError(
                f"token id {highest} is outside the model's {known} embeddings; "
                "tokenizer and model do not belong together"
            )

    def _run(self, module: Any, batch: Batch) -> torch.Tensor:
        """Hidden states of the backbone, or logits of the whole model: [B, T, ...]."""
        ids = torch.from_numpy(batch.ids).to(self.device)
        if batch.tree is None or batch.position is None:
            return self._read(module(input_ids=ids, use_cache=False))
        with attending(self.model, buckets(batch.tree, self.device)):
            position = torch.from_numpy(batch.position).to(self.device)
            return self._read(module(input_ids=ids, position_ids=position, use_cache=False))

    def _read(self, out: Any) -> torch.Tensor:
        states: torch.Tensor = out.last_hidden_state if hasattr(out, "last_hidden_state") else out.logits
        return states

    @torch.inference_mode()
    def can_pack(self, batch: Batch) -> bool:
        """Whether a packed batch gives what its longest row gives alone; asked of the first batch only."""
        if self.packs is not None or self.backbone is None:
            return bool(self.packs)
        self._check_ids(batch)
        row, where = batch.sample
        ids = torch.from_numpy(row)[None].to(self.device)
        alone = self._read(self.backbone(input_ids=ids, use_cache=False))[0].float()
        try:
            packed = self._run(self.backbone, batch)[0, torch.from_numpy(where).to(self.device)].float()
        except (Unsupported, TypeError, RuntimeError):
            self.packs = False
            return False
        both = torch.isfinite(alone) & torch.isfinite(packed)
        if not bool(both.any()):
            return False
        gap = float((alone - packed)[both].norm() / alone[both].norm().clamp(min=1e-12))
        # Rounding in another order: a bf16 state moves by a unit or two, a wrong attention by far more.
        self.packs = gap <= max(1e-4, 4 * torch.finfo(self.model.dtype).eps)
        return self.packs

    def _choose_head(self, batch: Batch) -> None:
        """Compare heads on the beginning of a row; none is chosen where it has no finite logit to compare."""
        row = torch.from_numpy(batch.sample[0][:CHECKED])[None].to(self.device)
        own = self._read(self.model(input_ids=row, use_cache=False))[0].float()
        assert self.backbone is not None
        hidden = self._read(self.backbone(input_ids=row, use_cache=False))[0]
        gaps = []
        for head in heads(self.output, self.model.config.get_text_config()):
            fast = head(hidden).float()
            both = torch.isfinite(own) & torch.isfinite(fast)
            if not bool(both.any()):
                return
            gap, scale = float((own - fast).abs()[both].max()), float(own[both].abs().max())
            # Equal but for rounding: products may be summed in another order, which moves a bf16 logit by a unit.
            if gap <= max(1e-3, 4 * torch.finfo(self.model.dtype).eps) * max(scale, 1.0):
                self.fast, self.head = True, head
                return
            gaps.append(gap)
        self.fast = False
        self.log(
            f"the fast head differs from {type(self.model).__name__}'s own logits by {min(gaps):.2g}; "
            "using the model's own head (slower)"
        )

    def broken_weights(self) -> str | None:
        """The name of a weight tensor that makes every row non-finite, if there is one.

        A row of a lookup table only touches the rows of text that look it up.
        """
        tables = {id(m.weight) for m in self.model.modules() if isinstance(m, torch.nn.Embedding)}
        tables -= {id(getattr(self.output, "weight", None))}
        for name, weight in self.model.named_parameters():
            finite = torch.isfinite(weight)
            if not bool(finite.all(-1).any() if id(weight) in tables else finite.all()):
                return str(name)
        return None
