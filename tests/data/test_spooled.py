"""A pool that lies in a file is the same as one in memory."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core.arrays import spill as spool
from instdiff.data import Pool, load, write
from instdiff.data import arrow as batches
from instdiff.errors import DataError, StoreError

ROWS: list[dict[str, Any]] = [
    {"instruction": f"q{i}", "output": "é" * (i % 7), "n": i, **({"tag": "x"} if i % 3 else {})} for i in range(60)
]
BAD = {"nothing": 1}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Everything is spooled and worked on in small pieces; the folder of the temporary files."""
    folder = tmp_path / "aside"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 2000)
    monkeypatch.setattr(batches, "_ROWS", 7)
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 11)
    monkeypatch.setattr(write, "ROWS_AT_ONCE", 9)
    return folder


def same(a: Pool, b: Pool) -> None:
    assert a.table.to_pylist() == b.table.to_pylist()
    assert (a.ids, a.rows.tolist(), a.fingerprint, a.n_duplicates) == (
        b.ids,
        b.rows.tolist(),
        b.fingerprint,
        b.n_duplicates,
    )
    assert list(a.samples()) == list(b.samples()) and list(a.samples(5, -3)) == list(b.samples(5, -3))
    assert a.rejected == b.rejected


MEMORY = load([*ROWS[:30], BAD, *ROWS[30:], ROWS[0]])


def test_the_same_pool(small: Path) -> None:
    before = pa.total_allocated_bytes()
    pool = load([*ROWS[:30], BAD, *ROWS[30:], ROWS[0]])
    assert pa.total_allocated_bytes() - before < 2000  # the table is mapped
    assert len(pool.rejected) == 1 and pool.n_duplicates == 1
    same(pool, MEMORY)
    assert pool.column("tag") == MEMORY.column("tag")
    assert pool.sample(-1) == MEMORY.sample(0)
    assert list(small.iterdir()) == []


@given(at=st.lists(st.integers(0, 60), max_size=70))
def test_taking_any_rows(at: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY_BYTES", 2000)
        patch.setattr(batches, "_ROWS", 7)
        patch.setattr(batches, "ROWS_AT_ONCE", 11)
        pool = load([*ROWS[:30], BAD, *ROWS[30:], ROWS[0]])
        part = pool.take(at)
    assert part.table.to_pylist() == [MEMORY.table.to_pylist()[i] for i in at]
    assert part.source_rows(range(len(at))) == pool.source_rows(at) == MEMORY.source_rows(at)


def test_a_run_of_rows_is_not_copied() -> None:
    before = pa.total_allocated_bytes()
    part = MEMORY.take(range(10, 40))
    assert pa.total_allocated_bytes() == before and part.ids == MEMORY.ids[10:40]


@pytest.mark.parametrize("at", [[61], [-1], [0, 99, 5]])
def test_no_such_row(at: list[int]) -> None:
    with pytest.raises(IndexError, match="of 61 rows"):
        MEMORY.take(at)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_the_same_output(small: Path, tmp_path: Path, suffix: str) -> None:
    pool = load([*ROWS[:30], BAD, *ROWS[30:], ROWS[0]])
    at = np.random.default_rng(0).permutation(len(pool))
    extra: dict[str, Any] = {"score": np.linspace(0, 1, len(pool))}
    pool.write(tmp_path / f"spooled{suffix}", at, extra)
    MEMORY.write(tmp_path / f"memory{suffix}", at, extra)
    if suffix == ".parquet":
        table = pq.read_table(tmp_path / "spooled.parquet")
        assert table.to_pylist() == [
            {**dict.fromkeys(("tag",)), **row, "score": score}
            for row, score in zip(MEMORY.source_rows(at), extra["score"], strict=True)
        ]
    else:
        assert (tmp_path / f"spooled{suffix}").read_bytes() == (tmp_path / f"memory{suffix}").read_bytes()


MIXED = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=2)
VALUES = st.one_of(
    st.lists(MIXED, min_size=1, max_size=8),
    st.lists(st.none() | st.integers(-9, 9) | st.floats(-9, 9), min_size=1, max_size=8),
    st.lists(st.none() | st.lists(st.none() | st.integers(0, 3), max_size=2), min_size=1, max_size=8),
    st.lists(st.none() | st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), min_size=1), min_size=1, max_size=8),
)


@given(values=VALUES, at_once=st.integers(1, 4))
def test_parquet_types_do_not_depend_on_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("types")
    pool = load([{"instruction": "i", "output": "o", "n": value} for value in values])

    def written(name: str) -> pa.Table | str:
        try:
            pool.write(folder / name)
        except StoreError as error:
            return str(error).split("(")[0]
        return pq.read_table(folder / name)

    whole = written("whole.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "ROWS_AT_ONCE", at_once)
        pieces = written("pieces.parquet")
    if isinstance(whole, str) or isinstance(pieces, str):
        assert pieces == whole
    else:
        assert pieces.to_pylist() == whole.to_pylist()
        assert {f.name: f.type for f in pieces.schema}.keys() == {f.name: f.type for f in whole.schema}.keys()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.BufferedWriter(io.FileIO("/dev/full", "w"), 16))
    with pytest.raises(StoreError, match=r"cannot write temporary data to '.*': No space left on device"):
        load(ROWS)


def test_an_error_leaves_no_file(small: Path, jsonl: Callable[..., Path]) -> None:
    path = jsonl([*ROWS, *[BAD] * 80])
    with pytest.raises(DataError, match="more than half"):
        load(path)
    assert list(small.iterdir()) == []


def test_a_parquet_file_is_read_in_pieces(small: Path, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "in.parquet", row_group_size=len(ROWS))
    pool = load(tmp_path / "in.parquet")
    assert [json.loads(json.dumps(row))["n"] for row in pool.source_rows(range(60))] == list(range(60))
