"""Programming problems: which part of an answer is code, and the program that tests it."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from instdiff.engine.generation.backend import Prompt, cut_at_stop
from instdiff.grading.sandbox import Program

_FENCE = re.compile(r"```[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_BEGINS = re.compile(r"(?:async def|def|class|import|from)\s|@\w")
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
_PYTHON = ("", "python", "python3", "py", "py3")
_MOST_BEGINNINGS = 20

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
