"""Rows that would end the reading of all others, and files that would take all memory."""

from __future__ import annotations

import gzip
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instdiff.config.base import read_yaml
from instdiff.data import Pool, load
from instdiff.data.arrow import pack
from instdiff.errors import ConfigError, DataError

Make = Callable[..., Path]
GOOD = {"messages": [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]}
QA = {"question": "q", "answer": "a"}


def reasons(pool: Pool) -> list[tuple[int, str]]:
    return [(reject.line, reject.reason) for reject in pool.rejected]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"messages": "[" * 3000 + "]" * 3000}, "'messages' is text that begins like a list but is neither JSON nor"),
        ({"messages": GOOD["messages"] * 2, "tools": '["\\ud800"]'}, ""),
        (
            {"messages": [{"role": "user", "content": "x", "more": 0}], "deep": 0},
            "nested too deep: more than 200 levels",
        ),
        ({"messages": GOOD["messages"], "tools": "[" * 3000 + "]" * 3000}, "'tools' is nested too deep"),
        ({"messages": "[{'role': 'user', 'content': '\\ud800'}]"}, "'messages' is text that begins like a list but"),
    ],
)
def test_json_inside_a_text_spoils_its_own_row_alone(jsonl: Make, bad: dict[str, Any], reason: str) -> None:
    if "deep" in bad:
        bad["messages"][0]["more"] = json.loads("[" * 400 + "]" * 400)
    pool = load(jsonl([GOOD, bad, GOOD, GOOD]))
    assert len(pool) + len(pool.rejected) == 4
    assert [sample.response for sample in pool.samples()].count("a") == len(pool)
    assert all(found.startswith(reason) and line == 2 for line, found in reasons(pool))
    assert len(pool) == (3 if reason else 4)


def test_what_nobody_thought_of_in_a_row_is_a_reject(jsonl: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(sample: Any) -> Any:
        if sample.response == "3":
            raise ZeroDivisionError("division by zero")
        return pack(sample)

    monkeypatch.setattr(sys.modules["instdiff.data.load"], "pack", fails)
    pool = load(jsonl([{"question": "q", "answer": str(n)} for n in range(6)]))
    assert reasons(pool) == [(4, "it cannot be read: ZeroDivisionError: division by zero")]
    assert [sample.response for sample in pool.samples()] == ["0", "1", "2", "4", "5"]


# ── CSV ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_stray_quote_loses_its_own_row(tmp_path: Path) -> None:
    lines = [f"say {n},{'' if n not in (4, 15) else chr(34)}answer {n}" for n in range(1, 22)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["instruction,output", *lines]) + "\n")
    pool = load(path)
    assert [sample.instruction for sample in pool.samples()] == [f"say {n}" for n in range(1, 22) if n not in (4, 15)]
    assert [line for line, _ in reasons(pool)] == [5, 16]
    assert reasons(pool)[0][1] == "broken CSV: ',' expected after '\"' in line 16, with a quote that opens before it"


def test_a_quote_at_each_place_of_a_file_loses_no_line_unnamed(tmp_path: Path) -> None:
    """Each line is one of a row's, or a reject of its own."""
    text = "".join(f"say {n},answer {n}\n" for n in range(9))
    path = tmp_path / "a.csv"
    for at in range(len(text) + 1):
        for rest in ("", 'say 9,"two\nlines"\n'):
            path.write_text("question,answer\n" + text[:at] + '"' + text[at:] + rest)
            pool = load(path)
            rows = sum(1 + "".join(row.values()).count("\n") for row in pool.source_rows(range(len(pool))))
            lines = path.read_text().count("\n") - 1 + (not path.read_text().endswith("\n"))
            assert rows + len(pool.rejected) == lines, (at, rest)
            assert len({reject.line for reject in pool.rejected}) == len(pool.rejected)


def test_the_line_of_a_reject_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\na,"b\nb"\n\nc,d,e\nf,g\nh,i\n')
    assert [str(reject) for reject in load(path).rejected] == [f"{path}:5: 3 fields, the header has 2"]


def test_rows_that_two_stray_quotes_hold_together_are_said(tmp_path: Path) -> None:
    path, told = tmp_path / "a.csv", list[str]()
    path.write_text('question,answer\na,"1\nb,2\nc,3"\nd,4\n')
    assert len(load(path, log=told.append)) == 2
    assert told[1] == f"rows over several lines, each of which looks like a row; is a quote astray? {path}:2 (1)"


def test_a_csv_file_in_another_encoding_is_called_by_its_name(tmp_path: Path) -> None:
    for encoding, name in (("utf-16", "UTF-16"), ("utf-32", "UTF-32")):
        for suffix, text in (
            (".csv", "question,answer\na,b\n"),
            (".jsonl", json.dumps(QA)),
            (".json", json.dumps([QA])),
        ):
            path = tmp_path / f"a{suffix}"
            path.write_bytes(text.encode(encoding))
            with pytest.raises(DataError, match=f"this is {name}; save it as UTF-8"):
                load(path)


# ── keys that are there twice ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_that_is_there_twice_is_a_reject(jsonl: Make, tmp_path: Path) -> None:
    good = {"instruction": "a", "output": "b"}
    twice = b'{"instruction":"a","output":"first","output":"second"}'
    pool = load(jsonl([*[good] * 130, twice, good]))
    assert reasons(pool) == [(131, "the key 'output' is there twice in one object; keep one")]
    inside = b'{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}'
    assert reasons(load(jsonl([GOOD, inside, GOOD]))) == [
        (2, "the key 'content' is there twice in one object; keep one")
    ]
    array = tmp_path / "a.json"
    array.write_bytes(b"[" + json.dumps(good).encode() + b"," + twice + b"," + json.dumps(good).encode() + b"]")
    assert [line for line, _ in reasons(load(array))] == [2]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"messages": '[{"role": "user", "content": "a", "content": "b"}]'}, "in 'messages' the key 'content'"),
        ({**GOOD, "tools": '[{"name": "x", "name": "y"}]'}, "in 'tools' the key 'name'"),
        ({**GOOD, "chat_template_kwargs": '{"a": 1, "a": 2}'}, "in 'chat_template_kwargs' the key 'a'"),
    ],
)
def test_a_key_that_is_there_twice_inside_a_text_is_a_reject(jsonl: Make, bad: dict[str, Any], said: str) -> None:
    twice = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": '{"a": 1, "a": 2}'}]}
    pool = load(jsonl([twice, bad, twice]))
    assert [sample.response for sample in pool.samples()] == ['{"a": 1, "a": 2}'] * 2
    assert [reject.reason for reject in pool.rejected] == [f"{said} is there twice in one object; keep one"]


def test_a_text_that_holds_a_key_is_no_key(jsonl: Make) -> None:
    rows = [{"instruction": 'write {"instruction": 1, "output": 2}', "output": '"output": "output":'}] * 200
    assert load(jsonl(rows)).source_rows(range(200)) == rows


# ── values that Python cannot hold ────────────────────────────────────────────────────────────────────────────────────


def table_of(**columns: pa.Array) -> pa.Table:
    count = len(next(iter(columns.values())))
    answers = [f"a{n}" for n in range(count)]
    return pa.table({"question": ["q"] * count, "answer": answers, **columns})


def test_times_that_no_calendar_has_are_kept_as_numbers(tmp_path: Path) -> None:
    path, told = tmp_path / "a.parquet", list[str]()
    late = pa.array([0, 300000000000000, None], pa.timestamp("ms"))
    nowhere = pa.array([1, 2, 3], pa.timestamp("us", "Mars/Olympus"))
    pq.write_table(table_of(when=late, there=nowhere, long=pa.array([2**62] * 3, pa.duration("s"))), path)
    pool = load(path, log=told.append)
    assert [sample.response for sample in pool.samples()] == ["a0", "a1", "a2"]
    assert pool.column("when") == ["1970-01-01T00:00:00", 300000000000000, None]
    assert pool.column("there") == [1, 2, 3]
    assert pool.column("long") == [2**62] * 3
    assert told[1].startswith("columns with times that no calendar has, kept as the file's numbers: ")


def test_a_text_in_a_table_that_is_no_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).buffers())
    for suffix in (".parquet", ".arrow"):
        path = tmp_path / f"a{suffix}"
        table = table_of(note=texts)
        if suffix == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        pool = load(path)
        assert [sample.response for sample in pool.samples()] == ["a0", "a2"]
        assert reasons(pool)[0][0] == 2
        assert reasons(pool)[0][1].startswith("column 'note': ")


# ── size ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_beyond_the_limit_is_a_reject_and_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    row = json.dumps(QA).encode() + b"\n"
    with gzip.open(path, "wb", 1) as file:
        file.write(row)
        for _ in range(3):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + row + b" " * (3 << 20) + b"\n" + row)
    pool = load(path, longest_line_mb=1)
    assert len(pool) == 3
    assert reasons(pool) == [(2, "a line of more than 1 MB; a higher longest_line_mb would read it")]
    assert len(pool.rejected[0].text) == 10_000
    assert len(load(path, longest_line_mb=4).rejected) == 1


def test_a_csv_line_beyond_the_limit_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\na,b\nc," + "x" * (2 << 20) + '\nd,e\nf,"' + "y\n" * (1 << 20))
    with pytest.raises(DataError, match="cannot be used, which is more than half"):
        load(path, longest_line_mb=1)
    path.write_text("question,answer\na,b\nc," + "x" * (2 << 20) + "\nd,e\n")
    pool = load(path, longest_line_mb=1)
    assert [sample.response for sample in pool.samples()] == ["b", "e"]
    assert reasons(pool) == [(3, "broken CSV: a line of more than 1 MB; a higher longest_line_mb would read it")]


def test_an_array_beyond_the_limit_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b"[" + b" " * (9 << 20) + b"]")
    with pytest.raises(DataError, match=r"this is more than 8 MB of JSON in one piece; write it as a \.jsonl file"):
        load(path, longest_line_mb=1)


# ── hints ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "key", ["x' /dev/null; touch PWNED; echo '", 'a"b', "a\\(1)", "$(touch PWNED)", "`touch PWNED`", "data", "-n"]
)
def test_a_hint_for_the_shell_is_quoted(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "my rows; touch PWNED.json"
    Path(name).write_text(json.dumps({key: [QA]}))
    with pytest.raises(DataError) as error:
        load(name)
    hint = str(error.value).split("': ", 1)[1] if key == "data" else str(error.value).rpartition(": jq ")[2]
    words = shlex.split(hint if key == "data" else f"jq {hint}")
    assert words[0] == "jq"
    assert words[2:] == [name, ">", "rows.json"]
    assert words[1] == ".data" if key == "data" else json.loads(words[1][2:-1]) == key
    shell = "jq() { :; }; " + (hint if key == "data" else f"jq {hint}")
    subprocess.run(["sh", "-c", shell], check=True, capture_output=True, cwd=tmp_path)
    assert not (tmp_path / "PWNED").exists()


def test_no_hint_where_a_key_cannot_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a\x1b]52;c;QUJD\x07": [QA]}))
    with pytest.raises(DataError, match=r"; write these as an array of objects$"):
        load(path)


def test_the_map_that_is_proposed_is_one_word_for_a_shell(jsonl: Make) -> None:
    rows = [{"my question; rm x": "a", "the answer $(x)": "b"}] * 3
    with pytest.raises(DataError) as error:
        load(jsonl(rows))
    assert shlex.split(str(error.value).rpartition("--map ")[2]) == [
        "instruction=my question; rm x,response=the answer $(x)"
    ]


def test_a_configuration_with_a_key_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data: x\nlimit: 3\nlimit: 5\n")
    with pytest.raises(ConfigError, match=r"a\.yaml'.*line 3.*key 'limit' is there twice; keep one"):
        read_yaml(path)
    path.write_text("base: &b {a: 1}\nmine: {<<: *b, a: 2}\n")
    assert read_yaml(path)["mine"] == {"a": 2}


def test_rejects_of_an_earlier_reading_do_not_stay(jsonl: Make, tmp_path: Path) -> None:
    aside = tmp_path / "a.rejected.jsonl"
    load(jsonl([QA, b"broken", QA]), rejects_path=aside)
    assert aside.exists()
    load(jsonl([QA, QA]), rejects_path=aside)
    assert not aside.exists()
    aside.write_text(json.dumps(QA) + "\n")
    load(aside, rejects_path=aside)
    assert aside.exists()
