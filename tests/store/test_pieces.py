"""The files of a column: merged by size, few, whole after a kill, shared by processes, dropped when nobody looks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from instdiff.core import Nll
from instdiff.core.arrays.ragged import Ragged
from instdiff.store import ColumnId, Keys, Store, collect, info
from instdiff.store import column as pieces
from instdiff.store import store as module

COLUMN = ColumnId("weights", "float32", Nll())


def keys_of(numbers: list[int]) -> Keys:
    """Spread like hashes; a few share their first half."""
    raw = b"".join((n // 3 * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + n.to_bytes(8, "big") for n in numbers)
    return np.frombuffer(raw, "S16")


def values_of(numbers: list[int]) -> Ragged:
    return Ragged.of([[float(n)] * (n % 4) for n in numbers], np.float32)


def add(store: Store, numbers: list[int]) -> None:
    store.append(COLUMN, keys_of(numbers), values_of(numbers))


def check(store: Store, have: set[int], most: int) -> None:
    asked = [*range(most), 3, 3]
    assert (~store.missing(COLUMN, keys_of(asked))).tolist() == [n in have for n in asked]
    got = store.read(COLUMN, keys_of(asked))
    assert [got[i].tolist() for i in range(len(asked))] == [[float(n)] * (n % 4) * (n in have) for n in asked]


def segments(store: Store) -> list[str]:
    return [name for name in pieces.names(store.folder(COLUMN)) if name.startswith("seg-")]


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every merge."""
    rows: list[int] = []
    merge = pieces.merge

    def counting(*args: Any) -> int:
        rows.append(merge(*args))
        return rows[-1]

    monkeypatch.setattr(pieces, "merge", counting)
    return rows


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_is_rewritten_as_often_as_the_logarithm(tmp_path: Path, merged: list[int]) -> None:
    store, rows, most = Store(tmp_path), 6000, 0
    for n in range(0, rows, 2):
        add(store, [n, n + 1])
        if n % 32 == 30:
            store.compact(COLUMN)
            most = max(most, len(pieces.names(store.folder(COLUMN))))
    tiers = math.log(rows / 32, pieces.FANOUT)
    assert sum(merged) <= rows * (1 + math.ceil(tiers))
    assert most < pieces.MANY_PARTS + pieces.FANOUT * (1 + math.ceil(tiers))
    check(store, set(range(rows)), rows + 9)
    check(Store(tmp_path), set(range(rows)), rows + 9)


def test_ranges_of_any_size_merge_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sources = []
    for size in (1, 7, 60, 200, 0):
        some = rng.choice(300, size, replace=False).tolist()
        sources.append(pieces.Segment.of(keys_of(some), values_of(some)))
    pieces.merge(sources, tmp_path / "whole")
    whole = pieces.Segment.open(tmp_path / "whole")
    for rows, values in ((1, 1), (5, 1000), (64, 16)):
        monkeypatch.setattr(pieces, "ROWS_AT_ONCE", rows)
        monkeypatch.setattr(pieces, "VALUES_AT_ONCE", values)
        assert pieces.merge(sources, tmp_path / "again") == len(whole)
        again = pieces.Segment.open(tmp_path / "again")
        for name in pieces.FILES:
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_merging_holds_a_bounded_piece(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((8000, 100), np.float32)
    for number in range(2):
        source = pieces.Segment.of(keys_of(list(range(number, 8000, 2))), Ragged.of(values[number::2], np.float32))
        pieces.merge([source], tmp_path / f"source{number}")
    sources = [pieces.Segment.open(tmp_path / f"source{number}") for number in range(2)]
    tracemalloc.start()
    pieces.merge(sources, tmp_path / "whole")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < values.nbytes
    found = pieces.Segment.open(tmp_path / "whole")
    assert len(found) == 8000 and len(found.values) == values.size


def test_of_equal_keys_the_first_value_stays(tmp_path: Path) -> None:
    numbers = list(range(50))
    sources = [pieces.Segment.of(keys_of(numbers), Ragged.of([[v]] * 50, np.float32)) for v in (1.0, 2.0, 3.0)]
    assert pieces.merge(sources, tmp_path / "s") == 50
    assert set(pieces.Segment.open(tmp_path / "s").values) == {1.0}


@pytest.mark.parametrize("bytes_", [0, 77, 1 << 20])
def test_lookups_and_copies_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_: int) -> None:
    monkeypatch.setattr(pieces, "KEYS_AT_ONCE", 5)
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", bytes_)
    store = Store(tmp_path)
    for n in range(0, 80, 2):
        add(store, [n])
        if n % 30 == 0:
            store.compact(COLUMN, least=2)
    check(store, set(range(0, 80, 2)), 80)


def test_a_rows_cost(tmp_path: Path) -> None:
    """24 bytes and 4 for each value."""
    store = Store(tmp_path)
    for start in range(0, 20_000, 1000):
        numbers = list(range(start, start + 1000))
        store.append(COLUMN, keys_of(numbers), Ragged(np.ones(5000, np.float32), np.arange(0, 5001, 5)))
    store.compact(COLUMN)
    (facts,) = info(store)
    assert (facts.rows, facts.values) == (20_000, 100_000)
    assert 44 <= facts.bytes / facts.rows < 45


# ── a long run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_opened_or_listed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Store(tmp_path)
    for n in range(20):
        add(writer, [n])
    opened, listed = [], []
    read, names = pieces._read_part, pieces.names
    monkeypatch.setattr(pieces, "SETTLED_NS", 0)
    monkeypatch.setattr(pieces, "_read_part", lambda path: (opened.append(path), read(path))[1])
    monkeypatch.setattr(pieces, "names", lambda folder: (listed.append(folder), names(folder))[1])
    reader = Store(tmp_path)
    for _ in range(5):
        assert not reader.missing(COLUMN, keys_of([*range(20)])).any()
    assert (len(opened), len(listed)) == (20, 1)
    add(writer, [20])
    assert not reader.missing(COLUMN, keys_of([*range(21)])).any()
    assert (len(opened), len(listed)) == (21, 2)


def test_what_is_gone_is_closed(tmp_path: Path) -> None:
    writer, reader = Store(tmp_path), Store(tmp_path)
    for n in range(3000):
        add(writer, [n])
        if n % 16 == 15:
            writer.compact(COLUMN)
            reader.missing(COLUMN, keys_of([n]))
    for store in (writer, reader):
        assert len(store._pieces(COLUMN)._open) < pieces.MANY_PARTS + 4 * pieces.FANOUT


# ── a kill ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    pass


def killed(*args: Any) -> None:
    raise Killed


@pytest.mark.parametrize("level", ["parts", "segments"])
@pytest.mark.parametrize("when", ["built", "half removed"])
def test_a_kill_between_merge_and_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, when: str
) -> None:
    store = Store(tmp_path)
    rounds = pieces.FANOUT if level == "segments" else 1
    for number in range(rounds):
        for n in range(number * 20, number * 20 + 20):
            add(store, [n])
        if number < rounds - 1:
            store.compact(COLUMN)
    remove, left = pieces._remove, [0 if when == "built" else 5]
    if level == "segments":
        left[0] += 20

    def removing(path: Path) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        remove(path)

    have = set(range(20 * rounds))
    monkeypatch.setattr(pieces, "_remove", removing)
    with pytest.raises(Killed):
        store.compact(COLUMN)
    monkeypatch.setattr(pieces, "_remove", remove)
    assert segments(store)
    check(Store(tmp_path), have, 200)
    check(store, have, 200)
    again = Store(tmp_path)
    add(again, [190])  # the next merge is of other sources
    again.compact(COLUMN, least=1)
    check(again, have | {190}, 200)
    assert info(again)[0].rows == len(have) + 1


def test_leftovers_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    add(store, [1])
    folder = store.folder(COLUMN)
    (folder / ".seg-abc.partial").mkdir()
    (folder / ".ab.parquet.99.partial").write_bytes(b"half")
    store.compact(COLUMN)
    assert not (folder / ".seg-abc.partial").exists() and (folder / ".ab.parquet.99.partial").exists()
    monkeypatch.setattr(pieces, "ABANDONED_S", -1.0)
    store.compact(COLUMN)
    assert not (folder / ".ab.parquet.99.partial").exists()


def test_a_damaged_segment_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for damage in ("cut", "gone"):
        store = Store(tmp_path / damage)
        add(store, [1, 2])
        store.compact(COLUMN, least=1)
        (name,) = segments(store)
        path = store.folder(COLUMN) / name
        if damage == "cut":
            (path / "values.npy").write_bytes((path / "values.npy").read_bytes()[:100])
        else:
            (path / "values.npy").unlink()
            monkeypatch.setattr(pieces, "ABANDONED_S", -1.0)
        again = Store(tmp_path / damage, log=said.append)
        assert again.missing(COLUMN, keys_of([1, 2])).all()
        assert path.with_name(f"{name}.damaged").is_dir() and segments(again) == []
        add(again, [1, 2])
        check(again, {1, 2}, 4)
        check(Store(tmp_path / damage), {1, 2}, 4)
    cut, gone = said
    assert "store segment" in cut and name in cut and "is damaged (" in cut
    assert cut.endswith(f"; it is set aside as '{name}.damaged', and its rows are computed again")
    assert "lacks a file; it is set aside" in gone


# ── several processes ─────────────────────────────────────────────────────────────────────────────────────────────────

WRITER = """
import sys
from store.test_pieces import COLUMN, add, keys_of
from instdiff.store import Store

store, first = Store(sys.argv[1]), int(sys.argv[2])
for n in range(first, first + 600, 2):
    add(store, [n, n + 1])
    if n % 10 == 0:
        store.compact(COLUMN, least=3)
        # what this process wrote is there, whatever the other one is merging
        assert not store.missing(COLUMN, keys_of([*range(first, n + 2)])).any()
"""


def test_two_processes_append_and_merge_at_once(tmp_path: Path) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{WRITER}", str(tmp_path)]
    writers = [subprocess.Popen([*run, first]) for first in ("0", "400")]
    assert [writer.wait() for writer in writers] == [0, 0]
    store = Store(tmp_path)
    check(store, set(range(1000)), 1010)
    store.compact(COLUMN, least=1)
    assert len(pieces.names(store.folder(COLUMN))) < 5 * pieces.FANOUT
    assert 1000 <= info(store)[0].rows <= 1200


# ── info and gc ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_info_reads_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    add(store, [0, 1, 2, 3])
    store.compact(COLUMN, least=1)
    add(store, [0, 4, 8, 7])
    part = next(store.folder(COLUMN).glob("*.parquet"))
    start = pq.read_metadata(part).row_group(0).column(0).data_page_offset
    raw = bytearray(part.read_bytes())
    raw[start : start + 40] = b"\xff" * 40
    part.write_bytes(raw)
    monkeypatch.setattr(pieces, "_read_part", killed)
    assert [(facts.rows, facts.values) for facts in info(Store(tmp_path))] == [(8, 6 + 3)]


def test_gc_leaves_what_somebody_uses(tmp_path: Path) -> None:
    writer, reader = Store(tmp_path), Store(tmp_path)
    add(writer, [1, 2])
    assert collect(Store(tmp_path), set(), None) == []
    assert not reader.missing(COLUMN, keys_of([1, 2])).any()
    del writer
    assert collect(Store(tmp_path), set(), 0.0) == []
    check(reader, {1, 2}, 5)
    assert len(collect(reader, set(), None, dry=True)) == 1
    check(reader, {1, 2}, 5)
    assert len(collect(reader, set(), None)) == 1  # its own
    assert reader.missing(COLUMN, keys_of([1])).all() and not (tmp_path / "trash").exists()
    add(reader, [3])
    check(Store(tmp_path), {3}, 5)
    assert json.loads((reader.folder(COLUMN) / "column.json").read_text())["model"] == "weights"


def test_a_writer_goes_on_where_its_column_was_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, [1])
    pieces.shutil.rmtree(store.folder(COLUMN))
    assert store.missing(COLUMN, keys_of([1])).all()
    store.compact(COLUMN)
    add(store, [2])
    check(store, {2}, 5)
    assert len(info(store)) == 1


@pytest.mark.parametrize("off_s", [-7200, 7200])
def test_clocks_that_disagree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: int) -> None:
    """This machine's clock is two hours off the shared folder's: nothing is lost, doubled, or taken from another."""
    here, there, real, real_ns = Store(tmp_path), Store(tmp_path), time.time, time.time_ns
    add(here, [0])
    under_way = here.folder(COLUMN) / ".other.parquet.1.partial"
    under_way.write_bytes(b"")
    monkeypatch.setattr(pieces.time, "time", lambda: real() + off_s)
    monkeypatch.setattr(pieces.time, "time_ns", lambda: real_ns() + off_s * 10**9)
    for number in range(1, 24):
        add(here if number % 2 else there, [number])
        if number % 5 == 0:
            (here if number % 10 else there).compact(COLUMN, least=3)
    for store in (here, there, Store(tmp_path)):
        check(store, set(range(24)), 30)
    here.compact(COLUMN, least=1)
    assert under_way.exists() and info(Store(tmp_path))[0].rows == 24


def test_appending_counts_as_use(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, [1])
    module.os.utime(store.folder(COLUMN) / "column.json", (0, 0))
    add(store, [2])
    assert info(store)[0].used > 1e9


# ── like a dict ───────────────────────────────────────────────────────────────────────────────────────────────────────


class LikeADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.stores = [Store(self.home.name), Store(self.home.name)]
        self.have: set[int] = set()

    def teardown(self) -> None:
        self.home.cleanup()

    @rule(which=st.integers(0, 1), numbers=st.lists(st.integers(0, 60), max_size=8, unique=True))
    def append(self, which: int, numbers: list[int]) -> None:
        add(self.stores[which], numbers)
        self.have |= set(numbers)

    @rule(which=st.integers(0, 1), least=st.integers(1, 4))
    def compact(self, which: int, least: int) -> None:
        self.stores[which].compact(COLUMN, least)

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        self.stores[which] = Store(self.home.name)

    @rule()
    def drop(self) -> None:
        self.stores[0] = Store(self.home.name)
        if collect(self.stores[1], set(), None):
            self.have = set()

    @invariant()
    def same(self) -> None:
        for store in self.stores:
            check(store, self.have, 62)


LikeADict.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
test_like_a_dict = LikeADict.TestCase
