"""Prompts that a model is to answer, with what says whether an answer is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import numpy as np
import pyarrow as pa

from instdiff.core.signals import Posed
from instdiff.data import Message, Pool, Sample
from instdiff.rendering.chat import request_of
from instdiff.rendering.templates import Kind, Template, TextTemplate, is_target, text_segments
from instdiff.rendering.texts import Texts, words

ANSWER = "answer"
TESTS = ("test_list", "tests", "test")
"""Columns of code that raises where a program is wrong; the first that is there counts."""
SETUP = ("test_imports", "test_setup_code")
_AT_ONCE = 1000


def checks(view: Posed, pool: Pool) -> Texts:
    """Of each row, as JSON, how answers to it are checked: ``verifier``, ``gold``, ``tests`` of programs, ``entry``.

    For a judge the ``question`` is there too. A row without a right answer is ``no_answer``, one with several turns to
    learn ``several_turns``. A DataError where no row has the column that is named.
    """
    gold = pool.column(view.answer) if view.answer else None
    told, reason = list[str](), np.full(len(pool), None, object)
    for at, (sample, row) in enumerate(zip(pool.samples(), _rows(pool), strict=True)):
        right = _text(gold[at]) if gold is not None else _text(row.get(ANSWER)) or sample.response
        facts = {"verifier": view.verifier, "gold": right.strip(), **_tests(row)}
        if view.verifier == "judge":
            facts["question"] = words(prompt(sample, pool.targets), "row", pool.turns)
        told.append(json.dumps(facts, ensure_ascii=False))
        if sum(is_target(sample.messages, i, pool.targets) for i in range(len(sample.messages))) > 1:
            reason[at] = "several_turns"
        elif not _checkable(facts):
            reason[at] = "no_answer"
    return Texts(pa.array(told, pa.large_string()), reason)


def _checkable(facts: dict[str, str]) -> bool:
    """Whether there is what the verifier checks by: tests of programs, a right answer, or for ``auto`` either."""
    gold, tests = bool(facts["gold"]), bool(facts.get("tests"))
    return {"judge": True, "code": tests, "auto": gold or tests}.get(facts["verifier"], gold)


def requests(pool: Pool, layout: Template) -> Texts:
    """Prompts for a server, up to the first response: the JSON of a chat, or their text under a text template."""
    told, reason = list[str](), np.full(len(pool), None, object)
    for at, sample in enumerate(pool.samples()):
        asked = prompt(sample, pool.targets)
        if not any(m.role == "user" and (m.content + m.input).strip() for m in asked.messages):
            reason[at] = "empty_instruction"
        if isinstance(layout, TextTemplate):
            answered = Sample((*asked.messages, Message("assistant", "1", learn=True)), asked.tools)
            segments = text_segments(answered, layout, pool.turns)
            before = takewhile(lambda segment: segment.kind is not Kind.RESPONSE, segments)
            told.append("".join(segment.text or "" for segment in before))
        else:
            told.append(json.dumps(request_of(asked, pool.turns), ensure_ascii=False))
    return Texts(pa.array(told, pa.large_string()), reason)


def prompt(sample: Sample, targets: str) -> Sample:
    """What stands before the first turn that is learnt; all of a sample that has none."""
    turns = sample.messages
    end = next((at for at in range(len(turns)) if is_target(turns, at, targets)), len(turns))
    return Sample(turns[:end], sample.tools, sample.template_values)


def _rows(pool: Pool) -> Iterator[dict[str, Any]]:
    for start in range(0, len(pool), _AT_ONCE):
        yield from pool.source_rows(range(start, min(start + _AT_ONCE, len(pool))))


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _tests(row: dict[str, Any]) -> dict[str, str]:
    """The code that tests a program, as HumanEval, MBPP and their like have it, and the function that it calls."""
    tests = next((_lines(row[name]) for name in TESTS if row.get(name)), "")
    if not tests or "assert" not in tests:
        return {}
    entry = str(row.get("entry_point") or "")
    called = f"\n\ncheck({entry})" if entry and "def check(" in tests else ""
    setup = [_lines(row[name]) for name in SETUP if row.get(name)]
    return {"tests": "\n".join([*setup, tests]) + called, "entry": entry}


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
