"""Questions with lettered options, answered by likelihood: our own sweep over the options, batched and kept.

Prompts are lm-eval's, text and tokens, so that the log-likelihoods are too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats, Measure, Nll
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.arrays.spill import flatnonzero
from instdiff.core.progress import telling
from instdiff.data.hub import hub_rows
from instdiff.engine.distributed.hosts import ModelHost
from instdiff.engine.sources import Source, load_tokenizer, resolve
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import DataError
from instdiff.evaluation.harness import local_data as data
from instdiff.evaluation.harness.local_data import Parts
from instdiff.evaluation.results import TaskResult, distinct
from instdiff.evaluation.subject import Subject
from instdiff.evaluation.task_data import Record
from instdiff.rendering.rows import Rows
from instdiff.rendering.templates import ChatTemplate, template
from instdiff.scoring.run_pass import run_pass
from instdiff.store import ColumnId
from instdiff.store.keys import first_of_each

LETTERS = ("A", "B", "C", "D")
NLL: Measure = Nll()


@dataclass(frozen=True)
class Question:
    """A question with options A to D: its text up to where the letter stands, and the right option, if known."""

    text: str
    answer: int | None


@dataclass(frozen=True)
class ChoiceTask:
    """A benchmark of such questions, with the names that its local file may have.

    ``read`` brings a row of a local file or of the hub to the hub's columns, and ``ask`` makes the question of it.
    ``hub`` says where rows are by default, by subject: data set, split to test on, split to show. ``intro`` stands
    before everything; it knows ``{subject}``.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Record], Record]
    ask: Callable[[Record], Question]
    hub: dict[str, tuple[str, str, str]]
    intro: str = ""

    def rows(self, where: str | None, shots: int) -> Parts:
        """Its rows, of a local file or of the hub; a DataError where they cannot be read, or there are none."""
        if where is not None:
            found = data.parts(where, self.read, subjects=len(self.hub) > 1)
            known = {subject: rows for subject, rows in found.items() if subject in self.hub}
            if not known:
                raise DataError(f"'{where}' has none of the subjects of {self.name}: {', '.join(self.hub)}")
            return known
        out: Parts = {}
        try:
            for subject, (name, test, show) in self.hub.items():
                out[subject] = {"test": [self.read(row) for row in hub_rows(f"{name}:{test}", None)]}
                if shots:
                    out[subject]["shots"] = [self.read(row) for row in hub_rows(f"{name}:{show}", shots)]
        except DataError as error:
            raise DataError(f"{self.name}: {error}; or give its file: data.{self.name}=PATH, or data_dir") from None
        return out


def _letter_options(options: Sequence[str]) -> str:
    return "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=True))


def _ask_medqa(row: Record) -> Question:
    options = [row[f"ending{number}"] for number in range(4)]
    return Question(f"Question: {row['sent1']}\n{_letter_options(options)}Answer:", row["label"])


def _ask_medmcqa(row: Record) -> Question:
    options = [row[key] for key in ("opa", "opb", "opc", "opd")]
    known = 0 <= row["cop"] < len(LETTERS)
    return Question(
        f"Question: {row['question']}\nChoices:\n{_letter_options(options)}Answer:", row["cop"] if known else None
    )


def _ask_mmlu(row: Record) -> Question:
    return Question(f"{row['question'].strip()}\n{_letter_options(row['choices'])}Answer:", row["answer"])


MEDICAL = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)
MED = {
    task.name: task
    for task in (
        ChoiceTask(
            "medqa",
            ("medqa", "medqa_4options"),
            data.medqa,
            _ask_medqa,
            {"": ("GBaker/MedQA-USMLE-4-options-hf", "test", "train")},
        ),
        ChoiceTask(
            "medmcqa",
            ("medmcqa",),
            data.medmcqa,
            _ask_medmcqa,
            {"": ("openlifescienceai/medmcqa", "validation", "train")},
        ),
        ChoiceTask(
            "mmlu_medical",
            ("mmlu_medical", "mmlu_med", "mmlu"),
            data.mmlu,
            _ask_mmlu,
            {subject: (f"cais/mmlu/{subject}", "test", "dev") for subject in MEDICAL},
            "The following are multiple choice questions (with answers) about {subject}.\n\n",
        ),
    )
}


@dataclass(frozen=True)
class ChoiceSuite:
    """Multiple choice by log-likelihood of the letters; with the model's chat template where that is the run's.

    ``tasks`` come with their local files; None takes the hub's. ``shots`` are examples before each question, the first
    of the split to show. ``limit`` is the number of questions of each task, dealt over its subjects.
    """

    name: str
    tasks: tuple[tuple[ChoiceTask, str | None], ...]
    shots: int = 0
    limit: int | None = None

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """Ask everything."""
        teller = ChoiceScorer(subject)
        try:
            return tuple(self._task(task, where, subject, teller) for task, where in self.tasks)
        finally:
            teller.close()

    def _task(self, task: ChoiceTask, where: str | None, subject: Subject, teller: ChoiceScorer) -> TaskResult:
        ids, topics, talks, fewest = self._talks(task, where)
        if fewest < self.shots:
            subject.log(f"warning: {task.name} has {fewest} examples to show, not the {self.shots} that are asked for")
        found = teller.likelihoods(talks, f"{self.name}: {task.name}")
        return _result(task.name, distinct(ids), topics, [talk.question for talk in talks], found, fewest)

    def _talks(self, task: ChoiceTask, where: str | None) -> tuple[list[str], list[str], list[ChoicePrompt], int]:
        """Of each question its id, its subject and what is shown; and the fewest examples before one."""
        parts = task.rows(where, self.shots)
        takes = share_limit({name: len(splits["test"]) for name, splits in parts.items()}, self.limit)
        ids: list[str] = []
        topics: list[str] = []
        talks: list[ChoicePrompt] = []
        fewest = self.shots
        for name, splits in parts.items():
            shown = [task.ask(row) for row in splits.get("shots", [])]
            shown = [example for example in shown if example.answer is not None][: self.shots]
            fewest = min(fewest, len(shown))
            rows = splits["test"][: takes[name]]
            ids += [f"{name or task.name}:{row_hash(row)}" for row in rows]
            topics += [name] * len(rows)
            questions = [task.ask(row) for row in rows]
            talks += [ChoicePrompt(task.intro.format(subject=name.replace("_", " ")), shown, one) for one in questions]
        return ids, topics, talks, fewest

    def rows(self, teller: ChoiceScorer) -> Rows:
        """All that the model is shown."""
        talks = [talk for task, where in self.tasks for talk in self._talks(task, where)[2]]
        return teller.rows(talks)


def _result(
    name: str, ids: list[str], topics: list[str], asked: Sequence[Question], found: Likelihoods, shots: int
) -> TaskResult:
    logs = found.logs
    there = np.asarray(np.isfinite(logs).all(1))
    answer = np.array([-1 if question.answer is None else question.answer for question in asked], np.int64)
    reason = [
        None if a >= 0 and ok else "no_answer" if a < 0 else "non_finite"
        for a, ok in zip(answer.tolist(), there.tolist(), strict=True)
    ]
    chosen = np.where(there, np.where(np.isnan(logs), -np.inf, logs).argmax(1), -1)
    score = np.where(there & (answer >= 0), (chosen == answer).astype(np.float64), np.nan)
    counted = np.flatnonzero(np.isfinite(score))
    held = np.exp(logs[counted] - logs[counted].max(1, keepdims=True, initial=-np.inf))
    sure = held[np.arange(len(counted)), answer[counted]] / held.sum(1)
    chose = Counter(LETTERS[letter] for letter in chosen[counted].tolist())
    details: dict[str, Any] = {
        "shots": shots,
        "answer_probability": float(sure.mean()) if len(counted) else None,
        "chosen": {letter: chose[letter] for letter in LETTERS},
        "share_of_several_tokens": float(np.mean(found.several)) if len(ids) else 0.0,
        "truncated": int(found.truncated.sum()),
    }
    if any(topics):
        place = np.array(topics)
        by = {topic: score[(place == topic) & np.isfinite(score)] for topic in dict.fromkeys(topics)}
        details["accuracy_by_subject"] = {topic: float(part.mean()) for topic, part in by.items() if len(part)}
    return TaskResult(name, "accuracy", ids, score, reason=reason, details=details)


# ── what a model says to it ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ChoicePrompt:
    """A question with what stands before it."""

    intro: str
    examples: Sequence[Question]
    question: Question

    def plain(self) -> str:
        """As text: examples with a space before their letter, and an empty line between all."""
        shown = "".join(f"{one.text} {LETTERS[one.answer or 0]}\n\n" for one in self.examples)
        return f"{self.intro}{shown}{self.question.text}"

    def messages(self) -> list[dict[str, str]]:
        """As turns of a conversation."""
        out = [{"role": "system", "content": self.intro}] if self.intro else []
        for one in self.examples:
            out += [{"role": "user", "content": one.text}, {"role": "assistant", "content": LETTERS[one.answer or 0]}]
        return [*out, {"role": "user", "content": self.question.text}]


@dataclass(frozen=True)
class Likelihoods:
    """Per question and letter its log-likelihood in nats, NaN where there is none.

    ``several``: the question's letters are not one token each; ``truncated``: it lost its beginning.
    """

    logs: Floats
    several: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]


@dataclass
class ChoiceScorer:
    """The model under test, as it is asked for the likelihood of letters."""

    subject: Subject
    source: Source = field(init=False)
    tokenizer: HFTokenizer = field(init=False)
    resident: ModelHost = field(init=False)

    def __post_init__(self) -> None:
        subject = self.subject
        self.source = resolve(subject.model, subject.store.memo)
        self.tokenizer = load_tokenizer(self.source, subject.settings.template_date)
        self.resident = subject.host

    def close(self) -> None:
        """End the worker processes that were started here."""
        self.resident.close()

    def likelihoods(self, talks: Sequence[ChoicePrompt], label: str) -> Likelihoods:
        """Log-likelihood of each letter after each question, from the store where it is there."""
        rows = self.rows(talks)
        column = ColumnId(self.source.fingerprint, str(self.resident.dtype).removeprefix("torch."), NLL)
        self._sweep(rows, column, label)
        values = self.subject.store.read(column, rows.keys())
        logs = np.where(values.lengths() > 0, -values.sum(), np.nan).reshape(len(talks), len(LETTERS))
        several = rows.n_targets().reshape(logs.shape).max(1, initial=0) > 1
        return Likelihoods(logs, several, np.asarray(rows.truncated.reshape(logs.shape).any(1)))

    def rows(self, talks: Sequence[ChoicePrompt]) -> Rows:
        """A row for each letter of each question; what is too long loses its beginning."""
        chat = chat_template(self.subject)
        space = " " if chat is None else ""
        heads = [talk.plain() if chat is None else self._render(talk, chat) for talk in talks]
        tails = ["", *(space + letter for letter in LETTERS)]
        # As lm-eval has it, white space at the end of a prompt belongs to the answer, with which it makes tokens.
        ends = [len(head.rstrip()) for head in heads]
        texts = [(head + tail) if tail else head[:end] for head, end in zip(heads, ends, strict=True) for tail in tails]
        start = self.tokenizer.hf.bos_token
        special = not (start and heads and heads[0].startswith(start))
        found = self.tokenizer.encode(texts, special=special)
        limit = min(self.subject.settings.max_length, self.tokenizer.max_length or 1 << 30)
        ids, marks, cut = [], [], []
        for first in range(0, len(found), len(tails)):
            head = found[first]
            for whole in found[first + 1 : first + len(tails)]:
                own = whole[len(head) :] or whole[-1:]
                row = np.array((head + own)[-limit:], np.int32)
                ids.append(row)
                marks.append(np.arange(len(row)) >= max(len(row) - len(own), 1))
                cut.append(len(head) + len(own) > limit)
        target = np.concatenate([*marks, np.zeros(0, bool)])
        return Rows(Ragged.of(ids, np.int32), target, np.array(cut, bool), np.full(len(ids), None, object))

    def _render(self, talk: ChoicePrompt, chat: ChatTemplate) -> str:
        return self.tokenizer.render(talk.messages(), jinja=chat.jinja, ask=True)

    def _sweep(self, rows: Rows, column: ColumnId, label: str) -> None:
        """Compute what the store lacks, equal rows once."""
        subject, keys = self.subject, rows.keys()
        at = flatnonzero(first_of_each(keys))
        todo = at[subject.store.missing(column, keys[at])]
        if len(todo) == 0:
            return
        some = rows.take(todo)
        started = time.monotonic()
        tokens, budget = int(some.ids.lengths().sum()), subject.settings.batch_tokens
        with (
            subject.progress.task(label, rows=len(todo), tokens=tokens, cached=len(at) - len(todo)) as advance,
            closing(self.resident.sweep(self.source, some, (NLL,), subject.log, budget)) as batches,
        ):
            run_pass(telling(batches, subject.progress), keys[todo], {NLL: column}, subject.store, advance)
        subject.spend("prompt_tokens", tokens)
        subject.spend("seconds", time.monotonic() - started)


def chat_template(subject: Subject) -> ChatTemplate | None:
    """The run's template where it is a chat template; benchmarks are not put into any other."""
    named = subject.model.template or subject.settings.templates.get("*", "")
    found = template(named) if named else None
    return found if isinstance(found, ChatTemplate) else None


# ── items ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def row_hash(row: Record) -> str:
    """What an item is called: the hash of its content."""
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).hexdigest()


def share_limit(sizes: dict[str, int], limit: int | None) -> dict[str, int]:
    """How many items of each subject are taken, so that they are ``limit`` in all and as even as can be."""
    if limit is None or limit >= sum(sizes.values()):
        return dict(sizes)
    out, left = {}, limit
    for place, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        out[name] = min(sizes[name], left // (len(sizes) - place))
        left -= out[name]
    return {name: out[name] for name in sizes}
