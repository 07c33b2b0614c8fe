"""What is exported is what the trainers' published schemas ask for, and says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from instdiff.data import load
from instdiff.errors import ConfigError, StoreError
from instdiff.selection.export.export import export
from instdiff.selection.export.models import has_chat_template, local

from .rows import CALLS, CHAT, HISTORY, INPUTS, ODD_CALL, PLAIN, ids, read, write

EVERY = {"plain": PLAIN, "inputs": INPUTS, "history": HISTORY, "chat": CHAT, "calls": CALLS}


def told(*args: Any, **options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    return export(*args, log=lines.append, **options), lines


@pytest.mark.parametrize("rows", EVERY)
@pytest.mark.parametrize("format", ["llamafactory", "trl", "jsonl", "parquet", "axolotl"])
def test_ids_stay(tmp_path: Path, rows: str, format: str) -> None:
    source = write(tmp_path / "selected.jsonl", EVERY[rows])
    done = export(source, format, tmp_path / "out", model="builtin:tiny", template="chat" if format == "trl" else None)
    back = ids(done.files[0])
    # Axolotl's alpaca has no history, and messages have no second field.
    changed = 1 if (format, rows) in {("axolotl", "history"), ("trl", "history")} else 0
    assert done.changed == changed and sum(a != b for a, b in zip(back, ids(source), strict=True)) == changed
    assert done.rows == len(EVERY[rows])
    assert not list((tmp_path / "out").glob(".*"))


# ── LLaMA-Factory ─────────────────────────────────────────────────────────────────────────────────────────────────────


def as_llamafactory_reads(folder: Path, name: str) -> list[dict[str, Any]]:
    """By the rules that its data page states: columns and tags that are not named are not read."""
    entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    assert set(entry) <= {"file_name", "formatting", "columns", "tags"}
    columns, tags = entry["columns"], entry.get("tags", {})
    out = []
    for row in read(folder / entry["file_name"]):
        assert set(columns.values()) <= set(row)
        if entry.get("formatting", "alpaca") == "alpaca":
            said = [turn for pair in row.get(columns.get("history"), []) for turn in pair]
            asked = [row[columns["prompt"]], row[columns["query"]]]
            said += ["\n".join(part for part in asked if part), row[columns["response"]]]
            out.append({"system": row.get(columns.get("system"), ""), "said": said, "tools": ""})
            continue
        turns = row[columns["messages"]]
        system = ""
        if turns[0][tags["role_tag"]] == tags["system_tag"]:
            system, turns = turns[0][tags["content_tag"]], turns[1:]
        asks, answers = {tags["user_tag"], tags["observation_tag"]}, {tags["assistant_tag"], tags["function_tag"]}
        fine = len(turns) % 2 == 0 and all(
            turn[tags["role_tag"]] in (answers if at % 2 else asks) for at, turn in enumerate(turns)
        )
        said = [turn[tags["content_tag"]] for turn in turns] if fine else []
        out.append({"system": system, "said": said, "tools": row.get(columns.get("tools"), "")})
    return out


@pytest.mark.parametrize("rows", EVERY)
def test_llamafactory_sees_every_turn(tmp_path: Path, rows: str) -> None:
    source = write(tmp_path / "selected.jsonl", EVERY[rows])
    done, lines = told(source, "llamafactory", tmp_path / "out", name="mine")
    seen = as_llamafactory_reads(tmp_path / "out", "mine")
    for got, sample in zip(seen, load(source).samples(), strict=True):
        assert got["system"] == sample.system and got["tools"] == sample.tools
        turns = [m.content + (f"\n{m.input}" if m.input else "") for m in sample.messages if m.role != "system"]
        if rows == "calls" and sample.tools:  # an answer and a call in a row: its own rules leave it out
            assert got["said"] == [] and "1 rows are in the file, but LLaMA-Factory leaves them out" in lines[-1]
        else:
            assert got["said"] == turns
    assert '"mine"' in done.say and f"dataset_dir: {tmp_path / 'out'}\ndataset: mine" in done.say


def test_other_entries_stay(tmp_path: Path) -> None:
    source, out = write(tmp_path / "selected.jsonl", PLAIN), tmp_path / "out"
    others = {"identity": {"file_name": "identity.json"}, "hub": {"hf_hub_url": "a/b", "columns": {"prompt": "ä"}}}
    out.mkdir()
    (out / "dataset_info.json").write_text(json.dumps(others))
    for rows in (PLAIN, INPUTS):  # again with other rows: the entry is ours
        export(write(tmp_path / "selected.jsonl", rows), "llamafactory", out, name="mine")
    info = json.loads((out / "dataset_info.json").read_text(encoding="utf-8"))
    assert {k: info[k] for k in others} == others and list(info) == ["identity", "hub", "mine"]
    assert info["mine"]["file_name"] == "mine.jsonl" and len(read(out / "mine.jsonl")) == len(INPUTS)
    with pytest.raises(ConfigError, match="has another data set 'identity' already"):
        export(source, "llamafactory", out, name="identity")
    assert not (out / "identity.jsonl").exists()


@pytest.mark.parametrize("broken", ['{"a": ', "[1]"])
def test_a_broken_list_is_left_alone(tmp_path: Path, broken: str) -> None:
    source, info = write(tmp_path / "selected.jsonl", PLAIN), tmp_path / "out" / "dataset_info.json"
    info.parent.mkdir()
    info.write_text(broken)
    with pytest.raises(StoreError, match=r"dataset_info\.json"):
        export(source, "llamafactory", info.parent)
    assert info.read_text() == broken and [p.name for p in info.parent.iterdir()] == ["dataset_info.json"]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["alpaca_en_demo", "identity", "glaive_toolcall_en_demo"])
def test_its_own_files_come_out_as_they_were(tmp_path: Path, shared: Path, name: str) -> None:
    source = shared / "data" / "llamafactory_demo" / f"{name}.json"
    done = export(str(source), "llamafactory", tmp_path, name=name)
    theirs, mine = json.loads(source.read_text(encoding="utf-8")), read(tmp_path / f"{name}.jsonl")
    assert done.changed == 0 and ids(done.files[0]) == ids(source)
    for a, b in zip(theirs, mine, strict=True):
        tools = [json.loads(row.pop("tools", "") or "[]") for row in (a, b)]
        assert a == b and tools[0] == tools[1]
    columns = json.loads((tmp_path / "dataset_info.json").read_text())[name]["columns"]
    # What its own list says of these files.
    assert columns == (
        {"messages": "conversations", "tools": "tools"}
        if name.startswith("glaive")
        else {"prompt": "instruction", "query": "input", "response": "output"}
    )


# ── axolotl ───────────────────────────────────────────────────────────────────────────────────────────────────────────

AXOLOTL = {
    "path": str,
    "ds_type": str,
    "split": str,
    "type": str,
    "field_messages": str,
    "message_property_mappings": dict,
    "message_field_training": str,
    "roles_to_train": list,
    "train_on_eos": str,
    "field_tools": str,
}
"""Fields of its published schema for such data sets that are used here."""


def block(path: Path) -> dict[str, Any]:
    (entry,) = yaml.safe_load(path.read_text(encoding="utf-8"))["datasets"]
    assert all(isinstance(value, AXOLOTL[key]) for key, value in entry.items())
    return dict(entry)


def test_axolotl_alpaca(tmp_path: Path) -> None:
    done = export(write(tmp_path / "selected.jsonl", INPUTS), "axolotl", tmp_path / "out", name="mine")
    path = tmp_path / "out" / "mine.jsonl"
    assert block(done.files[1]) == {"path": path.as_posix(), "ds_type": "json", "split": "train", "type": "alpaca"}
    assert read(path) == [{k: row[k] for k in ("instruction", "input", "output")} for row in INPUTS]


def test_axolotl_messages(tmp_path: Path) -> None:
    done = export(write(tmp_path / "selected.jsonl", CHAT), "axolotl", tmp_path / "out")
    entry = block(done.files[1])
    assert (entry["type"], entry["field_messages"]) == ("chat_template", "messages")
    assert entry["message_property_mappings"] == {"role": "role", "content": "content"}
    assert entry["roles_to_train"] == ["assistant"] and "message_field_training" not in entry
    assert read(done.files[0]) == CHAT


def test_axolotl_learns_the_turns_that_were_scored(tmp_path: Path) -> None:
    from instdiff.selection.record import Reading

    source = write(tmp_path / "selected.jsonl", CALLS)
    done = export(source, "axolotl", tmp_path / "out")
    entry = block(done.files[1])
    assert entry["roles_to_train"] == [] and entry["message_field_training"] == "train"
    assert entry["field_tools"] == "tools"
    rows = read(done.files[0])
    assert [[m["train"] for m in row["messages"]] for row in rows] == [
        [False, True],
        [False, False, True, False, True],
        [False, True, False, True],
    ]
    assert rows[2]["tools"] == CALLS[2]["tools"] and rows[0]["tools"] is None
    last = export(write(tmp_path / "two.jsonl", CHAT), "axolotl", tmp_path / "out", reading=Reading(targets="last"))
    assert [[m["train"] for m in row["messages"]] for row in read(last.files[0])] == [
        [False, True],
        [False, False, False, False, True],
    ]


# ── TRL ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_trl_one_turn(tmp_path: Path) -> None:
    done = export(write(tmp_path / "selected.jsonl", PLAIN), "trl", tmp_path / "out", name="mine", model="a/b@v1")
    row = read(done.files[0])[1]
    assert row == {
        "prompt": [{"role": "user", "content": PLAIN[1]["instruction"]}],
        "completion": [{"role": "assistant", "content": PLAIN[1]["output"]}],
    }
    config = yaml.safe_load(done.files[1].read_text(encoding="utf-8"))
    assert config == {
        "model_name_or_path": "a/b",
        "model_revision": "v1",
        "datasets": [{"path": "json", "data_files": done.files[0].as_posix(), "split": "train"}],
        "output_dir": (tmp_path / "out" / "mine-sft").as_posix(),
    }
    assert done.command == f"trl sft --config {done.files[1].as_posix()}"


def test_trl_several_turns(tmp_path: Path) -> None:
    done = export(write(tmp_path / "selected.jsonl", CALLS), "trl", tmp_path / "out")
    rows = read(done.files[0])
    assert done.layout == "messages" and set(rows[0]) == {"messages", "tools"}
    assert "--assistant_only_loss true" in done.say and "in the place of MODEL" in done.say
    assert json.loads(rows[2]["tools"]) == CALLS[2]["tools"] and rows[0]["tools"] is None


def test_trl_text_for_a_model_without_a_chat_template(tmp_path: Path) -> None:
    assert has_chat_template("builtin:tiny") is False and has_chat_template("no/such-model") is None
    source = write(tmp_path / "selected.jsonl", INPUTS)
    done, lines = told(source, "trl", tmp_path / "out", model="builtin:tiny")
    assert lines[-1] == "builtin:tiny has no chat template, so prompts are written as text with template 'alpaca'"
    row = read(done.files[0])[3]
    assert row["prompt"].endswith("### Input:\n5 and 7\n\n\n### Response:") and row["completion"] == "12"
    assert ids(done.files[0]) == ids(source)
    assert yaml.safe_load(done.files[1].read_text())["model_name_or_path"] == local("builtin:tiny")[0]
    source = write(tmp_path / "e.jsonl", [*PLAIN, {"instruction": "?", "output": ""}])
    empty, lines = told(source, "trl", tmp_path / "e", template="plain")
    assert (empty.rows, empty.left_out) == (3, 1) and "1 rows without a response to learn are left out" in lines


def test_a_call_that_is_no_call_is_said(tmp_path: Path) -> None:
    done, lines = told(write(tmp_path / "selected.jsonl", [ODD_CALL]), "trl", tmp_path / "out")
    assert done.changed == 1 and lines[-1].startswith("1 rows say the same but are divided otherwise")
    assert read(done.files[0])[0]["prompt"][1] == {"role": "assistant", "content": "go(now)"}


# ── as they are ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parquet_keeps_the_rows_or_what_they_say(tmp_path: Path) -> None:
    done = export(write(tmp_path / "selected.jsonl", INPUTS), "parquet", tmp_path / "out")
    assert done.layout == "own" and pq.read_table(done.files[0]).to_pylist() == INPUTS
    # Two calls with other arguments: one type for both would give each the other's as well.
    rows = json.loads(json.dumps([*CALLS, CALLS[2]]))
    for n, row in enumerate(rows):
        row["kind"] = {"at": n}
    for n, row in enumerate(rows[2:]):
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"q": 1} if n else {"m": [1]}
    source = write(tmp_path / "calls.jsonl", rows)
    done, lines = told(source, "parquet", tmp_path / "out")
    assert (done.layout, done.changed) == ("messages", 0) and "written as messages" in lines[-1]
    assert ids(done.files[0]) == ids(source) and len(set(ids(source))) == 4
    back = pq.read_table(done.files[0]).to_pylist()
    assert [row["kind"] for row in back] == [json.dumps({"at": n}) for n in range(4)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["calls.parquet", "selected.parquet"]


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_errors(tmp_path: Path) -> None:
    source = write(tmp_path / "selected.jsonl", CALLS)
    before = Path(source).read_bytes()
    for options, said in [
        ({"format": "trls"}, "unknown export format 'trls'; did you mean 'trl'"),
        ({"format": "trl", "output": tmp_path}, "is what is exported; give another --output or --name"),
        ({"format": "trl", "output": source}, "is a file; --output names a folder"),
        ({"format": "trl", "name": "../x"}, "'../x' is no name for a data set"),
        ({"format": "trl", "layout": "alpaca"}, "TRL has no layout 'alpaca'"),
        ({"format": "trl", "template": "alpaca", "layout": "messages"}, "template 'alpaca' makes texts"),
        ({"format": "llamafactory", "layout": "alpaca"}, "layout 'alpaca' cannot hold 1 of 3 rows, the first is row 2"),
        ({"format": "jsonl", "layout": "messages"}, "keeps the rows as they are"),
        ({"format": "jsonl", "license": "mit"}, "--license goes with --format hub"),
    ]:
        with pytest.raises(ConfigError) as error:
            export(source, **{"output": tmp_path / "out", **options})
        assert said in str(error.value)
    assert Path(source).read_bytes() == before and not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from instdiff.selection.export import layouts

    source = write(tmp_path / "selected.jsonl", PLAIN)
    export(source, "llamafactory", tmp_path / "out", name="mine")
    old = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def failing(self: Any, pool: Any) -> Any:
        yield {"instruction": "half"}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layouts.Laid, "rows", failing)
    with pytest.raises(StoreError, match="No space left on device"):
        export(write(tmp_path / "selected.jsonl", CHAT), "llamafactory", tmp_path / "out", name="mine")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == old
