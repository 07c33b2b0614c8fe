"""Sources: kinds of files, splits of folders, several sources, what is left out and what is not there."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instdiff.data import load
from instdiff.data.sources import split_of
from instdiff.errors import ConfigError, DataError

from .conftest import alpaca_rows

ROWS = alpaca_rows(6)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"instruction,input,output\n" + b"".join(f"Say {i}.,,{i}\n".encode() for i in range(6))


def put(path: Path, data: bytes | list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, list):
        data = "".join(json.dumps(row) + "\n" for row in data).encode()
    path.write_bytes(data)
    return path


def log_of(source: Any, **how: Any) -> list[str]:
    said: list[str] = []
    load(source, log=said.append, **how)
    return said


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".zst", zstd), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (".jsonl", LINES),
        (".ndjson", LINES),
        (".jsonlines", LINES),
        (".json", json.dumps(ROWS).encode()),
        (".csv", CSV),
        (".tsv", CSV.replace(b",", b"\t")),
    ],
)
def test_texts_and_their_compressions(
    tmp_path: Path, kind: str, data: bytes, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = put(tmp_path / f"My{kind.upper()}{suffix}", pack(data))
    assert load(path).source_rows(range(6)) == ROWS
    assert len(load(path, limit=2)) == 2


@pytest.mark.parametrize(("suffix", "pack"), [(".zst", zstd), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_a_compressed_file_that_is_cut(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    whole = pack(b"".join(LINES for _ in range(1000)))
    for data in (whole[:-9], b"nothing of the kind"):
        with pytest.raises(DataError, match=r"cannot read .*check that the file is whole"):
            load(put(tmp_path / f"a.jsonl{suffix}", data))
    two = put(tmp_path / f"b.jsonl{suffix}", pack(LINES) + pack(LINES))
    assert len(load(two)) == 12


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow(tmp_path: Path, new: Any) -> None:
    table = pa.Table.from_pylist(ROWS)
    with new(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=2)
    assert load(tmp_path / "a.arrow").source_rows(range(6)) == ROWS
    with pytest.raises(DataError, match="cannot read"):
        load(put(tmp_path / "b.arrow", b"no arrow"))


def test_a_table_with_tools_of_several_kinds(tmp_path: Path) -> None:
    """Nulls within tools, calls and arguments come from other rows, at every depth; others are the row's own."""

    def talk(name: str, **arguments: Any) -> dict[str, Any]:
        call = {"id": "1", "function": {"name": name, "arguments": arguments}}
        tool = {"name": name, "parameters": {"properties": {key: {"type": "string"} for key in arguments}}}
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": turns, "tools": [tool], "note": {"a": None, "b": 1}}

    rows = [talk("f", x="1"), talk("g", y="2", z="3")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    pool = load(tmp_path / "a.parquet")
    assert list(pool.ids) == list(load(rows).ids)
    assert pool.sample(0).messages[1].calls[0].arguments == {"x": "1"}
    assert pool.column("tools") == [row["tools"] for row in rows]
    assert pool.column("note") == [row["note"] for row in rows]
    (line,) = log_of(tmp_path / "a.parquet")[1:]
    assert line == "2 rows: nulls in tools and calls, which the columns of the file put there, are dropped"
    assert len(log_of(rows)) == 1


def test_semicolons(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", b'\xef\xbb\xbfquestion;answer\na, b;"c;d"\n')
    assert load(path).source_rows([0]) == [{"question": "a, b", "answer": "c;d"}]
    assert log_of(path)[1:] == [f"{path}: its columns stand between semicolons"]
    path = put(tmp_path / "b.csv", b'"question";"answer"\n1;2\n')
    assert load(path).source_rows([0]) == [{"question": "1", "answer": "2"}]


def test_a_quote_that_is_never_closed_takes_its_own_line_alone(tmp_path: Path) -> None:
    rows = b"".join(b"q%d,a%d\n" % (i, i) for i in range(9))
    path = put(tmp_path / "a.csv", b"question,answer\n" + rows + b'x,"open\ny,2\nz,3\n')
    pool = load(path, rejects_path=tmp_path / "a.rejected.jsonl")
    assert [s.response for s in pool.samples()] == [*(f"a{i}" for i in range(9)), "2", "3"]
    assert [str(reject) for reject in pool.rejected] == [
        f"{path}:11: broken CSV: unexpected end of data in line 13, with a quote that opens before it"
    ]
    pool = load(put(tmp_path / "b.csv", b'question,answer\na,b\nx,"' + rows))
    assert (len(pool), [r.line for r in pool.rejected]) == (9, [3])


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("my_train.jsonl", "train"),
        ("data.training.json", "train"),
        ("train2.csv", "train"),
        ("valid.jsonl", "validation"),
        ("x-val.csv", "validation"),
        ("dev.jsonl", "validation"),
        ("validation_1.json", "validation"),
        ("eval.jsonl", "test"),
        ("Test.jsonl", "test"),
        ("trainset.jsonl", "train"),
        ("my-testset.csv", "test"),
        ("devops.jsonl", ""),
        ("trainer.jsonl", ""),
        ("evaluated.jsonl", ""),
        ("latest.jsonl", ""),
        ("a.jsonl", ""),
    ],
)
def test_split_of_a_name(name: str, split: str) -> None:
    assert split_of(name) == split


def test_a_folder_with_splits(tmp_path: Path) -> None:
    for name, rows in (("train-1", ROWS[:2]), ("train-2", ROWS[2:4]), ("val", ROWS[4:5]), ("extra", ROWS[5:])):
        put(tmp_path / f"{name}.jsonl", rows)
    assert load(tmp_path).source_rows(range(4)) == ROWS[:4]
    assert log_of(tmp_path)[1] == (
        f"{tmp_path}: split train: read train-1.jsonl (2 rows), train-2.jsonl (2 rows); "
        "left out extra.jsonl (1 row), val.jsonl (1 row)"
    )
    for name in ("validation", "val", "dev"):
        assert load(f"{tmp_path}:{name}").source_rows([0]) == ROWS[4:5]
    with pytest.raises(DataError, match=f"has no split 'test'; give {tmp_path}:train or {tmp_path}:validation"):
        load(f"{tmp_path}:test")


def test_splits_without_train(tmp_path: Path) -> None:
    put(tmp_path / "test.jsonl", ROWS)
    put(tmp_path / "dev.jsonl", ROWS)
    with pytest.raises(DataError, match=f"splits and none to train on; give {tmp_path}:validation or {tmp_path}:test"):
        load(tmp_path)
    put(tmp_path / "one" / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=f"has no split 'test'; give {tmp_path / 'one'}, which has no splits"):
        load(f"{tmp_path / 'one'}:test")


def test_json_without_rows_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "a.json", json.dumps(ROWS, indent=1).encode())
    put(tmp_path / "b.json", LINES)
    for name, data in (
        ("state", b'{"a": 1}'),
        ("notes", b'["x", "y"]'),
        ("more", b'{\n "a": {"b": 1}\n}\n'),
        ("x", b"3"),
    ):
        put(tmp_path / f"{name}.json", data)
    assert len(load(tmp_path)) == 12
    (line,) = log_of(tmp_path)[1:]
    assert line.startswith(f"{tmp_path}: read a.json (6 rows), b.json (6 rows); left out ")
    assert all(name in line for name in ("state.json", "notes.json", "more.json", "x.json"))


def test_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    put(tmp_path / "README.md", b"# no front matter")
    pq.write_table(pa.Table.from_pylist(ROWS[:4]), put(tmp_path / "data" / "train-0.parquet", b""))
    pq.write_table(pa.Table.from_pylist(ROWS[4:]), put(tmp_path / "data" / "test-0.parquet", b""))
    assert len(load(tmp_path)) == 4
    assert len(load(f"{tmp_path}:test")) == 2
    card = "---\nconfigs:\n- config_name: other\n  data_files: x.jsonl\n- config_name: default\n  data_files:\n"
    card += "  - split: sft\n    path: data/te*\n  - split: train_gen\n    path: [data/train-*]\n---\n"
    put(tmp_path / "README.md", card.encode())
    assert len(load(tmp_path)) == 4
    assert len(load(f"{tmp_path}:sft")) == 2
    assert "split train_gen: read train-0.parquet (4 rows); left out test-0.parquet (2 rows)" in log_of(tmp_path)[1]


def test_folders_as_splits(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a.jsonl", ROWS[:4])
    put(tmp_path / "test" / "a.jsonl", ROWS[4:])
    assert (len(load(tmp_path)), len(load(f"{tmp_path}:test"))) == (4, 2)


@pytest.mark.filterwarnings("ignore")
def test_save_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    assert load(tmp_path / "one").source_rows(range(6)) == ROWS
    put(tmp_path / "one" / "cache-1234.arrow", b"of the package's own")
    assert len(load(tmp_path / "one")) == 6
    splits = {"train": whole.select(range(4)), "test": whole.select(range(4, 6))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert (len(load(tmp_path / "two")), len(load(f"{tmp_path / 'two'}:test"))) == (4, 2)


# ── several sources, and what is not there ────────────────────────────────────────────────────────────────────────────


def test_several_sources_in_their_order(tmp_path: Path) -> None:
    a, b = put(tmp_path / "b.jsonl", ROWS[:2]), put(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    pool = load([str(a), b])
    assert pool.source_rows(range(3)) == [*ROWS[:2], {"question": "q", "answer": "a"}]
    assert pool.rows.tolist() == [0, 1, 2]
    assert (pool.origin, pool.source) == (f"{a} + {b}", [str(a), str(b)])
    assert load(pool.source).ids == pool.ids
    assert load([a]).source == str(a)
    assert load([a, b], limit=1).rows.tolist() == [0]
    with pytest.raises(ConfigError, match=r"b\.jsonl' is given twice as data"):
        load([a, b, tmp_path / "x" / ".." / "b.jsonl"] if (tmp_path / "x").mkdir() is None else [])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("*.jsonl", "wildcards and commas are not expanded; repeat --data, once for each file"),
        ("a.jsonl,b.jsonl", "wildcards and commas are not expanded; repeat --data, once for each file"),
        ("https://huggingface.co/datasets/a/b/x.jsonl", "download it, or write hub:a/b"),
        ("http://some.where/x.jsonl", "download it, or write hub:OWNER/NAME"),
    ],
)
def test_what_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    put(Path("a.jsonl"), ROWS)
    with pytest.raises(DataError) as refused:
        load(name)
    assert str(refused.value).startswith(name) and str(refused.value).endswith(says)


@pytest.mark.parametrize(
    ("protocol", "command"), [("s3", 'pip install "instdiff[remote]"'), ("abfs", "pip install adlfs")]
)
def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, protocol: str, command: str) -> None:
    import fsspec.core

    def missing(*args: Any, **more: Any) -> Any:
        raise ImportError("Install it to access this")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(DataError) as refused:
        load(f"{protocol}://bucket/a.jsonl")
    assert str(refused.value).endswith(command)


def test_what_a_folder_holds_beside_its_data_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", ROWS[:2])
    put(tmp_path / "b.ndjson", ROWS[2:3])
    put(tmp_path / "c.txt", b"no rows")
    put(tmp_path / "sub" / "d.jsonl", ROWS[3:4])
    put(tmp_path / "README.md", b"about it")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert len(load(tmp_path)) == 3
    assert log_of(tmp_path)[1] == (
        f"{tmp_path}: read a.jsonl (2 rows), b.ndjson (1 row); left out c.txt, pipe, pipe.jsonl (no file), sub/"
    )


def test_a_link_to_nothing_in_a_folder_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", ROWS[:2])
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl is a link to '.*gone\.jsonl', which is not there"):
        load(tmp_path)


def test_a_folder_with_data_in_folders_alone_says_which(tmp_path: Path) -> None:
    put(tmp_path / "more" / "d.jsonl", ROWS[:2])
    with pytest.raises(DataError, match=rf"give one of the folders in it, such as {tmp_path}/more/"):
        load(tmp_path)
