"""A causal language model writes: batches padded on the left, halved where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch

from instdiff.core import Log
from instdiff.engine.forward import out_of_memory
from instdiff.errors import EngineError

LEAST_ROWS, MOST_ROWS = 4, 64
"""Answers written at once: reading the weights, most of a step of few rows, takes as long for one row as for many."""
CACHE_BYTES = 1 << 30
"""What their keys and values may take on a CPU, where a process that asks for too much memory is killed."""
NO_TOKEN = (1 << 31) - 1
"""Ends nothing, where None would stand for what the model's own configuration names."""
SHARE = 0.25
"""Of the rows of a batch: where as many have ended, the others go on alone."""
Stopped = Callable[[torch.Tensor], torch.Tensor]
"""Of token ids [rows, width] whether each row has ended."""


def rows_at_once(config: Any, device: str, dtype: torch.dtype, tokens: int) -> int:
    """How many answers of so many tokens, the prompt among them, are written at once where ``batch_tokens`` is not set.

    ``config`` is that of the text model.
    """
    if device != "cpu":
        return MOST_ROWS
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * size * dtype.itemsize
    return int(min(MOST_ROWS, max(LEAST_ROWS, CACHE_BYTES // (token * tokens))))


class Draw(Protocol):
    """Leaves one token of the scores [rows, vocabulary] of each row."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores, of which one is left."""
        ...

    def of(self, rows: torch.Tensor) -> Draw:
        """The same for some of the rows."""
        ...


class Generator:
    """Writes with a causal language model in memory and its tokenizer ``hf``.

    Messages call the model ``who`` and a prompt ``asked``. ``rows`` answers are written at once, fewer after memory did
    not suffice; ``log`` is told what happens. A token of ``ends`` ends an answer.
    """

    def __init__(self, model: Any, hf: Any, who: str, rows: int, log: Log, asked: str = "prompt") -> None:
        self.model, self.hf, self.who, self.rows, self.log, self.asked = model, hf, who, rows, log, asked
        self.device = next(model.parameters()).device
        ends = model.generation_config.eos_token_id
        ends = hf.eos_token_id if ends is None else ends
        self.ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.pad = next((i for i in (hf.pad_token_id, hf.eos_token_id) if i is not None), 0)

    def write(
        self, prompts: Sequence[list[int]], room: int, draw: Draw | None = None, stopped: Stopped | None = None
    ) -> list[list[int]] | None:
        """Of each prompt the tokens that follow, its end token with them, greedily unless ``draw`` chooses.

        An answer has at most ``room`` tokens; ``stopped`` ends answers by what was written. Gives None where memory did
        not suffice, and ``rows`` is lower now; a single prompt that does not fit is an EngineError.
        """
        try:
            return self.generate(prompts, room, draw, stopped)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        if len(prompts) == 1:
            raise EngineError(
                f"one {self.asked} does not fit into memory with {self.who}; take a smaller model or dtype"
            )
        self.rows = len(prompts) // 2
        self.log(f"out of memory: {self.who} goes on with {self.rows} answers at once")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[list[int]], room: int, draw: Draw | None = None, stopped: Stopped | None = None
    ) -> list[list[int]]:
        """The same in one batch, whatever memory there is.

        Where a share of the rows has ended, the others go on without them, with their keys and values: one that never
        ends does not make all wait.
        """
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=self.device)
        written: list[list[int]] = [[] for _ in prompts]
        rows, cache = torch.arange(len(prompts), device=self.device), None
        share = SHARE if self._goes_on_with_some else 1.0
        while True:
            ended = _Ended(self.ends, stopped, len(rows), share, self.device)
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self._how(width + room - ids.shape[1]),
                stopping_criteria=[ended],
                logits_processor=None if draw is None else [draw],
                **({} if cache is None else {"past_key_values": cache}),
            )
            ids = out.sequences
            for row, tokens in zip(rows.tolist(), ids[:, width:].tolist(), strict=True):
                written[row] = self._until_end(tokens)
            left = (~ended.rows).nonzero()[:, 0]
            if ids.shape[1] >= width + room or not (len(left) and self._goes_on_with_some):
                break
            cache = out.past_key_values
            cache.batch_select_indices(left.cpu())  # its layers may lie on several devices
            rows, ids = rows[left], ids[left]
            mask = torch.nn.functional.pad(mask[left], (0, ids.shape[1] - mask.shape[1]), value=1)
            draw = draw and draw.of(left)
        return written

    def _how(self, room: int) -> Any:
        from transformers import GenerationConfig

        # The penalty would count the padding, so that a row's answer depended on the rows beside it.
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=room,
            eos_token_id=sorted(self.ends) or [NO_TOKEN],
            pad_token_id=self.pad,
            return_dict_in_generate=True,
        )

    @cached_property
    def _goes_on_with_some(self) -> bool:
        """Whether rows can be taken out of what the model remembers: keys and values, and no other state."""
        from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

        usual = getattr(self.model, "_supports_default_dynamic_cache", None)
        if usual is None or not usual() or self.model.generation_config.cache_implementation is not None:
            return False
        layers = DynamicCache(config=self.model.config.get_text_config(decoder=True)).layers
        return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

    def _until_end(self, tokens: list[int]) -> list[int]:
        return tokens[: next((at + 1 for at, token in enumerate(tokens) if self.is_end(token)), len(tokens))]

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return token in self.ends


class _Ended:
    """Which rows have ended, by a token or by what ``stopped`` reads; ends all where a share of them has."""

    def __init__(
        self, ends: Iterable[int], stopped: Stopped | None, rows: int, share: float, device: torch.device
    ) -> None:
        self.ends, self.stopped = torch.tensor(sorted(ends), dtype=torch.long, device=device), stopped
        self.rows, self.enough = torch.zeros(rows, dtype=torch.bool, device=device), share * rows
        self.over = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        found = torch.isin(ids[:, -1], self.ends)
        if self.stopped is not None:
            found |= self.stopped(ids)
        self.rows |= found & ~self.over  # where the library looks one step late, what follows is padding
        self.over = self.rows.sum() >= self.enough
        return self.rows | self.over


def render_chat(render: Callable[[list[dict[str, str]]], str], text: str, system: str) -> str:
    """A question in a chat template; a system turn that the template refuses becomes a part of the question."""
    question = [{"role": "user", "content": text}]
    if not system:
        return render(question)
    try:
        return render([{"role": "system", "content": system}, *question])
    except Exception:  # noqa: BLE001 - templates raise what they like
        return render([{"role": "user", "content": f"{system}\n\n{text}"}])
