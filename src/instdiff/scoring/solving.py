"""Answers that a role's model draws to posed prompts, and which of them are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from instdiff.core import Judged, Measure, PromptOnly, reasons
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.columns import first_reason
from instdiff.core.files import fingerprint
from instdiff.core.progress import Quiet
from instdiff.core.signals import CUT, RIGHT, UNVERIFIED, WRONG, Posed, Solved
from instdiff.data import Message, Sample
from instdiff.engine.generation.backend import Backend, Prompt, Sampling
from instdiff.engine.generation.generator import Generator, make_backend
from instdiff.engine.sweep import BatchResult
from instdiff.engine.text.judge import Answer, parse_judge
from instdiff.engine.text.models import TextModel
from instdiff.grading.verify import WAYS, Check, check_ready, verify
from instdiff.rendering.posed import checks, requests
from instdiff.rendering.questions import questions
from instdiff.rendering.rows import Rows
from instdiff.rendering.templates import template
from instdiff.rendering.texts import Texts
from instdiff.scoring.rendered import Rendered
from instdiff.scoring.run_pass import run_pass
from instdiff.store import ColumnId
from instdiff.store.check import ANSWERS
from instdiff.store.keys import Keys, first_of_each

if TYPE_CHECKING:
    from instdiff.scoring.workbench import Workbench

AT_ONCE = 256
"""Answers that are drawn before they are checked."""
EXECUTIONS = "executions.jsonl"
"""The verdicts on programs that were run."""
QUESTION = "solved"
"""The file of the judge's question."""
TEXT = "text"
JUDGED = Judged(0, 1)


class Solver:
    """Draws answers with the model of a role, keeps every one in the store, and says which are right.

    ``judge`` is the role of a model that is asked where the row says so.
    """

    def __init__(self, bench: Workbench, role: str, judge: str | None = None) -> None:
        self.bench, self.role, self.judge = bench, role, judge
        self.endpoint = parse_judge(bench.models[role].where)
        self.source = None if self.endpoint else bench.source(role)

    @property
    def template(self) -> str:
        """Under which a server is asked: the one that is named for it, else its own; that of the role here."""
        named, role = self.bench.settings.templates, self.role
        if self.endpoint is None:
            return self.bench.template_name(role)
        return self.bench.models[role].template or named.get(role) or named.get("*") or "chat"

    @cached_property
    def backend(self) -> Backend:
        """What writes."""
        bench, ref = self.bench, self.bench.models[self.role]
        settings = bench.settings
        if self.endpoint:
            settings = replace(settings, templates={"*": self.template})
            calls: dict[str, Any] = {"timeout": settings.judge_timeout, "tries": settings.judge_tries}
            calls |= {"concurrency": settings.judge_concurrency} if settings.judge_concurrency else {}
            return make_backend(ref.where, ref, settings, bench.store.memo, bench.log, **calls)
        ref = replace(ref, template=self.template)
        where = bench.store.memo, bench.log
        return make_backend("hf", ref, settings, *where, resident=bench.resident.local())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides the answers, beside prompt and sampling, and which are right."""
        judge = self._asked.fingerprint if self.judge else ""
        layout = self.template if self.endpoint else ""
        return fingerprint("solved", WAYS, self.backend.fingerprint, layout, judge)

    @cached_property
    def _asked(self) -> TextModel:
        assert self.judge is not None
        return self.bench.text_model(self.judge, JUDGED)

    @cached_property
    def _generator(self) -> Generator:
        folder = self.bench.store.root / ANSWERS
        return Generator(self.backend, folder, lambda what, amount: None, self.bench.log, Quiet())

    def sweep(self, rows: Rows | Texts, checks: Texts, measures: tuple[Measure, ...]) -> Iterator[BatchResult]:
        """A word for each answer of each row, such as ``RIGHT``; NaN for one that did not come."""
        asked = [measure for measure in measures if isinstance(measure, Solved)]
        check_ready(Check.of(json.loads(checks[row])) for row in range(len(checks)))
        size = max(1, AT_ONCE // max(measure.draws for measure in asked))
        for start in range(0, len(rows), size):
            at = np.arange(start, min(start + size, len(rows)))
            prompts, tokens = prompts_of(rows.take(at)), 0
            ways = [Check.of(json.loads(checks[int(row)])) for row in at]
            columns: dict[Measure, Ragged] = {}
            for measure in asked:
                drawn = self._generator.answers(prompts, sampling_of(measure))
                tokens += sum(answer.completion_tokens for row in drawn for answer in row)
                columns[measure] = self._words(drawn, ways, [checks[int(row)] for row in at])
            yield BatchResult(at, columns, tokens)

    def drawn(self, rows: Rows | Texts, measure: Solved) -> list[list[Answer | None]]:
        """The answers of each row that the store holds; None in the place of one that it lacks."""
        kept = self._generator.written
        asked = self._generator.requests(prompts_of(rows), sampling_of(measure))
        return [[kept[one.key][-1] if one.key in kept else None for one in row] for row in asked]

    def _words(self, drawn: Sequence[Sequence[Answer]], ways: Sequence[Check], facts: Sequence[str]) -> Ragged:
        words = [[np.nan if one.text is None else float(CUT) for one in row] for row in drawn]
        open_ = [
            (i, j) for i, row in enumerate(drawn) for j, one in enumerate(row) if one.text is not None and not one.cut
        ]
        answers = [(ways[i], drawn[i][j].text or "") for i, j in open_]
        found = verify(answers, verdicts=self.bench.store.root / ANSWERS / EXECUTIONS)
        for (i, j), right in zip(open_, found, strict=True):
            words[i][j] = UNVERIFIED if right is None else RIGHT if right else WRONG
        if asked := [(i, j) for i, j in open_ if ways[i].how == "judge"]:
            said = self._judged([(json.loads(facts[i]), drawn[i][j].text or "") for i, j in asked])
            for (i, j), word in zip(asked, said, strict=True):
                words[i][j] = word
        return Ragged.of(words, np.float32)

    def _judged(self, answers: Sequence[tuple[dict[str, Any], str]]) -> list[float]:
        """A word for each answer, by the judge; it is asked about equal ones once, and what it said is kept."""
        asks, store, column = questions(QUESTION), self.bench.store, ColumnId(self._asked.fingerprint, TEXT, JUDGED)
        said = [
            asks.ask(0, Sample((Message("user", facts["question"], facts["gold"]), Message("assistant", answer))))
            for facts, answer in answers
        ]
        texts = Texts(pa.array(said, pa.large_string()), np.full(len(said), None, object), asks.system)
        keys = texts.keys()
        todo = np.flatnonzero(store.missing(column, keys) & first_of_each(keys))
        if len(todo):
            batches = self._asked.sweep(texts.take(todo), (JUDGED,), self.bench.log)
            run_pass(batches, keys[todo], {JUDGED: column}, store)
        lost, score = store.missing(column, keys), store.read(column, keys).mean()
        right = np.where(score >= 0.5, RIGHT, WRONG)
        words = np.where(lost, np.nan, np.where(np.isnan(score), UNVERIFIED, right))
        return [float(word) for word in words]


def pose(bench: Workbench, role: str, view: Posed, of: str) -> Rendered:
    """The prompts of a view, with what tells whether an answer is right: as tokens, or as requests to a server."""
    pool = bench.samples(of)
    held = checks(view, pool)
    if parse_judge(bench.models[role].where):
        asked = requests(pool, template(Solver(bench, role).template))
        return Rendered(replace(asked, reason=first_reason(asked.reason, held.reason)), _both(asked, held), None, held)
    rows = bench.render(role, PromptOnly(), of).tokens
    full = rows.ids.lengths() >= (bench.tokenizer(role).max_length or np.inf)
    long = reasons(len(rows), too_long=rows.truncated | full)
    reason = first_reason(first_reason(rows.reason, long), held.reason)
    return Rendered(replace(rows, reason=reason), _both(rows, held), None, held)


def _both(shown: Rows | Texts, held: Texts) -> Keys:
    """Keys of what the model sees and how its answers are checked."""
    pairs = zip(shown.keys().astype("S16").tolist(), held.keys().astype("S16").tolist(), strict=True)
    digests = (hashlib.blake2b(a.ljust(16, b"\0") + b, digest_size=16, key=b"posed").digest() for a, b in pairs)
    return np.frombuffer(b"".join(digests), "S16")


def sampling_of(measure: Solved) -> Sampling:
    """How the answers of a measure are drawn."""
    how = measure.temperature, measure.top_p, measure.max_tokens, measure.stop, measure.seed
    return Sampling(measure.draws, *how, measure.first)


def prompts_of(rows: Rows | Texts) -> list[Prompt]:
    """The prompts of rows of tokens, or of requests to a server."""
    if isinstance(rows, Rows):
        return [Prompt("", ids=tuple(rows.ids[row].tolist())) for row in range(len(rows))]
    texts = [rows[row] for row in range(len(rows))]
    return [Prompt(text, raw=True, chat=text if text.startswith('{"messages"') else None) for text in texts]
