"""A flipped bit in a file of a run folder is noticed, and what it holds is made again, or it is harmless."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from instdiff.core.files import Damaged, without_sum
from instdiff.core.files import read_json as read_record
from instdiff.selection.record import read_selection, tell_changed
from instdiff.store.parquet import is_whole
from instdiff.training.digests import changed
from store.test_sums import FLIPS, flips

from .conftest import Done
from .kit import pipeline, read_jsonl, refused

REFUSED = ("config.yaml", "environment.json")
AGAIN = ("report.html", "report.json", "comparison.md", "comparison.json", "items.parquet", "results.json")
"""Written anew by every command."""
TIMES = ("wall_s", "seconds", "train_s", "tokens_per_s", "resumed_at", "cost", "crc32")
MODEL = "iter_1/calibration_model"


def plain(value: Any) -> Any:
    """Without sums, and how long things took."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in TIMES}
    return [plain(part) for part in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """What a file says."""
    if path.suffix == ".json":
        return plain(without_sum(json.loads(path.read_text(encoding="utf-8"))))
    return pq.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_bytes()


def results(run: Path) -> list[Path]:
    names = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    return [name for name in names if name.name not in (*REFUSED, "log.jsonl")]


@pytest.fixture
def home(done: Done, tmp_path: Path) -> Path:
    """The finished run's working folder, as a copy."""
    shutil.copytree(done.home, tmp_path / "home")
    return tmp_path / "home"


def damage(path: Path, draw: random.Random) -> bytes:
    raw = bytearray(path.read_bytes())
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    path.write_bytes(raw)
    return bytes(raw)


def test_a_flipped_bit_in_every_folder_is_mended(done: Done, home: Path) -> None:
    run, draw, by_folder = home / "run", random.Random(3), dict[Path, list[Path]]()
    for name in results(run):
        if name.name not in ("model.json", *AGAIN):
            by_folder.setdefault(name.parent, []).append(name)
    names = [draw.choice(some) for some in by_folder.values()]
    flipped = {name: damage(run / name, draw) for name in names}
    said = pipeline(home).err
    for name in (name for name in results(done.run) if name.name not in AGAIN):
        assert content(run / name) == content(done.run / name), name
    for name, raw in flipped.items():
        if (run / name).read_bytes() != raw:  # else its bytes say the same, as was seen
            assert f"{name}'" in said or f"{name.name} of 'run/{name.parent}'" in said or "weights of 'run/" in said
    assert said.count("is set aside as '") > len(flipped) // 2
    assert "damaged" not in pipeline(home).err


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_made_again_is_refused_by_name(home: Path, name: str) -> None:
    path = home / "run" / name
    path.write_bytes(path.read_bytes().replace(b"a", b"e", 1))
    assert f"run/{name}'" in refused(home)


@pytest.mark.parametrize("name", ["selected.jsonl", "warmup_subset.jsonl"])
def test_changed_rows_are_written_again_and_nothing_else_is_done(done: Done, home: Path, name: str) -> None:
    path = home / "run/iter_1" / name
    path.write_bytes(mine := path.read_bytes().replace(b"o", b"q", 1))
    said = pipeline(home).err
    assert f"warning: 'run/iter_1/{name}' was changed since it was written; it is set aside as '{name}.damaged'" in said
    assert read_jsonl(path) == read_jsonl(done.run / "iter_1" / name)
    assert path.with_name(f"{name}.damaged").read_bytes() == mine
    assert said.count("warning") == 1 and "step" not in said


def noticed(path: Path, before: Any) -> bool:
    """Whether a file is known not to be what was written, or says the same."""
    if path.name in ("selected.jsonl", "warmup_subset.jsonl"):
        return bool(tell_changed(read_selection(path.parent) or {}, path))
    if path.parent.name.endswith("model") and path.name != "training.json":
        return changed(path.parent) is not None
    if path.suffix == ".parquet":
        return not is_whole(path, lambda line: None) or content(path) == before
    try:  # a sum under another name is one key more
        return bool(plain(read_record(path)).items() >= before.items())
    except Damaged:
        return True


def survive(home: Path, name: str, count: int) -> None:
    path = home / "run" / name
    raw, before = path.read_bytes(), content(path)
    for damaged in flips(raw, count):
        path.write_bytes(damaged)
        assert noticed(path, before)


KINDS = [
    *("iter_1/selected.jsonl", "iter_1/selection.json", "iter_1/results/heldout.json", "iter_1/scores.parquet"),
    *("items.parquet", "comparison.json", f"{MODEL}/training.json", f"{MODEL}/model.safetensors"),
    *(f"{MODEL}/tokenizer.json", f"{MODEL}/config.json", f"{MODEL}/generation_config.json"),
]


@pytest.mark.parametrize("name", KINDS)
def test_no_flipped_bit_of_a_run_folder_passes(home: Path, name: str) -> None:
    survive(home, name, FLIPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_none_of_a_thousand_flipped_bits_of_a_run_folder_passes(home: Path, name: str) -> None:
    survive(home, name, 1000)
