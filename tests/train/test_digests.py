"""A trained model whose files are not those that its training wrote is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_llama import run

from instdiff.core.files import fingerprint, read_json, write_record
from instdiff.engine.sources import hash_weights
from instdiff.training.digests import changed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "out"
    run(base, folder)
    return folder


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "out")
    return tmp_path / "out"


FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "training.json")


@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
def test_a_changed_file_is_named(out: Path, tmp_path: Path, name: str) -> None:
    (out / "README.md").write_text("mine")
    assert changed(out, tmp_path / "memo") is None
    raw = bytearray((out / name).read_bytes())
    raw[len(raw) // 2] ^= 4
    (out / name).write_bytes(raw)
    assert changed(out, tmp_path / "memo") == ("weights" if name == "model.safetensors" else name)


def test_what_is_remembered_of_weights_is_believed_unless_they_are_read_again(out: Path, tmp_path: Path) -> None:
    """As after a flipped bit on the disk, which leaves sizes and times as they are."""
    memo, right = tmp_path / "memo", read_json(out / "training.json")["weights"]
    raw = bytearray((out / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (out / "model.safetensors").write_bytes(raw)
    hash_weights(out, memo)
    (known,) = memo.glob("*.txt")
    known.write_text(f"{right} {fingerprint(known.stem, right)}")
    assert changed(out, memo) is None and changed(out, memo, again=True) == "weights"
    assert changed(out, memo) == "weights"


def test_a_dropped_model_and_one_of_an_earlier_version_are_not_changed(out: Path) -> None:
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    (out / "model.safetensors").unlink()
    assert changed(out) == "weights"
    for name in FILES[:-1]:
        (out / name).unlink()
    assert changed(out) is None
    write_record(
        out / "training.json", {key: record[key] for key in record if key not in ("files", "weights", "crc32")}
    )
    assert changed(out) is None
