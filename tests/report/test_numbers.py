"""The numbers behind the pictures, against other ways to compute them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from instdiff.core import Budget
from instdiff.core.arrays import correlation
from instdiff.reporting import projection, statistics
from instdiff.reporting.examples import examples
from instdiff.reporting.packing import Packer
from instdiff.reporting.sources import Part, head

from .kit import make_table, write_rows

IDS = [f"{row:032x}" for row in range(100)]


def part() -> Part:
    table = make_table(100, IDS)
    return Part("scores", table, "instructdiff", Budget(0.2), head(table["instructdiff"], Budget(0.2)))


def test_a_histogram_counts_every_row() -> None:
    values = np.concatenate([np.arange(98.0), [np.nan, 1e6]])
    found = statistics.histogram(values, np.arange(100) < 10)
    assert found is not None
    assert sum(found["all"]) == 99 and sum(found["chosen"]) == 10
    assert found["all"][-1] >= 1 and found["edges"] == sorted(found["edges"])
    assert statistics.histogram(np.full(3, np.nan), np.ones(3, bool)) is None
    assert statistics.histogram(np.full(3, 2.0), np.ones(3, bool))["edges"][0] == 2.0  # type: ignore[index]


def test_correlations_over_the_rows_that_have_both() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50))
    b[:5], a[7] = np.nan, np.nan
    both = np.isfinite(a) & np.isfinite(b)
    found = statistics.spearman({"a": a, "b": b, "same": np.ones(50)})
    assert np.isclose(found[0][1], correlation.spearman(a, b), atol=1e-4) and both.sum() == 44  # type: ignore[arg-type]
    assert found[0][1] == found[1][0] and found[0][0] == 1.0
    assert found[2] == [None, None, None]
    assert statistics.spearman({"a": a, "b": np.exp(a)})[0][1] == 1.0
    assert correlation.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_jaccard_is_shared_over_either() -> None:
    found = statistics.jaccard({"a": np.array([1, 2, 3]), "b": np.array([3, 4]), "c": np.array([9])})
    assert found == [[1.0, 0.25, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_a_spread_has_mean_median_sd_and_extremes() -> None:
    found = statistics.spread(np.array([1.0, 2.0, 3.0, 10.0, np.nan]))
    assert (found["rows"], found["mean"], found["median"], found["min"], found["max"]) == (4, 4.0, 2.5, 1.0, 10.0)
    assert np.isclose(found["sd"], np.std([1, 2, 3, 10]), atol=1e-4)
    assert statistics.spread(np.full(2, np.nan)) == {"rows": 0}


def test_the_funnel_and_the_reasons() -> None:
    some = part()
    stages = statistics.funnel(some.scored, some.chosen)
    assert [(s["stage"], s["rows"]) for s in stages] == [
        ("input", 100), ("scorable", 100), ("eligible", 80), ("chosen", 20)
    ]  # fmt: skip
    assert stages[3]["tokens"] == int(some.scored.n_tokens[some.chosen].sum())
    assert statistics.count_excluded(some.scored) == {"filtered": 20}
    x = some.scored.details["diff_nll"]
    assert statistics.band(some.scored, "diff_nll") == (np.sort(x)[10], np.sort(x)[89])
    assert statistics.threshold(some.scored, some.mask) == np.sort(some.scored.value[some.chosen])[0]


def test_the_column_of_domains_is_found(tmp_path: Path) -> None:
    pool = write_rows(tmp_path / "rows.jsonl", 40)
    found = statistics.groups(pool)
    assert found is not None and found[0] == "source"
    assert set(found[1]) == {"math", "code", "chat", "<b>bold</b>"} and len(found[1]) == 40


def test_examples_are_chosen_borderline_extreme_and_random() -> None:
    some = part()
    few = examples(some, most=40)
    assert len(few.at) == 40 and len(set(few.at.tolist())) == 40
    assert {"chosen", "borderline", "extreme", "random"} <= set(few.kinds)
    mask = some.mask
    for row, status, reason in zip(few.at.tolist(), few.status, few.reason, strict=True):
        assert (status == "chosen") == mask[row] and (status == "excluded") == (some.scored.reason[row] is not None)
        assert "filtered" in reason if status == "excluded" else "rank" in reason
    first = few.at.tolist().index(int(some.chosen[0]))
    assert few.order[first] == 1 and few.best.tolist() == some.chosen[:10].tolist()
    value, last = (f"{some.scored.value[some.chosen[at]]:.4g}" for at in (0, -1))
    said = f"chosen: rank 1 of 80 (best 1.2 %) with {value}; budget 20% took the best 20, down to {last}"
    assert few.reason[first] == said
    next_one = few.at.tolist().index(int(few.missed[0]))
    assert few.reason[next_one].startswith("not chosen: rank 21 of 80 (best 26 %) with ")
    assert "; a budget of 21 rows or more takes it, or of " in few.reason[next_one]
    assert len(examples(some).at) == 100


def test_neighbours_and_reach() -> None:
    x = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0]], np.float32)
    near = projection.near(x, np.array([0, 2, 3]), 2)
    assert near[1].tolist() == [0, 2] and near[2].tolist() == [2, 0] and near[0].tolist() == [2, 1]
    assert projection.near(x, np.array([0]), 3).tolist() == [[-1] * 3] * 5
    assert projection.reach(x, np.arange(5)) is None
    found = projection.reach(x, np.array([0, 2]))
    assert found is not None and np.isclose(found, np.median([0.9939, 0.9939, 0.0]), atol=1e-3)


def test_arrays_are_packed_once_and_points_refer_to_columns() -> None:
    column = np.random.default_rng(0).normal(size=500)
    packer = Packer([column])
    rows = np.arange(0, 500, 2)
    trace = {"x": column[rows], "y": column[rows] * 2, "customdata": rows, "name": "a"}
    found = packer._walk(trace)
    assert found["x"]["$"] != found["y"]["$"] and found["x"]["at"] == found["customdata"]["$"]
    assert "at" not in found["y"] and packer.array(column) == {"$": found["x"]["$"]}
    assert packer._walk({"z": [np.nan, np.inf, 1.5]}) == {"z": [None, None, 1.5]}
