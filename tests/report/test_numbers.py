"""The numbers behind the pictures, against other ways to compute them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from instdiff.config.methods import make_method
from instdiff.core import Budget, Scored
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


def test_a_score_is_shown_as_people_know_it() -> None:
    rng = np.random.default_rng(0)
    nll, n_tokens = rng.gamma(3, 1, 100), np.arange(100) + 1
    value = np.where(np.arange(100) < 90, -nll, np.nan)
    reason = np.where(np.arange(100) < 90, None, "filtered").astype(object)
    scored = Scored("perplexity", make_method("perplexity", {}, 0), value, reason, {"nll": nll}, IDS, n_tokens)
    name, shown, sign = statistics.natural(scored)
    assert (name, sign) == ("perplexity: mean NLL (nats per token)", -1)
    assert np.array_equal(shown[:90], nll[:90]) and np.isnan(shown[90:]).all()  # not minus it
    columns = {"a": nll, "minus a": -nll, "same": nll + 0.0, "b": rng.random(100), "flat": np.ones(100)}
    kept, copies = statistics.distinct(columns)
    assert list(kept) == ["a", "b"] and copies == {"minus a": "a", "same": "a"}
    assert (
        statistics.spoken("ifd", "ifd") == "ifd"
        and statistics.spoken("x", "diff_nll") == "x: delta NLL (nats per token)"
    )


def test_an_outlier_says_nothing_of_a_rank_correlation() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(100)
    b = a + 0.1 * rng.random(100)
    b[0] = 16_580
    found = statistics.spearman({"a": a, "b": b})[0][1]
    assert found is not None and found > 0.9 and abs(np.corrcoef(a, b)[0, 1]) < 0.3


def test_what_chance_gives() -> None:
    rng = np.random.default_rng(2)
    draws = [(rng.choice(200, 40, replace=False), rng.choice(200, 100, replace=False)) for _ in range(200)]
    mean = np.mean([len({*a} & {*b}) / len({*a} | {*b}) for a, b in draws])
    assert np.isclose(statistics.chance([40, 100], 200)[0][1], mean, atol=0.01)  # type: ignore[arg-type]
    every = np.array([50, 100, 50])
    low, high = statistics.random_band(every.tolist(), 40)
    bars = np.repeat(np.arange(3), every)
    counts = np.array([np.bincount(bars[rng.choice(200, 40, replace=False)], minlength=3) for _ in range(500)])
    assert ((counts >= low) & (counts <= high)).mean() > 0.9 and (high - low < 20).all()
