"""Training losses on target positions only; the logits of all other positions are never made.

With l_t the cross-entropy of target token t and p_t its probability, in nats:

- ``sft``: l_t
- ``dft``: stopgrad(p_t) l_t (Wu et al., 2025, arXiv:2508.05629)
- ``sft+kl``: l_t + kl_weight KL_t
- ``asft``: stopgrad(p_t) l_t + kl_weight KL_t

KL_t is the sum over the vocabulary of p_ref (log p_ref - log p), where p_ref are the probabilities of the base model:
the model with its adapter switched off, or a frozen copy of it. A step's loss is the sum over the target tokens of the
global batch, divided by their number. Where rows have weights, each token's loss is multiplied with its row's; weights
are scaled so that their mean over the target tokens of all rows is 1.

Shapes: B rows, T tokens, D hidden size, V vocabulary, N target positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.checkpoint import checkpoint
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from instdiff.training.attention import begin

IGNORED = -100
CHUNK_BYTES = 256 << 20
"""Logits kept for the backward pass; above that they are made again there, chunk by chunk."""


def token_losses(
    logits: torch.Tensor, target: torch.Tensor, mode: str, reference: torch.Tensor | None = None, kl_weight: float = 0.0
) -> torch.Tensor:
    """Loss of each target token: [N, V], [N] and the reference's [N, V] to [N], in fp32."""
    logits = logits.float()
    nll = cross_entropy(logits, target, reduction="none")
    loss = nll * torch.exp(-nll.detach()) if mode in ("dft", "asft") else nll
    if reference is None:
        return loss
    log_p, log_ref = logits.log_softmax(-1), reference.float().log_softmax(-1)
    return loss + kl_weight * kl_div(log_p, log_ref, reduction="none", log_target=True).sum(-1)


class Halves:
    """A causal language model in two halves: from tokens to states, and from the states of some positions to logits.

    A model whose logits are not its output embedding of the last hidden state has its logits for states.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.own_forward = model, model.forward
        self.backbone = getattr(model, model.base_model_prefix)
        self.head = model.get_output_embeddings()
        weight = self.head.weight
        self.vocabulary: int = getattr(weight, "ds_shape", weight.shape)[0]
        # ZeRO-3 has taken the weights apart already, and gives them only within a step.
        self.plain: bool | None = None if is_deepspeed_zero3_enabled() else self._agrees()

    def states(self, seen: dict[str, Any]) -> torch.Tensor:
        """[B, T] tokens to [B, T, D] (or [B, T, V]) states."""
        if self.plain is None:
            self.plain = self._agrees()
        if "position_ids" in seen:
            begin(seen["position_ids"], self.model.config.get_text_config())
        if self.plain:
            return self.backbone(**seen, use_cache=False).last_hidden_state  # type: ignore[no-any-return]
        return self.own_forward(**seen, use_cache=False).logits  # type: ignore[no-any-return]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[N, D] (or [N, V]) states to [N, V] logits."""
        return self.head(states) if self.plain else states

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Both ways give the same logits; compared without dropout, which would draw random numbers."""
        with still(self.model):
            ids = torch.arange(min(16, self.vocabulary), device=self.head.weight.device)[None]
            own = self.own_forward(input_ids=ids, use_cache=False).logits.float()
            mine = self.head(self.backbone(input_ids=ids, use_cache=False).last_hidden_state).float()
        return bool((own - mine).abs().max() <= 1e-3 * max(float(own.abs().max()), 1.0))

    @torch.no_grad()
    def difference_packed(self, rows: Sequence[torch.Tensor], way: AbstractContextManager[Any] | None = None) -> float:
        """How far the states of packed rows, computed in some ``way``, lie from those of each row alone.

        It is the largest of any token, relative.
        """
        with still(self.model):
            device = self.head.weight.device
            place = torch.cat([torch.arange(len(row)) for row in rows])[None].to(device)
            with way or nullcontext():
                packed = self.states({"input_ids": torch.cat(list(rows))[None].to(device), "position_ids": place})[0]
            alone = torch.cat([self.states({"input_ids": row[None].to(device)})[0] for row in rows])
        apart = (packed.float() - alone.float()).norm(dim=-1) / alone.float().norm(dim=-1).clamp_min(1e-12)
        return float(apart.max())


class still:
    """The model without dropout for a while."""

    def __init__(self, model: Any) -> None:
        self.model, self.training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.training)


class Reference:
    """What the base model predicts, without gradients and without dropout.

    ``halves`` are of the model that is trained, or of a frozen copy of it; ``off`` switches the adapter off for a
    while, where the model that is trained has one.
    """

    def __init__(self, halves: Halves, off: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self.halves, self.off = halves, off
        # An adapter may sit on the head too; the chunks of a backward pass must not switch adapters.
        self.head = getattr(halves.head, "base_layer", halves.head)

    @classmethod
    def copy_of(cls, model: Any, device: torch.device, dtype: torch.dtype) -> Reference:
        """Of a frozen copy, taken before the first step."""
        return cls(Halves(copy.deepcopy(model).to(device, dtype).eval().requires_grad_(False)))

    @torch.no_grad()
    def states(self, seen: dict[str, Any]) -> torch.Tensor:
        """[B, T] tokens to states, see ``Halves``."""
        with still(self.halves.model), self.off():
            return self.halves.states(seen)

    @torch.no_grad()
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[N, D] states to [N, V] logits."""
        return self.head(states) if self.halves.plain else states


class TargetLoss:
    """A causal language model's forward that returns the summed loss of its target tokens; see the module for modes.

    It takes the place of ``model.forward`` while training, so that wrappers around the model (adapters, data
    parallelism, autocast) work as they do with the model's own. ``reference`` and ``kl_weight`` are for modes with a KL
    term.
    """

    def __init__(self, halves: Halves, mode: str, reference: Reference | None = None, kl_weight: float = 0.0) -> None:
        self.halves, self.mode, self.reference, self.kl_weight = halves, mode, reference, kl_weight

    def __call__(
        self, input_ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, **seen: Any
    ) -> Any:
        """The sum over target tokens, as ``{"loss": scalar}``.

        ``weights`` [B, T] are factors on the losses of the labels. ``seen`` says what each token may see: an
        ``attention_mask`` for padded rows, or ``position_ids`` that begin again for packed ones.
        """
        keep = labels[:, 1:] != IGNORED
        target = labels[:, 1:][keep]
        kinds = ("attention_mask", "position_ids")
        known = {"input_ids": input_ids} | {name: seen[name] for name in kinds if name in seen}
        base = None if self.reference is None else self.reference.states(known)[:, :-1][keep]
        factors = None if weights is None else weights[:, 1:][keep]
        return {"loss": self._sum(self.halves.states(known)[:, :-1][keep], target, base, factors)}

    def _sum(
        self, states: torch.Tensor, target: torch.Tensor, base: torch.Tensor | None, factors: torch.Tensor | None
    ) -> torch.Tensor:
        def part(h: torch.Tensor, t: torch.Tensor, b: torch.Tensor | None, factor: torch.Tensor | None) -> torch.Tensor:
            other = None if b is None or self.reference is None else self.reference.logits(b)
            found = token_losses(self.halves.logits(h), t, self.mode, other, self.kl_weight)
            return (found if factor is None else found * factor).sum()

        models = 1 if base is None else 2
        size = max(1, CHUNK_BYTES // (4 * self.halves.vocabulary * models))
        if len(target) <= size:
            return part(states, target, base, factors)
        nothing = [None] * -(-len(target) // size)
        bases, shares = (nothing if one is None else torch.split(one, size) for one in (base, factors))
        chunks = zip(torch.split(states, size), torch.split(target, size), bases, shares, strict=True)
        sums: list[Any] = [checkpoint(part, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(sums).sum()
