"""A store checks itself; it is read without the right to write; several processes drop and count at once."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instdiff.core import files
from instdiff.errors import StoreError
from instdiff.store import ColumnId, Store, check, collect, info
from instdiff.store import store as module
from instdiff.store.answers import AnswerCache
from instdiff.store.store import FACTS

from .test_pieces import COLUMN, add, keys_of, segments, values_of
from .test_sums import FLIPS, flips


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A segment of 20 rows, a part of 5, three answers."""
    store = Store(tmp_path / "store")
    add(store, [*range(20)])
    store.compact(COLUMN, least=1)
    add(store, [*range(20, 25)])
    answers(store).keep([{"key": f"k{n}", "text": f"answer {n}"} for n in range(3)])
    return store


def answers(store: Store) -> AnswerCache[str]:
    return AnswerCache(store.root / "answers" / "m.jsonl", lambda line: str(line["text"]))


def flip(path: Path, at: int = 40) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


# ── check ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_whole_store_has_no_damage(store: Store) -> None:
    found = check(store)
    assert (found.files, found.rows, found.damaged) == (7, 25, [])
    assert check(Store(store.root / "nowhere")).files == 0


def test_check_names_every_damaged_file_and_changes_nothing(store: Store) -> None:
    folder = store.folder(COLUMN)
    (part,), segment = folder.glob("*.parquet"), folder / segments(store)[0]
    for path in (part, segment / "values.npy", segment / "sources.json", store.root / "answers/m.jsonl"):
        flip(path, {"sources.json": 0, "values.npy": -1, "m.jsonl": -40}.get(path.name, 70))
    flip(folder / FACTS)
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    found = {one.path: one.rows for one in check(Store(store.root)).damaged}
    assert found == {
        folder / FACTS: None,
        part: 5,
        segment: 20,
        store.root / "answers/m.jsonl": 1,
    }
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before


def test_repair_sets_aside_and_all_else_stays_in_use(store: Store) -> None:
    (part,) = store.folder(COLUMN).glob("*.parquet")
    index = store.folder(COLUMN) / segments(store)[0] / "sources.json"
    flip(part, 70)
    flip(index, 0)
    flip(store.root / "answers/m.jsonl", -40)
    found = check(store, repair=True)
    assert [one.path for one in found.damaged] == [part, index, store.root / "answers/m.jsonl"] and found.rows == 20
    for path in (part, index, store.root / "answers/m.jsonl"):
        assert path.with_name(f"{path.name}.damaged").is_file()
    assert check(Store(store.root)).damaged == []
    again = Store(store.root)
    assert again.missing(COLUMN, keys_of([*range(25)])).tolist() == [False] * 20 + [True] * 5
    assert [f"k{n}" in answers(again) for n in range(3)] == [True, True, False]
    flip(index.with_name("values.npy"), -1)
    assert [one.rows for one in check(again, repair=True).damaged] == [20]


@pytest.mark.parametrize("name", [FACTS, "answers"])
def test_no_flipped_bit_of_records_and_answers_passes(store: Store, name: str) -> None:
    path = store.folder(COLUMN) / FACTS if name == FACTS else store.root / "answers/m.jsonl"
    (before,), raw = info(store), path.read_bytes()
    for damaged in flips(raw, FLIPS):
        path.write_bytes(damaged)
        said: list[str] = []
        again = Store(store.root, log=said.append)
        if name == FACTS:
            found = info(again)
            assert [(one.model, one.dtype, one.measure) for one in found] == [
                (before.model, before.dtype, before.measure)
            ] or (found == [] and FACTS in said[0] and "store check --repair" in said[0])
            assert collect(again, {"weights"}, None) == []
        else:
            kept = answers(again)
            assert all(kept[f"k{n}"] in ([f"answer {n}"], []) for n in range(3))
        check(again)


def test_a_repaired_column_is_described_anew_by_its_next_use(store: Store) -> None:
    flip(store.folder(COLUMN) / FACTS)
    check(store, repair=True)
    add(store, [30])
    assert [one.model for one in info(Store(store.root))] == ["weights"] and check(store).damaged == []


# ── the right to write ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A folder that another user than root may enter."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    yield home
    for path in [home, *home.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(home)


def as_user(work: object) -> str:
    """What the work says in a process that has no rights of root."""
    said, tell = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child only looks at files
        child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            tell.send(work())  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - the parent asserts on it
            tell.send(f"{type(error).__name__}: {error}")
        os._exit(0)
    text = str(said.recv())
    os.waitpid(child, 0)
    return text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_store_that_cannot_be_written_is_read(plain_user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(plain_user / "store")
    add(store, [*range(20)])
    store.compact(COLUMN, least=1)
    for number in range(20, 40):
        add(store, [number])
    for path in [plain_user / "store", *(plain_user / "store").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 4)

    def work() -> str:
        mine = Store(plain_user / "store")
        got = mine.read(COLUMN, keys_of([*range(40)]))
        assert [got[n].tolist() for n in range(40)] == [values_of([n])[0].tolist() for n in range(40)]
        mine.compact(COLUMN)
        assert [one.rows for one in info(mine)] == [40] and check(mine).damaged == []
        with pytest.raises(StoreError, match="cannot write"):
            add(mine, [41])
        return "well"

    assert as_user(work) == "well"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_piece_that_may_not_be_read_is_not_taken_for_damaged(plain_user: Path) -> None:
    store = Store(plain_user / "store")
    add(store, [1])
    add(store, [2])
    part, _ = sorted(store.folder(COLUMN).glob("*.parquet"))
    part.chmod(0)

    def work() -> str:
        Store(plain_user / "store").missing(COLUMN, keys_of([1]))
        return "believed"

    said = as_user(work)
    assert said == f"StoreError: store part '{part}' cannot be read: Permission denied; give yourself the right"
    assert part.exists() and not list(part.parent.glob("*.damaged"))


# ── several at once ───────────────────────────────────────────────────────────────────────────────────────────────────


def other(number: int) -> ColumnId:
    return ColumnId(f"m{number}", COLUMN.dtype, COLUMN.measure)


def fill(root: Path, count: int) -> None:
    for number in range(count):
        store = Store(root)
        store.append(other(number), keys_of([1]), values_of([1]))


@pytest.mark.parametrize("work", ["info", "gc", "check"])
def test_what_vanishes_while_it_is_looked_at_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """Another ``gc`` drops a column at each moment at which this one looks at a file of it."""
    looks = {"info": info, "gc": lambda store: collect(store, set(), None), "check": check}
    for moment in itertools.count():
        root, calls = tmp_path / str(moment), itertools.count()
        fill(root, 2)

        def before(at: int, root: Path, moment: int = moment) -> None:
            if at == moment:
                shutil.rmtree(root / "columns" / other(1).name, ignore_errors=True)
                shutil.rmtree(root / "trash", ignore_errors=True)

        with monkeypatch.context() as patch:
            for name in ("stat", "listdir", "mkdir", "replace", "open"):
                real = getattr(os, name)

                def look(*args: Any, real: Any = real, root: Path = root, calls: Any = calls, **named: Any) -> Any:
                    before(next(calls), root)
                    return real(*args, **named)

                patch.setattr(os, name, look)
            said: list[str] = []
            looks[work](Store(root, log=said.append))
        assert said == []
        if next(calls) < moment:
            break
    assert moment > 9


def looking(root: str, work: str, rounds: int) -> None:
    store = Store(root)
    for _ in range(rounds):
        if work == "info":
            info(store)
        elif work == "gc":
            collect(store, set(), None)
        else:
            fill(Path(root), 6)


def test_a_folder_that_is_taken_as_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = list[Path](), files.make_folder

    def taken(folder: Path) -> None:
        make(folder)
        made.append(folder)
        if len(made) == 1:
            folder.rmdir()

    monkeypatch.setattr(files, "make_folder", taken)
    fill(tmp_path, 1)
    assert len(made) > 1 and made[0] == made[1]
    assert len(list((tmp_path / "columns").iterdir())) == 1


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder here in which none can be made")
def test_where_no_folder_can_be_made_that_is_told() -> None:
    with pytest.raises(StoreError, match="cannot write '/proc/nowhere/columns"):
        fill(Path("/proc/nowhere"), 1)


def test_info_and_gc_at_once(tmp_path: Path) -> None:
    how = multiprocessing.get_context("spawn")
    jobs = [how.Process(target=looking, args=(str(tmp_path), work, 15)) for work in ("gc", "gc", "info", "fill")]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0, 0]
