"""What a power cut leaves: the order in which files reach the disk, and records that know their own sum."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from disk import Disk, forgetful
from instdiff.core.files import building, read_json, write_json, write_record, writing
from instdiff.errors import StoreError


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return forgetful(tmp_path, monkeypatch)


def plain(events: list[str]) -> list[str]:
    """With one name for what is written aside."""
    return ["sync aside" if event.endswith(".partial") else event for event in events]


def test_a_file_is_synced_before_and_its_name_after_the_rename(disk: Disk) -> None:
    write_json(disk.root / "a.json", {"n": 1})
    assert plain(disk.events) == ["sync aside", "rename a.json", "sync root"]
    assert read_json(disk.cut(disk.root.with_name("cut"), early=False) / "a.json") == {"n": 1}


def test_a_folder_is_synced_with_all_that_is_in_it(disk: Disk) -> None:
    with building(disk.root / "model") as aside:
        (aside / "more").mkdir()
        for name in ("b", "more/c"):
            (aside / name).write_text(name)
    at = disk.events.index("rename model")
    assert sorted(plain(disk.events[:at])) == ["sync aside", "sync b", "sync c", "sync more", "sync root"]
    assert disk.events[at + 1 :] == ["sync root"]


def test_a_folder_that_another_process_builds_is_left_to_it(tmp_path: Path) -> None:
    """Before, both wrote into one half-built folder."""
    place = tmp_path / "model"
    with building(place) as aside:
        (aside / "weights").write_text("whole")
        with pytest.raises(StoreError, match="model' is being written by another process; wait until"), building(place):
            pass
        assert (aside / "weights").read_text() == "whole"
    assert (place / "weights").read_text() == "whole"
    program = """import sys; from instdiff.core.files import building
with building(sys.argv[1]): print(1, flush=True); input()"""
    with subprocess.Popen(
        [sys.executable, "-c", program, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        with pytest.raises(StoreError, match="another process"), building(place):
            pass
        other.kill()
    with building(place):  # nobody has to tidy up after one that was killed
        pass


def test_new_folders_are_synced_into_those_above(disk: Disk) -> None:
    write_json(disk.root / "a/b/c.json", 1)
    assert read_json(disk.cut(disk.root.with_name("cut"), early=False) / "a/b/c.json") == 1


@pytest.mark.parametrize("early", [False, True])
def test_a_power_cut_at_any_moment_leaves_the_old_file_or_the_new(disk: Disk, early: bool) -> None:
    write_json(disk.root / "a.json", "old")
    left, fsync, replace = [], os.fsync, os.replace

    def look() -> None:
        left.append(read_json(disk.cut(disk.root.with_name("cut"), early=early) / "a.json"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (look(), fsync(handle), look()))
        patch.setattr(os, "replace", lambda a, b: (look(), replace(a, b), look()))
        write_json(disk.root / "a.json", "new")
    assert left == ["old"] * 3 + (["new"] * 3 if early else ["old", "old", "new"])


def test_a_device_is_not_synced(disk: Disk) -> None:
    with writing("/dev/null") as aside:
        aside.write_text("x")
    assert disk.events == []


# ── records ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_has_a_sum_that_reading_takes_off(tmp_path: Path) -> None:
    facts = {"name": "Ärger", "n": [1, 2.5, None, True], "more": {"3": 1e-9}}
    write_record(tmp_path / "r.json", facts)
    assert read_json(tmp_path / "r.json") == facts
    raw = json.loads((tmp_path / "r.json").read_text())
    assert list(raw) == [*facts, "crc32"]
    (tmp_path / "r.json").write_text(json.dumps({**raw, "n": 3}))
    with pytest.raises(StoreError, match=r"r\.json': it was changed since .* delete its key 'crc32'"):
        read_json(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(json.dumps({"n": 3}))
    assert read_json(tmp_path / "r.json") == {"n": 3}


def test_keys_that_json_turns_into_text_have_the_same_sum(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", {"by": {1: "a", None: "b"}, "pair": (1, 2)})
    assert read_json(tmp_path / "r.json") == {"by": {"1": "a", "null": "b"}, "pair": [1, 2]}
