"""Comparisons, searches and plans in which at most so many rows of each value of a column are taken."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from instdiff.config.base import build
from instdiff.config.compare import CompareConfig
from instdiff.config.search import SearchConfig
from instdiff.core.files import read_json
from instdiff.errors import ConfigError, DataError
from instdiff.experiments.cost import Book, Rounds
from instdiff.experiments.run_folder import Cell

from .test_compare import Make, home, make

__all__ = ["home", "make"]


def sources(made: Any, cell: Cell) -> Counter[str]:
    record = read_json(made.places.cell(cell) / "selection.json")
    return Counter(made.pool.take(record["rows"]).column("source"))


def test_every_line_but_the_whole_pool_is_bound(make: Make) -> None:
    lines: dict[str, Any] = {"ifd": {}, "own": {"method": "ifd", "per": "source 2"}, "likely": {"method": "grape"}}
    made = make(method=lines, seeds=[0], random_seeds=3, budgets=["50%"], per="source 3")
    found = {str(one.cell): one for one in made.run()}
    assert all(one.error is None for one in found.values())
    assert {name: one.facts["rows"] for name, one in found.items() if name != "base"} == {
        **{f"random 50% seed {seed}": 6 for seed in range(3)},
        **{"longest 50% seed 0": 6, "full 100% seed 0": 40, "ifd 50% seed 0": 6, "likely 50% seed 0": 6},
        "own 50% seed 0": 4,
    }
    assert sources(made, found["longest 50% seed 0"].cell) == {"a": 3, "b": 3}
    facts = made.made_of(found["own 50% seed 0"].cell)
    assert facts["per"] == "source 2" and "per" not in facts["config"]
    assert "per" not in made.made_of(found["full 100% seed 0"].cell)


def test_a_method_brings_its_own_bound(make: Make) -> None:
    made = make(method={"grape": {}}, seeds=[0], baselines=[], budgets=["100%"])
    (grape,) = made.run()[1:]
    record = read_json(made.places.cell(grape.cell) / "selection.json")
    assert record["per"]["by"] == "prompt" and record["per"]["most"] == 1


def test_a_plan_counts_the_rows_that_are_left(make: Make) -> None:
    lines: dict[str, Any] = {"ifd": {}, "own": {"method": "ifd", "per": "source 2"}}
    made = make(method=lines, seeds=[0], budgets=["50%"], per="source 3")
    rounds = Rounds(made, Book(made.settings, made.store, None))

    def count(line: str, budget: str = "50%") -> int:
        found = rounds.chosen(Cell(line, budget, 0), 1, made.method(line, 0), made.pool)
        return found if isinstance(found, int) else len(found)

    assert [count(line) for line in ("ifd", "own", "random", "longest")] == [6, 4, 6, 6]
    assert count("full", "100%") == 40


def test_what_is_wrong_is_known_before_anything_is_trained(make: Make) -> None:
    with pytest.raises(DataError, match="sauce"):
        make(per="sauce 1")
    with pytest.raises(ConfigError, match="write a column and a number"):
        make(per="source")


def test_it_is_written_as_a_text_or_as_two_words(tmp_path: Path) -> None:
    for given in ("prompt 2", ["prompt", 2], ("prompt", "2")):
        for kind in (CompareConfig, SearchConfig):
            assert build(kind, {"per": given}, "test").per == "prompt 2"  # type: ignore[type-var]
