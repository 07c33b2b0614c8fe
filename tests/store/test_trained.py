"""Models that were trained for scores: what the store says of them, and what is dropped."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from instdiff.store import Store, collect_trained, trained
from instdiff.store.trained import lock_of


def model(store: Store, name: str, size: int = 1000, age: float = 0.0) -> Path:
    folder = store.root / "trained" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(size))
    if not name.startswith("."):
        (folder / "training.json").write_text(json.dumps({"base": "tiny", "rows": 7}))
    os.utime(folder, (then := time.time() - age, then))
    return folder


def names(found: list[object]) -> list[str]:
    return [Path(one.folder).name for one in found]  # type: ignore[attr-defined]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_there_is(store: Store) -> None:
    assert trained(store) == []
    folder = model(store, "aa", 3000, age=100)
    (store.root / "trained" / ".aa.lock").touch()
    model(store, ".bb.partial", 10_000)
    half, whole = trained(store)
    assert (half.base, half.rows, half.bytes) == ("unfinished", 0, 10_000)
    size = 3000 + (folder / "training.json").stat().st_size
    assert (whole.folder, whole.base, whole.rows, whole.bytes) == (str(folder), "tiny", 7, size)
    assert whole.used == pytest.approx(time.time() - 100, abs=5)


def test_what_is_old_or_not_kept_goes(store: Store) -> None:
    model(store, "aa", 1000, age=7200)
    kept, young = model(store, "bb", 2000, age=7200), model(store, "cc", 3000)
    model(store, "aa.damaged", 500, age=7200)
    keep = {str(kept)}
    assert names(collect_trained(store, keep, 3600.0, dry=True)) == ["aa", "aa.damaged"]
    assert len(trained(store)) == 4
    assert names(collect_trained(store, keep, 3600.0)) == ["aa", "aa.damaged"]
    assert names(trained(store)) == ["cc", "bb"] and not (store.root / "trash").exists()
    assert names(collect_trained(store, keep, None)) == ["cc"] and not young.exists()


def test_what_is_used_or_trained_stays(store: Store) -> None:
    folder, half = model(store, "aa", age=7200), model(store, ".bb.partial", age=7200)
    user = Store(store.root)
    user.hold(folder)
    assert trained(store)[0].used == pytest.approx(time.time(), abs=5)
    with FileLock(lock_of(half)):
        assert lock_of(half) == lock_of(half.with_name("bb"))
        assert collect_trained(store, set(), None) == []
    assert names(collect_trained(store, set(), None)) == [".bb.partial"]
    assert names(collect_trained(user, set(), None)) == ["aa"]  # its own
    model(store, "aa")
    user.hold(folder)
    del user
    assert names(collect_trained(store, set(), None)) == ["aa"]
