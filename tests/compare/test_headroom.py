"""What there is to gain, and which share of it a line has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compare.test_tally import ITEMS, outcome, result
from instdiff.cli.compare import tables
from instdiff.config.base import build
from instdiff.config.compare import CompareConfig
from instdiff.errors import ConfigError
from instdiff.evaluation.results import SuiteResult
from instdiff.evaluation.statistics import Estimate, estimate, ratio
from instdiff.experiments.compare import check_named
from instdiff.experiments.run_folder import Cell, CellResult
from instdiff.experiments.summary import summarize
from instdiff.experiments.tables import header, remake, rows_of, tell_headroom, write_comparison


def estimated(value: float, error: float, reach: float = 2.0) -> Estimate:
    return Estimate(value, value - reach * error, value + reach * error, 0.01, error)


def test_the_ends_of_a_share_are_where_it_is_just_not_told_apart() -> None:
    """Of differences whose errors are known, and their covariance 0.0002."""
    part, whole = estimated(0.06, 0.02), estimated(0.1, 0.015)
    between = estimated(-0.04, (0.02**2 + 0.015**2 - 2 * 0.0002) ** 0.5)
    found = ratio(part, whole, between)
    assert found.value == pytest.approx(0.6)
    for share in (found.low, found.high):
        error = (0.02**2 - 2 * share * 0.0002 + share**2 * 0.015**2) ** 0.5
        assert abs(0.06 - share * 0.1) == pytest.approx(2 * error)
    assert found.low < 0.6 < found.high


def test_a_share_of_what_may_be_nothing_has_no_ends() -> None:
    found = ratio(estimated(0.06, 0.02), estimated(0.1, 0.06), estimated(-0.04, 0.06))
    assert found.value == pytest.approx(0.6) and np.isnan([found.low, found.high]).all()


def test_intervals_of_a_share_hold_the_truth() -> None:
    """Lines of three seeds, a control of five: the truth is 0.5 of a headroom of 0.3."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        item = rng.normal(size=60)

        def line(mean: float, seeds: int, item: Any = item) -> Any:
            return mean + item + 0.03 * rng.normal(size=(seeds, 1)) + 0.1 * rng.normal(size=(seeds, 60))

        random, some, best = line(0.0, 5), line(0.15, 3), line(0.3, 5)
        weight = np.ones(60)
        found = ratio(estimate(some, weight, random), estimate(best, weight, random), estimate(some, weight, best))
        held += bool(found.low <= 0.5 <= found.high)
    assert held >= 184


def cells(gain: float, *, seeds: int = 3, lower: bool = False) -> list[CellResult]:
    """Random rows, an oracle that gains so much, and lines that have three quarters of that, and less than nothing."""
    rng = np.random.default_rng(1)
    item = rng.random(len(ITEMS))

    def made(line: str, mean: float, count: int) -> list[CellResult]:
        out = []
        for seed in range(count):
            score = item + (-mean if lower else mean) + 0.002 * rng.normal() + 0.01 * rng.normal(size=len(ITEMS))
            task = result(score, higher_is_better=not lower)
            out.append(CellResult(Cell(line, "10%", seed), {}, [SuiteResult("suite", line, (task,))]))
        return out

    lines = {"random": 0.0, "oracle": gain, "good": 0.75 * gain, "bad": -0.5 * gain}
    task = result(item + (-gain if lower else gain), higher_is_better=not lower)
    full = CellResult(Cell("full", "100%", 0), {}, [SuiteResult("suite", "full", (task,))])
    return [outcome("base", None, item - 0.3), *(c for line, m in lines.items() for c in made(line, m, seeds)), full]


@pytest.mark.parametrize("lower", [False, True])
def test_lines_have_shares_of_the_headroom(lower: bool) -> None:
    found = {line["name"]: line for line in summarize(cells(0.1, lower=lower), oracles=["lacking", "oracle"])}
    assert found["oracle"]["room"] > 4 and "share" not in found["oracle"] and "share" not in found["random"]
    for name, share in (("good", 0.75), ("bad", -0.5)):
        assert found[name]["share"] == pytest.approx(share, abs=0.06)
        assert found[name]["share_low"] < share < found[name]["share_high"] < found[name]["share_low"] + 0.4
    assert found["full"]["share"] is not None and found["full"]["share_low"] is None  # one seed
    assert found["good"]["share"] == pytest.approx(found["good"]["diff"] / found["oracle"]["diff"])
    (said,) = tell_headroom(list(found.values()), "random")
    assert said.startswith("Headroom: oracle is ") and said.endswith(" standard errors.")


def test_without_headroom_nothing_is_told(tmp_path: Path) -> None:
    every = cells(0.001)
    lines = summarize(every, oracles=["oracle"])
    assert all(line["share"] is None for line in lines if "share" in line)
    (said,) = tell_headroom(lines, "random")
    assert said.startswith("Nothing can be told here: oracle is +0.0")
    assert said.endswith("standard errors of headroom, and a share needs at least 4.")
    facts = {"data": "rows.jsonl", "oracles": ["oracle"]}
    whole = write_comparison(tmp_path, every, lines, facts)
    assert said in (tmp_path / "comparison.md").read_text() == remake(tmp_path / "items.parquet")
    assert said in "\n".join(tables(whole))


def test_an_oracle_that_is_worse_leaves_no_headroom() -> None:
    """Such as one that takes new skills alone, in the task of the known ones."""
    found = {line["name"]: line for line in summarize(cells(-0.1), oracles=["oracle"])}
    assert found["oracle"]["room"] < -4 and found["good"]["share"] is None
    (said,) = tell_headroom(list(found.values()), "random")
    assert said.startswith("Nothing can be told here")


def test_too_few_seeds_say_nothing_of_the_headroom() -> None:
    lines = summarize(cells(0.1, seeds=2), oracles=["oracle"])
    (said,) = tell_headroom(lines, "random")
    assert said.startswith("Nothing can be told of the headroom: oracle is +0.") and "too few seeds" in said
    assert all(line["share"] is None for line in lines if "share" in line)


def test_the_share_is_a_column_where_there_is_an_oracle() -> None:
    lines = summarize(cells(0.1), oracles=["oracle"])
    heads = header({"against": "random"}, lines)
    at = heads.index("share of headroom")
    shown = {row[0]: row[at] for row in rows_of(lines)}
    assert shown["random"] == shown["oracle"] == "" and shown["full"].endswith("%")
    assert shown["good"].startswith(f"{100 * next(x['share'] for x in lines if x['name'] == 'good'):.0f} % [")
    assert all(len(row) == len(heads) for row in rows_of(lines))
    plain = summarize(cells(0.1))
    assert "share of headroom" not in header({}, plain) and not tell_headroom(plain, "random")
    assert all(len(row) == len(header({}, plain)) for row in rows_of(plain))


def test_headroom_needs_an_oracle() -> None:
    values = {"data": "x.jsonl", "model": "builtin:tiny", "output": "run", "headroom": True, "method": {"ifd": {}}}
    with pytest.raises(ConfigError, match=r"no line has one; name the column .* method\.oracle\.column=flaw"):
        check_named(build(CompareConfig, values, "test"))
    check_named(build(CompareConfig, {**values, "method": {"best": {"method": "oracle", "column": "x"}}}, "test"))
