"""Intervals, differences and verdicts, on results that were made up."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats

from instdiff.errors import DataError
from instdiff.evaluation.results import SuiteResult, TaskResult, read_results
from instdiff.evaluation.statistics import estimate, holm
from instdiff.experiments.items import read_items
from instdiff.experiments.run_folder import Cell, CellResult
from instdiff.experiments.summary import add_verdicts, sample, summarize
from instdiff.experiments.tables import HEADER, by_task, footer, header, markdown, remake, rows_of, write_comparison

ITEMS = [f"item{n}" for n in range(200)]


def result(score: Any, *, ids: list[str] = ITEMS, name: str = "task", **more: Any) -> TaskResult:
    return TaskResult(name, "accuracy", ids, np.asarray(score, np.float64), **more)


def outcome(line: str, seed: int | None, score: Any, **facts: Any) -> CellResult:
    cell = Cell(line, "" if seed is None else "10%", seed)
    return CellResult(cell, facts, [SuiteResult("suite", str(cell), (result(score),))])


def drawn(mean: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(len(ITEMS)) < mean).astype(float)


def test_a_value_is_the_mean_over_seeds() -> None:
    one = sample([result([1.0, 0.0, 0.0, 0.0], ids=ITEMS[:4]), result([1.0, 1.0, 0.0, 0.0], ids=ITEMS[:4])])
    assert one.value == pytest.approx(0.375)
    assert one.score.shape == (2, 4)


def test_items_that_one_seed_lacks_do_not_count() -> None:
    one = sample([result([1.0, np.nan, 0.0], ids=ITEMS[:3]), result([1.0, 1.0, 1.0], ids=["item2", "item1", "item0"])])
    assert one.ids == ["item0", "item2"]
    assert one.value == pytest.approx(0.75)


def test_weights_count() -> None:
    weight = np.array([3.0, 1.0])
    one = sample([result([1.0, 0.0], ids=ITEMS[:2], weight=weight)])
    assert one.value == pytest.approx(0.75)


def test_without_seeds_the_interval_is_that_of_a_mean_of_items() -> None:
    score = np.random.default_rng(3).normal(size=(1, 400))
    found = estimate(score, np.ones(400), fixed=True)
    low, high = scipy.stats.t.interval(0.95, 399, score.mean(), scipy.stats.sem(score[0]))
    assert (found.value, found.low, found.high) == pytest.approx((score.mean(), low, high))


def test_the_spread_of_seeds_alone_has_the_interval_of_a_mean_of_three() -> None:
    score = np.repeat([[0.0], [0.5], [1.0]], 50, axis=1)
    found = estimate(score, np.ones(50))
    low, high = scipy.stats.t.interval(0.95, 2, 0.5, 0.5 / np.sqrt(3))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, low, high))


def test_components_of_a_difference_add_up_and_residuals_are_taken_off_once() -> None:
    """Against the sums of squares of a two-way table, written out."""
    rng = np.random.default_rng(5)
    a, b = (rng.normal(size=(seeds, 40)) + rng.normal(size=(seeds, 1)) + rng.normal(size=40) for seeds in (3, 5))
    seeds, rest = [], []
    for one in (a, b):
        left = one - one.mean(0) - one.mean(1, keepdims=True) + one.mean()
        seeds.append(one.mean(1).var(ddof=1) / len(one))
        rest.append((left**2).sum() / (39 * (len(one) - 1)) / one.size)
    variance = sum(seeds) + (a.mean(0) - b.mean(0)).var(ddof=1) / 40 - sum(rest)
    freedom = sum(seeds) ** 2 / (seeds[0] ** 2 / 2 + seeds[1] ** 2 / 4) * variance / sum(seeds)
    found = estimate(a, np.ones(40), b)
    assert found.high - found.value == pytest.approx(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variance))
    assert found.value - found.low == pytest.approx(found.high - found.value)
    statistic = abs(a.mean() - b.mean()) / np.sqrt(variance)
    assert 2 < freedom < 12 and found.p == pytest.approx(2 * scipy.stats.t.sf(statistic, freedom))


def test_seeds_with_equal_numbers_are_no_pairs() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 3, 30))
    found, other = (astuple(estimate(a, np.ones(30), side)) for side in (b, b[[2, 0, 1]]))
    assert found == pytest.approx(other)


def test_weights_of_items_are_in_the_interval_and_items_of_none_are_not() -> None:
    score, weight = np.random.default_rng(2).normal(size=(3, 30)), np.r_[np.full(10, 2.0), np.ones(10), np.zeros(10)]
    found, cut = estimate(score, weight), estimate(score[:, :20], weight[:20])
    assert (found.value, found.low, found.high) == pytest.approx((cut.value, cut.low, cut.high))
    assert found.value == pytest.approx(np.average(score, 1, weight).mean())


def test_a_variance_does_not_vanish_by_subtraction() -> None:
    """Items that go against each other leave nothing but residuals, and seeds that agree to the last digit."""
    score = np.tile([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.5, 0.5]], 4)
    found = estimate(score, np.ones(12), np.zeros((1, 12)) + 0.4, fixed_against=True)
    residual = ((score - 0.5) ** 2).sum() / (2 * 11) / 36
    assert found.high - found.value == pytest.approx(scipy.stats.t.ppf(0.975, 11) * np.sqrt(residual / 10))
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(0.1 / np.sqrt(residual / 10), 4))


def test_a_test_has_at_most_twice_the_freedom_of_the_seeds() -> None:
    """Items that spread far make the interval's degrees of freedom many."""
    rng = np.random.default_rng(7)
    a, b = (np.repeat(rng.normal(size=(1, 200)), 3, axis=0) + 0.001 * rng.normal(size=(3, 1)) for _ in range(2))
    found = estimate(a, np.ones(200), b)
    error = (found.high - found.value) / scipy.stats.t.ppf(0.975, 199)
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(found.value) / error, 8))


def test_three_seeds_that_agree_in_sign_are_no_proof() -> None:
    """A bootstrap of three seeds called this certain, whatever they spread."""
    a = np.repeat([[0.01], [0.3], [0.6]], 50, axis=1)
    b = np.zeros((3, 50)) + np.array([[0.0], [-0.01], [0.005]])
    assert estimate(a, np.ones(50), b).p > 0.1


def test_the_same_on_both_sides_is_no_difference() -> None:
    score = np.random.default_rng(0).random((3, 40))
    found = estimate(score, np.ones(40), score)
    assert (found.value, found.p) == (0.0, 1.0) and found.low == pytest.approx(-found.high)


def test_one_item_is_not_told_apart() -> None:
    found = estimate(np.ones((3, 1)), np.ones(1), np.zeros((3, 1)))
    assert found.value == 1.0 and np.isnan(found.low) and found.p == 1.0


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert holm([0.01, 0.02, 0.04]) == [True, True, True]
    assert holm([0.2, 0.001]) == [False, True]
    assert holm([]) == []


def outcomes() -> list[CellResult]:
    good = [outcome("good", seed, drawn(0.8, seed)) for seed in range(3)]
    same = [outcome("same", seed, drawn(0.5, 20 + seed)) for seed in range(3)]
    random = [outcome("random", seed, drawn(0.5, 10 + seed), rows=20, tokens=100 + seed) for seed in range(3)]
    return [outcome("base", None, drawn(0.1, 99)), *random, *good, *same]


def test_what_differs_is_told_and_what_does_not_is_not() -> None:
    lines = {line["name"]: line for line in summarize(outcomes())}
    assert lines["good"]["verdict"] == "better"
    assert lines["good"]["diff"] == pytest.approx(lines["good"]["value"] - lines["random"]["value"])
    assert lines["good"]["diff_low"] < lines["good"]["diff"] < lines["good"]["diff_high"]
    assert lines["same"]["verdict"] == "not told apart"
    assert lines["base"]["verdict"] == "worse"  # no sample of seeds; the random lines are three
    assert "diff" not in lines["random"] and "verdict" not in lines["random"]
    assert (lines["random"]["seeds"], lines["random"]["tokens"]) == (3, 101)


def test_lower_is_better_where_it_is() -> None:
    def lower(line: str, seed: int, mean: float) -> CellResult:
        task = result(drawn(mean, seed), higher_is_better=False)
        return CellResult(Cell(line, "10%", seed), {}, [SuiteResult("s", line, (task,))])

    lines = summarize([*(lower("random", s, 0.8) for s in range(3)), *(lower("less", s, 0.2) for s in range(5, 8))])
    less = next(line for line in lines if line["name"] == "less")
    assert less["diff"] < 0 and less["verdict"] == "better"
    (found,) = by_task(lines).values()
    assert [line["name"] for line in found] == ["less", "random"]


def test_no_common_item_is_no_difference() -> None:
    other = TaskResult("task", "accuracy", ["elsewhere"], np.array([1.0]))
    odd = CellResult(Cell("odd", "10%", 0), {}, [SuiteResult("suite", "odd", (other,))])
    lines = {line["name"]: line for line in summarize([*outcomes(), odd])}
    assert lines["odd"]["value"] == 1.0 and "diff" not in lines["odd"] and "verdict" not in lines["odd"]


@pytest.mark.parametrize(("mine", "theirs", "few"), [(1, 3, True), (2, 3, True), (3, 2, True), (3, 3, False)])
def test_below_three_seeds_on_either_side_there_is_no_verdict(mine: int, theirs: int, few: bool) -> None:
    cells = [outcome("random", s, drawn(0.2, s)) for s in range(theirs)]
    cells += [outcome("far", 10 + s, drawn(0.9, 10 + s)) for s in range(mine)]
    line = next(line for line in summarize(cells) if line["name"] == "far")
    assert line["diff"] > 0.5 and (line["verdict"] == "too few seeds") == (line["p"] is None) == few
    assert (line["diff_low"] is None) == few and (line["low"] is None) == (mine < 3)
    table = rows_of([line])[0]
    assert table[HEADER.index("verdict")] == ("too few seeds" if few else "better")
    assert ("[" in table[HEADER.index("against random")]) != few


def test_lines_without_a_verdict_are_not_in_the_family() -> None:
    """Nineteen lines of one seed make no other line's test stricter."""
    family = [{"p": 0.03, "diff": 1.0, "higher_is_better": True}]
    family += [{"p": None, "diff": 1.0, "higher_is_better": True} for _ in range(19)]
    add_verdicts(family)
    assert [line["verdict"] for line in family] == ["better", *["too few seeds"] * 19]


def test_against_the_base_a_line_needs_three_seeds_and_the_base_one() -> None:
    base = outcome("base", None, drawn(0.2, 9))
    for seeds, word in ((2, "too few seeds"), (3, "better")):
        lines = summarize([base, *(outcome("ifd", s, drawn(0.8, s)) for s in range(seeds))])
        found = {line["name"]: line for line in lines}
        assert found["ifd"]["verdict"] == word and found["base"]["low"] is not None


def test_items_that_one_side_lacks_are_left_out_and_counted() -> None:
    cells = [outcome("random", s, drawn(0.2, s)) for s in range(3)]
    cells += [
        CellResult(Cell("ifd", "10%", s), {}, [SuiteResult("suite", "ifd", (result(np.ones(150), ids=ITEMS[:150]),))])
        for s in range(3)
    ]
    line = next(line for line in summarize(cells) if line["name"] == "ifd")
    assert line["unpaired"] == 50
    assert line["diff"] == pytest.approx(1 - np.mean([drawn(0.2, s)[:150].mean() for s in range(3)]))


def test_tables_are_made_again_from_the_items(tmp_path: Path) -> None:
    """Scores that are missing, weights, failures and costs come back too."""
    every = [*outcomes(), CellResult(Cell("bad", "10%", 0), error="no judge")]
    for one in every[:-1]:
        task = result(np.r_[np.nan, drawn(0.5, 3)[1:]], name="nll", weight=np.arange(200.0) + 1, higher_is_better=False)
        one.results.append(SuiteResult("heldout", "x", (task,)))
        one.facts.update(train_s=1.25, cost_unit="CPU seconds")
    found = write_comparison(tmp_path, every, summarize(every), {"data": "rows.jsonl", "terms": "On equal terms."})
    again, _ = read_items(tmp_path / "items.parquet")
    assert summarize(again) == found["lines"]
    assert remake(tmp_path / "items.parquet") == (tmp_path / "comparison.md").read_text(encoding="utf-8")
    names = pq.read_schema(tmp_path / "items.parquet").names
    assert names == ["suite", "task", "line", "budget", "seed", "item", "score", "weight"]


def test_other_files_are_no_items(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_text("nothing")
    for name in ("items.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=r"holds no items of a comparison"):
            read_items(tmp_path / name)


def test_cells_that_failed_are_named(tmp_path: Path) -> None:
    every = [*outcomes(), CellResult(Cell("bad", "10%", 0), error="no judge")]
    found = write_comparison(tmp_path, every, summarize(every), {"data": "rows.jsonl", "terms": "On equal terms."})
    assert found["failed"] == [{"cell": "bad 10% seed 0", "error": "no judge"}]
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "- bad 10% seed 0: no judge" in text and "| good | 10% | 3 |" in text
    assert text == markdown(found["lines"], found["failed"], found)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    task = result(
        [1.0, np.nan, 0.25], ids=ITEMS[:3], weight=np.array([2.0, 1.0, 1.0]), reason=[None, "timeout", None],
        details={"samples": 4},
    )  # fmt: skip
    SuiteResult("suite", "model", (task,), {"n": 4}, {"seconds": 1.5}).write(tmp_path / "results.json")
    again = read_results(tmp_path / "results.json")
    assert again["task"].value == pytest.approx(2.25 / 3)
    np.testing.assert_array_equal(again["task"].score, task.score)
    assert list(again["task"].reason or []) == [None, "timeout", None]
    assert again.cost == {"seconds": 1.5} and again.record() == read_results(tmp_path / "results.json").record()


@pytest.mark.parametrize(("ids", "said"), [(["a", "a"], "item 'a' twice"), (["a"], "different lengths")])
def test_items_and_scores_belong_together(ids: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        result([1.0, 0.0], ids=ids)


def test_the_cost_of_a_line_in_the_table() -> None:
    told = {"warmup_s": 1.4, "score_s": 20.0, "score_tokens": 12_345, "train_s": 3.0, "cost_unit": "GPU seconds"}
    line = summarize([outcome("base", None, np.zeros(200)), outcome("ifd", 0, np.ones(200), **told)])[-1]
    assert rows_of([line])[0][-1] == "1 GPU s warm-up, 20 GPU s scoring of 12,345 tokens, 3 GPU s training"
    assert line["score_tokens"] == 12_345 and line["cost_unit"] == "GPU seconds"


def test_terms_and_control_stand_with_the_tables(tmp_path: Path) -> None:
    every = [outcome("base", None, np.zeros(200)), outcome("ifd", 0, np.ones(200), cost_unit="CPU seconds")]
    found = write_comparison(tmp_path, every, summarize(every), {"data": "rows.jsonl", "terms": "On equal terms."})
    assert found["against"] == "base" and header(found)[HEADER.index("against random")] == "against base"
    assert footer(found) == ["On equal terms.", found["note"]]
    text = (tmp_path / "comparison.md").read_text()
    assert text.index("| ifd |") < text.index("On equal terms.") < text.index("Intervals are 95 %")
