"""A disk that forgets what was not synced."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Disk:
    """What a disk has of a folder: bytes of files as they were last synced, and names of folders likewise.

    ``cut`` builds what a power cut leaves. ``early`` names reach the disk before bytes do, as journals may do it;
    others wait for their folder.
    """

    root: Path
    events: list[str] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)
    handles: list[int] = field(default_factory=list)
    """What was synced stays open, so that no other file gets its number."""

    def sync(self, handle: int) -> None:
        path, number = Path(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle).st_ino
        self.events.append(f"sync {path.name}")
        self.handles.append(os.dup(handle))
        if path.is_dir():
            self.names[number] = entries(path)
        else:
            self.contents[number] = path.read_bytes()

    def cut(self, to: Path, *, early: bool) -> Path:
        def build(number: int, here: Path, there: Path) -> None:
            there.mkdir(parents=True)
            for name, (inside, folder) in (entries(here) if early else self.names.get(number, {})).items():
                if folder:
                    build(inside, here / name, there / name)
                else:
                    (there / name).write_bytes(self.contents.get(inside, b""))

        shutil.rmtree(to, ignore_errors=True)
        build(self.root.stat().st_ino, self.root, to)
        return to


def entries(folder: Path) -> dict[str, tuple[int, bool]]:
    return {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(folder)}


def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk whose folder is ``root``; syncs and renames of this process go through it."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to know which file is synced")
    (tmp_path / "root").mkdir()
    disk, replace = Disk(tmp_path / "root"), os.replace

    def replaced(a: Any, b: Any) -> None:
        disk.events.append(f"rename {Path(b).name}")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", disk.sync)
    monkeypatch.setattr(os, "replace", replaced)
    return disk
