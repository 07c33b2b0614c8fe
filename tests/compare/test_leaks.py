"""An inflated gain is told apart from a true one, on results that were made up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import instdiff
from compare.test_tally import result
from instdiff.cli.compare import tables
from instdiff.core import Log
from instdiff.errors import DataError
from instdiff.evaluation.results import SuiteResult
from instdiff.evaluation.subject import BenchmarkItem
from instdiff.experiments.leaks import find_leaks
from instdiff.experiments.run_folder import Cell, CellResult
from instdiff.experiments.summary import summarize
from instdiff.experiments.tables import leak_rows, remake, tell_leaks, write_comparison
from instdiff.reporting.context import ReportContext
from instdiff.reporting.run_sections import leaks
from instdiff.reporting.sources import ReportSources
from instdiff.reporting.verdict import Verdict, _leaked

ITEMS, LEAKED = 40, 10
ASKED = [f"question {n} asks of {n * 7} things and of number {n * 3}" for n in range(ITEMS)]


@dataclass(frozen=True)
class Quiz:
    """A suite whose items are known."""

    name: str = "quiz"

    def items(self, log: Log) -> list[BenchmarkItem]:
        return [BenchmarkItem("facts", f"item {n}", text) for n, text in enumerate(ASKED)]

    def run(self, subject: Any) -> Any:
        raise NotImplementedError


class Broken(Quiz):
    def items(self, log: Log) -> list[BenchmarkItem]:
        raise DataError("the file of task 'facts' is not there")


def outcomes() -> list[CellResult]:
    """``leaky`` gains 1 on ten of forty items, ``true`` 0.3 on all; ``random`` is what they are compared with."""
    rng, found = np.random.default_rng(0), []
    level = rng.normal(size=ITEMS)
    for line, gain in {"random": 0.0, "leaky": np.repeat([1.0, 0.0], [LEAKED, ITEMS - LEAKED]), "true": 0.3}.items():
        for seed in range(3):
            score = level + gain + 0.02 * rng.normal(size=ITEMS)
            task = result(score, ids=[f"item {n}" for n in range(ITEMS)], name="facts")
            found.append(CellResult(Cell(line, "10", seed), {}, [SuiteResult("quiz", line, (task,))]))
    return found


def pool_and_records() -> tuple[Any, dict[tuple[str, str], list[dict[str, Any]]]]:
    """The first ten rows ask what items ask, in other case and with words around it."""
    rows = [{"instruction": f"Please: {text.upper()}!", "output": "x"} for text in ASKED[:LEAKED]]
    rows += [{"instruction": f"Tell of the colour {n} in a sentence or two.", "output": "y"} for n in range(20)]
    pool = instdiff.load(rows)
    taken = {"random": range(10, 20), "leaky": range(10), "true": range(20, 30)}
    records = {
        (name, "10"): [{"ids": [pool.ids[at] for at in some], "rows": list(some)}] * 3 for name, some in taken.items()
    }
    return pool, records


def told() -> dict[str, Any]:
    pool, records = pool_and_records()
    found = find_leaks(pool, [Quiz()], records, outcomes(), print)
    assert found is not None
    return found


def test_an_inflated_gain_is_told_apart() -> None:
    leaks = told()
    lines = {line["name"]: line for line in leaks["lines"]}
    leaky, true = lines["leaky"], lines["true"]
    assert leaky["rows"] == LEAKED and leaky["items_hit"] == LEAKED and true["items_hit"] == true["rows"] == 0
    assert leaky["diff"] == pytest.approx(0.25, abs=0.02) and leaky["diff_on"] == pytest.approx(0.25, abs=0.02)
    assert leaky["diff_without"] == pytest.approx(0, abs=0.02) and leaky["verdict_without"] == "not told apart"
    assert true["diff_without"] == true["diff"] and true["verdict_without"] == "better"
    rest = leaky["diff_without"] * (ITEMS - LEAKED) / ITEMS
    assert leaky["diff"] == pytest.approx(leaky["diff_on"] + rest), "both parts are of the mean over all items"
    assert leaky["diff_on_low"] < leaky["diff_on"] < leaky["diff_on_high"]
    (whole,) = [line for line in summarize(outcomes()) if line["name"] == "leaky"]
    assert whole["verdict"] == "better", "which nothing else in the tables would put in doubt"


def test_the_tables_say_so(tmp_path: Path) -> None:
    leaks = told()
    heads, rows = leak_rows(leaks)
    assert [row[0] for row in rows] == ["leaky"] and len(heads) == len(rows[0])
    assert rows[0][4] == "10 of 40" and rows[0][-1] == "not told apart"
    found = write_comparison(tmp_path, outcomes(), summarize(outcomes()), {"data": "d", "leaks": leaks})
    text = (tmp_path / "comparison.md").read_text()
    assert "## Overlap with the evaluation" in text and "| leaky | 10 | facts accuracy | 10 | 10 of 40 |" in text
    assert remake(tmp_path / "items.parquet") == text
    assert any("look at the difference without them" in part for part in tables(found))
    assert "No selected row overlaps" in tell_leaks({**leaks, "lines": [{**leaks["lines"][0], "items_hit": 0}]})[0]


def test_the_verdict_says_what_to_look_at() -> None:
    material = ReportSources("", "compare", leaks=told())
    alert = _leaked(material, Verdict("better", "", "", line="leaky"))
    assert alert is not None and alert.section == "leaks"
    assert alert.text == (
        "10 of its rows overlap items of facts; 10 of 40 are hit, and without these it is not told apart"
    )
    assert _leaked(material, Verdict("better", "", "", line="true")) is None
    section = leaks(ReportContext(material))
    assert section is not None and section.title == "Overlap with the evaluation" and len(section.tables[0].rows) == 1


def test_items_that_cannot_be_read_end_nothing() -> None:
    pool, records = pool_and_records()
    said = list[str]()
    assert find_leaks(pool, [Broken()], records, outcomes(), said.append) is None
    assert said == [
        "warning: whether rows overlap the items of the suites is not known: the file of task 'facts' is not there"
    ]
