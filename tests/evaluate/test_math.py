"""Mathematics: which answer a solution comes to, whether it is right, and what a suite makes of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.core.progress import Quiet
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.errors import ConfigError, DataError, EngineError, PlanError
from instdiff.evaluation.math import suite
from instdiff.evaluation.math.suite import EXAMPLES, TASKS, math_suite, read_problems
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.subject import Subject
from instdiff.evaluation.task_data import find
from instdiff.grading.mathematics import Verdict, final_answer, grade, last_boxed, same
from instdiff.grading.processes import Solution, check_math_verify, grade_all
from instdiff.grading.quantities import Quantity, quantity
from instdiff.store import Store

# ── what a solution comes to ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected", "as_number"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxed{1}, no: $\boxed{\{x \mid x > \sqrt{2}\}}$", r"\{x \mid x > \sqrt{2}\}", r"\{x \mid x > \sqrt{2}\}"),
        ("He has 3.\n#### 1,042", "1,042", "1,042"),
        ("The final answer is $x+1$. I hope it is correct.", "x+1", "+1"),
        ("<think>\\boxed{3}</think> The answer is 7.", "7", "7"),
        ("A: 18", None, "18"),
        ("That makes 3,000.50 in all", None, "3,000.50"),
        ("\\boxed{18 dollars}", "18 dollars", "18 dollars"),
        ("\\boxed 5$.", "5", "5"),
        ("\\boxed{}, or \\boxed{never closed", None, None),
        ("answer: 12 (since 5+7)", "12 (since 5+7)", "12"),
        ("answer: 12 (since 5 + 7 = 12)", "12 (since 5 + 7 = 12)", "12"),
        ("answer: 12 because 12 = 5 + 7", "12 because 12 = 5 + 7", "12"),
        ("The answer is 5 + 7 = 12 apples. I hope it is correct.", "5 + 7 = 12 apples", "12"),
        ("The answer is x = 4, as 4 + 1 = 5", "x = 4, as 4 + 1 = 5", "4"),
        ("The answer is 5 apples - 3 apples = 2 apples", "5 apples - 3 apples = 2 apples", "2"),
        ("The answer is (5 + 7)", "(5 + 7)", "5"),
        ("He eats 2. The answer is three.", "three", "three"),
        ("Final answer: 2 1/2 cups of 3", "2 1/2 cups of 3", "2 1/2"),
        ("#### 10 million", "10 million", "10 million"),
        ("From 7 he takes 5 and has 2 1/2", None, "2 1/2"),
        ("no idea", None, None),
        ("", None, None),
    ],
)
def test_the_answer_that_a_solution_comes_to(text: str, expected: str | None, as_number: str | None) -> None:
    assert final_answer(text, number=False) == expected
    assert final_answer(text, number=True) == as_number


PAIRS = [
    json.loads(line) for line in Path(__file__).with_name("pairs_of_answers.jsonl").read_text("utf-8").splitlines()
]
"""Two answers each, and whether they are the same."""


def test_there_are_many_pairs_of_answers() -> None:
    assert len(PAIRS) >= 100 and 40 <= sum(equal for _, _, equal in PAIRS) <= len(PAIRS) - 40
    assert len({(one, other) for one, other, _ in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(("answer", "gold", "equal"), PAIRS)
def test_answers_are_equal_by_what_they_mean(answer: str, gold: str, equal: bool) -> None:
    pytest.importorskip("math_verify")
    assert same(answer, gold) is same(gold, answer) is equal


def test_numbers_may_differ_as_far_as_a_task_allows() -> None:
    assert [same(a, "200", 0.01) for a in ("198", "202", "197.9")] == [True, True, False]
    assert quantity("1e3") == Quantity(Decimal(1000))
    assert [quantity(text) for text in ("1/0", "nan", "", "1 2", "x", "2 x", "5 or 6")] == [None] * 7
    assert grade("It is 3.", ["4", "3"], number=True) == Verdict(True)
    assert grade("Well.", ["3"], number=True) == Verdict(False, "no_answer")
    assert last_boxed(r"\fbox{a\}b}") == r"a\}b"


# ── processes that grade ──────────────────────────────────────────────────────────────────────────────────────────────

STUB = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    text = json.loads(line)["text"]
    if "hang" in text: time.sleep(1000)
    if "late" in text: sys.stdout.write("[tr"); sys.stdout.flush(); os._exit(3)
    if "die" in text: os._exit(3)
    print(json.dumps(["good" in text, None]), flush=True)
"""


def test_one_that_hangs_or_dies_is_wrong_and_the_rest_is_graded() -> None:
    texts = ["good", "hang", "bad", "die", "good", "die late", "good too", "x"]
    done: list[int] = []
    got = grade_all(
        [Solution(f"\\boxed{{{text}}}", ("x",)) for text in texts],
        workers=1,
        timeout=1.0,
        advance=lambda: done.append(1),
        command=[sys.executable, "-c", STUB],
    )
    assert got == [
        Verdict(True),
        Verdict(False, "timeout"),
        Verdict(False),
        Verdict(False, "crashed"),
        Verdict(True),
        Verdict(False, "crashed"),
        Verdict(True),
        Verdict(True),
    ]
    assert len(done) == 7  # equal ones are graded once
    # What takes no algebra takes no process.
    easy = [Solution("#### 5", ("5",), number=True), Solution("#### 6", ("5",), number=True), Solution("?", ("5",))]
    assert grade_all(easy, command=["false"]) == [Verdict(True), Verdict(False), Verdict(False, "no_answer")]


def test_a_file_of_the_working_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decimal.py").write_text("open('ran', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    algebra = Solution(r"\boxed{\frac{2}{4}}", (r"\frac{1}{2}",))
    assert grade_all([algebra], timeout=60.0) == [Verdict(True)]
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="cannot be started; see what `"):
        grade_all([Solution(r"\boxed{a}", ("b",))], command=[sys.executable, "-c", "import no_such_module"])
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(PlanError, match=r"math-verify, which is missing; run: pip install "):
        check_math_verify()


def gsm8k_solutions(shared: Path) -> tuple[list[Solution], list[bool]]:
    path = shared / "data" / "gsm8k" / "example_model_solutions.jsonl"
    if not path.is_file():
        pytest.skip("no example_model_solutions.jsonl in the shared folder")
    solutions, right = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        for found in row.values():
            if isinstance(found, dict):
                solutions.append(Solution(found["solution"], (gold,), number=True))
                right.append(found["is_correct"])
    return solutions, right


@pytest.mark.shared_data
def test_verdicts_are_the_published_ones(shared: Path) -> None:
    """All 5,276, where the last number may stand for an answer; and where it may not, as none is called an answer."""
    pytest.importorskip("math_verify")
    solutions, right = gsm8k_solutions(shared)
    assert len(solutions) == 5276
    assert [tuple(verdict) for verdict in grade_all(solutions, workers=1)] == [(one, None) for one in right]
    strict = grade_all([solution._replace(number=False) for solution in solutions], workers=1)
    assert strict == [Verdict(False, "no_answer")] * 5276


@pytest.mark.shared_data
def test_real_files_are_found_and_their_own_solutions_are_right(shared: Path) -> None:
    pytest.importorskip("math_verify")
    counts = {}
    solutions = []
    for name in ("gsm8k", "math500", "minerva", "aime24"):
        data = find(TASKS[name].place, {}, str(shared / "data"), None, lambda line: None)
        problems = read_problems(TASKS[name], data)
        counts[name] = len(problems)
        for row, (_, gold) in list(zip(data.rows, problems, strict=True))[:12]:
            text = row["answer"] if name == "gsm8k" else f"So it is \\boxed{{{gold[0]}}}."
            solutions.append(Solution(text, gold, TASKS[name].number, TASKS[name].tolerance))
    assert counts == {"gsm8k": 1319, "math500": 500, "minerva": 272, "aime24": 30}
    assert grade_all(solutions, workers=1) == [Verdict(True)] * 48


# ── the suite ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Scripted:
    """Says what it is told to, by what a prompt contains."""

    name = "scripted"

    def __init__(self, say: Callable[[str], list[str]]) -> None:
        self.say, self.prompts = say, list[Prompt]()

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        self.prompts += prompts
        return [self.say(prompt.text) for prompt in prompts]


def run(config: EvalConfig, generator: Any, tmp_path: Path) -> tuple[TaskResult, ...]:
    subject = Subject(
        "m", ModelRef("m"), Settings(), Store(tmp_path), tmp_path, generator, lambda line: None, Quiet()
    )  # fmt: skip
    return math_suite(config).run(subject)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_accuracy_is_the_mean_over_samples_and_problems(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    write_jsonl(
        tmp_path / "gsm8k" / "test.jsonl", [{"question": f"Q{n}?", "answer": f"...\n#### {n},000"} for n in (1, 2, 3)]
    )
    other = write_jsonl(
        tmp_path / "own.jsonl",
        [{"question": "Q4?", "final_answer": ["$3$", "$4$"]}, {"question": "Q5?", "final_answer": [r"\frac{1}{2}"]}],
    )
    said = {
        "Q1": ["1000", r"\boxed{1,000}", "none", "999"],
        "Q2": ["#### 2000"] * 4,
        "Q3": ["dunno"] * 4,
        "Q4": [r"\boxed{4, 3}", r"\boxed{3}", "x", "x"],
        "Q5": [r"\boxed{0.5}"] * 4,
    }
    config = EvalConfig(
        task=["olympiadbench", "gsm8k"], data_dir=str(tmp_path), task_data={"olympiadbench": other}, n=4, temperature=1
    )
    generator = Scripted(lambda text: said[text[:2]])
    gsm8k, olympiad = run(config, generator, tmp_path)
    assert gsm8k.score.tolist() == [0.5, 1.0, 0.0] and gsm8k.value == 0.5
    assert olympiad.score.tolist() == [0.25, 1.0]
    assert list(gsm8k.ids) == ["gsm8k/0", "gsm8k/1", "gsm8k/2"]
    assert gsm8k.details["graded"] == {"right": 6, "no_answer": 5, "wrong": 1}
    assert gsm8k.details["any_right"] == pytest.approx(2 / 3) and gsm8k.details["samples"] == 4
    assert generator.prompts[0] == Prompt(
        "Q1?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )


def test_examples_are_for_models_that_only_continue_text(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    where = write_jsonl(tmp_path / "a.jsonl", [{"problem": "Add {1}.", "answer": "204"}])
    config = EvalConfig(task=["aime24"], task_data={"aime24": where}, shots=2)
    generator = Scripted(lambda text: [r" \boxed{204}"])
    (found,) = run(config, generator, tmp_path)
    assert found.value == 1.0
    (prompt,) = generator.prompts
    assert prompt.raw and prompt.text.count("Problem:") == 3 and prompt.text.endswith("Problem: Add {1}.\nSolution:")
    assert "\nProblem:" in math_suite(config).sampling.stop and not math_suite(EvalConfig()).sampling.stop
    assert all(grade(text, [str(last_boxed(text))], number=False).right for _, text in EXAMPLES)
    with pytest.raises(ConfigError, match="has 8 worked examples; shots is 9"):
        math_suite(config.model_copy(update={"shots": 9}))


def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    silent = Scripted(lambda text: pytest.fail("nothing is to be written"))
    with pytest.raises(ConfigError, match="suite 'math' has no task 'gsm'; did you mean 'gsm8k'"):
        math_suite(EvalConfig(task=["gsm"]))
    config = EvalConfig(task=["amc23"], data_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"has no amc23\.jsonl or .*; give data\.amc23=PATH"):
        run(config, silent, tmp_path)
    with pytest.raises(DataError, match=r"no file '/no/such'; check data\.amc23"):
        run(config.model_copy(update={"task_data": {"amc23": "/no/such"}}), silent, tmp_path)
    write_jsonl(tmp_path / "amc23.jsonl", [{"question": "Q?", "answer": "7"}, {"question": "R?", "answer": ""}])
    with pytest.raises(DataError, match=r"row 1 of .*: a row has none of the columns answer, final_answer, solution"):
        run(config, silent, tmp_path)
    write_jsonl(tmp_path / "amc23.jsonl", [{"question": "Q?", "solution": "First\nthen nothing"}])
    with pytest.raises(DataError, match="there is no answer in its column"):
        run(config, silent, tmp_path)
    (tmp_path / "amc23.jsonl").write_text('{"question": "Q?", "answer": "7"}\n{"ques\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"amc23\.jsonl:2: .*; correct the file"):
        run(config, silent, tmp_path)


def test_the_hub_is_named_where_nothing_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    asked: list[tuple[str, int | None]] = []

    def rows(spec: str, limit: int | None) -> Any:
        asked.append((spec, limit))
        yield from [{"problem": "Q?", "answer": "7"}]

    monkeypatch.setattr("instdiff.evaluation.task_data.hub_rows", rows)
    config = EvalConfig(limit=5)
    found = run(config, Scripted(lambda text: ["7"]), tmp_path)
    assert [task.name for task in found] == list(suite.TASKS)
    assert asked == [(task.place.hub, 5) for task in suite.TASKS.values()]
    assert replace(math_suite(config), tasks=("gsm8k",)).tasks == ("gsm8k",)
