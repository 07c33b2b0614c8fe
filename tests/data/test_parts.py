"""Parts of an input, read one by one, are the input: every row once, in its order, in the format of the whole."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instdiff.data import Pool, load, readers
from instdiff.data.json_values import read_rows
from instdiff.data.load import _in_part, _sources, load_shards
from instdiff.data.pool import concat

ROWS = [
    {"instruction": f"Say {n}é.", "input": "" if n % 3 else "now", "output": f"{n} " * (1 + n * n % 17)}
    for n in range(40)
]


def jsonl(path: Path) -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text("\n".join([*lines[:20], "", *lines[20:]]), encoding="utf-8")  # a blank line, no newline at the end
    return str(path)


def parquet(path: Path) -> str:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    return str(path)


def array(path: Path) -> str:
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return str(path)


def packed(path: Path) -> str:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    return str(path)


KINDS: list[tuple[Callable[[Path], str], str, bool]] = [
    (jsonl, "a.jsonl", True),
    (parquet, "a.parquet", True),
    (array, "a.json", False),
    (packed, "a.jsonl.gz", False),
]


def parts(source: Any, count: int, **how: Any) -> list[Pool]:
    return [load_shards(source, count, index, **how)[0] for index in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(("write", "name", "alone"), KINDS)
def test_parts_are_the_input(write: Callable[[Path], str], name: str, alone: bool, count: int, tmp_path: Path) -> None:
    source = write(tmp_path / name)
    whole, found = load(source), parts(source, count)
    assert _in_part(_sources(source), None) is alone
    assert [len(part) for part in found] == [len(part.ids) for part in found]
    assert [i for part in found for i in part.ids] == list(whole.ids)
    assert concat(found).fingerprint == whole.fingerprint and {part.size for part in found} == {whole.size}
    if count <= 7:
        assert max(len(part) for part in found) < 3 * 40 / count


def test_the_size_is_in_bytes_where_a_part_can_be_read(tmp_path: Path) -> None:
    lines, whole = jsonl(tmp_path / "a.jsonl"), array(tmp_path / "a.json")
    assert load(lines).size == Path(lines).stat().st_size
    assert (load(whole).size, load(lines, limit=9).size, load(ROWS[:5]).size) == (40, 9, 5)


def test_a_folder_is_laid_end_to_end(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl")
    parquet(tmp_path / "c.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    found = parts(str(tmp_path), 5)
    assert [i for part in found for i in part.ids] == list(load(str(tmp_path)).ids)
    assert all(len(part) > 3 for part in found)


def test_rows_a_limit_and_built_in_data(tmp_path: Path) -> None:
    for source, how in ((ROWS, {}), (jsonl(tmp_path / "a.jsonl"), {"limit": 11}), ("builtin:demo", {})):
        found = parts(source, 4, **how)
        assert [i for part in found for i in part.ids] == list(load(source, **how).ids)


def test_each_row_of_a_part_has_its_own_format(tmp_path: Path) -> None:
    talks = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": str(n)}]} for n in range(20)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS * 3, *talks, {"a": 1}]), encoding="utf-8")
    said: list[str] = []
    last = load_shards(str(path), 8, 7, log=said.append)[0]
    assert (len(last), last.format, last.rejected) == (16, "messages", ())
    assert len(said) == 1 and said[0].endswith("1 rejected")
    assert len(load(str(path))) == 140


def test_parts_of_several_sources(tmp_path: Path) -> None:
    """Splits, sources of different formats and what is not read alone: the parts are the pool."""
    for name, rows in (("d/train-0.jsonl", ROWS[:9]), ("d/train-1.jsonl", ROWS[9:20]), ("d/test.jsonl", ROWS[20:])):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    talk = tmp_path / "talk.jsonl"
    talk.write_text(json.dumps({"conversations": ["q", "a"]}) + "\n", encoding="utf-8")
    for source, alone in (
        ([str(tmp_path / "d"), str(talk)], True),
        ([array(tmp_path / "a.json"), str(talk)], False),
        ([str(talk), "builtin:skills"], False),
        ([f"{tmp_path / 'd'}:test", str(talk)], True),
    ):
        whole = load(source)
        assert _in_part(_sources(source), None) is alone
        assert [i for part in parts(source, 3) for i in part.ids] == list(whole.ids)
    assert len(load([str(tmp_path / "d"), str(talk)])) == 21


def test_what_cannot_be_read_in_part_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()
    source = array(tmp_path / "a.json")
    monkeypatch.setitem(readers.READERS, ".json", lambda path, name, *_: calls.append(name) or read_rows(ROWS, name))
    assert [len(part) for part in load_shards(source, 4)] == [10] * 4
    assert calls == [source]


def test_a_part_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    rows = ({"instruction": f"{n}", "output": "x" * 50} for n in range(5000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    decoded: list[int] = []
    line = readers.read_lines

    def counted(*how: Any) -> Any:
        for record in line(*how):
            decoded.append(1)
            yield record

    monkeypatch.setattr(readers, "read_lines", counted)
    assert 498 <= len(load_shards(str(path), 10, 3)[0]) <= 502
    assert len(decoded) <= 503
