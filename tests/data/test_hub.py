from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from instdiff.data import load
from instdiff.data.hub import parse_hub
from instdiff.errors import DataError

from .conftest import alpaca_rows

Make = Callable[..., Path]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("owner/name", ("owner/name", None, None, None)),
        ("name", ("name", None, None, None)),
        ("owner/name:test", ("owner/name", None, None, "test")),
        ("owner/name@v1.2:test", ("owner/name", None, "v1.2", "test")),
        ("owner/name@refs/pr/3", ("owner/name", None, "refs/pr/3", None)),
        ("owner/name/main:train[:10]", None),
        ("owner/name/main:train", ("owner/name", "main", None, "train")),
        ("", None),
        (":train", None),
    ],
)
def test_parse(spec: str, parts: tuple[str, str | None, str | None, str | None] | None) -> None:
    if parts is None:
        with pytest.raises(DataError, match="names no data set; write hub:owner/name"):
            parse_hub(spec)
    else:
        assert parse_hub(spec) == parts


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
def test_local_folder(jsonl: Make, tmp_path: Path) -> None:
    rows = alpaca_rows(5)
    jsonl(rows, name="d/train.jsonl")
    jsonl(rows[:2], name="d/test.jsonl")
    name = f"hub:{tmp_path / 'd'}"
    pool = load(name)
    assert pool.origin == name
    assert pool.source_rows(range(5)) == rows
    assert load(f"{name}:test").ids == pool.ids[:2]
    assert load(name, limit=3).rows.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"cannot load .*:dev: Unknown split"):
        load(f"{name}:dev")


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
def test_the_only_split_is_taken(jsonl: Make, tmp_path: Path) -> None:
    jsonl(alpaca_rows(2), name="one/test.jsonl")
    assert len(load(f"hub:{tmp_path / 'one'}")) == 2
    jsonl(alpaca_rows(2), name="two/test.jsonl")
    jsonl(alpaca_rows(2), name="two/validation.jsonl")
    with pytest.raises(DataError, match="has no split 'train' but"):
        load(f"hub:{tmp_path / 'two'}")


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
def test_no_network() -> None:
    with pytest.raises(
        DataError, match=r"cannot load hub:nobody/nothing: .*hf download --repo-type dataset nobody/nothing"
    ):
        load("hub:nobody/nothing")


def test_the_package_is_imported_only_for_the_hub() -> None:
    code = (
        "import sys, instdiff.data as d; d.load([{'prompt': 'p', 'completion': 'c'}]); print('datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "instdiff\[hub\]"'):
        load("hub:owner/name")
