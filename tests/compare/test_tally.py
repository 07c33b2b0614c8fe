"""Intervals, differences and verdicts, on results that were made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.evaluation.results import SuiteResult, TaskResult, read_results
from instdiff.evaluation.statistics import bootstrap_over_seeds, difference, holm
from instdiff.experiments.run_folder import Cell, CellResult
from instdiff.experiments.summary import sample, summarize
from instdiff.experiments.tables import HEADER, by_task, footer, header, markdown, rows_of, write_tally

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


def test_the_interval_of_the_bootstrap_is_that_of_theory() -> None:
    rng = np.random.default_rng(3)
    score = rng.normal(size=(1, 400))
    draws = bootstrap_over_seeds(score, np.ones(400), draws=4000)
    assert draws.mean() == pytest.approx(score.mean(), abs=0.005)
    assert draws.std() == pytest.approx(score.std() / 20, rel=0.06)


def test_the_spread_over_seeds_is_in_the_interval() -> None:
    """Items that all agree leave the seeds' own spread."""
    score = np.repeat([[0.0], [1.0]], 50, axis=1)
    draws = bootstrap_over_seeds(score, np.ones(50), draws=4000)
    assert set(np.unique(draws)) == {0.0, 0.5, 1.0}
    assert (draws == 0.5).mean() == pytest.approx(0.5, abs=0.05)


def test_the_same_on_both_sides_is_no_difference() -> None:
    score = np.random.default_rng(0).random((3, 40))
    draws = bootstrap_over_seeds(score, np.ones(40), draws=500)
    found = difference(0.0, draws - bootstrap_over_seeds(score, np.ones(40), draws=500))
    assert (found.low, found.high, found.p) == (0.0, 0.0, 1.0)


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
    assert lines["good"]["real"] and lines["good"]["better"]
    assert lines["good"]["diff"] == pytest.approx(lines["good"]["value"] - lines["random"]["value"])
    assert lines["good"]["diff_low"] < lines["good"]["diff"] < lines["good"]["diff_high"]
    assert not lines["same"]["real"]
    assert lines["base"]["real"] and not lines["base"]["better"]
    assert "diff" not in lines["random"]
    assert (lines["random"]["seeds"], lines["random"]["tokens"]) == (3, 101)


def test_lower_is_better_where_it_is() -> None:
    def lower(line: str, seed: int, mean: float) -> CellResult:
        task = result(drawn(mean, seed), higher_is_better=False)
        return CellResult(Cell(line, "10%", seed), {}, [SuiteResult("s", line, (task,))])

    lines = summarize([*(lower("random", s, 0.8) for s in range(3)), *(lower("less", s, 0.2) for s in range(5, 8))])
    less = next(line for line in lines if line["name"] == "less")
    assert less["diff"] < 0 and less["real"] and less["better"]
    (found,) = by_task(lines).values()
    assert [line["name"] for line in found] == ["less", "random"]


def test_no_common_item_is_no_difference() -> None:
    other = TaskResult("task", "accuracy", ["elsewhere"], np.array([1.0]))
    odd = CellResult(Cell("odd", "10%", 0), {}, [SuiteResult("suite", "odd", (other,))])
    lines = {line["name"]: line for line in summarize([*outcomes(), odd])}
    assert lines["odd"]["value"] == 1.0 and "diff" not in lines["odd"] and "real" not in lines["odd"]


def test_cells_that_failed_are_named(tmp_path: Path) -> None:
    every = [*outcomes(), CellResult(Cell("bad", "10%", 0), error="no judge")]
    found = write_tally(tmp_path, every, summarize(every), {"data": "rows.jsonl", "terms": "On equal terms."})
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
    found = write_tally(tmp_path, every, summarize(every), {"data": "rows.jsonl", "terms": "On equal terms."})
    assert found["against"] == "base" and header(found)[HEADER.index("against random")] == "against base"
    assert footer(found) == ["On equal terms.", found["note"]]
    text = (tmp_path / "comparison.md").read_text()
    assert text.index("| ifd |") < text.index("On equal terms.") < text.index("Intervals are 95 %")
