"""Programming problems: what a model is asked, and what tests its answer."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instdiff.errors import DataError
from instdiff.evaluation.task_data import Found, Place, column
from instdiff.grading.programs import Problem
from instdiff.grading.sandbox import Limits

Record = Mapping[str, Any]

BODY_STOPS = ("\ndef ", "\nclass ", "\nif __name__", "\n#", "\nprint", "\n@", "\nassert ", "\n```")
"""What begins a line after the body of a function has ended."""
FUNCTION_STOPS = ("\nclass ", "\nif __name__", "\nprint", "\nassert ", '\n"""', "\n```")
"""The same after functions: others may follow that the first one needs."""

COMPLETE = (
    "Complete the following Python code. Answer with the whole program, in one block of code.\n\n```python\n{code}\n```"
)
WRITE = "{text}\n\nAnswer with Python code, in one block. It should pass these tests:\n\n```python\n{tests}\n```"

# ── the benchmarks ────────────────────────────────────────────────────────────────────────────────────────────────────


def human_eval(row: Record, where: str) -> Problem:
    """HumanEval and HumanEval+: a function's head and description, and ``check(candidate)``."""
    start, entry = str(column(row, ["prompt"], where)), str(column(row, ["entry_point"], where))
    tests = f"{column(row, ['test'], where)}\n\ncheck({entry})"
    ask = COMPLETE.format(code=start.rstrip())
    return Problem(str(column(row, ["task_id"], where)), entry, start, ask, start, tests)


def mbpp(row: Record, where: str) -> Problem:
    """MBPP: a sentence, and assertions."""
    tests = [str(test) for test in _as_list(column(row, ["test_list"], where), where)]
    setup = str(row.get("test_setup_code") or "")
    imports = [str(line) for line in _as_list(row.get("test_imports") or [], where)]
    return _mbpp(row, where, tests, "\n".join([*imports, setup, *tests]))


def mbpp_plus(row: Record, where: str) -> Problem:
    """MBPP+: the same with a script of many more tests."""
    tests = [str(test) for test in _as_list(column(row, ["test_list"], where), where)]
    imports = [str(line) for line in _as_list(row.get("test_imports") or [], where)]
    return _mbpp(row, where, tests, "\n".join([*imports, str(column(row, ["test"], where))]))


def _mbpp(row: Record, where: str, shown: Sequence[str], tests: str) -> Problem:
    text = str(column(row, ["text", "prompt"], where)).strip()
    entry = _function_called(str(row.get("code") or ""), shown)
    ask = WRITE.format(text=text, tests="\n".join(shown[:3]))
    start = '"""\n' + "\n".join([text, *shown[:3]]) + '\n"""\n'
    return Problem(f"MBPP/{column(row, ['task_id'], where)}", entry, "", ask, start, tests)


def big_code_bench(row: Record, where: str) -> Problem:
    """BigCodeBench: a function that uses libraries, and a ``unittest`` class."""
    start = str(column(row, ["complete_prompt"], where))
    entry = str(column(row, ["entry_point"], where))
    tests = str(column(row, ["test"], where))
    needs = tuple(str(name) for name in _as_list(row.get("libs") or [], where))
    ask = str(column(row, ["instruct_prompt"], where))
    reference = row.get("canonical_solution")
    name, head = str(column(row, ["task_id"], where)), f"{start.rstrip()}\n"
    return Problem(name, entry, head, ask, start, tests, needs, True, str(reference) if reference else None)


def _as_list(value: Any, where: str) -> list[Any]:
    """A list, or the text of one, as BigCodeBench has it."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise DataError(f"{where}: '{value[:60]}' is no list; correct the row or leave it out") from None
    return list(value)


def _function_called(code: str, tests: Sequence[str]) -> str:
    """The function of the reference that the tests call; without a reference, the first that they call."""
    defined = set(re.findall(r"^def[ \t]+(\w+)", code, re.MULTILINE))
    called = [name for test in tests for name in re.findall(r"(\w+)[ \t]*\(", test)]
    return next((name for name in called if name in defined or not defined), called[0] if called else "")


def is_test_row(row: Record) -> bool:
    """Whether a row of MBPP belongs to its test split: the others are for training and as examples."""
    number = str(row.get("task_id", ""))
    return not number.isdigit() or 11 <= int(number) <= 510


@dataclass(frozen=True)
class CodeTask:
    """A benchmark: the place of its rows, and what makes a problem of a row.

    ``stops`` end a text that continues a problem's start; ``limits`` are of each program; ``keep`` says which rows are
    tested.
    """

    place: Place
    read: Callable[[Record, str], Problem]
    stops: tuple[str, ...] = BODY_STOPS
    limits: Limits = field(default_factory=Limits)
    keep: Callable[[Record], bool] = lambda row: True

    def problems(self, data: Found, limit: int | None) -> list[Problem]:
        """The first so many problems; a DataError where a row lacks a column, or none is left."""
        return [self.read(row, where) for where, row in self.rows(data, limit)]

    def rows(self, data: Found, limit: int | None) -> list[tuple[str, Record]]:
        """The first so many rows that are tested, behind what messages call them; a DataError where there is none."""
        rows = [(number, row) for number, row in enumerate(data.rows) if self.keep(row)][:limit]
        if not rows:
            raise DataError(f"task '{self.place.name}': no row of {data.where} belongs to the test split")
        return [(f"task '{self.place.name}', row {number} of {data.where}", row) for number, row in rows]


MANY_TESTS = Limits(cpu=30, wall=90)
LIBRARIES = Limits(cpu=60, wall=180, memory=16 << 30, disk=256 << 20, processes=128, files=1024)

TASKS = {
    "humaneval": CodeTask(
        Place("humaneval", "openai/openai_humaneval:test", ("humaneval/HumanEval", "HumanEval")), human_eval
    ),
    "humaneval_plus": CodeTask(
        Place("humaneval_plus", "evalplus/humanevalplus:test", ("humaneval/HumanEvalPlus", "HumanEvalPlus")),
        human_eval,
        limits=MANY_TESTS,
    ),
    "mbpp": CodeTask(
        Place("mbpp", "google-research-datasets/mbpp/full:test", ("mbpp/mbpp",)), mbpp, FUNCTION_STOPS, keep=is_test_row
    ),
    "mbpp_plus": CodeTask(
        Place("mbpp_plus", "evalplus/mbppplus:test", ("mbpp/MbppPlus", "MbppPlus")),
        mbpp_plus,
        FUNCTION_STOPS,
        limits=MANY_TESTS,
    ),
    "bigcodebench": CodeTask(
        Place("bigcodebench", "bigcode/bigcodebench:v0.1.4", ("bigcodebench/bigcodebench", "BigCodeBench")),
        big_code_bench,
        limits=LIBRARIES,
    ),
}
