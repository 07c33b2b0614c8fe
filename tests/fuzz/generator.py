"""Files of rows that are wrong at every level, by a seed.

Of each file it is known which rows are good, as JSON values: these must come through as they are, whatever stands
beside them. ``python -m tests.fuzz.generator SEED FOLDER`` writes one.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
WORDS = [
    "a",
    "the sum is 7",
    "\u00e9\u4e2d\U0001f600",
    "line\nbreak",
    'quote "x", y',
    "\u202eback",
    "\x1b[31m",
    "{}",
    "'",
    "[1",
]
ODD: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1e308,
    0.1,
    "",
    " ",
    "null",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    "[" * 3000 + "]" * 3000,
    '{"a":' * 150 + "1" + "}" * 150,
    '["\\ud800"]',
    "[{'role': 'user', 'content': '\\ud800'}]",
    "[{'role': 'user'}, ...]",
    "{'a': {1, 2}}",
    "(" * 200,
    "\x00",
    "\ufeff",
    "x" * 5000,
]
BYTES = [
    b"\xff",
    b"\xc3",
    b"\x00",
    b"\\ud800",
    b'"',
    b"{",
    b"}",
    b"[" * 1200,
    b"1e999",
    b"NaN",
    b"-Infinity",
    b",,",
    b"\xef\xbb\xbf",
    b"\\u0000",
    b"9" * 5000,
    b"\r",
]


@dataclass
class Made:
    """A file: what it is, how many records it has, and of those that are good, their values."""

    name: str
    data: bytes | list[Any]
    records: int
    good: list[Row] = field(default_factory=list)
    lines: bool = False
    """Records are counted in lines, of which a good row may have several."""


class Generator:
    """Makes files; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def file(self, records: int) -> Made:
        """A file of about so many records of some kind, most of them good."""
        kind = self.random.choice(KINDS)
        rows = [self.row() for _ in range(records)]
        bad = {at for at in range(1, records) if self.random.random() < 0.3}
        return kind(self, rows, bad)

    # ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def text(self) -> str:
        """Words, odd characters among them."""
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, 4)))

    def row(self) -> Row:
        """A good row of one of the formats."""
        return self.random.choice(SHAPES)(self)

    def turns(self, role: str = "role", content: str = "content") -> list[Row]:
        """A conversation."""
        names = ("user", "assistant") if role == "role" else ("human", "gpt")
        return [{role: names[at % 2], content: self.text()} for at in range(2 * self.random.randint(1, 3))]

    def spoiled(self, row: Row) -> Row:
        """The row with something odd at some level, or without something."""
        out = json.loads(json.dumps(row))
        place: Any = out
        for _ in range(self.random.randint(0, 4)):
            inner = [
                v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list) and v
            ]
            if not inner:
                break
            place = self.random.choice(inner)
        key: Any = self.random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        match self.random.randrange(5):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[self.random.choice([*ODD_KEYS, key + " "])] = self.odd()
            case 2:
                place[key] = json.dumps(place[key])[: self.random.randint(1, 40)]
            case 3:
                place[key] = self.deep()
            case _:
                place[key] = self.odd()
        return dict(out)

    def odd(self) -> Any:
        """A value that nobody expects there."""
        return self.random.choice(ODD)

    def deep(self) -> Any:
        """Lists or objects within each other."""
        value: Any = "x"
        for _ in range(self.random.choice([3, 150, 201, 400])):
            value = [value] if self.random.random() < 0.5 else {"a": value}
        return value

    def bitten(self, line: bytes) -> bytes:
        """The line with some bytes gone, doubled or put in."""
        for _ in range(self.random.randint(1, 3)):
            at = self.random.randrange(len(line) + 1)
            cut = self.random.choice([0, 0, 1, 5])
            line = line[:at] + self.random.choice([*BYTES, b""]) + line[at + cut :]
        return line.replace(b"\n", b" ")


SHAPES: list[Callable[[Generator], Row]] = [
    lambda g: {"instruction": g.text(), "input": "", "output": g.text()},
    lambda g: {"instruction": g.text(), "output": g.text(), "history": [[g.text(), g.text()]], "system": g.text()},
    lambda g: {"messages": g.turns()},
    lambda g: {"conversations": g.turns("from", "value"), "id": g.text()},
    lambda g: {"conversations": [g.text(), g.text()]},
    lambda g: {"prompt": g.text(), "completion": g.text()},
    lambda g: {"prompt": g.turns()[:1], "chosen": g.turns()[1:2], "rejected": g.turns()[1:2]},
    lambda g: {"question": g.text(), "answer": g.text()},
    lambda g: {"question": g.text(), "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 2},
    lambda g: {
        "query": g.text(),
        "answers": json.dumps([{"name": "f", "arguments": {"x": 1}}]),
        "tools": json.dumps([{"name": "f", "parameters": {"x": {"type": "int"}}}]),
    },
    lambda g: {
        "messages": [
            {"role": "user", "content": g.text()},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "content": "1", "tool_call_id": "1"},
            {"role": "assistant", "content": g.text(), "reasoning_content": g.text()},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "chat_template_kwargs": {"enable_thinking": True},
    },
]
ODD_KEYS = ["", "tools", "chat_template_kwargs", "system", "images", "weight", "role", "\x1b]52;c;QUJD\x07", "from"]


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(value: Any, g: Generator) -> bytes:
    return json.dumps(value, ensure_ascii=g.random.random() < 0.5).encode(errors="surrogatepass")


def jsonl(g: Generator, rows: list[Row], bad: set[int]) -> Made:
    """Lines; bad ones are bitten, or hold a spoiled row."""
    lines, good = [], []
    for at, row in enumerate(rows):
        line = _json(row, g)
        if at in bad:
            line = g.bitten(line) if g.random.random() < 0.5 else _json(g.spoiled(row), g)
        else:
            good.append(row)
        lines.append(line)
    ends = [g.random.choice([b"\n", b"\n", b"\r\n", b"\n\n"]) for _ in lines]
    data = b"".join(line + end for line, end in zip(lines, ends, strict=True))
    return Made("rows.jsonl", data, sum(bool(line.strip(b" \t\r\n")) for line in data.split(b"\n")), good)


def packed(g: Generator, rows: list[Row], bad: set[int]) -> Made:
    """Lines in an archive."""
    made = jsonl(g, rows, bad)
    suffix, pack = g.random.choice([(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
    assert isinstance(made.data, bytes)
    return Made(made.name + suffix, pack(made.data), made.records, made.good)


def array(g: Generator, rows: list[Row], bad: set[int]) -> Made:
    """An array; bad elements are spoiled rows, or no objects."""
    values = [
        (g.spoiled(row) if g.random.random() < 0.8 else g.odd()) if at in bad else row for at, row in enumerate(rows)
    ]
    data = b"[" + b",\n".join(_json(value, g) for value in values) + b"]"
    return Made("rows.json", data, len(rows), [row for at, row in enumerate(rows) if at not in bad])


def python(g: Generator, rows: list[Row], bad: set[int]) -> Made:
    """Python objects, with values that JSON does not know."""
    foreign: list[Any] = [b"\xff", {1}, object(), float("inf"), "\ud800", 1j, lambda: 0, {"a": {2: float("nan")}}]

    def spoiled(row: Row) -> Any:
        match g.random.randrange(3):
            case 0:
                return g.spoiled(row)
            case 1:
                return g.odd()
        return {**row, g.random.choice([*row, "more"]): g.random.choice(foreign)}

    values = [spoiled(row) if at in bad else row for at, row in enumerate(rows)]
    return Made("", values, len(rows), [row for at, row in enumerate(rows) if at not in bad])


def table(g: Generator, rows: list[Row], bad: set[int]) -> Made:
    """Parquet or Arrow of one shape, with columns that Python cannot hold."""
    rows = [
        {"question": g.text(), "answer": None if at in bad and at % 3 == 0 else g.text()} for at in range(len(rows))
    ]
    broken = [at in bad and at % 3 == 1 for at in range(len(rows))]
    notes = pa.array([b"\xff" if one else b"fine" for one in broken], pa.binary())
    late = pa.array([10**15 if at in bad else 0 for at in range(len(rows))], pa.timestamp("ms"))
    found = pa.Table.from_pylist(rows, pa.schema([("question", pa.string()), ("answer", pa.string())]))
    found = found.append_column("note", pa.Array.from_buffers(pa.string(), len(rows), notes.buffers()))
    found = found.append_column("when", late)
    out = io.BytesIO()
    name = g.random.choice(["rows.parquet", "rows.arrow"])
    if name == "rows.parquet":
        pq.write_table(found, out, row_group_size=g.random.choice([3, 1000]))
    else:
        with pa.ipc.new_file(out, found.schema) as writer:
            writer.write_table(found)
    for at, row in enumerate(rows):
        row |= {"note": "fine", "when": 10**15 if at in bad else "1970-01-01T00:00:00"}
    kept = [row for row, one in zip(rows, broken, strict=True) if row["answer"] is not None and not one]
    return Made(name, out.getvalue(), len(rows), kept)


def separated(g: Generator, rows: list[Row], bad: set[int]) -> Made:
    """CSV, with stray quotes, bytes and fields; a quote may take in good rows below it, so that none is promised."""
    delimiter, name = g.random.choice([(",", "rows.csv"), ("\t", "rows.tsv"), (";", "rows.csv")])
    strays = g.random.random() < 0.5
    out, good = b"question%banswer\n" % delimiter.encode(), []
    for at in range(len(rows)):
        row = {"question": g.text(), "answer": g.text()}
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerow(row.values())
        line = text.getvalue().encode()
        if at in bad:
            line = g.bitten(line) if strays else g.random.choice([b"one\n", b"\xff" + line.replace(b"\n", b" ")])
            line = line.rstrip(b"\n") + b"\n"
        elif not strays:
            good.append(row)
        out += line
    out = out.replace(b"\r", b"")
    return Made(name, out, out.count(b"\n") - 1, good, lines=True)


KINDS = (jsonl, jsonl, packed, array, python, table, separated)


def main(seed: str, folder: str) -> None:
    """Write the first file of a seed."""
    made = Generator(int(seed)).file(40)
    if isinstance(made.data, bytes):
        (Path(folder) / made.name).write_bytes(made.data)
    print(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
