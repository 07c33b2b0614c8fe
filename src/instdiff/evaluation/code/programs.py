"""Programming problems: what a model is asked, which part of its answer is code, and the program that tests it."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instdiff.errors import DataError
from instdiff.evaluation.code.sandbox import Limits, Program
from instdiff.evaluation.generation.backend import cut_at_stop
from instdiff.evaluation.subject import Prompt
from instdiff.evaluation.task_data import Found, Place, column

Record = Mapping[str, Any]

BODY_STOPS = ("\ndef ", "\nclass ", "\nif __name__", "\n#", "\nprint", "\n@", "\nassert ", "\n```")
"""What begins a line after the body of a function has ended."""
FUNCTION_STOPS = ("\nclass ", "\nif __name__", "\nprint", "\nassert ", '\n"""', "\n```")
"""The same after functions: others may follow that the first one needs."""

_FENCE = re.compile(r"```[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_BEGINS = re.compile(r"(?:async def|def|class|import|from)\s|@\w")
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
_PYTHON = ("", "python", "python3", "py", "py3")
_MOST_BEGINNINGS = 20

COMPLETE = (
    "Complete the following Python code. Answer with the whole program, in one block of code.\n\n```python\n{code}\n```"
)
WRITE = "{text}\n\nAnswer with Python code, in one block. It should pass these tests:\n\n```python\n{tests}\n```"

BEFORE = """def _watch_unittest():
    import unittest
    def methods():
        parts = (unittest.case, unittest.loader, unittest.result, unittest.suite)
        kinds = [kind for part in parts for kind in vars(part).values() if isinstance(kind, type)]
        found = {(kind, name): value for kind in kinds for name, value in vars(kind).items() if callable(value)}
        return {key: (value, getattr(value, "__code__", None)) for key, value in found.items()}
    class Never(BaseException):
        def __new__(cls, *given): raise RuntimeError("a test is not left in silence")
    unittest.case._ShouldStop = Never  # a test that raises it counts as one that succeeded
    before = methods()
    return lambda: methods() != before
_unittest_changed = _watch_unittest()
"""
"""Code before a program: it keeps the methods of ``unittest``, so that the program cannot replace them unseen."""
SKIPPED = "AssertionError: skipped "
UNITTEST = """
import unittest as _unittest
class _Result(_unittest.TestResult):
    right = 0
    def addSuccess(self, test):
        self.right += 1
    def addExpectedFailure(self, test, error):
        self.right += 1
_result = _Result()
_suite = _unittest.defaultTestLoader.loadTestsFromTestCase(TestCases)
_count = _suite.countTestCases()
_suite.run(_result)
_wrong = _result.failures + _result.errors
assert not _unittest_changed(), "the program changed unittest"
assert _count and not _wrong, f"{len(_wrong)} of {_count} tests: " + "".join(
    said.strip().splitlines()[-1] for _, said in _wrong[:1]
)
assert not _result.skipped, "skipped " + ", ".join(sorted({str(test) for test, _ in _result.skipped}))
assert _result.right == _count, f"{_result.right} of {_count} tests reached their end"
"""


@dataclass(frozen=True)
class Problem:
    """One problem, which asks for the function ``entry``; ``head`` is code that stands before every answer.

    A model that follows instructions is asked ``instruction``, one that continues texts continues ``start``. ``tests``
    are code that raises where the answer is wrong, and need ``libraries``. ``within`` are those that look into the
    program, as ``unittest`` classes do, and so run in its process. ``reference`` is the problem's own solution.
    """

    id: str
    entry: str
    head: str
    instruction: str
    start: str
    tests: str
    libraries: tuple[str, ...] = ()
    within: bool = False
    reference: str | None = None

    def prompt(self, raw: bool) -> Prompt:
        """What the model is asked."""
        return Prompt(self.start, raw=True) if raw else Prompt(self.instruction)

    def code(self, answer: str, stops: Sequence[str] | None) -> str:
        """The code of an answer; with ``stops`` it continues the start, else it may be surrounded by words."""
        if stops is not None and not answer.lstrip().startswith("```"):
            return cut_at_stop(answer, stops)
        return _code_in(answer, self.entry)

    def program(self, code: str) -> Program:
        """The program that passes when the code is right."""
        text = self._whole(code.replace("\r\n", "\n"))
        if self.within:
            return Program(f"{BEFORE}{text}\n\n{self.tests}\n{UNITTEST}")
        return Program(text, self.tests, self.entry, self.head)

    def _whole(self, code: str) -> str:
        if not self.head:
            return code
        if _defines(code, self.entry):
            # It replaces the function of the head, whose helpers and imports it may need.
            return f"{self.head}\n{_FUTURE.sub('', textwrap.dedent(code))}"
        if re.match(r"\s*\n?\S", code) and not re.match(r"(?:\s*\n)*[ \t]", code):
            code = textwrap.indent(code, "    ")  # a body that lost its place
        return f"{self.head}{code}"


def _defines(code: str, entry: str) -> bool:
    return re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(entry)}\b", code, re.MULTILINE) is not None


def _code_in(answer: str, entry: str) -> str:
    """The block that defines the function, else the first; without blocks the lines that are code."""
    blocks: list[str] = [block for kind, block in _FENCE.findall(answer) if kind.lower() in _PYTHON]
    if blocks:
        return next((block for block in blocks if _defines(block, entry)), blocks[0])
    return _lines_of_code(answer.replace("```", ""), entry)


def _lines_of_code(text: str, entry: str) -> str:
    """The longest run of lines that is Python and defines the function, from the first line that looks like it."""
    lines = text.splitlines()
    starts = [at for at, line in enumerate(lines) if _BEGINS.match(line)]
    for start in starts[:_MOST_BEGINNINGS]:
        for stop in range(len(lines), start, -1):
            code = "\n".join(lines[start:stop])
            if not _defines(code, entry):
                break
            if _is_python(code):
                return code
    return "\n".join(lines[starts[0] :]) if starts and _defines(text, entry) else text


def _is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


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
