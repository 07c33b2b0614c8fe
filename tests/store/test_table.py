"""The score table as a file, in all three formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers import Lab, some_rows
from instdiff.data import load
from instdiff.errors import DataError, StoreError
from instdiff.methods import IFD, InstructDiff, Perplexity, Random
from instdiff.scoring.scorer import score
from instdiff.scoring.table import ScoreTable, read_scores, sidecar

from .test_sums import FLIPS, flips

ROWS = [*some_rows(8), {"instruction": "a", "input": "", "output": ""}]


@pytest.fixture(scope="module")
def table(lab: Lab) -> ScoreTable:
    return lab.score(ROWS, [InstructDiff(nll_reject_ratio=0.2), IFD(ratio="loss"), Perplexity()])


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_what_is_written_is_read(table: ScoreTable, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scores.{ending}"
    table.write(path)
    again = read_scores(path)
    assert again.ids == table.ids and len(again) == len(ROWS) and list(again) == ["instructdiff", "ifd", "perplexity"]
    np.testing.assert_array_equal(again.rows, table.rows)
    np.testing.assert_array_equal(again.n_tokens, table.n_tokens)
    np.testing.assert_array_equal(again.truncated, table.truncated)
    assert again.meta == table.meta
    for name in table:
        assert again[name].method == table[name].method
        np.testing.assert_array_equal(again[name].value, table[name].value)  # to the last bit
        assert again[name].reason.tolist() == table[name].reason.tolist()
        assert again[name].details.keys() == table[name].details.keys()
        for detail, values in table[name].details.items():
            np.testing.assert_array_equal(again[name].details[detail], values)
        assert again[name].best().tolist() == table[name].best().tolist()


def test_columns_and_nulls(table: ScoreTable, tmp_path: Path) -> None:
    table.write(tmp_path / "scores.parquet")
    arrow = pq.read_table(tmp_path / "scores.parquet")
    pair = ["nll", "entropy"]
    assert arrow.column_names == [
        *("row", "id", "n_tokens", "truncated", "instructdiff", "instructdiff.why"),
        *(f"instructdiff.{role}_{name}" for role in ("base", "calibrated") for name in pair),
        *(f"instructdiff.diff_{name}" for name in pair),
        *("ifd", "ifd.why", "ifd.ifd", "ifd.nll_given", "ifd.nll_alone"),
        *("perplexity", "perplexity.why", "perplexity.nll"),
    ]
    assert arrow["row"].to_pylist() == list(range(9))
    last = {name: arrow[name][8].as_py() for name in arrow.column_names}
    assert {name: value for name, value in last.items() if value is not None} == {
        **{"row": 8, "id": table.ids[8], "n_tokens": 0, "truncated": False},
        **{f"{name}.why": "empty_response" for name in table},
    }
    for name in ("instructdiff", "ifd", "perplexity"):
        column, reason = arrow[name].to_pylist(), arrow[f"{name}.why"].to_pylist()
        assert [value is None for value in column] == [word is not None for word in reason]
    assert table.reasons()["instructdiff"] == {"empty_response": 1, "filtered": 2}


def test_text_tables_have_the_same_columns_and_plain_nulls(table: ScoreTable, tmp_path: Path) -> None:
    table.write(tmp_path / "scores.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [table.to_arrow().column_names] * 9
    assert rows == table.to_arrow().to_pylist()
    assert rows[8]["perplexity"] is None
    meta = json.loads((tmp_path / "scores.jsonl.meta.json").read_text())
    shown = {"targets": "all", "reasoning": "learn", "system": "keep", "template_date": "2024-07-26"}
    assert meta["settings"] == {"dtype": "float32", "max_length": 200, **shown}
    assert meta["methods"]["ifd"]["params"]["ratio"] == "loss"


def test_a_long_text_table(tmp_path: Path) -> None:
    """Longer than what the reader looks at at once, with a column that is null at first."""
    rows = [{"instruction": f"{i}", "output": "" if i == 29_999 else f"{i}"} for i in range(30_000)]
    table = score(load(rows), [Random()])
    for ending in ("jsonl", "csv"):
        table.write(tmp_path / f"s.{ending}")
        again = read_scores(tmp_path / f"s.{ending}")
        assert again.n_tokens.tolist() == [-1] * 30_000
        np.testing.assert_array_equal(again["random"].value, table["random"].value)
        assert again["random"].reason.tolist() == [None] * 29_999 + ["empty_response"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_no_flipped_bit_of_a_score_file_passes(table: ScoreTable, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"s.{ending}"
    table.write(path)
    for file in [path] if ending == "parquet" else [path, sidecar(path)]:
        raw, named = file.read_bytes(), 0
        for damaged in flips(raw, FLIPS):
            file.write_bytes(damaged)
            try:
                again = read_scores(path)
            except StoreError as error:
                assert f"'{path}'" in str(error)
                named += 1
                continue
            assert again.ids == table.ids and again.rows.tolist() == table.rows.tolist()
            assert {k: v for k, v in again.meta.items() if k in table.meta} == table.meta
            for name in table:
                np.testing.assert_array_equal(again[name].value, table[name].value)
                assert again[name].reason.tolist() == table[name].reason.tolist()
        file.write_bytes(raw)
        assert named > FLIPS // 2


@pytest.mark.slow
def test_none_of_a_thousand_flipped_bits_of_a_score_file_passes(table: ScoreTable, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    table.write(path)
    for damaged in flips(path.read_bytes(), 1000, seed=1):
        path.write_bytes(damaged)
        try:
            again = read_scores(path)
        except StoreError:
            continue
        assert again.to_arrow().equals(table.to_arrow(), check_metadata=True)


def test_a_table_that_was_edited_says_how_it_is_read(table: ScoreTable, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    table.write(path)
    path.write_text(path.read_text().replace("empty_response", "too_short"))
    with pytest.raises(StoreError, match=r"changed since it was written; if that was you, delete 'crc32 of the rows' "):
        read_scores(path)
    meta = json.loads(sidecar(path).read_text())
    sidecar(path).write_text(json.dumps({k: v for k, v in meta.items() if not k.startswith("crc32")}))
    assert read_scores(path)["ifd"].reason[8] == "too_short"


def test_errors(table: ScoreTable, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"scores go to \.parquet, \.jsonl or \.csv, not to '.*scores\.txt'"):
        table.write(tmp_path / "scores.txt")
    with pytest.raises(StoreError, match=r"cannot read scores '.*none\.parquet': no such file"):
        read_scores(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"cannot read scores '.*bad\.parquet'"):
        read_scores(tmp_path / "bad.parquet")
    import pyarrow as pa

    pq.write_table(pa.table({"row": [1], "id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="is no score file of instdiff: it lacks n_tokens, truncated"):
        read_scores(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="these scores have no method 'idf'; did you mean 'ifd'"):
        table["idf"]
