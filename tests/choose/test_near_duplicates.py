"""``near_duplicates`` of a selection: the better of two near copies stays, and the budget is met by others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import instdiff
from cli.shell import cli, ok, write_jsonl
from instdiff.config.base import build
from instdiff.config.commands import PipelineConfig, SelectConfig
from instdiff.config.compare import CompareConfig, Variant
from instdiff.errors import ConfigError
from instdiff.methods.algorithms.near_copies import shingles_of
from instdiff.methods.algorithms.runs import jaccard
from instdiff.rendering.texts import words
from instdiff.rendering.vocabulary import Vocabulary
from instdiff.selection.explain import place_in_selection


def text(start: int, count: int = 30) -> str:
    return " ".join(f"w{n}" for n in range(start, start + count))


ROWS: list[dict[str, Any]] = [
    {"instruction": "Say it.", "output": text(0), "n": 5, "kind": "a"},
    {"instruction": "Say it!", "output": f"{text(0)} too", "n": 9, "kind": "a"},
    {"instruction": "Say it.", "output": text(100), "n": 7, "kind": "b"},
    {"instruction": "Say it.", "output": text(200), "n": 1, "kind": "b"},
    {"instruction": "say it", "output": text(0), "n": 2, "kind": "b"},
]
"""The first, second and last are near copies."""


def chosen(rows: list[dict[str, Any]], tmp_path: Path, budget: str | int, **how: Any) -> Any:
    pool = instdiff.load(rows)
    scores = instdiff.score(pool, [instdiff.ByColumn(path="n")], store=tmp_path / "store")
    return instdiff.select(pool, scores["column"], budget, near_duplicates=0.8, **how)


def numbers(found: Any) -> list[int]:
    return [row["n"] for row in found.to_pool().source_rows()]


def test_the_better_row_stays_and_the_budget_is_met(tmp_path: Path) -> None:
    found = chosen(ROWS, tmp_path, 3)
    assert numbers(found) == [9, 7, 1]
    assert found.scored.reason.tolist() == ["near_duplicate", None, None, None, "near_duplicate"]
    record = found.record()
    assert record["near_duplicates"] == 0.8 and record["excluded"] == {"near_duplicate": 2}
    assert record["counts"]["scorable_rows"] == 5 and record["counts"]["eligible_rows"] == 3
    assert numbers(chosen(ROWS, tmp_path, "60%")) == [9, 7, 1], "a share is of all rows"
    assert numbers(chosen(ROWS, tmp_path, "34% eligible")) == [9]
    short = chosen(ROWS, tmp_path, 4)
    assert numbers(short) == [9, 7, 1] and "2 near_duplicate" in short.shortfall()


def test_within_groups_and_below_another_method(tmp_path: Path) -> None:
    found = chosen(ROWS, tmp_path, 3, group_by="kind")
    assert sorted(numbers(found)) == [1, 7, 9] and found.groups["rows"] == {"a": 1, "b": 2}
    pool = instdiff.load(ROWS)
    then = instdiff.Then(first=instdiff.ByColumn(path="n"), keep="80%", second=instdiff.Longest())
    scored = instdiff.score(pool, [then], store=tmp_path / "store")["then"]
    assert sorted(numbers(instdiff.select(pool, scored, 2, near_duplicates=0.8))) == [7, 9]


def test_what_per_leaves_out_is_no_better_row(tmp_path: Path) -> None:
    """The second of source a finds no room in it, so the one of source b that is like it stays."""
    rows = [
        {"instruction": "Say it.", "output": text(100), "n": 9, "src": "a"},
        {"instruction": "Say it.", "output": text(0), "n": 8, "src": "a"},
        {"instruction": "Say it!", "output": f"{text(0)} too", "n": 7, "src": "b"},
        {"instruction": "Say it.", "output": text(0), "n": 6, "src": "c"},
        {"instruction": "Say it.", "output": text(0), "n": 5, "src": "b"},
        {"instruction": "Say it.", "output": text(100), "n": 4, "src": "a"},
    ]
    found = chosen(rows, tmp_path, "100%", per="src 1")
    assert numbers(found) == [9, 7]
    assert found.scored.reason.tolist() == [None, None, None, "near_duplicate", None, None]
    assert found.record()["per"] == {
        **{"by": "src", "most": 1, "values": 3, "values_without_a_score": 0, "first_without": []},
        **{"values_with_fewer": 1, "rows_dropped": 3},
    }
    assert numbers(chosen(rows, tmp_path, 2, per="src 1", group_by="src")) == [9, 7]
    assert numbers(chosen(rows, tmp_path, "100%", per="src 2")) == [9, 8], "the others are copies of rows that stay"


def test_no_two_rows_are_near_copies_and_order_does_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = []
    for n in range(60):
        own = text(int(rng.integers(0, 12)) * 40, 40).split()
        for at in rng.integers(0, 40, int(rng.integers(0, 4))):
            own[at] = "changed"
        rows.append({"instruction": "Say it.", "output": " ".join(own), "n": n})
    found = chosen(rows, tmp_path, "100%")
    sets = shingles_of(Vocabulary().column(words(one, "row") for one in found.to_pool().samples()))
    assert all(jaccard(a, b) < 0.8 for at, a in enumerate(sets) for b in sets[:at])
    assert 12 <= len(found) < 60 and numbers(found) == sorted(numbers(found), reverse=True)
    assert numbers(chosen([rows[at] for at in rng.permutation(60)], tmp_path, "100%")) == numbers(found)


def test_it_is_said_of_a_row_that_it_is_a_copy(tmp_path: Path) -> None:
    """Ranks and rooms are those of the rows that stay, not of the scores as they are in the file."""
    pool = instdiff.load([{**ROWS[0], "kind": "b"}, *ROWS[1:]])
    scored = instdiff.score(pool, [instdiff.ByColumn(path="n")], store=tmp_path / "store")["column"]

    def said(budget: str | int, **how: Any) -> list[str]:
        record = instdiff.select(pool, scored, budget, near_duplicates=0.8, **how).record()
        return [place_in_selection(pool, scored, record, at, at)["reason"] for at in range(5)]

    copy = "excluded: it is a near copy of a better row"
    assert said(2) == [
        copy,
        "chosen: rank 1 of 3 (best 33 %) with 9; budget 2 took the best 2, down to 7",
        "chosen: rank 2 of 3 (best 67 %) with 7; budget 2 took the best 2, down to 7",
        "not chosen: rank 3 of 3 (best 1e+02 %) with 1; budget 2 took the best 2, down to 7",
        copy,
    ]
    bound = said("100%", per="kind 2")
    assert [bound[0], bound[4]] == [copy] * 2 and bound[3].startswith("chosen: rank 3 of 3")


def test_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl("rows.jsonl", ROWS)
    how = ("--data", "rows.jsonl", "--method", "column", "--set", "column.path=n", "--output", "s.jsonl")
    ok("select", *how, "--budget", "2", "--near-duplicates", "0.8")
    assert [json.loads(line)["n"] for line in Path("s.jsonl").read_text().splitlines()] == [9, 7]
    assert json.loads(Path("s.selection.json").read_text())["near_duplicates"] == 0.8
    assert "near_duplicates" in cli("select", *how, "--near-duplicates", "1.5").error
    Path("some.txt").write_text("1\n")
    assert "near_duplicates" in cli("select", *how, "--rows", "some.txt", "--near-duplicates", "0.8").error
    with pytest.raises(ConfigError, match=r"such as 0\.8"):
        instdiff.select(instdiff.load(ROWS), instdiff.score(ROWS, "longest"), 1, near_duplicates=0)


def test_the_keys_of_runs() -> None:
    assert build(SelectConfig, {"near_duplicates": 0.7}, "test").near_duplicates == 0.7
    asked = build(PipelineConfig, {"near_duplicates": 0.9, "method": "ifd"}, "test")
    assert asked.select.near_duplicates == 0.9 and asked.select.method == "ifd"
    config = build(
        CompareConfig, {"method": {"ifd": {}, "zip": {"near_duplicates": 0.5}}, "near_duplicates": 0.8}, "test"
    )
    assert {name: one.near_duplicates for name, one in config.lines().items()} == {
        "random": None, "longest": None, "full": None, "ifd": 0.8, "zip": 0.5,
    }  # fmt: skip
    assert Variant().near_duplicates is None
