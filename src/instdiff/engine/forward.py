"""One batch through the model: backbone, then the head where a target is predicted.

Shapes: B rows, T tokens, D hidden size, V vocabulary, N target positions of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Entropy, Log, Measure, Nll
from instdiff.engine.head import Head, token_stats
from instdiff.errors import EngineError


@dataclass(frozen=True)
class Batch:
    """Padded ids [B, T] and, per target, its row, its position and its id."""

    ids: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: list[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]) -> Batch:
        """Pad on the right: with causal attention nothing before a pad can see it, so no mask is needed."""
        width = max(len(ids) for ids, _ in rows)
        padded = np.zeros((len(rows), width), np.int64)
        row, position = [], []
        for at, (ids, target) in enumerate(rows):
            padded[at, : len(ids)] = ids
            hits = np.flatnonzero(target)
            row.append(np.full(len(hits), at))
            position.append(hits)
        r, p = np.concatenate(row), np.concatenate(position)
        return cls(padded, r, p, padded[r, p])


class Forward:
    """Reads measures off a causal language model.

    On the first batch the fast path (backbone, then the output embedding on target positions) is compared with the
    model's own logits; a model that scales or caps its logits goes through its own head instead, and the log says so.
    """

    def __init__(self, model: Any, log: Log) -> None:
        self.model, self.log = model, log
        self.device = next(model.parameters()).device
        self.backbone = getattr(model, model.base_model_prefix, None)
        self.output = model.get_output_embeddings()
        self.fast: bool | None = False if self.backbone is None or self.output is None else None
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.forwards = 0

    @torch.inference_mode()
    def __call__(self, batch: Batch, measures: tuple[Measure, ...]) -> dict[Measure, npt.NDArray[np.float32]]:
        """A value per target [N] for each measure, rows in batch order."""
        ids = torch.from_numpy(batch.ids).to(self.device)
        row = torch.from_numpy(batch.row).to(self.device)
        before = torch.from_numpy(batch.position - 1).to(self.device)
        target = torch.from_numpy(batch.target).to(self.device)
        known = self.model.get_input_embeddings().num_embeddings
        if int(batch.ids.max()) >= known:
            raise EngineError(
                f"token id {int(batch.ids.max())} is outside the model's {known} embeddings; "
                "tokenizer and model do not belong together"
            )
        if self.fast is None:
            self.fast = self._agrees(ids, row, before)
        self.forwards += 1
        if self.fast:
            assert self.backbone is not None
            hidden = self.backbone(input_ids=ids, use_cache=False).last_hidden_state[row, before]
            head: Head = self.output
        else:
            hidden, head = self._own_logits(ids)[row, before], torch.nn.Identity()
        nll, entropy = token_stats(hidden, target, head, self.vocabulary, entropy=Entropy() in measures)
        read = {Nll(): nll, Entropy(): entropy}
        out = {}
        for measure in measures:
            values = read.get(measure)
            if values is None:
                raise EngineError(f"the engine does not know the measure {measure!r}")
            out[measure] = values.cpu().numpy()
        return out

    def _own_logits(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits

    def _agrees(self, ids: torch.Tensor, row: torch.Tensor, before: torch.Tensor) -> bool | None:
        """Compare both paths on one row of a batch; None where that row has no finite logit to compare."""
        assert self.backbone is not None
        mine = row == row[0]
        one, at = ids[row[0]][None], before[mine][:64]
        own = self._own_logits(one)[0, at].float()
        fast = self.output(self.backbone(input_ids=one, use_cache=False).last_hidden_state[0, at]).float()
        both = torch.isfinite(own) & torch.isfinite(fast)
        if not bool(both.any()):
            return None
        gap, scale = float((own - fast).abs()[both].max()), float(own[both].abs().max())
        # Equal but for rounding: the two products may be summed in another order, which moves a bf16 logit by a unit.
        if gap <= max(1e-3, 4 * torch.finfo(self.model.dtype).eps) * max(scale, 1.0):
            return True
        self.log(
            f"the fast head differs from {type(self.model).__name__}'s own logits by {gap:.2g}; "
            "using the model's own head (slower)"
        )
        return False

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
