"""Preference pairs for trainers of DPO: TRL's trainer reads what is written, and the others get their entries."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.shell import ok
from helpers import make_llama
from instdiff.core import ModelRef
from instdiff.data import Pool, load
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.errors import ConfigError
from instdiff.methods import SelectiveDPO
from instdiff.rendering.prompts import prompt_groups
from instdiff.rendering.renderer import training_rows
from instdiff.rendering.templates import template
from instdiff.scoring.folds import folds_of
from instdiff.selection.export.asked import Exported
from instdiff.selection.export.export import export
from instdiff.training.trained_rows import trained_rows

from .rows import ids, of_trl, read, write

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = [
    {"prompt": f"Why {word}?", "chosen": f"It is {word}.", "rejected": f"The {word}.", "n": at}
    for at, word in enumerate(("blue", "green", "1984"))
]


def talk(*said: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(said)]


CHATS = [
    {
        "prompt": row["prompt"],
        "chosen": talk(row["prompt"], row["chosen"]),
        "rejected": talk(row["prompt"], row["rejected"]),
        "score": 1.0,
    }
    for row in TEXTS
]
SHAPES = {"texts": TEXTS, "chats": CHATS}


def dpo_rows(done: Exported, folder: Path) -> Any:
    """TRL's DPO trainer with the file, by the configuration that was written."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    values = yaml.safe_load(done.files[-1].read_text(encoding="utf-8"))
    (data,) = values["datasets"]
    rows = load_dataset(**data, cache_dir=str(folder / "cache"))
    known = {field.name for field in fields(DPOConfig)}
    quiet = {
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "bf16": False,
        "disable_tqdm": True,
        "max_steps": 1,
    }
    args = DPOConfig(**{name: value for name, value in values.items() if name in known} | quiet)
    return DPOTrainer(model=values["model_name_or_path"], args=args, train_dataset=rows)


def assert_same(trainer: Any, pool: Pool, model: Path, name: str) -> None:
    """The ids of both sides are ours, and what counts begins where our targets begin."""
    tokenizer, seen = load_tokenizer(resolve(ModelRef(str(model)))), trainer.train_dataset
    assert len(seen) == len(pool) > 0
    for side in ("chosen", "rejected"):
        ours = training_rows(pool.side(side), tokenizer, template(name), 200)
        for at, row in enumerate(seen):
            wanted, marks = ours.ids[at].tolist(), ours.target[ours.ids.offsets[at] : ours.ids.offsets[at + 1]].tolist()
            assert (row["prompt_ids"] + row[f"{side}_ids"])[: len(wanted)] == wanted
            assert marks.index(True) == len(row["prompt_ids"])
            assert all(marks[marks.index(True) :])


@pytest.mark.parametrize("shape", list(SHAPES))
def test_trl_s_dpo_trainer_reads_texts_under_a_text_template(tmp_path: Path, shape: str) -> None:
    model = make_llama(tmp_path / "llama", chat=None)
    data = write(tmp_path / "sel.jsonl", SHAPES[shape])
    done = export(data, "trl", tmp_path / "out", template="alpaca", model=str(model), name="p")
    assert (done.layout, done.rows) == ("text", 3)
    assert done.command == f"trl dpo --config {(tmp_path / 'out' / 'p.trl.yaml').as_posix()}"
    assert "other tokens" not in done.say
    trainer = dpo_rows(done, tmp_path)
    assert_same(trainer, load(data), model, "alpaca")
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("shape", list(SHAPES))
def test_trl_s_dpo_trainer_reads_messages_under_a_chat_template(tmp_path: Path, shape: str) -> None:
    model = of_trl("llama3", tmp_path)
    data = write(tmp_path / "sel.jsonl", SHAPES[shape])
    done = export(data, "trl", tmp_path / "out", template="chat", model=str(model), name="p")
    assert (done.layout, done.changed) == ("messages", 0)
    assert read(done.files[0])[0] == {
        "prompt": talk("Why blue?"),
        "chosen": [{"role": "assistant", "content": "It is blue."}],
        "rejected": [{"role": "assistant", "content": "The blue."}],
    }
    assert list(ids(done.files[0])) == list(ids(data))
    assert "other tokens" not in done.say
    assert_same(dpo_rows(done, tmp_path), load(data), model, "chat")


def test_turns_that_were_context_stay_the_prompt(tmp_path: Path) -> None:
    row = {"system": "s", "chosen": talk("q", "a", "r", "b"), "rejected": talk("q", "a", "r", "c")}
    done = export(write(tmp_path / "sel.jsonl", [row]), "trl", tmp_path / "out", template="chat", name="p")
    (made,) = read(done.files[0])
    assert made["prompt"] == [{"role": "system", "content": "s"}, *talk("q", "a", "r")]
    assert (made["chosen"][0]["content"], made["rejected"][0]["content"]) == ("b", "c")
    assert "unknown whether TRL" in done.say and "MODEL" in done.say


def test_llamafactory_gets_a_ranking_entry(tmp_path: Path) -> None:
    for shape, rows in SHAPES.items():
        data = write(tmp_path / f"{shape}.jsonl", rows)
        done = export(data, "llamafactory", tmp_path / "out", template="chat", name=shape)
        assert read(done.files[0])[0] == {
            "conversations": [{"from": "human", "value": "Why blue?"}],
            "chosen": {"from": "gpt", "value": "It is blue."},
            "rejected": {"from": "gpt", "value": "The blue."},
        }
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(info) == ["texts", "chats"]
    entry = info["chats"]
    assert (entry["ranking"], entry["formatting"], entry["file_name"]) == (True, "sharegpt", "chats.jsonl")
    assert entry["columns"] == {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    assert done.extra["training"]["stage"] == "dpo" and done.extra["training"]["pref_beta"] == 0.1
    assert load(str(tmp_path / "out" / "texts.jsonl")).format == "llamafactory"
    assert list(ids(tmp_path / "out" / "texts.jsonl")) == list(ids(tmp_path / "texts.jsonl"))
    with pytest.raises(ConfigError, match="has another data set 'chats' already"):
        info["chats"]["file_name"] = "mine.jsonl"
        (tmp_path / "out" / "dataset_info.json").write_text(json.dumps(info))
        export(tmp_path / "chats.jsonl", "llamafactory", tmp_path / "out", template="chat", name="chats")


def test_llamafactory_takes_texts_as_they_were_scored(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "llama", chat=None)
    done = export(
        write(tmp_path / "sel.jsonl", TEXTS), "llamafactory", tmp_path / "out", template="alpaca", model=str(model)
    )
    row = read(done.files[0])[0]
    assert row["prompt"].startswith("<s>Below is") and row["prompt"].endswith("### Response:")
    assert (row["chosen"], row["rejected"]) == ("It is blue.</s>", "The blue.</s>")
    assert done.extra["stanza"]["columns"] == {name: name for name in ("prompt", "chosen", "rejected")}
    assert done.extra["training"]["template"] == "empty"


def test_axolotl_gets_rl_dpo(tmp_path: Path) -> None:
    data = write(tmp_path / "sel.jsonl", CHATS)
    done = export(data, "axolotl", tmp_path / "out", template="chat", name="p")
    values = yaml.safe_load(done.files[1].read_text(encoding="utf-8"))
    (entry,) = values["datasets"]
    assert (values["rl"], entry["type"], entry["field_messages"]) == ("dpo", "chat_template.default", "conversations")
    assert read(done.files[0])[1]["rejected"] == {"role": "assistant", "content": "The green."}
    assert list(ids(done.files[0])) == list(ids(data))
    texts = export(data, "axolotl", tmp_path / "texts", template="plain", name="p")
    kind = texts.extra["stanza"]["type"]
    assert kind["field_prompt"] == "prompt" and kind["chosen_format"] == "{chosen}"
    assert read(texts.files[0])[0]["chosen"] == "It is blue."


def test_what_a_trainer_cannot_hold_is_left_out_and_said(tmp_path: Path) -> None:
    long = {"chosen": talk("q", "a", "r", "b"), "rejected": talk("q", "c", "r", "d")}
    data, said = write(tmp_path / "sel.jsonl", [*CHATS, long, {"prompt": "p", "completion": "c"}]), list[str]()
    done = export(data, "axolotl", tmp_path / "out", template="chat", log=said.append)
    assert (done.rows, done.left_out) == (3, 1)
    assert "1 rows are no preference pairs and are left out" in said
    assert "1 pairs are left out: an answer is missing, or has several turns or calls" in said
    assert export(data, "trl", tmp_path / "trl", template="chat").rows == 4
    with pytest.raises(ConfigError, match="pairs have no layout 'tokens'"):
        export(data, "trl", tmp_path / "trl", layout="tokens", template="chat")


@pytest.mark.parametrize("format", ["jsonl", "parquet", "hub"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_rows_keep_their_own_columns(tmp_path: Path, format: str, shape: str) -> None:
    data = write(tmp_path / "sel.jsonl", SHAPES[shape])
    done = export(data, format, tmp_path / "out", name="p")
    assert load(str(done.files[0])).source_rows() == SHAPES[shape]


def test_the_half_that_a_model_is_trained_on(tmp_path: Path) -> None:
    rows = [{**TEXTS[0], "prompt": f"Why {at}?"} for at in range(9)]
    data = write(tmp_path / "sel.jsonl", rows)
    pool, folds = load(data), folds_of(load(data), SelectiveDPO().split(1))
    done = export(data, "jsonl", tmp_path / "out", half="dpo/1/0", name="p")
    assert read(done.files[0]) == [row for row, fold in zip(rows, folds, strict=True) if fold != 0]
    seen = trained_rows(ModelRef(str(tmp_path / "out")))
    assert seen is not None and seen.ids == {name for name, fold in zip(pool.ids, folds, strict=True) if fold != 0}
    assert seen.groups == set(prompt_groups(pool, near=True)[folds != 0]) and "--model dpo/1/0=FOLDER" in done.say
    with pytest.raises(ConfigError, match="--half 'held/0' is no role of selective_dpo"):
        export(data, "jsonl", tmp_path / "out", half="held/0")
    how = ("--set", "selective_dpo.split_seed=7", "--set", "selective_dpo.dpo=mine", "--half", "mine/0/1")
    ok("export", "--data", str(data), "--format", "jsonl", "--output", str(tmp_path / "own"), "--name", "p", *how)
    folds = folds_of(pool, SelectiveDPO(split_seed=7).split(0))
    assert read(tmp_path / "own" / "p.jsonl") == [row for row, fold in zip(rows, folds, strict=True) if fold != 1]
