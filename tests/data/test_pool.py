from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instdiff.data import Reject, load, write, write_rejects
from instdiff.errors import ConfigError, DataError, StoreError

from .conftest import alpaca_rows

ROWS: list[dict[str, Any]] = [
    {"z": 1.5, "output": "ö 😀\u2028", "instruction": 'a,"b"\r\nc', "meta": {"tags": ["x", None], "n": 2**60}},
    {"instruction": "i", "output": "", "z": None, "meta": None},
    {"output": "o", "instruction": "\t", "z": -0.1, "meta": {"tags": [], "n": 0}},
]


def entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_columns() -> None:
    pool = load(ROWS)
    assert pool.column("z") == [1.5, None, -0.1]
    assert load([ROWS[0], {"instruction": "i", "output": "o"}]).column("meta") == [ROWS[0]["meta"], None]
    with pytest.raises(DataError, match="no row of rows has a column 'meat'; did you mean 'meta'"):
        pool.column("meat")
    assert load(ROWS).take([]).ids == []


def test_take_keeps_order_rows_and_ids() -> None:
    pool = load([{"bad": 1}, *ROWS])
    part = pool.take(np.array([2, 0]))
    assert part.rows.tolist() == [3, 1]
    assert part.ids == [pool.ids[2], pool.ids[0]]
    assert part.source_rows([0, 1]) == [ROWS[2], ROWS[0]]
    assert part.sample(0) == pool.sample(2)
    assert (len(pool.rejected), part.rejected) == (1, ())
    assert part.fingerprint == pool.take([2, 0]).fingerprint != pool.take([0, 2]).fingerprint


def test_a_mask_is_no_list_of_positions() -> None:
    with pytest.raises(TypeError, match="this is a mask"):
        load(ROWS).take(np.array([True, False, True]))


def test_sample_out_of_range() -> None:
    pool = load(ROWS)
    assert pool.sample(-3) == pool.sample(0)
    for i in (3, -4):
        with pytest.raises(IndexError, match=f"sample {i} of a pool of 3"):
            pool.sample(i)


def test_duplicates() -> None:
    assert load(ROWS).n_duplicates == 0
    assert load([*ROWS, ROWS[0], {**ROWS[0], "z": 0}, ROWS[1]]).n_duplicates == 3


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    load(ROWS).write(path, [2, 0, 1])
    again = load(path)
    expected = [ROWS[2], ROWS[0], ROWS[1]]
    assert again.source_rows(range(3)) == expected
    assert again.ids == load(expected).ids
    if suffix != ".parquet":
        assert [list(row) for row in again.source_rows(range(3))] == [list(row) for row in expected]
    assert entries(tmp_path) == [path.name]


def test_round_trip_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    turns = [{"from": "human", "value": 'q\r\n"x"'}, {"from": "gpt", "value": "a"}]
    pool = load([{"conversations": turns, "ok": True, "n": 3}, {"conversations": ["q", "a"], "note": "é"}])
    pool.write(path)
    again = load(path)
    assert again.ids == pool.ids
    assert again.source_rows([0, 1]) == [
        {"conversations": json.dumps(turns), "ok": "true", "n": "3", "note": ""},
        {"conversations": '["q", "a"]', "ok": "", "n": "", "note": "é"},
    ]


def test_jsonl_lines_are_the_input_lines(tmp_path: Path) -> None:
    lines = [
        '{"output":  "o", "instruction":"\\u00e9","score": 1.10, "big": 123456789012345678901}',
        '{"instruction": "é", "output": ""}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pool = load(tmp_path / "in.jsonl")
    pool.to_jsonl(tmp_path / "out.anything")
    assert (tmp_path / "out.anything").read_text(encoding="utf-8").splitlines() == lines
    pool.write(tmp_path / "out.jsonl", [1])
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == lines[1] + "\n"


def test_extra_columns_come_last(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    extra = {"score": np.array([0.25, np.nan]), "z": [np.int64(7), 8], "why": [None, "too_short"]}
    nested = {"tokens": [np.array([1.0, np.inf]), [float("-inf")]]}
    load(ROWS).write(path, np.array([1, 0]), extra)
    first, second, _ = path.read_text(encoding="utf-8").split("\n")
    assert first == '{"instruction": "i", "output": "", "meta": null, "score": 0.25, "z": 7, "why": null}'
    assert list(json.loads(second).items())[-3:] == [("score", None), ("z", 8), ("why", "too_short")]
    load(ROWS).write(tmp_path / "nested.jsonl", [1, 0], nested)
    assert load(tmp_path / "nested.jsonl").column("tokens") == [[1.0, None], [None]]
    load(ROWS).write(tmp_path / "out.parquet", [1, 0], extra)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["instruction", "output", "meta", "score", "z", "why"]
    assert table.column("score").to_pylist() == [0.25, None]
    with pytest.raises(ValueError, match="extra column 'score' has 1 values for 3 rows"):
        load(ROWS).write(path, extra={"score": [1.0]})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=4), min_size=1, max_size=5))
def test_any_metadata_survives(tmp_path_factory: pytest.TempPathFactory, metas: list[dict[str, Any]]) -> None:
    rows = [
        {**meta, "instruction": "i", "output": f"{i}", "input": "", "system": "", "history": None}
        for i, meta in enumerate(metas)
    ]
    path = tmp_path_factory.mktemp("any") / "out.jsonl"
    load(rows, format="alpaca").write(path, extra={"n": list(range(len(rows)))})
    again = load(path, format="alpaca").source_rows(range(len(rows)))
    expected = [{**{k: v for k, v in row.items() if k != "n"}, "n": i} for i, row in enumerate(rows)]
    assert [list(row.items()) for row in again] == [list(row.items()) for row in expected]


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it must end in \.jsonl, \.json, \.parquet, \.csv"):
        load(ROWS).write(tmp_path / "out.xlsx")
    assert entries(tmp_path) == []


def test_parquet_cannot_mix_types(tmp_path: Path) -> None:
    pool = load([{"instruction": "i", "output": "o", "n": 1}, {"instruction": "i", "output": "p", "n": "one"}])
    with pytest.raises(StoreError, match=r"parquet cannot hold column 'n'.*\.jsonl"):
        pool.write(tmp_path / "out.parquet")
    assert entries(tmp_path) == []


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.jsonl").mkdir()
    pool = load(ROWS)
    with pytest.raises(StoreError, match=r"cannot write '.*file/out\.jsonl': .*; nothing was written there"):
        pool.to_jsonl(tmp_path / "file" / "out.jsonl")
    with pytest.raises(StoreError, match=r"cannot write '.*folder\.jsonl': it is a folder"):
        pool.write(tmp_path / "folder.jsonl")
    assert entries(tmp_path) == ["file", "folder.jsonl"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_full_device(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"No space left on device.*Free space"):
        load(alpaca_rows(3000)).write(path)
    assert path.is_symlink()
    assert entries(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write.os, "replace", full)
    with pytest.raises(StoreError, match="No space left on device"):
        load(ROWS).write(path, indices=[1, 2])
    assert path.read_text() == "old"
    assert entries(tmp_path) == [path.name]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def sources() -> Any:
        yield "{}"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write.write_jsonl(tmp_path / "out.jsonl", sources())
    assert entries(tmp_path) == []


def test_folders_are_made_and_links_followed(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a" / "b" / "out.jsonl")
    load(ROWS).write(tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert load(tmp_path / "a" / "b" / "out.jsonl").ids == load(ROWS).ids


def test_write_rejects(tmp_path: Path) -> None:
    write_rejects([Reject("my.jsonl", 3, "bad é", "{")], tmp_path / "rejected.jsonl")
    text = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8")
    assert text == '{"file": "my.jsonl", "line": 3, "reason": "bad é", "text": "{"}\n'


def test_writing_many_rows_in_any_order(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    pool = load(jsonl(alpaca_rows(9000)))
    order = np.random.default_rng(0).permutation(9000)
    pool.write(tmp_path / "out.jsonl", order)
    assert [row["output"] for row in load(tmp_path / "out.jsonl").source_rows(range(9000))] == [str(i) for i in order]


@pytest.mark.parametrize("value", [{}, {"a": {}}, [{}]])
def test_an_empty_object_does_not_fit_into_parquet(value: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "q", "output": "a", "more": value}) + "\n", encoding="utf-8")
    with pytest.raises(StoreError, match="column 'more', where an object is empty"):
        load(rows).write(tmp_path / "out.parquet", [0], {})
    assert not (tmp_path / "out.parquet").exists()
