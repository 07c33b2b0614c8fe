"""Ranking by numbers that are there: in columns of the data, and in files of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instdiff
from instdiff.errors import ConfigError, DataError
from instdiff.methods import Blend, ByColumn, Longest


def pool_of(values: list[Any], **more: Any) -> Any:
    rows = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(len(values))]
    return instdiff.load(
        [row | ({} if value is ... else {"n": value}) | more for row, value in zip(rows, values, strict=True)]
    )


def scored(pool: Any, tmp_path: Path, **params: Any) -> Any:
    return instdiff.score(pool, [ByColumn(**{"path": "n", **params})], store=tmp_path / "store")["column"]


def test_numbers_texts_and_booleans(tmp_path: Path) -> None:
    pool = pool_of([3, "2.5", True, None, ...])
    found = scored(pool, tmp_path)
    np.testing.assert_array_equal(found.value, [3, 2.5, 1, np.nan, np.nan])
    assert found.reason.tolist() == [None, None, None, "no_value", "no_value"]
    assert found.best().tolist() == [0, 1, 2] and scored(pool, tmp_path, order="lowest").best().tolist() == [2, 1, 0]
    assert scored(pool, tmp_path, order="lowest").details["number"].tolist()[:3] == [3, 2.5, 1]


def test_what_is_not_finite_and_what_is_no_number(tmp_path: Path) -> None:
    found = scored(pool_of([1, "nan", "-inf", " ", 10**400]), tmp_path)
    assert found.reason.tolist() == [None, "non_finite", "non_finite", "no_value", "non_finite"]
    with pytest.raises(DataError, match=r"row 1 of .*: 'n' is \[1\], which is no number; name another column"):
        scored(pool_of([1, [1]]), tmp_path)
    with pytest.raises(DataError, match=r"row 0 of .*: 'n' is 'often'"):
        scored(pool_of(["often"]), tmp_path)
    with pytest.raises(DataError, match=r"no row of .* has a column 'm'"):
        scored(pool_of([1]), tmp_path, path="m")
    with pytest.raises(ConfigError, match=r"'column.path' names no column; give --set column.path=COLUMN"):
        scored(pool_of([1]), tmp_path, path="")


def test_dots_lead_into_objects_and_a_key_with_dots_goes_first(tmp_path: Path) -> None:
    pool = instdiff.load([
        {"instruction": "a?", "output": "A.", "__dj__stats__": {"text_len": 7}},
        {"instruction": "b?", "output": "B.", "__dj__stats__": {}},
        {"instruction": "c?", "output": "C.", "__dj__stats__": {"text_len": 1}, "__dj__stats__.text_len": 9},
    ])  # fmt: skip
    found = scored(pool, tmp_path, path="__dj__stats__.text_len")
    np.testing.assert_array_equal(found.value, [7, np.nan, 9])
    assert pool.column("__dj__stats__.text_len") == [7, None, 9]


def written(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def test_a_file_of_scores_is_joined_by_id(tmp_path: Path) -> None:
    records = [{"id": n, "scores": {"Deita": {"score": value}}} for n, value in ((2, 4.5), (0, 1), (0, 1.0), (9, 7))]
    file = written(tmp_path / "pointwise_scores.jsonl", records)
    rows = [{"id": n, "instruction": f"{n}?", "output": f"{n}."} for n in (0, 1, 2)]
    found = scored(instdiff.load(rows), tmp_path, path="scores.Deita.score", file=file)
    np.testing.assert_array_equal(found.value, [1, np.nan, 4.5])
    assert found.reason.tolist() == [None, "no_value", None]
    written(tmp_path / "pointwise_scores.jsonl", [*records, {"id": 2, "scores": {"Deita": {"score": 5}}}])
    with pytest.raises(DataError, match=r"jsonl:5: id '2' has another value at .*jsonl:1; keep one"):
        scored(instdiff.load(rows), tmp_path, path="scores.Deita.score", file=file)
    written(tmp_path / "pointwise_scores.jsonl", records)
    with pytest.raises(DataError, match=r"no record of .* has a value under 'scores.Other.score'; name another"):
        scored(instdiff.load(rows), tmp_path, path="scores.Other.score", file=file)
    with pytest.raises(DataError, match=r"no record of .* has the id of a row of .*; for scores of instdiff write"):
        scored(pool_of([1], id=77), tmp_path, path="scores.Deita.score", file=file)
    with pytest.raises(DataError, match=r"have no column 'id' to join .* by; where lines correspond, give by: line"):
        scored(pool_of([1]), tmp_path, path="scores.Deita.score", file=file)


def test_lines_are_joined_only_where_that_is_said_and_counts_are_equal(tmp_path: Path) -> None:
    file = written(tmp_path / "s.jsonl", [{"score": n} for n in (3, 1, 2)])
    with pytest.raises(DataError, match=r"s.jsonl:1: the record has no 'id' to join it by"):
        scored(pool_of([0, 0, 0], id=1), tmp_path, path="score", file=file)
    assert scored(pool_of([0, 0, 0]), tmp_path, path="score", file=file, by="line").value.tolist() == [3, 1, 2]
    with pytest.raises(DataError, match=r"has 3 records and the data 2 rows"):
        scored(pool_of([0, 0]), tmp_path, path="score", file=file, by="line")
    (tmp_path / "s.jsonl").write_text('{"score": 1}\n{"score"\n{"score": 2}\n')
    with pytest.raises(DataError, match=r"s.jsonl:2: .*; correct the line, or leave it out"):
        scored(pool_of([0, 0, 0]), tmp_path, path="score", file=file, by="line")


def test_our_own_scores_keep_their_reasons(tmp_path: Path) -> None:
    pool = pool_of([5, None, 7])
    instdiff.score(pool, [ByColumn(path="n")], store=tmp_path / "store").write(tmp_path / "one.parquet")
    found = scored(pool.take([2, 1, 0]), tmp_path, path="", file=f"{tmp_path}/one.parquet:column")
    np.testing.assert_array_equal(found.value, [7, np.nan, 5])
    assert found.reason.tolist() == [None, "no_value", None]


def test_each_copy_has_the_score_of_its_own(tmp_path: Path) -> None:
    pool = pool_of([5, 6, 5, 5])  # the first, third and fourth are equal
    own = instdiff.score(pool, ["random"], store=tmp_path / "store")
    own.write(tmp_path / "one.parquet")
    found = scored(pool, tmp_path, path="", file=f"{tmp_path}/one.parquet:random")
    assert found.value.tolist() == own["random"].value.tolist() and len(set(found.value)) == 4


def test_it_goes_with_other_methods(tmp_path: Path) -> None:
    pool = pool_of([1, 5, 3])
    both = Blend(of=(ByColumn(path="n"), Longest(unit="chars", direction="min")))
    scores = instdiff.score(pool, [both], store=tmp_path / "store")
    chosen = instdiff.select(pool, scores, 2)
    assert [row["n"] for row in chosen.to_pandas().to_dict("records")] == [5, 3]


@given(st.permutations(range(6)))
def test_the_order_of_rows_changes_nothing(order: list[int]) -> None:
    pool = pool_of([2, 2, 1, None, 5, 2])
    one = instdiff.score(pool, [ByColumn(path="n")])["column"]
    other = instdiff.score(pool.take(order), [ByColumn(path="n")])["column"]
    assert [order[at] for at in other.best()] == one.best().tolist()
