"""Answers of a model in this process: batches padded on the left, longest first."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instdiff.core import Log, ModelRef, Settings
from instdiff.core.files import fingerprint
from instdiff.engine.generation.backend import GenerationRequest, Prompt, Sampling, cut_at_stop, in_template
from instdiff.engine.models import Resident, host_of
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.text.generate import MOST_ROWS, Generator, rows_at_once
from instdiff.engine.text.judge import Answer
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.chat_tokens import TurnEnd, turn_end
from instdiff.rendering.templates import TextTemplate, template

WAYS = 1
"""A change of how answers are written gets another number, so that old ones are not taken for new ones."""

Row = tuple[GenerationRequest, list[int]]


class PromptEncoder:
    """A model of this machine with its tokenizer and template: what it sees of a prompt, as text and as tokens."""

    def __init__(self, model: ModelRef, settings: Settings, memo: Path) -> None:
        self.name, self.source, self.template_date = str(model), resolve(model, memo), settings.template_date
        self.layout = template(model.template or settings.templates.get("base") or settings.template)

    @cached_property
    def tokenizer(self) -> HFTokenizer:
        """Read when it is first needed."""
        return load_tokenizer(self.source, self.template_date)

    @cached_property
    def end(self) -> TurnEnd:
        """What closes an answer under the template, which the model's own configuration need not know."""
        return turn_end(self.tokenizer, self.layout)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of how prompts become tokens, and answers end."""
        own = self.tokenizer.fingerprint
        beside = self.end.tokens - self.tokenizer.stops
        return fingerprint(own, sorted(beside), self.end.text) if beside or self.end.text else own

    def stops(self, sampling: Sampling) -> Sampling:
        """The sampling, which also stops at the text that closes an answer."""
        return replace(sampling, stop=(*sampling.stop, self.end.text)) if self.end.text else sampling

    def text(self, prompt: Prompt) -> str:
        """As text; tokens that are given as their numbers."""
        if prompt.ids is not None:
            return " ".join(map(str, prompt.ids))
        return in_template(prompt, self.layout, self.tokenizer)

    def rows(self, asked: Sequence[GenerationRequest]) -> list[Row]:
        """As tokens; a chat template brings its own start token, and a raw text may."""
        texts = [one for one in asked if one.prompt.ids is None]
        encoded = iter(self.tokenizer.encode([one.prompt_text for one in texts]))
        return [
            (one, (self._start(one) + next(encoded))[-(one.prompt.last or 0) :] if one.prompt.ids is None else ids)
            for one, ids in ((one, list(one.prompt.ids or ())) for one in asked)
        ]

    def _start(self, one: GenerationRequest) -> list[int]:
        bos, text = self.tokenizer.bos, isinstance(self.layout, TextTemplate)
        brings = one.prompt_text.startswith(str(self.tokenizer.start_text)) if one.prompt.raw else not text
        return [] if bos is None or brings else [bos]

    def room(self, row: Row, most: int) -> int:
        """Tokens that the model's context leaves for an answer."""
        limit = self.tokenizer.max_length
        return most if limit is None else max(0, min(most, limit - len(row[1])))

    def split(
        self, asked: Sequence[GenerationRequest], most: int
    ) -> tuple[list[tuple[Row, int]], list[tuple[GenerationRequest, Answer]]]:
        """Rows with their room, and those that leave none, with a reason."""
        rows = [(row, self.room(row, most)) for row in self.rows(asked)]
        reason = f"the prompt is too long for a model of {self.tokenizer.max_length} tokens"
        return [found for found in rows if found[1]], [
            (row[0], Answer(None, reason=reason)) for row, room in rows if not room
        ]


class Local:
    """Writes with transformers.

    An answer depends on its prompt and its seed, not on the rows beside it, but for the rounding of sums that another
    width of padding brings. What does not fit into memory is halved and tried again.

    Args:
        model: a causal language model.
        settings: precision, device, templates; ``batch_tokens`` bounds prompts and answers of a batch.
        memo: where hashes of model files are remembered.
        log: is told what happens.
        resident: models already in memory.
    """

    def __init__(
        self,
        model: ModelRef,
        settings: Settings,
        memo: Path,
        log: Log,
        *,
        resident: Resident | None = None,
    ) -> None:
        self.resident = resident = resident or host_of(settings)
        self.log, self._tokens = log, settings.batch_tokens
        self._side = PromptEncoder(model, settings, memo)
        self.name = self._side.name
        dtype = str(resident.dtype).removeprefix("torch.")
        self.fingerprint = fingerprint("hf", WAYS, self._side.source.fingerprint, self._side.fingerprint, dtype)
        self._rows = MOST_ROWS

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt in its template."""
        return self._side.text(prompt)

    def write(
        self, asked: Sequence[GenerationRequest], sampling: Sampling
    ) -> Iterator[list[tuple[GenerationRequest, Answer]]]:
        """Answers, batch by batch.

        Raises:
            EngineError: a single prompt does not fit into memory.
        """
        rows, lost = self._side.split(asked, sampling.max_new_tokens)
        if lost:
            yield lost
        # Rows with the same room stand together, so that none is cut for, or runs on with, another.
        rows.sort(key=lambda found: (found[1], -len(found[0][1]), found[0][0].key))
        with self.resident.use(self._side.source) as model:
            generator = Generator(model, self._side.tokenizer.hf, f"'{self.name}'", self._rows, self.log)
            generator.ends |= self._side.end.tokens
            sampling = self._side.stops(sampling)
            for room, some in groupby(rows, key=lambda found: found[1]):
                yield from self._batches(generator, deque(row for row, _ in some), room, sampling)
                self._rows = generator.rows

    def _batches(
        self, generator: Generator, work: deque[Row], room: int, sampling: Sampling
    ) -> Iterator[list[tuple[GenerationRequest, Answer]]]:
        while work:
            longest = len(work[0][1]) + room
            fit = self._fitting(generator.model, longest) if self._tokens is None else self._tokens // longest
            batch = [work.popleft() for _ in range(min(max(1, fit), generator.rows, len(work)))]
            began, width = time.monotonic(), max(len(ids) for _, ids in batch)
            draw = _DrawToken.by([one.seed for one, _ in batch], room, width, sampling)
            stopped = _StopAtText(generator.hf, width, sampling.stop) if sampling.stop else None
            written = generator.write([ids for _, ids in batch], room, draw, stopped)
            if written is None:
                work.extendleft(reversed(batch))
                continue
            seconds = (time.monotonic() - began) / len(batch)
            yield [
                (one, _answer(generator, ids, tokens, room, sampling, seconds))
                for (one, ids), tokens in zip(batch, written, strict=True)
            ]

    def _fitting(self, model: Any, tokens: int) -> int:
        return rows_at_once(model.config.get_text_config(), self.resident.device.type, self.resident.dtype, tokens)


def _answer(
    generator: Generator, ids: list[int], tokens: list[int], room: int, sampling: Sampling, seconds: float
) -> Answer:
    ended = bool(tokens) and generator.is_end(tokens[-1])
    while sampling.stop and not ended and tokens and tokens[-1] == generator.pad:
        tokens = tokens[:-1]  # it was stopped by a text, and waited for the others
    text = generator.hf.decode(tokens[: len(tokens) - ended], skip_special_tokens=True)
    kept = cut_at_stop(text, sampling.stop)
    cut = len(tokens) >= room and not ended and len(kept) == len(text)
    return Answer(kept, "", len(ids), len(tokens), seconds, cut)


class _DrawToken:
    """Leaves one token, drawn by a number that belongs to the answer and the place alone."""

    def __init__(self, numbers: torch.Tensor, width: int, sampling: Sampling) -> None:
        self.numbers, self.width, self.sampling = numbers, width, sampling

    @classmethod
    def by(cls, seeds: Sequence[int], room: int, width: int, sampling: Sampling) -> _DrawToken | None:
        """By the seeds of the answers; None where nothing is drawn."""
        if sampling.temperature <= 0:
            return None
        return cls(torch.from_numpy(np.stack([np.random.default_rng(s).random(room) for s in seeds])), width, sampling)

    def of(self, rows: torch.Tensor) -> _DrawToken:
        """The same for some of the answers."""
        return _DrawToken(self.numbers[rows.cpu()], self.width, self.sampling)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        exact = torch.float32 if scores.device.type == "mps" else torch.float64
        share = (scores.to(exact) / self.sampling.temperature).softmax(-1)
        number = self.numbers[:, ids.shape[1] - self.width, None].to(scores.device, exact)
        token = nucleus(share, number, self.sampling.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def nucleus(share: torch.Tensor, number: torch.Tensor, top_p: float) -> torch.Tensor:
    """Where the cumulated shares pass a number from 0 to 1, among the likeliest that hold ``top_p`` together.

    Args:
        share: [rows, vocabulary], probabilities.
        number: [rows, 1].
        top_p: 1 draws from all.
    """
    if top_p >= 1:
        total = share.cumsum(-1)
        place = (total <= number * total[:, -1:]).sum(-1, keepdim=True)
        return place.clamp(max=share.shape[-1] - 1)
    likely, order = share.sort(dim=-1, descending=True, stable=True)
    kept = torch.where(likely.cumsum(-1) - likely < top_p, likely, 0.0)
    total = kept.cumsum(-1)
    place = (total <= number * total[:, -1:]).sum(-1, keepdim=True)
    drawn: torch.Tensor = order.gather(1, torch.minimum(place, (kept > 0).sum(-1, keepdim=True) - 1))
    return drawn


class _StopAtText:
    """Says which rows have written a text that ends them."""

    def __init__(self, hf: Any, width: int, stops: Sequence[str]) -> None:
        self.hf, self.width, self.stops = hf, width, stops
        # A token is a byte at least; a few more, because the first may belong to what stands before.
        self.tail = max(len(stop.encode()) for stop in stops) + 4

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        told = ids[:, max(self.width, ids.shape[1] - self.tail) :].tolist()
        texts = self.hf.batch_decode(told, skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=ids.device)
