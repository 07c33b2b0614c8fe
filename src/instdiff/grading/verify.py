"""Whether drawn answers are right, by the way of checking that fits the row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from instdiff.core.progress import Quiet
from instdiff.grading.mathematics import THOUGHTS, last_boxed
from instdiff.grading.processes import Solution, check_math_verify, grade_all
from instdiff.grading.programs import Problem
from instdiff.grading.quantities import quantity
from instdiff.grading.sandbox import Sandbox, run_programs

WAYS = 1
"""A change of what is right gets another number, so that old verdicts are not taken for new ones."""
MARK = "####"
NO_VERDICT = ("timeout", "crashed", "out_of_memory", "missing_library")
"""Words of graders that say nothing of the answer."""
_FORMULA = re.compile(r"[\\$^_{}]")
_ENTRY = re.compile(r"^def[ \t]+(\w+)", re.MULTILINE)
_CALLED = re.compile(r"assert\s+(?:not\s+)?\(*(\w+)\s*\(")


@dataclass(frozen=True)
class Check:
    """How an answer is checked: ``how`` is ``math``, ``code``, ``exact`` or ``judge``; ``gold`` is the right one."""

    how: str
    gold: str = ""
    tests: str = ""
    entry: str = ""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Check:
        """What ``rendering.posed.checks`` says of a row; ``auto`` goes by what is there.

        Tests make it a program. A right answer behind ``####``, in a box, that is a number or a formula, is one of
        mathematics; any other has to come in the same words.
        """
        how, gold, tests = str(facts["verifier"]), str(facts["gold"]), str(facts.get("tests") or "")
        if how == "auto":
            math = MARK in gold or last_boxed(gold) is not None or quantity(gold.strip("$ ")) is not None
            formula = len(gold.splitlines()) == 1 and _FORMULA.search(gold) is not None
            how = "code" if tests else "math" if math or formula else "exact"
        if how == "math":
            gold = gold.rpartition(MARK)[2].strip() if MARK in gold else last_boxed(gold) or gold.strip("$ ")
        return cls(how, gold, tests, str(facts.get("entry") or ""))


def check_ready(ways: Iterable[Check]) -> None:
    """Raise what ``verify`` would, before anything is spent."""
    hows = {one.how for one in ways}
    if "math" in hows:
        check_math_verify()
    if "code" in hows:
        _sandbox()


@cache
def _sandbox() -> Sandbox:
    """One that was tried."""
    sandbox = Sandbox()
    sandbox.check()
    return sandbox


def verify(answers: Sequence[tuple[Check, str]], *, verdicts: Path | None = None) -> list[bool | None]:
    """Whether each answer is right; None where whatever checks it failed or did not end, and where a judge has to.

    ``verdicts`` keeps those of programs.

    Raises a PlanError where math-verify is not installed and needed, an EngineError where programs cannot be run here.
    """
    out: list[bool | None] = [None] * len(answers)
    by = {how: [at for at, (one, _) in enumerate(answers) if one.how == how] for how in ("exact", "math", "code")}
    for at in by["exact"]:
        one, text = answers[at]
        out[at] = text.rpartition(THOUGHTS)[2].split() == one.gold.split()
    check_ready(one for one, _ in answers)
    if by["math"]:
        found = grade_all([_solution(*answers[at]) for at in by["math"]])
        for at, said in zip(by["math"], found, strict=True):
            out[at] = None if said.reason in NO_VERDICT else said.right
    if by["code"]:
        programs = [_problem(one).program(_code(one, text)) for one, text in (answers[at] for at in by["code"])]
        for at, ended in zip(by["code"], run_programs(programs, _sandbox(), verdicts, Quiet()), strict=True):
            out[at] = None if ended.reason == "missing_library" else ended.passed
    return out


def _solution(one: Check, text: str) -> Solution:
    return Solution(text, (one.gold,), quantity(one.gold) is not None)


def _problem(one: Check) -> Problem:
    entry = one.entry or next(iter(_CALLED.findall(one.tests)), "")
    return Problem("", entry, "", "", "", one.tests)


def _code(one: Check, text: str) -> str:
    return _problem(one).code(text.rpartition(THOUGHTS)[2], None)
