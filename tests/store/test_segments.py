"""Parts become sorted segments; nothing is lost, doubled or read into memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instdiff.core import Entropy, Nll
from instdiff.core.arrays.ragged import Ragged
from instdiff.store import ColumnId, Store, collect, info
from instdiff.store import column as pieces
from instdiff.store import store as module
from instdiff.store.column import Segment
from instdiff.store.keys import among, first_of_each, halves

COLUMN = ColumnId("model", "float32", Nll())
NUMBER = st.integers(0, 2**128 - 1) | st.integers(0, 5) | st.integers(0, 5).map(lambda n: n << 64)


def keys_of(numbers: list[int]) -> np.ndarray:
    return np.frombuffer(b"".join(n.to_bytes(16, "big") for n in numbers), "S16")


def values_of(numbers: list[int]) -> Ragged:
    return Ragged.of([[float(n % 97)] * (n % 4) for n in numbers], np.float32)


@given(st.lists(NUMBER, unique=True))
@settings(deadline=None)
def test_a_segment_finds_its_keys_and_no_others(numbers: list[int]) -> None:
    segment = Segment.of(keys_of(numbers), values_of(numbers))
    rows = segment.find(halves(keys_of(numbers)))
    for number, row in zip(numbers, rows, strict=True):
        piece = segment.values[segment.offsets[row] : segment.offsets[row + 1]]
        assert piece.tolist() == [float(number % 97)] * (number % 4)
    others = [n for n in (7, 9 << 64, 2**127 + 1) if n not in numbers]
    assert (segment.find(halves(keys_of(others))) == -1).all()


@given(st.lists(NUMBER), st.lists(NUMBER), st.integers(1, 4))
@settings(deadline=None)
def test_which_keys_are_among_others(numbers: list[int], wanted: list[int], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instdiff.store.keys.KEYS_AT_ONCE", at_once)
        found = among(keys_of(numbers), keys_of(wanted))
    assert found.tolist() == [number in wanted for number in numbers]


@given(st.lists(st.integers(0, 12) | NUMBER), st.integers(1, 4))
@settings(deadline=None)
def test_of_equal_keys_the_first_is_taken(numbers: list[int], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instdiff.store.keys.KEYS_AT_ONCE", at_once)
        first = first_of_each(keys_of(numbers))
    assert first.tolist() == [number not in numbers[:at] for at, number in enumerate(numbers)]


@given(st.lists(st.lists(st.integers(0, 60), max_size=12, unique=True), min_size=1, max_size=40))
@settings(deadline=None, max_examples=40)
def test_merging_changes_no_answer(tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]) -> None:
    root = tmp_path_factory.mktemp("store")
    store = Store(root)
    for part in parts:
        store.append(COLUMN, keys_of(part), values_of(part))
        store.compact(COLUMN, least=3)
    have = sorted({n for part in parts for n in part})
    asked = keys_of([*reversed(range(64))])
    for reader in (store, Store(root)):
        assert (~reader.missing(COLUMN, asked)).tolist() == [n in have for n in reversed(range(64))]
        got = reader.read(COLUMN, asked)
        for n, row in zip(reversed(range(64)), range(64), strict=True):
            assert got[row].tolist() == ([float(n % 97)] * (n % 4) if n in have else [])


def test_parts_and_segments_stay_few(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for n in range(400):
        store.append(COLUMN, keys_of([n]), values_of([n]))
        store.compact(COLUMN)
    folder = store.folder(COLUMN)
    assert len(list(folder.glob("*.parquet"))) < pieces.MANY_PARTS
    assert len(list(folder.glob("seg-*"))) < 3 * pieces.FANOUT
    assert not store.missing(COLUMN, keys_of([*range(400)])).any()


def test_a_reader_goes_on_while_another_merges(tmp_path: Path) -> None:
    reader, writer = Store(tmp_path), Store(tmp_path)
    for n in range(40):
        writer.append(COLUMN, keys_of([n]), values_of([n]))
    assert not reader.missing(COLUMN, keys_of([*range(40)])).any()
    writer.compact(COLUMN)
    assert len(list(writer.folder(COLUMN).glob("*.parquet"))) == 0
    assert reader.read(COLUMN, keys_of([3, 39])).values.tolist() == [3.0] * 3 + [39.0] * 3


def test_only_one_process_merges(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for n in range(40):
        store.append(COLUMN, keys_of([n]), values_of([n]))
    with pieces.alone(store.folder(COLUMN) / ".lock") as mine:
        assert mine
        store.compact(COLUMN)
    assert len(list(store.folder(COLUMN).glob("*.parquet"))) == 40


def test_a_merge_that_was_killed_leaves_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the segment was there and before the parts were gone: both are read, nothing is doubled."""
    store = Store(tmp_path)
    for n in range(20):
        store.append(COLUMN, keys_of([n]), values_of([n]))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.compact(COLUMN)
    monkeypatch.undo()
    again = Store(tmp_path)
    assert again.read(COLUMN, keys_of([2, 5])).values.tolist() == [2.0, 2.0, 5.0]
    again.compact(COLUMN)
    assert again.read(COLUMN, keys_of([2, 5])).values.tolist() == [2.0, 2.0, 5.0]
    assert len(list(again.folder(COLUMN).glob("*.parquet"))) == 0


def test_values_beyond_memory_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.append(COLUMN, keys_of([1, 2, 3]), values_of([1, 2, 3]))
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 4)
    got = store.read(COLUMN, keys_of([3, 1]))
    assert isinstance(got.values, np.memmap) and got.values.tolist() == [3.0, 3.0, 3.0, 1.0]
    assert got.mean().tolist() == [3.0, 1.0]


def test_what_the_store_holds_and_what_may_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = ColumnId("other", "float32", Entropy())
    store.append(COLUMN, keys_of([1, 2, 3]), values_of([1, 2, 3]))
    store.append(other, keys_of([1]), values_of([1]))
    os.utime(store.folder(other) / "column.json", (0, 0))
    found = {facts.model: (facts.measure, facts.rows, facts.values) for facts in info(store)}
    assert found == {"model": ("Nll()", 3, 6), "other": ("Entropy()", 1, 1)}
    assert [f.model for f in collect(store, set(), 3600.0, dry=True)] == ["other"]
    assert len(info(store)) == 2
    assert collect(store, {"other"}, 3600.0) == []
    assert [f.model for f in collect(store, {"model"}, None)] == ["other"]
    assert [f.model for f in info(store)] == ["model"]
