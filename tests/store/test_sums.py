"""A flipped bit is found: in every file of a store, in a score file, in rows that are written as parquet."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from disk import forgetful
from instdiff.core.sums import check_parquet, seal_parquet
from instdiff.errors import StoreError
from instdiff.scoring.sharding.shard_file import join, write_shard
from instdiff.store import Store, column, info
from instdiff.store.column import FILES
from instdiff.store.parquet import reading_parquet, writing_parquet

from .test_pieces import COLUMN, add, keys_of, segments, values_of

FLIPS = 150


def flips(raw: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The bytes with one bit flipped, at so many places; the last bytes of a file are among them."""
    draw = random.Random(seed)
    tail = range(max(0, len(raw) * 8 - 64), len(raw) * 8)
    for bit in [*draw.sample(range(len(raw) * 8), min(count, len(raw) * 8)), *tail]:
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Keys 0 to 59 in a segment, 60 to 69 in a part."""
    store = Store(tmp_path / "store")
    for start in range(0, 60, 20):
        add(store, [*range(start, start + 20)])
    store.compact(COLUMN, least=1)
    add(store, [*range(60, 70)])
    return store


def piece(store: Store, name: str) -> Path:
    folder = store.folder(COLUMN)
    return next(folder.glob("*.parquet")) if name == "part" else folder / segments(store)[0] / name


def believed(store: Store, said: list[str]) -> bool:
    """Whether what the store gives is right: a value is the one that was added, or missing and said to be."""
    keys, wanted = keys_of([*range(70)]), values_of([*range(70)])
    lost = store.missing(COLUMN, keys)
    got = store.read(COLUMN, keys)
    right = all(lost[n] or got[n].tolist() == wanted[n].tolist() for n in range(70))
    return right and (not lost.any() or bool(said))


def survive(store: Store, name: str, count: int) -> int:
    """How many of the flips took a piece out of use."""
    path, aside = piece(store, name), 0
    raw, home = path.read_bytes(), store.folder(COLUMN)
    kept = home.with_name("kept")
    shutil.copytree(home, kept)
    for damaged in flips(raw, count):
        path.write_bytes(damaged)
        said: list[str] = []
        again = Store(store.root, log=said.append)
        info(again)
        assert believed(again, said)
        again.compact(COLUMN, least=1)
        assert believed(again, said) and believed(Store(store.root, log=said.append), said)
        aside += bool(said)
        shutil.rmtree(home)
        shutil.copytree(kept, home)
    return aside


STORED = ["part", *(f"{name}.npy" for name in FILES), "sources.json"]


@pytest.mark.parametrize("name", STORED)
def test_no_flipped_bit_of_a_store_passes(store: Store, name: str) -> None:
    aside = survive(store, name, FLIPS)
    assert aside > (0 if name == "sources.json" else FLIPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_none_of_a_thousand_flipped_bits_of_a_store_passes(store: Store, name: str) -> None:
    survive(store, name, 1000)


def test_zeros_at_the_end_of_values_are_found(store: Store) -> None:
    path = piece(store, "values.npy")
    raw = path.read_bytes()
    path.write_bytes(raw[:-20] + bytes(20))
    said: list[str] = []
    assert Store(store.root, log=said.append).missing(COLUMN, keys_of([1])).all() and len(said) == 1


def test_a_segment_without_sums_is_read(store: Store) -> None:
    """As an earlier version wrote it."""
    folder = piece(store, "values.npy").parent
    for name in FILES:
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy"))
    said: list[str] = []
    assert believed(Store(store.root, log=said.append), said) and not said


def test_sources_whose_damage_is_not_seen_cost_nothing(store: Store) -> None:
    """The index of a segment is set aside alone: the segment has sums of its own."""
    path = piece(store, "sources.json")
    path.write_bytes(b"")
    said: list[str] = []
    again = Store(store.root, log=said.append)
    add(again, [70])
    again.compact(COLUMN, least=1)
    assert not again.missing(COLUMN, keys_of([*range(71)])).any()
    (line,) = said
    assert line.startswith(f"warning: store index '{path}' is damaged (")
    assert line.endswith("it is set aside as 'sources.json.damaged'")


@pytest.mark.parametrize("early", [False, True])
def test_a_power_cut_at_any_moment_leaves_a_whole_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """Whatever of parts and merged segments reached the disk: what is there is right, and what was merged is there."""
    disk = forgetful(tmp_path, monkeypatch)
    monkeypatch.setattr(column, "SYNC_EVERY_S", 0.0)
    store, cuts, fsync, replace = Store(disk.root, log=print), [], os.fsync, os.replace

    def look() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle: None)
            patch.setattr(os, "replace", replace)
            left = Store(disk.cut(tmp_path / "cut", early=early), log=lambda line: None)
            info(left)
            lost = left.missing(COLUMN, keys_of([*range(12)]))
            got, wanted = left.read(COLUMN, keys_of([*range(12)])), values_of([*range(12)])
            assert all(lost[n] or got[n].tolist() == wanted[n].tolist() for n in range(12))
            cuts.append(12 - int(lost.sum()))

    monkeypatch.setattr(os, "fsync", lambda handle: (look(), fsync(handle), look()))
    monkeypatch.setattr(os, "replace", lambda a, b: (look(), replace(a, b), look()))
    for start in range(0, 12, 3):
        add(store, [*range(start, start + 3)])
        assert cuts[-1] == start + 3
        if start % 2:
            store.compact(COLUMN, least=1)
    assert cuts == sorted(cuts) and cuts[-1] == 12


# ── parquet ───────────────────────────────────────────────────────────────────────────────────────────────────────────

TABLE = pa.table({"a": [*range(300)], "b": [f"word {n % 7}" for n in range(300)]}, metadata={"k": "v"})


def whole(path: Path) -> pa.Table:
    with reading_parquet(path) as file:
        return file.read()


def by_pages(path: Path) -> pa.Table:
    with reading_parquet(path, whole=False) as file:
        return file.read()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with writing_parquet(tmp_path / "t.parquet", TABLE.schema, compression="zstd") as file:
        file.write_table(TABLE)
    return tmp_path / "t.parquet"


def test_other_readers_read_a_file_with_sums(written: Path) -> None:
    assert pq.read_table(written, page_checksum_verification=True).equals(TABLE)
    assert whole(written).equals(TABLE) and whole(written).schema.metadata == {b"k": b"v"}
    pq.write_table(TABLE, written)
    assert whole(written).equals(TABLE)  # another program's has none


@pytest.mark.parametrize("read", [whole, by_pages])
def test_a_flipped_bit_of_a_parquet_file_is_named(written: Path, read: Callable[[Path], pa.Table]) -> None:
    raw, named = written.read_bytes(), 0
    for damaged in flips(raw, FLIPS):
        written.write_bytes(damaged)
        try:
            assert read(written).equals(TABLE)
        except (ValueError, OSError, pa.ArrowException):
            named += 1
    assert named > FLIPS * 0.8


def test_no_flipped_bit_of_a_shard_file_passes(store: Store, tmp_path: Path) -> None:
    path, keys = tmp_path / "shard-00000-of-00001.wave-1.parquet", keys_of([*range(70)])
    write_shard(path, {"about": {"seed": 1}}, {COLUMN: keys}, store)
    raw, named = path.read_bytes(), 0
    for number, damaged in enumerate(flips(raw, FLIPS)):
        path.write_bytes(damaged)
        into = Store(tmp_path / f"into{number}")
        try:
            join([path], {"seed": 1}, [COLUMN], into)
        except StoreError as error:
            assert f"shard file '{path}' cannot be read" in str(error)
            named += 1
        else:
            assert believed(into, []) and not into.missing(COLUMN, keys).any()
    assert named > FLIPS


def test_what_is_no_parquet_file_has_no_sums(tmp_path: Path) -> None:
    for raw in (b"", b"PAR1", b"PAR1\xff\xff\xff\xffPAR1"):
        (tmp_path / "t").write_bytes(raw)
        with open(tmp_path / "t", "r+b") as file:
            with pytest.raises(ValueError, match="no parquet file"):
                check_parquet(file)
            with pytest.raises(ValueError, match="no parquet file"):
                seal_parquet(file)
