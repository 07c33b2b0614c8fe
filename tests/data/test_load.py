from __future__ import annotations

import csv
import gzip
import io
import json
import random
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instdiff.data import Call, Reject, load, readers, sources, tables
from instdiff.errors import ConfigError, DataError

from .conftest import alpaca_rows

ROWS = alpaca_rows(3)
Make = Callable[..., Path]


def test_jsonl_with_faults(jsonl: Make, tmp_path: Path) -> None:
    deep = b"[" * 100_000
    faults = [
        b"\xff{}",
        b'{"instruction": "i", "output"',
        b"[1, 2]",
        b'{"instruction": "i", "output": "o", "score": NaN}',
        b'{"instruction": "i", "output": "o", "score": -Infinity}',
        b'{"instruction": "i", "output": "o", "score": 1e999}',
        b'{"instruction": "\\ud800", "output": "o"}',
        b'{"instruction": "i", "output": 7}',
        deep,
    ]
    path = jsonl([b"", *alpaca_rows(2), b"  ", *faults, *alpaca_rows(9)])
    told: list[str] = []
    pool = load(path, log=told.append, rejects_path=tmp_path / "rejected.jsonl")
    assert pool.rows.tolist() == [0, 1, *range(11, 20)]
    assert [(r.line, r.reason) for r in pool.rejected[:-1]] == [
        (5, "invalid UTF-8 at byte 1"),
        (6, "broken JSON: Expecting ':' delimiter at column 30"),
        (7, "a JSON object is expected, this is list"),
        (8, "NaN is not a JSON number"),
        (9, "-Infinity is not a JSON number"),
        (10, "1e999 is not a JSON number"),
        (11, "a lone surrogate, which UTF-8 cannot hold"),
        (12, "'output' is a number, text is expected"),
    ]
    assert pool.rejected[-1].line == 13
    assert pool.rejected[-1].reason.startswith("broken JSON: ")
    assert len(pool.rejected[-1].text) == 10_000
    assert pool.rejected[0].text == "\\xff{}"
    assert told == [
        f"{path}: 11 rows, format alpaca (instruction, input, output); 9 rejected",
        *(str(reject) for reject in pool.rejected[:5]),
        "… and 4 more",
    ]
    assert told[1] == f"{path}:5: invalid UTF-8 at byte 1"
    written = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert written == [{"file": r.file, "line": r.line, "reason": r.reason, "text": r.text} for r in pool.rejected]


def test_log_of_a_clean_file(jsonl: Make, tmp_path: Path) -> None:
    told: list[str] = []
    path = jsonl(alpaca_rows(1234))
    pool = load(str(path), log=told.append, rejects_path=tmp_path / "rejected.jsonl")
    assert told == [f"{path}: 1,234 rows, format alpaca (instruction, input, output)"]
    assert (len(pool), pool.rejected, pool.origin) == (1234, (), str(path))
    assert not (tmp_path / "rejected.jsonl").exists()


def test_a_pair_of_surrogates_is_a_character(jsonl: Make) -> None:
    pool = load(jsonl([b'{"instruction": "\\ud83d\\ude00 \\\\ud800", "output": "o"}']))
    assert pool.sample(0).instruction == "😀 \\ud800"


def test_bom_and_line_ends(jsonl: Make) -> None:
    path = jsonl([])
    path.write_bytes("\ufeff".encode() + b'{"instruction": "a\xe2\x80\xa8b", "output": "o"}\r\n\r\n')
    pool = load(path)
    assert pool.sample(0).instruction == "a\u2028b"
    assert pool.source_rows([0]) == [{"instruction": "a\u2028b", "output": "o"}]


def test_more_than_half_bad(jsonl: Make, tmp_path: Path) -> None:
    path = jsonl([*alpaca_rows(2), b"x", b"y", {"instruction": "i", "text": "t"}])
    with pytest.raises(DataError) as caught:
        load(path, rejects_path=tmp_path / "rejected.jsonl")
    message = str(caught.value)
    assert "3 of 5 records cannot be used, which is more than half" in message
    assert f"  {path}:3: broken JSON: Expecting value at column 1\n" in message
    assert f"  {path}:5: missing key 'output' (or 'response'); it has: instruction, text\n" in message
    assert "Keys found: instruction, input, output, text." in message
    assert "sharegpt (conversations or conversation)" in message
    assert message.endswith("They would be read with --map instruction=instruction,response=text")
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 3


def test_half_bad_is_not_more_than_half(jsonl: Make) -> None:
    pool = load(jsonl([*alpaca_rows(2), b"x", b"y"]))
    assert (len(pool), len(pool.rejected)) == (2, 2)


def test_all_bad(jsonl: Make) -> None:
    with pytest.raises(DataError, match=r"2 of 2 records cannot be used(.|\n)*Keys found: none"):
        load(jsonl([b"x", b"y"]))


def test_no_known_format(jsonl: Make) -> None:
    with pytest.raises(DataError, match=r"no known format; keys found: text, label\. Formats: messages \(messages\);"):
        load(jsonl([{"text": "t", "label": 1}]))


def test_columns_other_than_text_survive_a_late_key(jsonl: Make) -> None:
    rows = [*alpaca_rows(150), {"instruction": "i", "output": "o", "level": 3}]
    pool = load(jsonl(rows))
    assert pool.column("level") == [None] * 150 + [3]


@pytest.mark.parametrize("limit", [1, 2, 99, 100, 101, 150, 5000])
def test_limit(jsonl: Make, limit: int) -> None:
    pool = load(jsonl(alpaca_rows(300)), limit=limit)
    assert pool.rows.tolist() == list(range(min(limit, 300)))


def test_limit_counts_bad_records_and_reads_no_further(jsonl: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def line(most: int) -> bytes:
        taken.append(len(taken))
        return b"broken\n" if len(taken) == 2 else json.dumps(ROWS[0]).encode() + b"\n"

    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=types.SimpleNamespace(readline=line)))
    pool = load("-", limit=4)
    assert pool.rows.tolist() == [0, 2, 3]
    assert taken == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="limit is 0"):
        load("-", limit=0)


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS) + b"nothing\n"
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    pool = load("-")
    assert pool.source_rows([0, 1, 2]) == ROWS
    assert str(pool.rejected[0]) == "stdin:4: broken JSON: Expecting value at column 1"


def test_gz(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl.gz"
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    path.write_bytes(whole)
    assert load(path).ids == load(ROWS).ids
    path.write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"cannot read .*my\.jsonl\.gz: .*check that the file is whole"):
        load(path)
    path.write_bytes(b"{}")
    with pytest.raises(DataError, match="cannot read"):
        load(path)


def test_json_array(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text("\ufeff" + json.dumps([*ROWS, 5], indent=2), encoding="utf-8")
    pool = load(path)
    assert pool.source_rows(range(3)) == ROWS
    assert pool.rejected == (Reject(str(path), 4, "a JSON object is expected, this is int", "5"),)


def test_json_array_with_bad_records(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    good = json.dumps(ROWS[0]).encode()
    path.write_bytes(
        b"[" + b", ".join([good, b'{"instruction": "\xff", "output": "o"}', b'{"output": NaN}', good, good]) + b"]"
    )
    pool = load(path)
    assert pool.rows.tolist() == [0, 3, 4]
    assert [(r.line, r.reason) for r in pool.rejected] == [
        (2, "invalid UTF-8, or a lone surrogate, which UTF-8 cannot hold"),
        (3, "NaN is not a JSON number"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a" 2}]', r"my\.json:2: broken JSON: Expecting ':' delimiter at column 7"),
        ('[{"a": 1}\n{"a": 2}]', r"my\.json:2: broken JSON: ',' or '\]' expected at column 1"),
        ('[{"a": 1}', r"my\.json:1: broken JSON: ',' or '\]' expected at column 10"),
        ("[] x", r"my\.json:1: broken JSON: text after the end of the array"),
        ('{"data": [{"a": 1}]}', r"its rows seem to lie under 'data': jq \.data "),
        ('{"1": {"a": 1}, "2": {"a": 1}}', r"under 2 keys: jq '\[\.\[\]\]'"),
        ('{"instruction": ["a", "b"]}', "write it as an array of objects"),
        ('"text"', "an array of objects is expected"),
        ("[]", "is empty"),
        ("", "is empty"),
    ],
)
def test_json_that_is_no_array_of_rows(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "my.json")


def test_json_lines_called_json(jsonl: Make) -> None:
    pool = load(jsonl([*ROWS, b"broken"], name="my.json"))
    assert pool.source_rows(range(3)) == ROWS
    assert pool.rejected[0].line == 4


def test_json_limit_stops_before_a_fault(tmp_path: Path) -> None:
    (tmp_path / "my.json").write_text('[{"instruction": "i", "output": "o"}, broken')
    assert len(load(tmp_path / "my.json", limit=1)) == 1


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    turns = json.dumps([{"role": "user", "content": 'a "b", c\nd'}, {"role": "assistant", "content": "é"}])
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["messages", "n"], [turns, "1"], [turns, "2", "3"], [], [turns, ""]])
    pool = load(path)
    assert pool.format == "messages"
    assert pool.sample(0).instruction == 'a "b", c\nd'
    assert pool.column("n") == ["1", ""]
    assert pool.rows.tolist() == [0, 2]
    assert (pool.rejected[0].line, pool.rejected[0].reason) == (3, "3 fields, the header has 2")


def test_csv_faults(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_bytes(b'question,answer\na,b\n"c"d,e\nf,\xff\ng,h\ni,j\nk,"l\n')
    pool = load(path)
    assert pool.rows.tolist() == [0, 3, 4]
    assert [(r.line, r.reason) for r in pool.rejected] == [
        (3, "broken CSV: ',' expected after '\"'"),
        (4, "invalid UTF-8"),
        (7, "broken CSV: unexpected end of data"),
    ]
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match="column 'a' is there twice"):
        load(path)


def test_tsv(tmp_path: Path) -> None:
    (tmp_path / "my.tsv").write_text("question\tanswer\na, b\tc\n")
    assert load(tmp_path / "my.tsv").source_rows([0]) == [{"question": "a, b", "answer": "c"}]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "my.parquet"
    turn = {"role": "user", "content": "q", "tool_calls": None}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    table = pa.table(
        {
            "messages": [[turn, call], [turn], []],
            "score": [0.5, float("nan"), 1.0],
            "when": pa.array([0, 1, None], pa.timestamp("s")),
            "raw": [b"abc", b"\xff", None],
        }
    )
    pq.write_table(table, path)
    pool = load(path)
    assert [m.content for m in pool.sample(0).messages] == ["q", ""]
    assert pool.sample(0).messages[1].calls == (Call("f", {}),)
    assert pool.column("score") == [0.5, None]
    assert pool.column("when") == ["1970-01-01T00:00:00", "1970-01-01T00:00:01"]
    assert pool.column("raw") == ["abc", "/w=="]
    assert (pool.rejected[0].line, pool.rejected[0].reason) == (3, "'messages' is empty")
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(DataError, match="cannot read"):
        load(path)


def test_parquet_reads_only_what_the_limit_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.parquet"
    pq.write_table(pa.Table.from_pylist(alpaca_rows(5000)), path)
    seen: list[int] = []
    real = tables.read_tables

    def spy(batches: Iterator[Any], *how: Any) -> Iterator[Any]:
        return real((seen.append(1) or table for table in batches), *how)  # type: ignore[func-returns-value]

    monkeypatch.setattr(tables, "read_tables", spy)
    assert len(load(path, limit=10)) == 10
    assert len(seen) == 1


def test_folder(jsonl: Make, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    jsonl([ROWS[0], b"broken", ROWS[1]], name="all/b.jsonl")
    jsonl([{"question": "q", "answer": "a"}], name="all/a.jsonl")
    jsonl([b"broken"], name="all/c.jsonl")
    jsonl([b"nothing"], name="all/.hidden.jsonl")
    (folder / "README.md").write_text("# no data")
    (folder / "dataset_info.json").write_text('{"mine": {"file_name": "a.jsonl"}}')
    told: list[str] = []
    pool = load(folder, log=told.append)
    assert [s.instruction for s in pool.samples()] == ["q", "Say 0.", "Say 1."]
    assert pool.rows.tolist() == [0, 1, 3]
    assert pool.format == "question_answer+alpaca"
    assert [(Path(r.file).name, r.line) for r in pool.rejected] == [("b.jsonl", 2), ("c.jsonl", 1)]
    assert told[0] == (
        f"{folder}: 3 rows, formats question_answer 1, alpaca 2 "
        "(question, answer, instruction, input, output); 2 rejected"
    )
    assert told[1] == (f"{folder}: read a.jsonl (1 row), b.jsonl (3 rows), c.jsonl (1 row); left out dataset_info.json")
    assert load(folder, limit=2).rows.tolist() == [0, 1]


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file in this folder; known kinds: \.jsonl"):
        load(tmp_path)


def test_what_is_not_there(jsonl: Make, tmp_path: Path) -> None:
    jsonl(ROWS, name="train.jsonl")
    with pytest.raises(DataError, match=r"trian\.jsonl is not there; did you mean train\.jsonl\?"):
        load(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="zzz is not there; check the path"):
        load(tmp_path / "zzz")
    with pytest.raises(DataError, match="write hub:nobody/nothing"):
        load("nobody/nothing")
    with pytest.raises(DataError, match=r"unknown kind of file; known: \.jsonl"):
        load(jsonl(ROWS, name="my.txt"))


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "my.jsonl").write_bytes(data)
    with pytest.raises(DataError, match="is empty"):
        load(tmp_path / "my.jsonl")


def test_utf16(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(DataError, match="this is UTF-16; save it as UTF-8"):
        load(tmp_path / "my.jsonl")


def test_rows_in_memory() -> None:
    pool = load([ROWS[0], "text", {**ROWS[1], "score": float("inf")}, {**ROWS[2], "s": {1, 2}}, *ROWS])  # type: ignore[list-item]
    assert pool.origin == "rows"
    assert pool.rows.tolist() == [0, 4, 5, 6]
    assert [str(r) for r in pool.rejected] == [
        "rows:2: an object is expected, this is str",
        "rows:3: Infinity is not a JSON number",
        "rows:4: a value of type set has no JSON form",
    ]
    assert load([{"instruction": "\ud800", "output": "o"}, *ROWS]).rejected[0].reason.startswith("a lone surrogate")
    with pytest.raises(DataError, match="put it into a list"):
        load({"instruction": "i"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="rows is empty"):
        load([])


def test_builtin(jsonl: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(ROWS, name="demo/train.jsonl")
    jsonl(ROWS[:1], name="demo/heldout.jsonl")
    monkeypatch.setattr(sources, "BUILTIN", tmp_path)
    assert len(load("builtin:demo")) == 3
    assert len(load("builtin:demo/heldout")) == 1
    with pytest.raises(DataError, match="no built-in data 'builtin:dmo'; did you mean 'builtin:demo'"):
        load("builtin:dmo")


def test_ids_do_not_depend_on_order(jsonl: Make) -> None:
    rows = alpaca_rows(50)
    shuffled = random.Random(0).sample(rows, len(rows))
    first, second = load(jsonl(rows)), load(jsonl(shuffled, name="other.jsonl"))
    assert first.ids != second.ids
    assert dict(zip(map(str, rows), first.ids, strict=True)) == dict(zip(map(str, shuffled), second.ids, strict=True))
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == load(rows).fingerprint
    assert len(first.fingerprint) == 32


def test_more_rows_than_a_chunk(jsonl: Make) -> None:
    rows = alpaca_rows(9000)
    pool = load(jsonl(rows))
    assert pool.table.column("id").num_chunks == 3
    assert [s.instruction for s in pool.samples()] == [row["instruction"] for row in rows]
    assert [s.response for s in pool.samples(4090, 4100)] == [str(i) for i in range(4090, 4100)]
    assert pool.sample(-1).response == "8999"
    assert pool.source_rows([8999, 0, 4096]) == [rows[8999], rows[0], rows[4096]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=8))
def test_any_text_comes_through_byte_for_byte(texts: list[tuple[str, str, str]]) -> None:
    rows = [{"instruction": i, "input": x, "output": o} for i, x, o in texts]
    raw = [json.dumps(row, ensure_ascii=bool(n % 2)).encode() for n, row in enumerate(rows)]
    assert [record.value for record in readers.read_lines(io.BytesIO(b"\n".join(raw)), "f")] == rows
    pool = load(rows)
    assert [(s.instruction, s.input, s.response) for s in pool.samples()] == texts
    assert pool.source_rows(range(len(rows))) == rows
