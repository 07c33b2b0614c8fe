"""Training losses on target positions only; the logits of all other positions are never made.

With l_t the cross-entropy of target token t and p_t its probability, in nats:

- ``sft``: l_t
- ``dft``: stopgrad(p_t) l_t (Wu et al., 2025, arXiv:2508.05629)

A step's loss is the sum over the target tokens of the global batch, divided by their number.

Shapes: B rows, T tokens, D hidden size, V vocabulary, N target positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

IGNORED = -100
CHUNK_BYTES = 256 << 20
"""Logits kept for the backward pass; above that they are made again there, chunk by chunk."""


def token_losses(logits: torch.Tensor, target: torch.Tensor, mode: str) -> torch.Tensor:
    """Loss of each target token: [N, V] and [N] to [N], in fp32."""
    nll = cross_entropy(logits.float(), target, reduction="none")
    return nll * torch.exp(-nll.detach()) if mode == "dft" else nll


class TargetLoss:
    """A causal language model's forward that returns the summed loss of its target tokens.

    It takes the place of ``model.forward`` while training, so that wrappers around the model (adapters, data
    parallelism, autocast) work as they do with the model's own. A model whose logits are not its output embedding of
    the last hidden state is asked for its logits instead.
    """

    def __init__(self, model: Any, mode: str) -> None:
        self.mode, self.own_forward = mode, model.forward
        self.backbone = getattr(model, model.base_model_prefix)
        self.head = model.get_output_embeddings()
        self.plain = self._agrees(model)

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **_: Any) -> Any:
        """The sum over target tokens, as ``{"loss": scalar}``."""
        keep = labels[:, 1:] != IGNORED
        target = labels[:, 1:][keep]
        seen = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if not self.plain:
            return {"loss": token_losses(self.own_forward(**seen).logits[:, :-1][keep], target, self.mode).sum()}
        hidden = self.backbone(**seen).last_hidden_state[:, :-1][keep]
        return {"loss": self._sum(hidden, target)}

    def _sum(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        vocabulary = self.head.weight.shape[0]
        size = max(1, CHUNK_BYTES // (4 * vocabulary))
        if len(target) <= size:
            return token_losses(self.head(hidden), target, self.mode).sum()

        def part(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return token_losses(self.head(h), t, self.mode).sum()

        pairs = zip(torch.split(hidden, size), torch.split(target, size), strict=True)
        sums: list[Any] = [checkpoint(part, h, t, use_reentrant=False) for h, t in pairs]
        return torch.stack(sums).sum()

    @torch.no_grad()
    def _agrees(self, model: Any) -> bool:
        """Both ways give the same logits; compared without dropout, which would draw random numbers."""
        training = model.training
        model.eval()
        ids = torch.arange(min(16, self.head.weight.shape[0]), device=self.head.weight.device)[None]
        own = self.own_forward(input_ids=ids, use_cache=False).logits.float()
        mine = self.head(self.backbone(input_ids=ids, use_cache=False).last_hidden_state).float()
        model.train(training)
        return bool((own - mine).abs().max() <= 1e-3 * max(float(own.abs().max()), 1.0))
