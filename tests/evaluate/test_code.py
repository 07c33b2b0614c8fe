"""The suite ``code``: its problems, what it takes for code, and the benchmarks' own solutions."""

from __future__ import annotations

import ast
import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.shell import write_jsonl
from instdiff.config.base import build
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.core.progress import Quiet
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.errors import ConfigError, DataError, EngineError
from instdiff.evaluation.code.programs import TASKS, Problem
from instdiff.evaluation.code.suite import CodeSuite, code_suite, pass_at
from instdiff.evaluation.subject import Subject
from instdiff.grading import sandbox as sandbox_module
from instdiff.grading.sandbox import Limits, Program, Sandbox
from instdiff.store import Store


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    try:
        Sandbox().check()
    except EngineError as error:
        pytest.skip(str(error))


ADD = {
    "task_id": "HumanEval/900",
    "prompt": 'def twice(x):\n    return x * 2\n\n\ndef add(a: int, b: int) -> int:\n    """The sum."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
}
SQUARE = {
    "task_id": 11,
    "text": "Write a function to square a number.",
    "code": "def helper(x):\r\n  return x\r\ndef square(x):\r\n  return helper(x) * x",
    "test_setup_code": "NINE = square(3)",
    "test_list": ["assert int(square(2)) == 4", "assert NINE == 9"],
    "challenge_test_list": [],
}
CASES = """import unittest

class TestCases(unittest.TestCase):
    def test_small(self):
        self.assertEqual(task_func([1, 2]), 1.5)

    def test_empty(self):
        with self.assertRaises(ValueError):
            task_func([])
"""
MEAN = {
    "task_id": "BigCodeBench/900",
    "complete_prompt": 'import numpy as np\n\ndef task_func(xs):\n    """The mean; a ValueError without any."""',
    "instruct_prompt": "Write task_func(xs), the mean.",
    "canonical_solution": "    if not xs:\n        raise ValueError\n    return float(np.mean(xs))",
    "test": CASES,
    "entry_point": "task_func",
    "libs": "['numpy', 'json']",
}


@dataclass
class Says:
    """Answers by what stands in the prompt, one after another."""

    told: dict[str, list[str]]
    name: str = "says"
    asked: list[tuple[Prompt, Sampling]] = field(default_factory=list)

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        self.asked += [(prompt, sampling) for prompt in prompts]
        found = [next(says for what, says in self.told.items() if what in prompt.text) for prompt in prompts]
        return [(says * sampling.n)[: sampling.n] for says in found]


def subject(folder: Path, told: dict[str, list[str]], lines: list[str] | None = None) -> Subject:
    log = (lines if lines is not None else []).append
    return Subject("m", ModelRef("m"), Settings(), Store(folder / "store"), folder, Says(told), log, Quiet())


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problem(task: str, row: dict[str, Any]) -> Problem:
    return TASKS[task].read(row, "here")


def run(*programs: Program, limits: Limits | None = None) -> list[str]:
    found = dict(Sandbox(limits or Limits(cpu=20, wall=60)).run(programs))
    return [found[number].reason for number in range(len(programs))]


# ── what is asked, and what is code ───────────────────────────────────────────────────────────────────────────────────


def test_prompts() -> None:
    add, square, mean = problem("humaneval", ADD), problem("mbpp", SQUARE), problem("bigcodebench", MEAN)
    assert add.prompt(True) == Prompt(ADD["prompt"], raw=True)
    assert not add.prompt(False).raw and f"```python\n{ADD['prompt'].rstrip()}\n```" in add.prompt(False).text
    assert square.entry == "square" and square.id == "MBPP/11"
    assert square.prompt(False).text.startswith(SQUARE["text"]) and "assert NINE == 9" in square.prompt(False).text
    ast.parse(square.prompt(True).text)  # a description that code may follow
    assert mean.prompt(False) == Prompt("Write task_func(xs), the mean.") and mean.libraries == ("numpy", "json")
    plus = {
        **SQUARE,
        "prompt": "Square it.",
        "test_imports": ["import math"],
        "test": "assert math.sqrt(square(3)) == 3",
    }
    del plus["text"]
    assert problem("mbpp_plus", plus).tests == "import math\nassert math.sqrt(square(3)) == 3"
    with pytest.raises(DataError, match="here: a row has none of the columns entry_point"):
        problem("humaneval", {"prompt": "def f(): pass", "task_id": "1", "test": "x"})


WHOLE = "def add(a, b):\n    return a + b\n"
ANSWERS = {
    "a block": f"Here you are:\n```python\n{WHOLE}```\nIt adds.",
    "no language": f"```\n{WHOLE}```",
    "the block that defines it": f"```python\nimport os\n```\nand then\n```py\n{WHOLE}```\n```bash\nls\n```",
    "cut off": f"```python\n{WHOLE}",
    "no block": f"Sure, this is it:\n\n{WHOLE}\nIt adds two numbers, as asked.",
    "prose that looks like code": f"from the start, we need this:\n{WHOLE}Hope it helps!",
    "only code": WHOLE,
    "a body in a block": "```python\nreturn a + b\n```",
    "a body": "    return a + b\n",
    "a future": "```python\nfrom __future__ import annotations\n" + WHOLE + "```",
    "indented": "```python\n    def add(a, b):\n        return a + b\n```",
    "a helper of the head": "```python\ndef add(a, b):\n    return twice(a + b) // 2\n```",
    "windows": "```python\r\ndef add(a, b):\r\n    return a + b\r\n```\r\n",
}


def test_code_in_answers() -> None:
    add = problem("humaneval", ADD)
    programs = {name: add.program(add.code(answer, None)) for name, answer in ANSWERS.items()}
    assert dict(zip(programs, run(*programs.values()), strict=True)) == dict.fromkeys(programs, "passed")
    wrong = ["I cannot do that.", "", "```python\n```", "def add(", "\x00", "(" * 500, "def add(a, b):\n    pass\n"]
    found = run(*(add.program(add.code(answer, None)) for answer in wrong))
    assert set(found) <= {"failed", "syntax", "error"}


def test_continuations_end_where_the_function_ends() -> None:
    add, stops = problem("humaneval", ADD), TASKS["humaneval"].stops
    for rest in ("\ndef other():\n  oops(", "\nclass A:", "\nif __name__ == '__main__':", "\n# Test", "\nprint(add("):
        assert (
            add.code("    return a + b\n" + rest, stops) == ("    return a + b\n" + rest)[: len("    return a + b\n")]
        )
    assert add.code(f"```python\n{WHOLE}```\n", stops) == WHOLE
    square, stops = problem("mbpp", SQUARE), TASKS["mbpp"].stops
    two = "def h(x):\n    return x\n\ndef square(x):\n    return h(x) * x\n"
    assert square.code(two + '\n"""\nWrite a function', stops) == two
    assert run(square.program(two), add.program("    return a + b\n"), add.program("    return a\n")) == [
        *("passed", "passed", "failed")
    ]


def test_unit_tests() -> None:
    mean = problem("bigcodebench", MEAN)
    whole = "import numpy as np\ndef task_func(xs):\n    if not xs: raise ValueError\n    return float(np.mean(xs))"
    told = {
        mean.program(MEAN["canonical_solution"]): "passed",
        mean.program(whole): "passed",
        mean.program("    return 1.5"): "failed",
        mean.program("    import no_such_thing_here"): "failed",
        mean.program("    raise SystemExit"): "failed",
        mean.program("    import os; os._exit(0)"): "exited_early",
    }
    assert run(*told, limits=TASKS["bigcodebench"].limits) == list(told.values())
    none = problem("bigcodebench", {**MEAN, "test": "import unittest\nclass TestCases(unittest.TestCase): pass"})
    assert run(none.program(whole)) == ["failed"]


# ── ways to pass without solving ──────────────────────────────────────────────────────────────────────────────────────

ONE_CASE = """import unittest

class TestCases(unittest.TestCase):
    def test_it(self):
        self.assertEqual(task_func(1, 2), 3)
"""
SUM = {
    **MEAN,
    "complete_prompt": 'def task_func(a, b):\n    """The sum."""',
    "canonical_solution": "    return a + b",
    "test": ONE_CASE,
    "libs": "[]",
}
CLAIM = """
        import os
        for way in range(64):
            try: os.write(way, (found + "passed ").encode())
            except OSError: pass
        os._exit(0)
"""
WAYS = {
    "values equal to everything": (
        "class All:\n    def __eq__(self, other): return True\ndef NAME(a, b): return All()\n",
        ("failed", "passed"),
    ),
    "numbers equal to everything": (
        "class All(int):\n    def __eq__(self, other): return True\ndef NAME(a, b): return All()\n",
        ("failed", "passed"),
    ),
    "the secret in frames": (
        "import sys\ndef NAME(a, b):\n    frame, found = sys._getframe(), None\n    while frame and not found:\n"
        "        found, frame = frame.f_locals.get('secret'), frame.f_back\n    if found:" + CLAIM,
        ("failed", "passed"),
    ),
    "the secret by the collector": (
        "import gc\ndef NAME(a, b):\n    jobs = [x for x in gc.get_objects() if type(x) is dict and 'secret' in x]\n"
        "    for found in filter(None, (x['secret'] for x in jobs)):" + CLAIM,
        ("failed", "passed"),
    ),
    "another judge in __main__": (
        "import __main__\n__main__._ending = lambda error: ('passed', '')\ndef NAME(a, b): return 0\n",
        ("failed", "passed"),
    ),
    "an exception that says passed": (
        "class E(Exception): verdict = 'passed', ''\ndef NAME(a, b): raise E\n",
        ("error", "failed"),
    ),
    "frames of the exchange": (
        "import json, os, struct\ndef NAME(a, b):\n"
        "    for said in (['end', 'passed', ''], ['error', '', '', 'passed', '']):\n"
        "        body = json.dumps(said).encode()\n        for way in range(3, 64):\n"
        "            try: os.write(way, struct.pack('Q', len(body)) + body)\n            except OSError: pass\n",
        ("error", "exited_early"),
    ),
    "skipped tests": ("import unittest\ndef NAME(a, b): raise unittest.SkipTest\n", ("error", "failed")),
    "tests that stop unseen": (
        "import unittest.case\ndef NAME(a, b): raise unittest.case._ShouldStop\n",
        ("error", "failed"),
    ),
    "the end of an iteration": ("def NAME(a, b): raise StopIteration\n", ("error", "failed")),
    "assertions replaced": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *given: None\ndef NAME(a, b): return 0\n",
        ("failed", "failed"),
    ),
    "assertions replaced within": (
        "import unittest\ndef nothing(*given, **named): pass\ndef NAME(a, b):\n"
        "    unittest.TestCase.assertEqual.__code__ = nothing.__code__\n",
        ("failed", "failed"),
    ),
    "results that count nothing": (
        "import unittest\nunittest.TestResult.addFailure = lambda *given: None\ndef NAME(a, b): return 0\n",
        ("failed", "failed"),
    ),
    "no end": ("import os\ndef NAME(a, b): os._exit(0)\n", ("exited_early", "exited_early")),
    "leaving": ("def NAME(a, b): raise SystemExit(0)\n", ("exited_early", "failed")),
    "a copy that goes on": ("import os\ndef NAME(a, b):\n    if os.fork(): os._exit(0)\n", ("exited_early",) * 2),
    "everything killed": ("import os\ndef NAME(a, b): os.kill(-1, 9)\n", ("killed", "failed")),
}
"""Programs, and how each ends where tests have a process of their own, and where they run within the program's."""


@pytest.mark.parametrize("way", WAYS)
def test_a_way_to_pass_without_solving(way: str) -> None:
    text, expected = WAYS[way]
    add, total = problem("humaneval", ADD), problem("bigcodebench", SUM)
    programs = [one.program(text.replace("NAME", one.entry)) for one in (add, total)]
    assert tuple(run(*programs)) == expected
    right = "def NAME(a, b): return a + b\n"
    assert run(*(one.program(right.replace("NAME", one.entry)) for one in (add, total))) == ["passed", "passed"]


def test_a_program_cannot_see_its_tests() -> None:
    """It reads all of its memory and finds what stands in its own text, and nothing of the tests'."""
    search = r"""
import re
OWN = "apple-mark"
MARKS = {"own": b"apple-m[a]rk", "tests": b"peach-m[a]rk"}  # which are no such words themselves
def add(a, b):
    found = set()
    with open("/proc/self/mem", "rb", 0) as memory:
        for line in open("/proc/self/maps"):
            span, rights = line.split()[:2]
            low, high = (int(end, 16) for end in span.split("-"))
            if "rw" in rights and high - low < 1 << 28:
                memory.seek(low)
                held = memory.read(high - low)
                found |= {name for name, mark in MARKS.items() if re.search(mark, held)}
    return found
"""
    tests = "HIDDEN = 'peach-mark'\nassert add(1, 2) == {'own'}, add(1, 2)"
    assert run(Program(search, tests, "add")) == ["passed"]


def test_a_program_cannot_enter_the_process_of_its_tests() -> None:
    enter = r"""
import os
def add(a, b):
    others, entered = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()], []
    for name in others:
        for part in ("mem", "maps", "environ", "fd"):
            path = f"/proc/{name}/{part}"
            try:
                os.listdir(path) if part == "fd" else open(path, "rb").read(1)
                entered.append(path)
            except OSError:
                pass
    return len(others), entered
"""
    assert run(Program(enter, "assert add(1, 2) == (2, []), add(1, 2)", "add")) == ["passed"]


def test_values_that_tests_are_given_are_those_of_the_program() -> None:
    text = r"""
from collections import Counter, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
import numpy as np
P = namedtuple("P", "x")
def f(x): return x
def g(n): return [map(abs, [-1]), Counter("aa"), deque([1]), P(1), Decimal("0.10"), Fraction(1, 3)][n]
def h(n): return [np.arange(3), np.float32(0.5), np.array([["a"]]), {1: 2}.keys(), {1: 2}.items(), {1: 2}.values()][n]
class C:
    def __init__(self): self.x = []
    def grow(self, by=1): self.x.append(by); return self
"""
    tests = r"""
from decimal import Decimal
from fractions import Fraction
from collections import deque
import numpy as np
plain = [None, True, -3, 0.1, float("inf"), 1 + 2j, "ä\ud800", b"\x00\xff", 1 << 40_000, range(9, 1, -2), int, [str]]
for v in [*plain, [1, [2, (3,)]], {"a": {1: (2, 3)}, (1, 2): None}, {1, 2}, frozenset({3}), (), [], {}]:
    assert f(v) == v and type(f(v)) is type(v), v
assert list(g(0)) == [1] and g(1) == {"a": 2} and g(2) == deque([1]) and g(3) == (1,)
assert g(4) == Decimal("0.10") and g(5) == Fraction(1, 3)
assert (h(0) == np.arange(3)).all() and h(1).dtype == np.float32 and h(2).shape == (1, 1)
assert 1 in h(3) and list(h(4)) == [(1, 2)] and list(h(5)) == [2]
c = C()
assert c.grow() is c and c.grow(by=3).x == [1, 3] and C() != C()
c.x = [7]
assert c.x == [7]
try:
    f()
except TypeError as error:
    assert "argument" in str(error)
else:
    raise AssertionError
"""
    assert run(Program(text, tests, "f")) == ["passed"]


def test_an_iteration_of_tests_is_not_ended_by_the_program() -> None:
    tests = "assert all(map(f, [1, 2]))"
    assert run(Program("def f(x): raise StopIteration", tests, "f")) == ["error"]
    assert run(Program("def f(x): return x", tests, "f")) == ["passed"]


def test_skipped_tests_count_where_the_own_solution_skips_them(tmp_path: Path) -> None:
    odd = ONE_CASE + "    def test_odd(self):\n        if task_func(0, 0) == 0:\n            self.skipTest('here')\n"
    answers = {"a + b": 1.0, "3 if a else 0": 1.0, "a and 3 or [][0]": 0.0, "a or b": 0.0}
    path = write(tmp_path / "big.jsonl", {**SUM, "test": odd})
    config = build(EvalConfig, {"task": "bigcodebench", "task_data": {"bigcodebench": str(path)}}, "test")
    for number, (answer, score) in enumerate(answers.items()):
        (found,) = code_suite(config).run(subject(tmp_path / str(number), {"": [f"    return {answer}\n"]}))
        assert found.score.tolist() == [score], answer
    path.write_text(json.dumps({**SUM, "test": odd, "canonical_solution": "    return 3"}) + "\n")
    (found,) = code_suite(config).run(subject(tmp_path / "own", {"": ["    return a + b\n"]}))
    assert found.score.tolist() == [0.0] and found.details["verdicts"] == {"failed": 1}


# ── the suite ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "passed", "k", "expected"), [(1, 1, 1, 1.0), (4, 1, 1, 0.25), (4, 2, 2, 5 / 6)])
def test_pass_at_k(n: int, passed: int, k: int, expected: float) -> None:
    assert pass_at(k, n, np.array([passed])) == [pytest.approx(expected)]
    # By its definition: of all ways to choose k of n samples, those with at least one that passed.
    ways = [[sample < passed for sample in some] for some in combinations(range(n), k)]
    assert pass_at(k, n, np.array([passed])) == [pytest.approx(np.mean([any(way) for way in ways]))]


def test_the_suite(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "humaneval.jsonl", ADD, {**ADD, "task_id": "HumanEval/901", "prompt": ADD["prompt"] + "    # 901\n"})
    write(data / "mbpp" / "mbpp.jsonl", {**SQUARE, "task_id": 3}, SQUARE, {**SQUARE, "task_id": 511})
    lacking = {**MEAN, "task_id": "BigCodeBench/901", "libs": ["numpy", "no_such_library"]}
    write(data / "big.jsonl", MEAN, lacking)
    told = {
        "901": [WHOLE, "def add(a, b):\n    return 0\n"],
        "add": [WHOLE],
        "square": ["```python\ndef square(x):\n    return x ** 2\n```", "no", "no", "no"],
        "task_func": ["raise NotImplementedError"],
    }
    config = build(
        EvalConfig,
        {
            "suite": "code",
            "task": ["humaneval", "mbpp", "bigcodebench"],
            "data_dir": str(data),
            "task_data": {"bigcodebench": str(data / "big.jsonl")},
            "n": 4,
            "temperature": 0.8,
        },
        "test",
    )
    lines: list[str] = []
    one = subject(tmp_path / "memo", told, lines)
    first, second, third = code_suite(config).run(one)
    assert (first.name, first.metric, list(first.ids)) == ("humaneval", "pass@1", ["HumanEval/900", "HumanEval/901"])
    assert first.score.tolist() == [1.0, 0.5] and first.value == 0.75
    assert first.details["pass@2"] == pytest.approx((1 + 5 / 6) / 2) and first.details["pass@4"] == 1.0
    assert first.details["verdicts"] == {"passed": 6, "failed": 2} and first.details["isolated"] is True
    assert list(second.ids) == ["MBPP/11"] and second.score.tolist() == [0.25]  # the test split alone
    assert second.details["verdicts"] == {"error": 3, "passed": 1}  # `no` is a name that is not defined
    assert third.score[0] == 0.0 and math.isnan(third.score[1]) and third.reason == [None, "missing_library"]
    assert third.record()["not_scored"] == {"missing_library": 1}
    assert any("1 problems need libraries that lack: no_such_library" in line for line in lines)
    asked = one.generator.asked  # type: ignore[attr-defined]
    assert len(asked) == 4 and all(sampling.n == 4 and sampling.stop == () for _, sampling in asked)
    again = _without_programs(lambda: code_suite(config).run(subject(tmp_path / "memo", told)))
    assert [task.score.tolist() for task in again[:2]] == [first.score.tolist(), second.score.tolist()]


def _without_programs(do: Callable[[], Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sandbox, "run", lambda *given: pytest.fail("a program was run again"))
        return do()


def test_base_models_continue(tmp_path: Path) -> None:
    write(tmp_path / "humaneval.jsonl", ADD)
    config = build(
        EvalConfig, {"task": "humaneval", "data_dir": str(tmp_path), "template": "plain", "limit": 1}, "test"
    )
    one = subject(tmp_path / "memo", {"add": ["    return a + b\n\nprint(add(1,"]})
    (found,) = code_suite(config).run(one)
    assert found.score.tolist() == [1.0] and found.details["style"] == "continue"
    prompt, sampling = one.generator.asked[0]  # type: ignore[attr-defined]
    assert prompt.raw and "\ndef " in sampling.stop


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="suite 'code' has no task 'humanevil'; did you mean 'humaneval'"):
        code_suite(build(EvalConfig, {"task": "humanevil"}, "test"))
    one = subject(tmp_path, {})
    with pytest.raises(DataError, match=r"task 'humaneval'.*has no humaneval\.jsonl"):
        code_suite(build(EvalConfig, {"task": "humaneval", "data_dir": str(tmp_path)}, "test")).run(one)
    write(tmp_path / "mbpp.jsonl", {**SQUARE, "task_id": 700})
    with pytest.raises(DataError, match=r"no row of .* belongs to the test split"):
        code_suite(build(EvalConfig, {"task": "mbpp", "data_dir": str(tmp_path)}, "test")).run(one)
    # Before a single answer is written.
    runner = tmp_path / "runner.py"
    runner.write_text(sandbox_module.RUNNER.read_text().replace('_call("unshare"', '_call("no_such_call"'))
    monkeypatch.setattr(sandbox_module, "RUNNER", runner)
    with pytest.raises(EngineError, match="cannot be run safely here"):
        CodeSuite(("mbpp",), Sampling(), data_dir=str(tmp_path)).run(one)


# ── the benchmarks' own solutions ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def human_eval_rows(shared: Path) -> list[dict[str, Any]]:
    with gzip.open(shared / "data" / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def mbpp_rows(shared: Path) -> list[dict[str, Any]]:
    with open(shared / "data" / "mbpp" / "mbpp.jsonl") as file:
        return [json.loads(line) for line in file]


@pytest.mark.shared_data
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_solutions_of_human_eval(tmp_path: Path, human_eval_rows: list[dict[str, Any]], every: int) -> None:
    some = human_eval_rows[::every]
    write_jsonl(tmp_path / "rows.jsonl", some)
    told = {row["prompt"].rstrip(): [f"```python\n{row['prompt']}{row['canonical_solution']}```"] for row in some}
    config = build(EvalConfig, {"task": "humaneval", "data": {"humaneval": str(tmp_path / "rows.jsonl")}}, "test")
    (found,) = code_suite(config).run(subject(tmp_path, told))
    assert found.details["verdicts"] == {"passed": len(some)} and found.value == 1.0


@pytest.mark.shared_data
def test_mutants_of_human_eval(human_eval_rows: list[dict[str, Any]]) -> None:
    some = [problem("humaneval", row) for row in human_eval_rows[::8]]
    mutants = [one.program("    return None\n") for one in some]
    assert set(run(*mutants)) <= {"failed", "error"}


@pytest.mark.shared_data
@pytest.mark.slow
def test_all_mutants_of_human_eval(human_eval_rows: list[dict[str, Any]]) -> None:
    some = [problem("humaneval", row) for row in human_eval_rows]
    assert set(run(*(one.program("    return None\n") for one in some))) <= {"failed", "error"}
    early = [one.program("    import os\n    os._exit(0)\n") for one in some]
    assert set(run(*early)) == {"exited_early"}


@pytest.mark.shared_data
def test_solutions_of_mbpp(mbpp_rows: list[dict[str, Any]]) -> None:
    some = mbpp_rows[::25]
    programs = [problem("mbpp", row).program(row["code"]) for row in some]
    assert run(*programs) == ["passed"] * len(some)
    assert len([row for row in mbpp_rows if TASKS["mbpp"].keep(row)]) == 500


@pytest.mark.shared_data
@pytest.mark.slow
def test_all_solutions_of_mbpp(mbpp_rows: list[dict[str, Any]]) -> None:
    found = run(*(problem("mbpp", row).program(row["code"]) for row in mbpp_rows))
    assert {row["task_id"]: reason for row, reason in zip(mbpp_rows, found, strict=True) if reason != "passed"} == {}
