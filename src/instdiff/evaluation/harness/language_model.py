"""A model as lm-eval asks it: likelihoods by our sweep, from the store; answers by our generator, each of them kept.

Tokens, truncation and windows are those of lm-eval's own class for transformers, ``HFLM``, and so the numbers are too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from instdiff.core import Measure, Nll, Top1
from instdiff.core.arrays.spill import flatnonzero
from instdiff.core.progress import telling
from instdiff.core.settings import dtype_name
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.evaluation.subject import Subject
from instdiff.rendering.rows import Rows, RowsBuilder
from instdiff.rendering.templates import ChatTemplate, template
from instdiff.scoring.run_pass import run_pass
from instdiff.store import ColumnId
from instdiff.store.keys import first_of_each

USUAL_CONTEXT, USUAL_TOKENS = 2048, 256
"""Of a model that does not say, and of an answer whose task does not: lm-eval's own."""
HEEDED = {"until", "do_sample", "temperature", "top_p"}
HEEDED |= {"max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
"""What a task may ask of answers that the generator knows."""
AT_ONCE = 1 << 12
"""Requests whose texts become tokens together."""

Pair = tuple[list[int], list[int]]
"""Tokens that are given, and those whose likelihood is asked."""


class SweepLM:
    """lm-eval's interface of a language model, whose own class is imported late.

    Args:
        subject: the model, its settings, its store, and the generator that writes.
        max_length: tokens of a prompt with its answer; by default, and at most, the model's context.
        max_new_tokens: those after which an answer is cut; by default the request's own number.
        suite: what progress is called.
    """

    rank, world_size = 0, 1

    def __init__(
        self, subject: Subject, max_length: int | None = None, max_new_tokens: int | None = None, suite: str = "lm-eval"
    ) -> None:
        self.subject, self.host, self.max_new_tokens = subject, subject.host, max_new_tokens
        self.source = resolve(subject.model, subject.store.memo)
        self.coder = load_tokenizer(self.source, subject.settings.template_date)
        self.chat = chat_template(subject)
        self.max_length = min(max_length or 1 << 30, self.coder.max_length or USUAL_CONTEXT)
        self.suite, self.task, self.truncated = suite, "", 0
        dtype = dtype_name(self.host.dtype)
        measures: tuple[Measure, ...] = (Nll(), Top1())
        self.columns = {measure: ColumnId(self.source.fingerprint, dtype, measure) for measure in measures}
        hf = self.coder.hf
        self.prefix: int | None = hf.eos_token_id if hf.bos_token_id is None else hf.bos_token_id

    def close(self) -> None:
        """End the worker processes that were started here."""
        self.host.close()

    # ── likelihoods ───────────────────────────────────────────────────────────────────────────────────────────────────

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each (context, continuation) the log-likelihood in nats, or NaN, and whether greedy writing gives it."""
        return list(self._weigh(requests))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Of each (text,) the log-likelihood in nats, in windows of the context's length."""
        return [total for total, _ in self._weigh(requests)]

    def rows(self, requests: Sequence[Any]) -> tuple[Rows, list[int]]:
        """What the model is shown, and how many rows each request has; what is too long loses its beginning."""
        out, counts, most = RowsBuilder(), list[int](), self.max_length + 1  # nobody sees the last token
        for start in range(0, len(requests), AT_ONCE):
            for pairs in self._pairs([one.args for one in requests[start : start + AT_ONCE]]):
                counts.append(len(pairs))
                for given, asked in pairs:
                    ids = np.array((given + asked)[-most:], np.int32)
                    target = np.arange(len(ids)) >= max(len(ids) - len(asked), 1)
                    out.add_row(ids, target, len(given) + len(asked) > most)
        return out.rows(), counts

    def missing(self, rows: Rows, *, new: bool = False) -> npt.NDArray[np.int64]:
        """The numbers of the rows that the store lacks, equal ones once; all of them where the model is ``new``."""
        keys = rows.keys()
        at = flatnonzero(first_of_each(keys) & (rows.n_targets() > 0))
        lacks = [self.subject.store.missing(column, keys[at]) for column in self.columns.values()]
        return at if new else at[np.any(lacks, axis=0)]

    def _weigh(self, requests: Sequence[Any]) -> Iterator[tuple[float, bool]]:
        rows, counts = self.rows(requests)
        self.truncated += int(rows.truncated.sum())
        self._sweep(rows)
        nll, top = (self.subject.store.read(column, rows.keys()) for column in self.columns.values())
        known = (nll.lengths() > 0) | (rows.n_targets() == 0)
        found = zip(np.where(known, -nll.sum(), np.nan).tolist(), (top.sum() == rows.n_targets()).tolist(), strict=True)
        for count in counts:
            parts = list(islice(found, count))
            yield sum(total for total, _ in parts), all(greedy for _, greedy in parts)

    def _sweep(self, rows: Rows) -> None:
        subject, todo, keys = self.subject, self.missing(rows), rows.keys()
        if len(todo) == 0:
            return
        some, began = rows.take(todo), time.monotonic()
        tokens, cached = int(some.ids.lengths().sum()), int(first_of_each(keys).sum()) - len(todo)
        measures, budget = tuple(self.columns), subject.settings.batch_tokens
        with (
            subject.progress.task(self._label(), rows=len(todo), tokens=tokens, cached=cached) as advance,
            closing(self.host.sweep(self.source, some, measures, subject.log, budget)) as batches,
        ):
            run_pass(telling(batches, subject.progress), keys[todo], self.columns, subject.store, advance)
        subject.spend("prompt_tokens", tokens)
        subject.spend("seconds", time.monotonic() - began)

    def _label(self) -> str:
        return f"{self.suite}: {self.task}" if self.task else self.suite

    def _pairs(self, asked: Sequence[tuple[str, ...]]) -> list[list[Pair]]:
        """Of each request the pairs of tokens, with those of a long text in windows."""
        texts = dict.fromkeys(text for args in asked for text in _texts(args))
        ids = dict(zip(texts, self._encode(list(texts)), strict=True))
        return [[_split(ids, *args)] if len(args) > 1 and args[0] else self._alone(ids, args) for args in asked]

    def _alone(self, ids: Mapping[str, list[int]], args: tuple[str, ...]) -> list[Pair]:
        """A text behind nothing but the token that begins one."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        if len(args) == 1:
            windows = get_rolling_token_windows(ids[args[0]], self.prefix, self.max_length, 1)
            return [make_disjoint_window(window) for window in windows]
        (asked,) = self.coder.encode([args[1]])
        begun = self.prefix is None or asked[:1] == [self.prefix]
        return [(asked[:1], asked[1:]) if begun else ([self.prefix], asked)]  # type: ignore[list-item]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts; the tokenizer adds its own start to those that do not bring it."""
        start = None if self.prefix is None else self.coder.hf.decode(self.prefix)
        brings = [start is not None and text.startswith(start) for text in texts]
        kinds = {
            own: iter(self.coder.encode([t for t, b in zip(texts, brings, strict=True) if b is own], special=not own))
            for own in (True, False)
        }
        return [next(kinds[own]) for own in brings]

    # ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Of each (context, how) what the model writes; equal requests are as many draws of one."""
        asked = self.prompts(requests)
        places: dict[Sampling, dict[Prompt, list[int]]] = {}
        for place, (prompt, sampling) in enumerate(asked):
            places.setdefault(sampling, {}).setdefault(prompt, []).append(place)
        out = [""] * len(asked)
        for sampling, prompts in places.items():
            draws = max(map(len, prompts.values()))
            written = self.subject.generator.write(list(prompts), replace(sampling, n=draws))
            for equal, answers in zip(prompts.values(), written, strict=True):
                for place, answer in zip(equal, answers, strict=False):
                    out[place] = answer
        return out

    def prompts(self, requests: Sequence[Any]) -> list[tuple[Prompt, Sampling]]:
        """What the generator is asked; an answer has at most half of the context, and a prompt what is left."""
        contexts = [one.args[0] for one in requests]
        sizes, how = map(len, self._encode(contexts)), [self._sampling(one.args[1]) for one in requests]
        wanted, room = max((one.max_new_tokens for one in how), default=0), self.max_length // 2
        if wanted > room:
            self.subject.log(f"{self.task}: answers are cut after {room} tokens, half of the model's context")
        foreign = sorted({name for one in requests for name in one.args[1]} - HEEDED)
        if foreign:
            self.subject.log(f"{self.task}: answers are written without lm-eval's {', '.join(foreign)}")
        out = []
        for context, size, sampling in zip(contexts, sizes, how, strict=True):
            most = min(sampling.max_new_tokens, room)
            left = self.max_length - most
            prompt = Prompt(context, raw=True, last=left if size > left else None)
            self.truncated += size > left
            out.append((prompt, replace(sampling, max_new_tokens=most)))
        return out

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        from lm_eval.models.utils import normalize_gen_kwargs

        how, end = normalize_gen_kwargs(dict(given), USUAL_TOKENS), self.coder.hf.eos_token
        stop = tuple(dict.fromkeys(text for text in (*how["until"], end) if text))
        most = min(self.max_new_tokens or 1 << 30, how["max_gen_toks"])
        warm = how.get("temperature", 1.0) if how["do_sample"] else 0.0
        return Sampling(1, warm, how.get("top_p", 1.0), most, stop)

    # ── chat templates ────────────────────────────────────────────────────────────────────────────────────────────────

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        jinja = self.chat.jinja if self.chat else None
        return render_history(self.coder, chat_history, ask=add_generation_prompt, jinja=jinja)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval calls the tokenizer."""
        return str(self.coder.hf.name_or_path).replace("/", "__")


def _texts(args: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a request that become tokens with the tokenizer's start."""
    if len(args) == 1:
        return args
    return (args[0].rstrip(), args[0] + args[1]) if args[0] else ()


def _split(ids: Mapping[str, list[int]], context: str, continuation: str) -> Pair:
    """White space at the end of a context belongs to what follows, with which it makes tokens."""
    given, whole = ids[context.rstrip()], ids[context + continuation]
    return given, whole[len(given) :] or whole[-1:]


def chat_template(subject: Subject) -> ChatTemplate | None:
    """The run's template where it is a chat template; benchmarks are not put into any other."""
    named = subject.model.template or subject.settings.templates.get("*", "")
    found = template(named) if named else None
    return found if isinstance(found, ChatTemplate) else None


def render_history(
    tokenizer: HFTokenizer, messages: Sequence[Mapping[str, str]], *, ask: bool, jinja: str | None = None
) -> str:
    """A conversation as lm-eval has it, but for the date: where nothing is asked, the last message is left open."""
    try:
        text = tokenizer.render(messages, jinja=jinja, ask=ask)
    except TemplateError:  # as lm-eval has it: the template may know no system turn
        text = tokenizer.render([one for one in messages if one["role"] != "system"], jinja=jinja, ask=ask)
    if ask:
        return text
    last = messages[-1]["content"]
    last = last if last in text else last.strip()  # the template may trim it
    return text[: text.rindex(last) + len(last)]
