"""What is exported is what the trainers' published schemas ask for, and says the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from helpers import CHAT_PLAIN
from instdiff.core import ModelRef
from instdiff.data import Turns, load
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.errors import ConfigError, StoreError
from instdiff.selection.export.asked import Asked
from instdiff.selection.export.axolotl import axolotl
from instdiff.selection.export.export import export
from instdiff.selection.export.llamafactory_templates import Match, match_template
from instdiff.selection.export.models import has_chat_template, local
from instdiff.selection.export.recipe import Recipe
from instdiff.selection.record import Reading

from .rows import (
    CALLS,
    CHAT,
    FLAGGED,
    HISTORY,
    INPUTS,
    ODD_CALL,
    PLAIN,
    SEVERAL,
    SINGLE,
    THOUGHT,
    TOOLS_USED,
    ids,
    of_trl,
    read,
    record,
    write,
)

EVERY = {"plain": PLAIN, "inputs": INPUTS, "history": HISTORY, "chat": CHAT, "calls": CALLS}


def told(*args: Any, **options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    return export(*args, log=lines.append, **options), lines


@pytest.mark.parametrize("rows", EVERY)
@pytest.mark.parametrize("format", ["llamafactory", "trl", "jsonl", "parquet", "axolotl"])
def test_ids_stay(tmp_path: Path, rows: str, format: str, models: dict[str, Path]) -> None:
    source = write(tmp_path / "selected.jsonl", EVERY[rows])
    model, template = (str(models["llama"]), "chat") if format == "trl" else ("builtin:tiny", None)
    done = export(source, format, tmp_path / "out", model=model, template=template)
    back = ids(done.files[0])
    # Axolotl's alpaca has no history, and its messages have no second field.
    changed = 1 if (format, rows) == ("axolotl", "history") else 0
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
    left_out = "1 rows are in the file, but LLaMA-Factory leaves them out"
    source = write(tmp_path / "selected.jsonl", EVERY[rows])
    done, lines = told(source, "llamafactory", tmp_path / "out", name="mine")
    seen = as_llamafactory_reads(tmp_path / "out", "mine")
    for got, sample in zip(seen, load(source).samples(), strict=True):
        assert got["system"] == sample.system and got["tools"] == sample.tools
        turns = [m.content + (f"\n{m.input}" if m.input else "") for m in sample.messages if m.role != "system"]
        if rows == "calls" and sample.tools:  # an answer and a call in a row: its own rules leave it out
            assert got["said"] == [] and any(line.startswith(left_out) for line in lines)
        else:
            assert got["said"] == turns
    assert '"mine"' in done.say and f"dataset_dir: {tmp_path / 'out'}\ndataset: mine\ncutoff_len: 2048" in done.say


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
    done = export(str(source), "llamafactory", tmp_path, name=name, reading=Reading(targets="all+calls"))
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


@pytest.mark.parametrize(
    ("name", "template", "more"),
    [
        ("qwen3", "qwen3", {"enable_thinking": False}),
        ("qwen2_5", "qwen", {}),
        ("qwen3_instruct_2507", "qwen3_nothink", {}),
        ("llama3", "llama3", {}),
        ("gemma", "gemma", {}),
        ("gemma3", "gemma3", {}),
        ("phi3", "phi", {}),
    ],
)
def test_llamafactory_has_the_template_that_writes_the_same(
    tmp_path: Path, name: str, template: str, more: dict[str, Any]
) -> None:
    model = str(of_trl(name, tmp_path))
    source = write(tmp_path / "selected.jsonl", SINGLE)
    record(source, template="chat", model=model, max_length=199)
    done, lines = told(source, "llamafactory", tmp_path / "out", name="mine")
    assert done.extra["training"] == {
        "dataset_dir": str(tmp_path / "out"),
        "dataset": "mine",
        "template": template,
        **more,
        "cutoff_len": 199,
        **Recipe().keys("llamafactory"),
    }
    assert f"template: {template}\n" in done.say and not any("template:" in line for line in lines)
    assert any("learns other tokens" in line for line in lines) == (name == "phi3")  # it closes rows with another token


def test_the_nearest_template_is_the_one_that_writes_most_alike(models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(resolve(ModelRef(str(models["llama"]))))
    named = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    named += "trained by Hugging Face<|im_end|>\n{% endif %}" + CHAT_PLAIN
    assert match_template(tokenizer, named, system=False) == Match("smollm2", exact=False)
    assert match_template(tokenizer, CHAT_PLAIN, system=True) == Match("chatml", exact=True)
    assert match_template(tokenizer, "{{ messages[0]['content'] }}", system=False) is None


def test_llamafactory_says_where_its_template_differs(tmp_path: Path) -> None:
    source = write(tmp_path / "selected.jsonl", SEVERAL)
    for name, said in [
        ("qwen3", "LLaMA-Factory learns other tokens of 1 of the first 3 rows than were scored"),
        ("qwen2_5", "LLaMA-Factory learns the line end after each answer too"),
        ("llama3_1", "template: llama3 is the nearest that LLaMA-Factory has, but writes another text"),
        ("gemma4", "template: is not set, since LLaMA-Factory has none"),
    ]:
        done, lines = told(source, "llamafactory", tmp_path / name, model=str(of_trl(name, tmp_path)), template="chat")
        assert any(line.startswith(said) for line in lines)
        assert ("template" in done.extra["training"]) == (name != "gemma4")
    _, lines = told(source, "llamafactory", tmp_path / "out", template="chat")
    assert "template: is not set, since the model is not known" in lines[-1]


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "gemma3", "qwen3_instruct_2507"])
def test_axolotl_learns_the_tokens_that_were_scored(tmp_path: Path, name: str) -> None:
    source, model = write(tmp_path / "selected.jsonl", [*SEVERAL, *CHAT, *FLAGGED]), str(of_trl(name, tmp_path))
    _, lines = told(source, "axolotl", tmp_path / "out", model=model, template="chat")
    assert len(lines) == 1 and "6 rows, format messages" in lines[0]


def test_axolotl_says_where_it_learns_others(tmp_path: Path) -> None:
    source, model = write(tmp_path / "selected.jsonl", [*SEVERAL, *THOUGHT]), str(of_trl("qwen3", tmp_path))
    _, lines = told(source, "axolotl", tmp_path / "out", model=model, template="chat")
    # An empty thought that stands before the last answer alone, and a thought whose mark it takes for context.
    assert lines[-1].startswith("axolotl learns other tokens of 2 of the first 4 rows than were scored")


def test_llamafactory_learns_the_turns_that_were_scored(tmp_path: Path) -> None:
    last, lines = told(
        write(tmp_path / "two.jsonl", CHAT), "llamafactory", tmp_path / "out", reading=Reading(targets="last")
    )
    assert last.extra["training"]["mask_history"] is True and last.rows == 2 and last.changed == 0
    source = write(tmp_path / "flagged.jsonl", [*FLAGGED, *SEVERAL])
    done, lines = told(source, "llamafactory", tmp_path / "out")
    # The flagged row ends at what it learns; the one with two answers becomes two.
    assert done.rows == 5 and done.extra["training"]["mask_history"] is True
    assert any("the 4 rows become 5, each ends at one that is" in line for line in lines)
    said = [row["said"][-1] for row in as_llamafactory_reads(tmp_path / "out", "flagged")]
    assert said == ["No: Lima.", "It is Lima.", "a", "It is 1.", "It is 2."]


def test_llamafactory_gets_texts_under_a_text_template(tmp_path: Path) -> None:
    source = write(tmp_path / "selected.jsonl", INPUTS)
    record(source, template="alpaca", model="builtin:tiny")
    done = export(source, "llamafactory", tmp_path / "out", name="mine")
    assert (done.layout, done.extra["training"]["template"], done.changed) == ("text", "empty", 4)
    assert done.extra["stanza"]["columns"] == {"prompt": "prompt", "response": "completion"}
    tokenizer = load_tokenizer(resolve(ModelRef("builtin:tiny")))
    row, start = read(done.files[0])[3], tokenizer.hf.bos_token if tokenizer.bos is not None else ""
    assert row["completion"] == f"12{tokenizer.hf.eos_token}"
    assert row["prompt"].startswith(f"{start}Below is") and row["prompt"].endswith("5 and 7\n\n\n### Response:")
    source = write(tmp_path / "two.jsonl", SEVERAL)
    record(source, template="alpaca", model="builtin:tiny")
    done, lines = told(source, "llamafactory", tmp_path / "out", name="two")
    assert [row["completion"].partition("<")[0] for row in read(done.files[0])] == [
        "It is Lima.",
        "a",
        "It is 1.",
        "It is 2.",
    ]
    assert "1 rows have several responses: the 3 rows become 4, of one each" in lines


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
AROUND: dict[str, Any] = {"sequence_len": int, "chat_template": str, "chat_template_jinja": str, "eot_tokens": list}
AROUND |= {
    "num_epochs": float | int,
    "learning_rate": float,
    "micro_batch_size": int,
    "gradient_accumulation_steps": int,
}
AROUND |= {"lr_scheduler": str, "warmup_ratio": float, "weight_decay": float, "max_grad_norm": float}
"""Fields of its published schema for such data sets that are used here."""


def block(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert all(isinstance(values[key], AROUND[key]) for key in values if key != "datasets")
    (entry,) = values["datasets"]
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


def flags(path: Path) -> list[list[bool | None]]:
    """What each turn says of itself; None leaves it to its role."""
    return [[turn.get("train") for turn in row["messages"]] for row in read(path)]


def test_axolotl_learns_the_turns_that_were_scored(tmp_path: Path) -> None:
    source = write(tmp_path / "selected.jsonl", CALLS)
    done, lines = told(source, "axolotl", tmp_path / "out")
    entry = block(done.files[1])
    assert entry["roles_to_train"] == ["assistant"] and "message_field_training" not in entry
    assert entry["field_tools"] == "tools" and "tool_calls" in entry["message_property_mappings"]
    assert "in 1 rows it learns a call or a thought that is context here" in lines[-1]
    assert read(done.files[0])[2]["tools"] == CALLS[2]["tools"] and read(done.files[0])[0]["tools"] is None
    last = export(write(tmp_path / "two.jsonl", CHAT), "axolotl", tmp_path / "out", reading=Reading(targets="last"))
    assert block(last.files[1])["message_field_training"] == "train"
    assert flags(last.files[0]) == [[None, None], [None, None, False, None, None]] and last.changed == 1
    flagged = write(tmp_path / "flagged.jsonl", FLAGGED)
    done = export(flagged, "axolotl", tmp_path / "out")
    assert flags(done.files[0]) == [[None, False, None, True]]
    assert done.changed == 0 and ids(done.files[0]) == ids(flagged)


def test_axolotl_has_the_template_of_the_run(tmp_path: Path, models: dict[str, Path]) -> None:
    source, model = write(tmp_path / "selected.jsonl", PLAIN), str(models["llama"])
    record(source, template="chat", model=model, max_length=77)
    done = export(source, "axolotl", tmp_path / "out")
    values = yaml.safe_load(done.files[1].read_text())
    assert (values["sequence_len"], values["chat_template"]) == (77, "tokenizer_default")
    assert values["eot_tokens"] == ["<|im_end|>"] and values["datasets"][0]["type"] == "chat_template"
    assert done.layout == "messages"  # Alpaca rows would be rendered as text
    jinja = tmp_path / "mine.jinja"
    jinja.write_text(CHAT_PLAIN)
    record(source, template=str(jinja), model=model)
    done = export(source, "axolotl", tmp_path / "out", name="mine")
    values = yaml.safe_load(done.files[1].read_text())
    assert values["chat_template"] == "jinja" and values["datasets"][0]["type"] == "chat_template"
    assert Path(values["chat_template_jinja"]).read_text() == CHAT_PLAIN
    record(source, template="alpaca", model=model, max_length=78)
    done = export(source, "axolotl", tmp_path / "out")
    values = yaml.safe_load(done.files[1].read_text())
    assert values == {"datasets": [block(done.files[1])], "sequence_len": 78, **Recipe().keys("axolotl")}
    assert done.layout == "alpaca"


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_PLAIN


@pytest.mark.parametrize(("jinja", "first"), [(REFUSING, "Be brief.\n\nOne?"), (CHAT_PLAIN, "Be brief.")])
def test_axolotl_gets_a_folded_system_turn_where_it_is_refused(
    tmp_path: Path, models: dict[str, Path], jinja: str, first: str
) -> None:
    place = tmp_path / "mine.jinja"
    place.write_text(jinja)
    pool = dataclasses.replace(load(CHAT), turns=Turns(system="fold"))
    facts = {"models": {"base": {"where": str(models["llama"]), "template": str(place)}}}
    done = axolotl(Asked(pool, facts, tmp_path / "out", "mine", model=str(models["llama"]), log=lambda line: None))
    assert read(done.files[0])[1]["messages"][0]["content"] == first


# ── how to train ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_recipe_is_that_of_the_run(tmp_path: Path) -> None:
    place = tmp_path / "run" / "iter_1"
    place.mkdir(parents=True)
    source = write(place / "selected.jsonl", PLAIN)
    record(source, template="alpaca\nx: 1", model="a/b", max_length=99)
    (place / "selected.selection.json").rename(place / "selection.json")
    train = {"num_train_epochs": 2, "learning_rate": 1e-3, "global_batch_size": 24, "warmup_ratio": 0.1}
    adapter = {"use_lora": True, "lora_r": 4, "lora_target_modules": "all-linear", "mode": "dft"}
    (place.parent / "environment.json").write_text("{}")
    (place.parent / "config.yaml").write_text(yaml.safe_dump({"train": {}, "select_train": {"train": train | adapter}}))
    done = export(str(place.parent), "axolotl", tmp_path / "a", template="alpaca")
    text = done.files[1].read_text()
    assert text.startswith(
        "# Scored with: a/b, template alpaca x: 1, max_length 99.\n# Epochs, rate and batch are those of"
    )
    assert "those of the run 'run': 24 rows a step, on one device; that training had mode dft" in text
    values = yaml.safe_load(text)
    assert (values["num_epochs"], values["learning_rate"], values["warmup_ratio"]) == (2, 1e-3, 0.1)
    assert (values["micro_batch_size"], values["gradient_accumulation_steps"]) == (8, 3)
    assert (values["adapter"], values["lora_r"], values["lora_target_linear"]) == ("lora", 4, True)
    factory = export(str(place.parent), "llamafactory", tmp_path / "l", template="chat").extra["training"]
    assert (factory["num_train_epochs"], factory["per_device_train_batch_size"]) == (2, 8)
    assert (factory["finetuning_type"], factory["lora_rank"], factory["lora_target"]) == ("lora", 4, "all")
    (place.parent / "config.yaml").write_text("train: {learning_rate: fast}")
    assert export(str(place.parent), "axolotl", tmp_path / "b", template="alpaca").extra["config"]["num_epochs"] == 3


def test_paths_hold_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "selected.jsonl", PLAIN)
    (tmp_path / "mine.jinja").write_text(CHAT_PLAIN)
    record(source, template="mine.jinja", model="a/b")
    monkeypatch.chdir(tmp_path)
    done = export("selected.jsonl", "axolotl", "out")
    factory = export("selected.jsonl", "llamafactory", "out")
    monkeypatch.chdir("/")
    values = done.extra["config"]
    assert Path(values["datasets"][0]["path"]).is_file() and Path(values["chat_template_jinja"]).is_file()
    assert (Path(factory.extra["training"]["dataset_dir"]) / "dataset_info.json").is_file()
    assert "# Scored with: a/b, template mine.jinja, max_length 200.\n" in factory.say


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
        "max_length": 2048,
        **Recipe().keys("trl"),
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


def test_what_comes_back_otherwise_is_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "selected.jsonl", [*THOUGHT, *TOOLS_USED])
    done, lines = told(source, "llamafactory", tmp_path / "out", reading=Reading(targets="all+calls"))
    assert (done.layout, done.changed) == ("sharegpt", 2)
    assert any(line.startswith("2 rows say the same but are divided otherwise in layout 'sharegpt'") for line in lines)
    assert sum(a != b for a, b in zip(ids(done.files[0]), ids(source), strict=True)) == 2
    odd = export(write(tmp_path / "odd.jsonl", [ODD_CALL]), "trl", tmp_path / "out")
    assert odd.changed == 0 and read(odd.files[0])[0]["messages"][1] == {"role": "assistant", "content": "go(now)"}


# ── as they are ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parquet_keeps_the_rows_or_what_they_say(tmp_path: Path) -> None:
    done = export(write(tmp_path / "selected.jsonl", INPUTS), "parquet", tmp_path / "out")
    assert done.layout == "own" and pq.read_table(done.files[0]).to_pylist() == INPUTS
    # Two calls whose arguments have the same key and other types: no column holds both.
    rows = json.loads(json.dumps([*CALLS, CALLS[2]]))
    for n, row in enumerate(rows):
        row["kind"] = {"at": n}
    for n, row in enumerate(rows[2:]):
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"q": 1} if n else {"q": [1]}
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
