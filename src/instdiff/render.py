"""Views become rows: exactly what a model sees.

The target ids of a sample are the same in every view that shows its response, and the same that training uses.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from instdiff.core import Joint, Prompted, Reasons, ResponseOnly, View, WholeText
from instdiff.data import Pool, Sample
from instdiff.errors import PlanError
from instdiff.ragged import Ragged
from instdiff.templates import ChatTemplate, Kind, Segment, Template, TextTemplate, is_target, template, text_segments

T = TypeVar("T")

CHUNK = 2048
"""Samples tokenised in one call: enough for the tokenizer to work in parallel, little enough for memory."""


class Tokenizer(Protocol):
    """What rendering needs of a tokenizer.

    ``bos`` is the start token that the tokenizer adds by itself, None where it adds none; ``start`` the one to put
    where a context is needed: BOS, or the end token of tokenizers without BOS. ``max_length`` is the model's context.
    """

    bos: int | None
    start: int | None
    eos: int | None
    max_length: int | None

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of each text; with ``special`` the tokenizer adds its own start and end tokens."""

    def chat(self, sample: Sample, layout: ChatTemplate, targets: str) -> list[Segment]:
        """The segments of a sample under a chat template.

        Raises:
            ValueError: one word why this sample cannot be rendered.
        """


@dataclass(frozen=True)
class Rows:
    """What the model sees, one entry per sample in pool order.

    Args:
        ids: token ids.
        target: which of them are targets; never the first, which nothing predicts.
        truncated: the row was cut at the length limit.
        why: None, or why the row has no target; such a row has no ids.
    """

    ids: Ragged
    target: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    why: Reasons

    def __len__(self) -> int:
        return len(self.ids)

    def n_targets(self) -> npt.NDArray[np.int64]:
        """Targets per row."""
        return np.asarray(Ragged(self.target, self.ids.offsets).sum(), np.int64)

    def keys(self) -> npt.NDArray[np.bytes_]:
        """16 bytes per row: the hash of its ids and targets, hence of everything that can change its numbers."""
        values, target, offsets = self.ids.values.astype("<i4", copy=False), self.target, self.ids.offsets
        digests = b"".join(
            hashlib.blake2b(
                values[a:b].tobytes() + np.packbits(target[a:b]).tobytes(), digest_size=16, key=b"row"
            ).digest()
            for a, b in itertools.pairwise(offsets)
        )
        return np.frombuffer(digests, "S16")

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        """The rows named, in that order."""
        ids = self.ids.take(rows)
        target = Ragged(self.target, self.ids.offsets).take(rows).values
        return Rows(ids, target, self.truncated[rows], self.why[rows])


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    target: list[bool]
    truncated: bool = False
    why: str | None = None


def _unscorable(why: str, *, truncated: bool = False) -> _Row:
    return _Row([], [], truncated, why)


def render(view: View, pool: Pool, tokenizer: Tokenizer, layout: Template, max_length: int) -> Rows:
    """Rows of a view, one per sample.

    ``max_length`` counts tokens of prompt and response and never exceeds the model's context. What is longer loses its
    end and is marked ``truncated``; where nothing of the response is left the row is ``too_long``.
    """
    limit = min(max_length, tokenizer.max_length or max_length)
    make: Callable[[Sequence[Sample]], Iterator[_Row]]
    match view:
        case Prompted(score_eos=score_eos):
            make = lambda part: _prompted(part, pool.targets, tokenizer, layout, limit, score_eos)  # noqa: E731
        case ResponseOnly(context=context):
            make = lambda part: _alone(part, pool.targets, tokenizer, layout, limit, context)  # noqa: E731
        case WholeText():
            make = lambda part: map(_whole, _prompted(part, pool.targets, tokenizer, layout, limit, False))  # noqa: E731
        case Joint():
            make = lambda part: _joint(part, view, tokenizer, limit)  # noqa: E731
        case _:
            raise PlanError(f"no renderer for view {view!r}; methods use the views of instdiff.core")
    return _collect(row for part in _chunks(pool) for row in make(part))


def training_rows(pool: Pool, tokenizer: Tokenizer, layout: Template, max_length: int) -> Rows:
    """Rows to train on: the prompted view with every response's end token as a target; cut rows have none."""
    limit = min(max_length, tokenizer.max_length or max_length)
    return _collect(
        row for part in _chunks(pool) for row in _prompted(part, pool.targets, tokenizer, layout, limit, True)
    )


def text_lengths(pool: Pool, part: str, unit: str, tokenizer: Tokenizer | None) -> npt.NDArray[np.float64]:
    """Length per row of the responses (those that are targets) or of the instruction with its input."""
    lengths: list[int] = []
    for chunk in _chunks(pool):
        turns = [_part(sample, part, pool.targets) for sample in chunk]
        texts = [text for row in turns for text in row]
        if unit == "tokens" and tokenizer is not None:
            sizes = iter([len(ids) for ids in tokenizer.encode(texts)])
        else:
            sizes = iter([len(text.split()) if unit == "words" else len(text) for text in texts])
        lengths += [sum(itertools.islice(sizes, len(row))) for row in turns]
    return np.array(lengths, np.float64)


def _part(sample: Sample, part: str, targets: str) -> list[str]:
    if part == "response":
        return [m.content for at, m in enumerate(sample.messages) if is_target(sample.messages, at, targets)]
    return [m.content + ("\n" + m.input if m.input else "") for m in sample.messages if m.role == "user"]


def _chunks(pool: Pool) -> Iterator[list[Sample]]:
    return _batched(pool.samples(), CHUNK)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    part: list[T] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _collect(rows: Iterable[_Row]) -> Rows:
    ids: list[list[int]] = []
    target: list[list[bool]] = []
    truncated: list[bool] = []
    why: list[str | None] = []
    for row in rows:
        ids.append(row.ids)
        target.append(row.target)
        truncated.append(row.truncated)
        why.append(row.why)
    reasons = np.full(len(why), None, object)
    reasons[:] = why
    return Rows(Ragged.of(ids, np.int32), Ragged.of(target, np.bool_).values, np.array(truncated, bool), reasons)


def _prompted(
    samples: Sequence[Sample], targets: str, tokenizer: Tokenizer, layout: Template, limit: int, learn_end: bool
) -> Iterator[_Row]:
    rows: list[list[Segment] | str] = []
    for sample in samples:
        if isinstance(layout, TextTemplate):
            rows.append(text_segments(sample, layout, targets))
            continue
        try:
            rows.append(tokenizer.chat(sample, layout, targets))
        except ValueError as error:
            rows.append(str(error))
    texts = [s.text for row in rows if isinstance(row, list) for s in row if s.text is not None]
    encoded = iter(tokenizer.encode(texts))
    bos = tokenizer.bos if isinstance(layout, TextTemplate) else None
    for row in rows:
        if isinstance(row, str):
            yield _unscorable(row)
            continue
        end = [] if tokenizer.eos is None else [tokenizer.eos]
        parts = [(next(encoded) if s.text is not None else end, s.kind) for s in row]
        yield _assemble(parts, bos, tokenizer.start, limit, learn_end)


def _assemble(
    parts: list[tuple[list[int], Kind]], bos: int | None, start: int | None, limit: int, learn_end: bool
) -> _Row:
    """Join tokenised segments, cut at the limit, drop what follows the last target."""
    learnt = (Kind.RESPONSE, Kind.END) if learn_end else (Kind.RESPONSE,)
    if not any(ids for ids, kind in parts if kind is Kind.RESPONSE):
        return _unscorable("empty_response")
    ids = [] if bos is None else [bos]
    target = [False] * len(ids)
    for part, kind in parts:
        ids += part
        target += [kind in learnt] * len(part)
    if target[0]:  # an empty prompt: the first token needs something that predicts it
        if start is None:
            return _unscorable("no_context")
        ids, target = [start, *ids], [False, *target]
    last = len(target) - target[::-1].index(True)
    cut = last > limit
    ids, target = ids[: min(last, limit)], target[: min(last, limit)]
    if not any(target):
        return _unscorable("too_long", truncated=True)
    return _Row(ids, target, cut)


def _alone(
    samples: Sequence[Sample], targets: str, tokenizer: Tokenizer, layout: Template, limit: int, context: bool
) -> Iterator[_Row]:
    first = tokenizer.start if context else tokenizer.bos
    for row in _prompted(samples, targets, tokenizer, layout, limit, False):
        if row.why is not None:
            yield row
            continue
        response = [token for token, hit in zip(row.ids, row.target, strict=True) if hit]
        head = [] if first is None else [first]
        target = [False] * len(head) + [True] * len(response)
        target[0] = False
        yield _Row(head + response, target, row.truncated) if any(target) else _unscorable("too_short")


def _whole(row: _Row) -> _Row:
    return row if row.why else _Row(row.ids, [False] + [True] * (len(row.ids) - 1), row.truncated)


def _joint(samples: Sequence[Sample], view: Joint, tokenizer: Tokenizer, limit: int) -> Iterator[_Row]:
    layout = template(view.template)
    assert isinstance(layout, TextTemplate)
    prompts, responses = [], []
    for sample in samples:
        first = next((m for m in sample.messages if m.role == "user"), None)
        prompts.append(layout.turn(first.content, first.input) if first else "")
        responses.append(sample.response)
    heads = prompts if view.alone is None else [view.alone] * len(samples)
    texts = [head + view.join + response for head, response in zip(heads, responses, strict=True)]
    prompt_ids = tokenizer.encode(prompts, special=True)
    head_ids = prompt_ids if view.alone is None else tokenizer.encode(heads, special=True)
    response_ids = tokenizer.encode(responses, special=True)
    for sample, ids, prompt, head, response in zip(
        samples, tokenizer.encode(texts, special=True), prompt_ids, head_ids, response_ids, strict=True
    ):
        if sum(m.role == "assistant" for m in sample.messages) > 1:
            yield _unscorable("multi_turn")
        elif not sample.response:
            yield _unscorable("empty_response")
        elif view.limit is not None:
            over = max(len(prompt), len(response)) > view.limit or len(ids) > (tokenizer.max_length or len(ids))
            yield _unscorable("too_long") if over else _joint_row(ids, len(head), len(ids))
        elif len(prompt) >= limit:
            yield _unscorable("too_long", truncated=True)
        else:
            yield _joint_row(ids, len(head), limit if view.alone is None else limit - len(prompt) + view.slack)


def _joint_row(ids: list[int], boundary: int, limit: int) -> _Row:
    kept = ids[:limit]
    target = [0 < at >= boundary for at in range(len(kept))]
    cut = len(kept) < len(ids)
    return _Row(kept, target, cut) if any(target) else _unscorable("too_long" if cut else "too_short", truncated=cut)
