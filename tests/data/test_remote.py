"""Addresses that fsspec opens: rows in, scores and selections out. ``memory://`` stands for every protocol."""

from __future__ import annotations

import builtins
import gzip
import json
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import instdiff
from cli.shell import cli, ok
from instdiff import Random, errors
from instdiff.core.files import remote_url, writing
from instdiff.data import load
from instdiff.data.load import load_shards
from instdiff.errors import DataError, StoreError
from instdiff.scoring.table import read_scores

from .conftest import alpaca_rows

ROWS = alpaca_rows(6)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of its own at an address."""
    url = f"memory://bucket-{uuid.uuid4().hex}"
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True) if fsspec.filesystem("memory").exists(url) else None


def put(url: str, data: bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(data)
    return url


def got(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return bytes(file.read())


def as_parquet(folder: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows.parquet"])
def test_every_kind_of_file(bucket: str, tmp_path: Path, name: str) -> None:
    data = {
        "rows.jsonl": LINES,
        "rows.jsonl.gz": gzip.compress(LINES),
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": b"instruction,input,output\n" + b"".join(f"Say {i}.,,{i}\n".encode() for i in range(6)),
        "rows.parquet": as_parquet(tmp_path),
    }[name]
    pool = load(put(f"{bucket}/{name}", data))
    assert pool.source_rows(range(6)) == ROWS
    assert pool.origin == f"{bucket}/{name}" and list(pool.ids) == list(load(ROWS).ids)
    assert len(load(f"{bucket}/{name}", limit=2)) == 2


def test_a_folder_and_its_bad_lines(bucket: str) -> None:
    put(f"{bucket}/data/b.jsonl", LINES + b"[]\n")
    put(f"{bucket}/data/a.jsonl", LINES)
    put(f"{bucket}/data/notes.txt", b"no rows")
    put(f"{bucket}/data/dataset_info.json", b"{}")
    pool = load(f"{bucket}/data/")
    assert len(pool) == 12
    assert [str(reject) for reject in pool.rejected] == [
        f"{bucket}/data/b.jsonl:7: a JSON object is expected, this is list"
    ]
    put(f"{bucket}/none/notes.txt", b"no rows")
    with pytest.raises(DataError, match="no data file in this folder"):
        load(f"{bucket}/none")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://nothing/there.jsonl", "memory://nothing/there.jsonl is not there; check the address"),
        ("nonsense://a/b.jsonl", "'nonsense://a/b.jsonl' cannot be opened: Protocol not known: nonsense"),
    ],
)
def test_what_cannot_be_opened(url: str, says: str) -> None:
    with pytest.raises(DataError) as refused:
        load(url)
    assert str(refused.value) == says


@pytest.mark.parametrize("lacking", ["fsspec", "gcsfs"])
def test_what_must_be_installed_is_named(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == lacking:
            raise ImportError(f"No module named '{lacking}'")
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == lacking else find_spec(name))
    with pytest.raises(DataError) as refused:
        load("gs://bucket/rows.jsonl")
    what = "'gs://bucket/rows.jsonl'"  # the sentence of all extras
    assert str(refused.value) == f'{what} needs {lacking}, which is missing; run: pip install "instdiff[remote]"'


def test_addresses() -> None:
    assert remote_url("s3://bucket/a/b.jsonl") == "s3://bucket/a/b.jsonl"
    assert remote_url(Path("s3://bucket/a") / "b.jsonl") == "s3://bucket/a/b.jsonl"
    for local in ("a/b.jsonl", "/a/b", "C:\\a", "c:/a", "hub:owner/name", "builtin:demo", "-"):
        assert remote_url(local) is None


def test_a_file_is_whole_or_absent(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), writing(f"{bucket}/half.txt") as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert not fsspec.filesystem("memory").exists(f"{bucket}/half.txt")
    with writing(f"{bucket}/whole.txt") as aside:
        aside.write_text("whole")
    assert got(f"{bucket}/whole.txt") == b"whole"

    def full(*args: object, **more: object) -> None:
        raise RuntimeError("quota exceeded")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", full)
    with (
        pytest.raises(StoreError, match=f"cannot write '{bucket}/more.txt': quota exceeded; nothing"),
        writing(f"{bucket}/more.txt") as aside,
    ):
        aside.write_text("more")


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_scores(bucket: str, kind: str) -> None:
    scores = instdiff.score(load(ROWS), {"random": Random()})
    scores.write(f"{bucket}/scores.{kind}")
    back = read_scores(f"{bucket}/scores.{kind}")
    assert back["random"].value.tolist() == scores["random"].value.tolist() and back.ids == scores.ids
    with pytest.raises(StoreError, match="cannot read scores"):
        read_scores(f"{bucket}/others.{kind}")


def test_commands(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an address to an address, with what lies beside: rejected lines and the record."""
    monkeypatch.chdir(tmp_path)
    put(f"{bucket}/my.jsonl", LINES + b"{}\n")
    ok("score", f"--data={bucket}/my.jsonl", "--method=random", f"--output={bucket}/out/scores.parquet")
    ran = ok(
        *("select", f"--data={bucket}/my.jsonl", f"--scores={bucket}/out/scores.parquet", "--budget=2", "--json"),
        f"--output={bucket}/out/selected.jsonl",
    )
    rows = [json.loads(line) for line in got(f"{bucket}/out/selected.jsonl").splitlines()]
    assert rows == [ROWS[at] for at in ran.json["rows"]] and len(rows) == 2
    assert json.loads(got(f"{bucket}/out/scores.rejected.jsonl"))["line"] == 7
    names = [path.rpartition("/")[2] for path in fsspec.filesystem("memory").ls(f"{bucket}/out", detail=False)]
    assert [json.loads(got(f"{bucket}/out/{name}"))["ids"] for name in names if name.endswith("selection.json")] == [
        ran.json["ids"]
    ]
    assert list(tmp_path.iterdir()) == []
    assert "is not there" in cli("score", f"--data={bucket}/no.jsonl", "--method=random", "--output=s.parquet").error


def test_a_part_of_a_file_at_an_address(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, whole = put(f"{bucket}/rows.jsonl", LINES), load(ROWS)
    assert [id for part in load_shards(url, 4) for id in part.ids] == list(whole.ids)
    assert len(load_shards(url, 4, 1)[0]) < len(whole)
    monkeypatch.setattr(
        type(fsspec.filesystem("memory")), "size", lambda self, path: None
    )  # a server that does not say
    assert [id for part in load_shards(url, 4) for id in part.ids] == list(whole.ids)
    assert list(load(url).ids) == list(whole.ids)


def test_a_size_that_cannot_be_asked_is_one_message(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, path: str) -> int:
        raise OSError("connection reset")

    url = put(f"{bucket}/rows.jsonl", LINES)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "size", refuse)
    with pytest.raises(DataError, match=r"cannot read memory://.+: connection reset; check the address"):
        load_shards(url, 2)
