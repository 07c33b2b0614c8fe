"""Views become rows: exactly what a model sees.

The target ids of a sample are the same in every view that shows its response, and the same that training uses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Asked,
    Joint,
    Noisy,
    Prompted,
    PromptOnly,
    Reasons,
    ResponseOnly,
    Side,
    View,
    WholeText,
    reasons,
)
from instdiff.core.arrays.ragged import Ragged, offsets_of, spans
from instdiff.core.arrays.spill import SpillingArray
from instdiff.core.columns import first_reason
from instdiff.core.signals import Sides
from instdiff.data import Pool, Sample, Turns
from instdiff.errors import PlanError
from instdiff.rendering.chat_tokens import KINDS
from instdiff.rendering.questions import exchanges
from instdiff.rendering.rows import Indices, Marks, Noise, Rows, RowsBuilder, prepend, truncate
from instdiff.rendering.steps import cut_steps
from instdiff.rendering.templates import Kind, Template, TextTemplate, template
from instdiff.rendering.tokenise import (
    Parts,
    Tokenised,
    Tokenizer,
    answer_texts,
    instruction_texts,
    response_texts,
    thought_texts,
)
from instdiff.rendering.views import ask_questions, prompt_only

__all__ = ["Noise", "Renderer", "Rows", "render", "text_lengths", "training_rows"]


class Renderer:
    """Makes the views of a pool under one tokenizer; what they have in common is made once."""

    def __init__(self, pool: Pool, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokenised = Tokenised(pool, tokenizer)
        self._made: dict[tuple[View, str, int], Rows] = {}

    def rows(self, view: View, layout: Template, max_length: int) -> Rows:
        """Rows of a view, one per sample.

        ``max_length`` counts tokens of prompt and response and never exceeds the model's context. What is longer loses
        its end and is marked ``truncated``; where nothing of the response is left the row is ``too_long``.
        """
        limit = min(max_length, self.tokenizer.max_length or max_length)
        place = (view, repr(layout), limit)
        if place not in self._made:
            self._made[place] = self._make(view, layout, limit)
        return self._made[place]

    def training_rows(self, layout: Template, max_length: int) -> Rows:
        """See ``training_rows``."""
        rows = self.rows(Prompted(score_eos=True), layout, max_length)
        limit = min(max_length, self.tokenizer.max_length or max_length)
        ended = _end_in_end(self.tokenised.parts(layout, limit)) & ~rows.truncated
        return replace(rows, ended=ended & (rows.ids.lengths() > 0))

    def lengths(self, part: str) -> npt.NDArray[np.float64]:
        """Tokens per row of a part, see ``text_lengths``."""
        if part == "response":
            return self.tokenised.responses.counts().astype(np.float64)
        how = self.tokenised.pool.turns
        return self.tokenised.counts(part, lambda sample: _part_texts(sample, part, how)).astype(np.float64)

    def report(self) -> list[str]:
        """What the log should say of the rendering; each line once."""
        lines, self.tokenised.notes = self.tokenised.notes, []
        return list(dict.fromkeys([*lines, *(self._rejected.report() if "_rejected" in vars(self) else [])]))

    @cached_property
    def _rejected(self) -> Renderer:
        return Renderer(self.tokenised.pool.side("rejected"), self.tokenizer)

    def _make(self, view: View, layout: Template, limit: int) -> Rows:
        match view:
            case Prompted(score_eos=score_eos):
                bos = self.tokenizer.bos if isinstance(layout, TextTemplate) else None
                learnt = [Kind.RESPONSE, Kind.END, Kind.HEAD] if score_eos else [Kind.RESPONSE]
                return _join_prompted(self.tokenised.parts(layout, limit), bos, self.tokenizer.start, limit, learnt)
            case Side(name=name):
                rows = (self if name == "chosen" else self._rejected).rows(Prompted(), layout, limit)
                lone = reasons(len(rows), no_pair=~self.tokenised.pool.pairs)
                return replace(rows, reason=first_reason(lone, rows.reason))
            case Sides():
                return _side_by_side(*(self.rows(Side(name), layout, limit) for name in ("chosen", "rejected")))
            case ResponseOnly(context=context):
                first = self.tokenizer.start if context else self.tokenizer.bos
                return _targets_alone(self.rows(Prompted(), layout, limit), first)
            case WholeText(end=end):
                return _all_targets(self.rows(Prompted(score_eos=end), layout, limit))
            case Joint():
                return _joint(self.tokenised, view, limit)
            case PromptOnly():
                return prompt_only(self.tokenised, layout, limit)
            case Asked():
                return ask_questions(self.tokenised, view, layout, limit)
            case Noisy():
                rows, sized = (self.rows(v, layout, limit) for v in (view.view, noise_view(view.view)))
                return noisy(rows, sized, view, self.tokenised.pool.ids, first_address(view.view, self.tokenizer))
        raise PlanError(f"no renderer for view {view!r}; methods use the views of instdiff.core")


def render(view: View, pool: Pool, tokenizer: Tokenizer, layout: Template, max_length: int) -> Rows:
    """Rows of a single view; see ``Renderer.rows``."""
    return Renderer(pool, tokenizer).rows(view, layout, max_length)


def training_rows(pool: Pool, tokenizer: Tokenizer, layout: Template, max_length: int) -> Rows:
    """Rows to train on: the prompted view with every response's end token as a target; cut rows have none."""
    return Renderer(pool, tokenizer).training_rows(layout, max_length)


def text_lengths(pool: Pool, part: str, unit: str, tokenizer: Tokenizer | None = None) -> npt.NDArray[np.float64]:
    """Length per row of the responses (those that are targets), of their thoughts or answers, or of the instruction.

    The instruction has its input. ``steps`` are as of ``Windowed``, and ``turns`` are of the row.
    """
    if unit == "tokens" and tokenizer is not None:
        return Renderer(pool, tokenizer).lengths(part)
    if unit == "turns":
        return np.array([len(exchanges(sample)) for sample in pool.samples()], np.float64)

    sizes: dict[str, Callable[[str], int]] = {
        "words": lambda text: len(text.split()),
        "steps": lambda text: len(cut_steps(text)),
    }
    size = sizes.get(unit, len)

    def length(sample: Sample) -> int:
        return sum(size(text) for text in _part_texts(sample, part, pool.turns))

    return np.fromiter(map(length, pool.samples()), np.float64, len(pool))


def _part_texts(sample: Sample, part: str, how: Turns) -> list[str]:
    """The texts of a part of a sample."""
    if part == "instruction":
        return instruction_texts(sample)
    return {"thought": thought_texts, "answer": answer_texts}.get(part, response_texts)(sample, how)


def _join_prompted(parts: Parts, bos: int | None, start: int | None, limit: int, learnt: Sequence[Kind]) -> Rows:
    """Join segments, cut at the limit, drop what follows the last target."""
    out = RowsBuilder()
    learns = np.array([kind in learnt for kind in KINDS])
    said = KINDS.index(Kind.RESPONSE)
    for span in spans(parts.ids.offsets[parts.rows]):
        edges = parts.rows[span.start : span.stop + 1]
        offsets = parts.ids.offsets[edges[0] : edges[-1] + 1]
        kinds, reason = parts.kinds[edges[0] : edges[-1]], parts.reason[span].copy()
        row = np.repeat(np.arange(len(reason)), np.diff(edges))
        begin = parts.ids.offsets[edges[:-1]]
        lengths = np.diff(offsets)
        spoken = np.zeros(len(reason), bool)
        spoken[row[(kinds == said) & (lengths > 0)]] = True
        mark = learns[kinds] & (lengths > 0)
        # The first learnt token of each row, and the end of the last; of equal places the later assignment stays.
        first, last = np.zeros(len(reason), np.int64), np.zeros(len(reason), np.int64)
        last[row[mark]] = (offsets[1:] - begin[row])[mark]
        first[row[mark][::-1]] = (offsets[:-1] - begin[row])[mark][::-1]
        reason[~spoken & (reason == None)] = "empty_response"  # noqa: E711 - elementwise
        # In an empty prompt the first token needs something that predicts it.
        bare = spoken & (first == 0) if bos is None else np.zeros(len(reason), bool)
        if start is None:
            reason[bare] = "no_context"
            bare[:] = False
        lead = bare if bos is None else spoken
        open_ = reason == None  # noqa: E711 - elementwise
        long = open_ & (first + lead >= limit)
        reason[long] = "too_long"
        open_ &= ~long
        cut = long | (open_ & (last + lead > limit))
        lead &= open_
        keep = np.where(open_, np.minimum(last, limit - lead), 0)
        sizes = np.diff(parts.ids.offsets[edges])
        ids = truncate(parts.ids.values[offsets[0] : offsets[-1]], sizes, keep)
        target = truncate(np.repeat(learns[kinds], lengths), sizes, keep)
        token = bos if bos is not None else start
        led = Ragged(prepend(ids, keep, lead, token or 0), offsets_of(keep + lead))
        out.add(led, prepend(target, keep, lead, False), cut, reason)
    return out.rows()


def _side_by_side(*views: Rows) -> Rows:
    """The rows of several views, those of a sample one after the other."""
    out = RowsBuilder()
    for rows in views:
        out.add(rows.ids, rows.target, rows.truncated, rows.reason)
    return out.rows().take(np.arange(len(views) * len(views[0])).reshape(len(views), -1).T.ravel())


def _end_in_end(parts: Parts) -> Marks:
    """Whether the last segment of each sample that is learnt closes a turn."""
    learnt = (parts.kinds != KINDS.index(Kind.CONTEXT)) & (parts.ids.lengths() > 0)
    # Of each segment the last one up to it that is learnt.
    last = np.maximum.accumulate(np.where(learnt, np.arange(len(learnt)), -1))
    at = np.append(last, -1)[parts.rows[1:] - 1]
    closes = np.append(parts.kinds == KINDS.index(Kind.END), False)
    ended: Marks = (at >= parts.rows[:-1]) & closes[at]
    return ended


def _targets_alone(rows: Rows, first: int | None) -> Rows:
    """The targets of rows without what stands before them, after a start token where there is one."""
    out = RowsBuilder()
    counts = rows.n_targets()
    for span in rows.ids.spans():
        edge = slice(rows.ids.offsets[span.start], rows.ids.offsets[span.stop])
        reason, sizes = rows.reason[span].copy(), counts[span]
        some = sizes > 0
        ids = rows.ids.values[edge][rows.target[edge]]
        if first is not None:
            ids = prepend(ids, sizes, some, first)
            sizes = sizes + some
        offsets = offsets_of(sizes)
        short = sizes == 1
        reason[short] = "too_short"
        kept = np.where(short, 0, sizes)
        target = np.ones(len(ids), bool)
        target[offsets[:-1][some]] = False
        ids, target = truncate(ids, sizes, kept), truncate(target, sizes, kept)
        out.add(Ragged(ids, offsets_of(kept)), target, rows.truncated[span] & ~short, reason)
    return out.rows()


def _all_targets(rows: Rows) -> Rows:
    """The same ids, every token a target but the first."""
    target = SpillingArray(np.bool_)
    offsets = rows.ids.offsets
    for span in rows.ids.spans():
        marks = np.ones(offsets[span.stop] - offsets[span.start], bool)
        marks[offsets[span.start : span.stop][rows.ids.lengths()[span] > 0] - offsets[span.start]] = False
        target.extend(marks)
    return Rows(rows.ids, target.array(), rows.truncated, rows.reason)


def _joint(texts: Tokenised, view: Joint, limit: int) -> Rows:
    layout = template(view.template)
    assert isinstance(layout, TextTemplate)
    encode, context = texts.tokenizer.encode, texts.tokenizer.max_length

    def prompt(sample: Sample) -> str:
        first = next((m for m in sample.messages if m.role == "user"), None)
        return layout.turn(first.content, first.input) if first else ""

    prompts = texts.counts(f"prompt {layout!r}", lambda sample: [prompt(sample)], special=True)
    heads = prompts if view.alone is None else np.full(len(prompts), len(encode([view.alone], special=True)[0]))
    out = RowsBuilder()
    start = 0
    for samples in texts.chunks():
        span = slice(start, start + len(samples))
        start = span.stop
        said = [(prompt(s) if view.alone is None else view.alone) + view.join + s.response for s in samples]
        ids = Ragged.of(encode(said, special=True), np.int32)
        reason = np.full(len(samples), None, object)
        cut = np.zeros(len(samples), bool)
        if view.limit is not None:
            responses = texts.counts("response", lambda sample: [sample.response], special=True)[span]
            over = (np.maximum(prompts[span], responses) > view.limit) | (ids.lengths() > (context or np.inf))
            keep = ids.lengths()
        else:
            over = cut = prompts[span] >= limit
            slack = int(texts.tokenizer.bos is not None) if view.slack is None else view.slack
            keep = np.minimum(limit if view.alone is None else limit - prompts[span] + slack, ids.lengths())
        reason[over] = "too_long"
        reason[[not sample.response for sample in samples]] = "empty_response"
        reason[[sum(m.role == "assistant" and not m.only_calls for m in sample.messages) > 1 for sample in samples]] = (
            "multi_turn"
        )
        out.add(*_cut_rows(ids, np.maximum(heads[span], 1), keep, cut & (reason == "too_long"), reason))
    return out.rows()


def _cut_rows(
    ids: Ragged, boundary: Indices, keep: Indices, cut: Marks, reason: Reasons
) -> tuple[Ragged, Marks, Marks, Reasons]:
    """Rows cut to ``keep``, targets from ``boundary`` on; those that have a reason already are emptied."""
    open_ = reason == None  # noqa: E711 - elementwise
    cut = cut | (open_ & (keep < ids.lengths()))
    none = open_ & (keep <= boundary)
    reason[none] = np.where(cut[none], "too_long", "too_short")
    keep = np.where(open_ & ~none, keep, 0)
    kept = Ragged(truncate(ids.values, ids.lengths(), keep), offsets_of(keep))
    at = np.arange(len(kept.values)) - np.repeat(kept.offsets[:-1], keep)
    return kept, at >= np.repeat(boundary, keep), cut, reason


def noise_view(view: View) -> View:
    """The view by whose tokens noise is sized: the response with its prompt."""
    if isinstance(view, ResponseOnly):
        return Prompted()
    return replace(view, alone=None, slack=0) if isinstance(view, Joint) else view


def first_address(view: View, tokenizer: Tokenizer) -> int | str | None:
    """See ``Noise.first``."""
    if isinstance(view, ResponseOnly):
        return 0 if (tokenizer.start if view.context else tokenizer.bos) is None else None
    if isinstance(view, Joint) and view.alone == "":
        return 0 if tokenizer.bos is None else None
    return "prompted"


def noisy(rows: Rows, counterpart: Rows, view: Noisy, names: Sequence[str], first: int | str | None) -> Rows:
    """Rows with noise, sized by the tokens of their counterparts.

    Rows of equal content get equal noise, so that neither order nor copies change a number.
    """
    tail = f"|{view.seed}|{view.draw}".encode()
    digests = b"".join(hashlib.blake2b(name.encode() + tail, digest_size=8, key=b"noise").digest() for name in names)
    tokens = np.maximum(counterpart.ids.lengths(), 1)
    return replace(rows, noise=Noise(view.alpha, np.frombuffer(digests, "<i8").astype(np.int64), tokens, first))
