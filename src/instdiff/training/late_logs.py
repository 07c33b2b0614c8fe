"""Losses of steps are fetched from a GPU several at a time: asking after each would wait for all that it computes."""

from __future__ import annotations

from typing import Any

import torch
from transformers.trainer_pt_utils import nested_gather

LATE_ON, LATE = ("cuda",), 16
"""Devices whose losses are fetched late, and after how many steps."""


class LateLogs:
    """Before a trainer class: every step is logged as if at once, with its own number, but up to ``LATE`` together.

    They are logged before a checkpoint is written, which holds them, and at the last step.
    """

    def _maybe_log_save_evaluate(self: Any, tr_loss: torch.Tensor, grad_norm: Any, *more: Any, **named: Any) -> None:
        state, control = self.state, self.control
        self.waiting: list[dict[str, Any]] = getattr(self, "waiting", [])
        if self.args.device.type in LATE_ON and control.should_log and state.global_step > self._globalstep_last_logged:
            at, rate = {"global_step": state.global_step, "epoch": state.epoch}, named.get("learning_rate")
            rate = self._get_learning_rate() if rate is None else rate
            norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm).to(tr_loss)
            self.waiting.append({"at": at, "rate": rate, "numbers": torch.stack([tr_loss.flatten()[0], norm])})
            tr_loss.zero_()
            self._globalstep_last_logged, control.should_log = state.global_step, False
        if len(self.waiting) >= LATE or control.should_save or state.global_step >= state.max_steps:
            self.log_waiting()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *more, **named)  # type: ignore[misc]

    def log_waiting(self: Any) -> None:
        """Fetch what waits, and log it in the order of the steps."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        found = nested_gather(torch.stack([step["numbers"] for step in waiting]), self.args.parallel_mode)
        numbers = found.view(-1, len(waiting), 2).float().mean(0).tolist()
        now = {name: getattr(self.state, name) for name in waiting[0]["at"]}
        for step, (loss, norm) in zip(waiting, numbers, strict=True):
            vars(self.state).update(step["at"])
            self._total_loss_scalar += loss
            self.log({"loss": loss, "grad_norm": norm, "learning_rate": step["rate"]})
        vars(self.state).update(now)
        self.store_flos()
