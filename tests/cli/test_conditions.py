"""Files that may not be read, clocks that were set back, stores of another version."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from store.test_check import as_user, plain_user  # noqa: F401 - a fixture

from .shell import cli, ok, score

SELECT = ("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--budget", "3", "--output", "out.jsonl")
EXPORT = ("export", "--format", "trl", "--output", "trl", "--data")
SCORE = ("score", "--data", "my.jsonl", "--model", "base", "--method", "ifd", "--output", "out.parquet")
COMMANDS = {
    "my.jsonl": SELECT,
    "scores.parquet": SELECT,
    "sel.selection.json": (*EXPORT, "sel.selection.json"),
    "sel.jsonl": (*EXPORT, "sel.jsonl"),
    "base/config.json": SCORE,
    "base/model.safetensors": SCORE,
}


@pytest.fixture
def scored(model: str) -> Path:
    """The working folder with a model, scores and a selection."""
    shutil.copytree(model, "base")
    score("base", "ifd")
    ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--budget", "3", "--output", "sel.jsonl")
    return Path.cwd()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_may_not_be_read_is_named(
    scored: Path,
    plain_user: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    shutil.copytree(scored, plain_user / "here")
    monkeypatch.chdir(plain_user / "here")
    monkeypatch.setenv("INSTDIFF_STORE", str(plain_user / "here/store"))
    for path in [Path.cwd(), *Path.cwd().rglob("*")]:
        path.chmod(0o777)
    Path(name).chmod(0)
    said = as_user(lambda: cli(*COMMANDS[name]).error)
    assert name in said and "Permission denied" in said
    assert not list(Path.cwd().rglob("*.damaged"))


def test_files_of_the_future_are_used(scored: Path, computed: list[tuple[int, int]]) -> None:
    """As they are after a clock was set back."""
    later = time.time() + 86400
    for path in [*Path("../store").rglob("*"), *scored.rglob("*")]:
        os.utime(path, (later, later))
    score("base", "ifd", "again.parquet")
    assert computed == []
    assert pq.read_table("again.parquet").equals(pq.read_table("scores.parquet"))
    assert json.loads(ok("store", "gc", "--older-than", "1h", "--json").out)["dropped"] == []


def test_a_store_of_another_version_is_used(scored: Path, computed: list[tuple[int, int]]) -> None:
    """An earlier one had no sums and remembered hashes alone; a later one may have more files."""
    home = Path("../store")
    for path in home.rglob("*.npy"):
        np.save(path, np.load(path))
    for path in home.rglob("*.parquet"):
        pq.write_table(pq.read_table(path), path)
    for path in home.glob("models/*.txt"):
        path.write_text(path.read_text().split()[0])
    for folder in home.glob("columns/*"):
        (folder / "index.bin").write_bytes(b"\0")
    (home / "columns/of-a-later-version").mkdir()
    score("base", "ifd", "again.parquet")
    assert computed == []
    assert pq.read_table("again.parquet").equals(pq.read_table("scores.parquet"))
    assert json.loads(ok("store", "check", "--json").out)["damaged"] == []


@pytest.mark.parametrize("name", ["sel.jsonl", "sel.selection.json"])
def test_rows_that_were_changed_since_they_were_selected_are_told(scored: Path, name: str) -> None:
    ending = "was changed since it was selected; its record has the rows as they were"
    show = ("explain", "--data", "my.jsonl", "--scores", "scores.parquet", "0", "--selection", name)
    assert ending not in ok(*EXPORT, name).err and ending not in ok(*show).err
    path = Path("sel.jsonl")
    path.write_bytes(path.read_bytes().replace(b"done", b"d0ne", 1))
    shutil.rmtree("trl")
    assert f"warning: 'sel.jsonl' {ending}" in ok(*EXPORT, name).err
    assert f"warning: 'sel.jsonl' {ending}" in ok(*show).err
    ok("report", "scores.parquet", "--output", "page.html")
    assert ending in Path("page.html").read_text(encoding="utf-8").replace("&#x27;", "'")
