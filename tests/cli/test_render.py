"""``instdiff render``: what a model sees of rows and what is learnt; the options that decide it, in every record."""

from __future__ import annotations

import datetime
import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import ModelRef
from instdiff.data import load
from instdiff.engine.sources import find_tokenizer
from instdiff.rendering.templates import template
from instdiff.reporting.examples import texts
from instdiff.selection.shown import show

from .shell import Ran, cli, ok, write_jsonl

TINY = "builtin:tiny"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
OPEN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALKS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Nile."},
                  {"role": "user", "content": "Another?"}, {"role": "assistant", "content": "The Amazon."}]},
    {"messages": [{"role": "user", "content": "Say nothing."}, {"role": "assistant", "content": ""}]},
    {"messages": [{"role": "user", "content": "7?"},
                  {"role": "assistant", "reasoning_content": "3 and 4.", "content": "Seven."}]},
]  # fmt: skip


@pytest.fixture(autouse=True)
def _files(folder: Path) -> None:
    write_jsonl("talks.jsonl", TALKS)
    for name, text in (("chatml", CHATML), ("dated", DATED), ("open", OPEN)):
        Path(f"{name}.jinja").write_text(text, encoding="utf-8")


def render(*more: object, data: str = "talks.jsonl", model: str = TINY) -> Ran:
    return ok("render", "--data", data, "--model", model, *more)


def lines(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.out.splitlines()]


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_for_people() -> None:
    ran = render("--limit", 1, data="builtin:demo")
    (row,) = load("builtin:demo", limit=1).source_rows([0])
    head, *text = ran.out.rstrip("\n").split("\n")
    assert head == "row 0, id 603c1b5d5c8a: 149 tokens, 26 learnt"
    assert "\n".join(text).endswith(f"### Response:⟦{row['output']}</s>⟧") and ran.out.count("⟦") == 1
    assert "builtin:demo: 1 rows, format alpaca" in ran.err and "what is learnt stands between ⟦ and ⟧" in ran.err
    assert render(data="builtin:demo").out.count("\nrow ") == 4, "five rows by default"
    assert "\x1b" not in ran.out


def test_rows_as_json() -> None:
    tokenizer = find_tokenizer(ModelRef(TINY))
    rows = lines(render("--template", "chatml.jinja", "--json"))
    assert [list(row) for row in rows] == [["row", "id", "ids", "target", "text", "targets", "why"]] * 3
    assert [row["id"] for row in rows] == list(load("talks.jsonl").ids)
    assert [row["targets"] for row in rows] == [["The Nile.</s>", "The Amazon.</s>"], [], ["Seven.</s>"]]
    assert [row["why"] for row in rows] == [None, "empty_response", None]
    assert (rows[1]["ids"], rows[1]["target"], rows[1]["text"]) == ([], [], "")
    whole = tokenizer.hf.apply_chat_template(TALKS[0]["messages"], chat_template=CHATML, tokenize=False)
    assert rows[0]["text"] == whole.rstrip("\n")
    ids = tokenizer.encode([whole])[0]
    assert rows[0]["ids"] == ids[: len(rows[0]["ids"])] and rows[0]["target"][-1] is True
    learnt = [token for token, target in zip(rows[0]["ids"], rows[0]["target"], strict=True) if target]
    assert tokenizer.hf.decode(learnt) == "The Nile.</s>The Amazon.</s>"


def test_json_lines_alone_go_to_standard_output() -> None:
    ran = render("--template", "chatml.jinja", "--json")
    assert all(json.loads(line)["message"] for line in ran.err.splitlines())


def test_a_row_that_is_not_learnt_says_why() -> None:
    ran = render("--template", "chatml.jinja", "--row", 1)
    assert (
        ran.out
        == f"row 1, id {load('talks.jsonl').ids[1][:12]}: empty_response, a response is there and says nothing\n\n"
    )


def test_rows_by_number_and_by_id() -> None:
    write_jsonl(
        "my.jsonl", [{"instruction": f"Say {n}.", "output": f"It is {n}."} if n != 1 else "no" for n in range(9)]
    )
    ids = list(load("my.jsonl").ids)
    rows = lines(render("--row", 7, "--row", ids[3][:9], "--row", 0, "--json", data="my.jsonl"))
    assert [row["row"] for row in rows] == [7, 4, 0] and rows[1]["targets"] == ["It is 4.</s>"]
    assert [row["row"] for row in lines(render("--json", "--limit", 3, data="my.jsonl"))] == [0, 2]

    def failing(*more: object) -> str:
        return cli("render", "--data", "my.jsonl", "--model", TINY, *more).error

    assert failing("--row", "1", "--row", "3") == "row 1 is not there: its record was rejected when the data was read"
    assert failing("--row", "123456789") == "no row '123456789': rows are 0 to 8, or give an id or its beginning"
    assert failing("--row", "zz").startswith("no row 'zz'")


def test_what_must_be_named() -> None:
    assert cli("render", "--data", "talks.jsonl").error == "no model is named; give --model WHERE"
    two = cli("render", "--data", "talks.jsonl", "--model", TINY, "--model", f"proxy={TINY}")
    assert two.error.endswith("give --model WHERE once; 2 are named")
    assert cli("render", "--model", TINY).error == "no data is named; give --data FILE"
    assert cli("render", "--data", "talks.jsonl", "--model", "./nowhere").error.startswith(
        "no model folder './nowhere'"
    )
    dated = cli("render", "--data", "talks.jsonl", "--model", TINY, "--template-date", "yesterday").error
    assert "template_date" in dated and "yesterday" in dated


def test_the_roles_template_is_used() -> None:
    (row,) = lines(render("--json", "--row", 0, data="builtin:demo", model=f"proxy={TINY}"))
    assert "### Response" not in row["text"]


def test_no_weights_are_needed(tmp_path: Path) -> None:
    from instdiff.data.builtin import path

    for file in path("tiny").iterdir():
        if file.suffix in (".json", ".jinja", ".txt"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert not list(tmp_path.glob("*.safetensors"))
    assert render(model=str(tmp_path)).out == render().out


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_it_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    from instdiff.cli.render import _print_coloured

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = next(show(load(TALKS), find_tokenizer(ModelRef(TINY)), template("chatml.jinja"), 512, lambda line: None))
    screen = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        _print_coloured(shown)
    said = screen.getvalue()
    assert "\x1b[32mThe Nile.\x1b[0m\x1b[36m</s>\x1b[0m" in said and said.startswith("\x1b[2m<|im_start|>user")


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_text_ids_and_targets_say_the_same(exchanges: list[tuple[str, str]]) -> None:
    turns = [
        {"role": role, "content": text}
        for pair in exchanges
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    tokenizer = find_tokenizer(ModelRef(TINY))
    (one,) = show(load([{"messages": turns}]), tokenizer, template("alpaca"), 2048, lambda line: None)
    assert one.why is None and len(one.ids) == len(one.target)
    assert one.text == tokenizer.hf.decode(one.ids, clean_up_tokenization_spaces=False)
    assert "".join(text for _, text in one.runs) == one.text
    assert [text.removesuffix("</s>") for text in one.targets] == [answer for _, answer in exchanges]


# ── options, and the records that keep them ───────────────────────────────────────────────────────────────────────────


def test_options_decide_what_is_learnt() -> None:
    def targets(*more: object) -> Any:
        return [row["targets"] for row in lines(render("--json", *more)) if row["why"] is None]

    assert targets() == [["The Nile.</s>", "The Amazon.</s>"], ["<think>\n3 and 4.\n</think>\n\nSeven.</s>"]]
    assert targets("--targets", "last")[0] == ["The Amazon.</s>"]
    assert targets("--reasoning", "context")[1] == ["Seven.</s>"]
    context, drop = (lines(render("--json", "--row", 2, "--reasoning", how))[0]["text"] for how in ("context", "drop"))
    assert "3 and 4." in context and "3 and 4." not in drop
    wrong = cli("render", "--data", "talks.jsonl", "--model", TINY, "--reasoning", "maybe").error
    assert "'reasoning'" in wrong and "'learn', 'context' or 'drop'" in wrong


OPTIONS = ["--targets", "last", "--reasoning", "context", "--system", "fold", "--template-date", "2025-01-02"]
RECORDED = {"targets": "last", "reasoning": "context", "system": "fold", "template_date": "2025-01-02"}


def test_options_are_recorded_and_read_back() -> None:
    how = ["--data", "talks.jsonl", "--template", "dated.jinja"]
    ok("score", *how, "--model", TINY, "--method", "perplexity", "--output", "s.parquet", "--device", "cpu", *OPTIONS)
    meta = json.loads(pq.read_schema("s.parquet").metadata[b"instdiff"])
    assert {key: meta["settings"][key] for key in RECORDED} == RECORDED
    ok("select", "--data", "talks.jsonl", "--scores", "s.parquet", "--budget", 1, "--output", "sel.jsonl", *OPTIONS[:6])
    record = json.loads(Path("sel.selection.json").read_text(encoding="utf-8"))
    assert {key: record["settings"][key] for key in RECORDED} == RECORDED
    # Without the options the row is read as it was scored: its tokens are found in the store.
    facts = ok("explain", 2, "--data", "talks.jsonl", "--scores", "s.parquet", "--json").json
    (spoken,) = facts["tokens"]
    assert "".join(spoken["pieces"]).startswith("02 Jan 2025\n") and facts["lacking"] == []
    other = ok("explain", 0, "--data", "talks.jsonl", "--scores", "s.parquet", "--targets", "all", "--json").json
    assert not other["tokens"] and all(word in other["to_see_tokens"] for word in OPTIONS)


def test_shards_have_the_options_too() -> None:
    how = ["--data", "talks.jsonl", "--template", "dated.jinja", "--model", TINY, "--method", "perplexity", *OPTIONS]
    ok("score", *how, "--output", "whole.parquet", "--device", "cpu")
    for index in (0, 1):
        ok("score", *how, "--output", "parts", "--shards", 2, "--shard-index", index, "--device", "cpu")
    ok("merge", "parts", "--output", "joined.parquet")
    whole, joined = (pq.read_table(f"{name}.parquet") for name in ("whole", "joined"))
    assert joined.column("perplexity").to_pylist() == whole.column("perplexity").to_pylist()
    meta = json.loads(joined.schema.metadata[b"instdiff"])
    assert {key: meta["settings"][key] for key in RECORDED} == RECORDED


def train(*more: object, template: str = "chatml.jinja", code: int = 0) -> Ran:
    quick = ["train.num_train_epochs=1", "train.global_batch_size=2", "train.dtype=float32"]
    words = ["--model", TINY, "--template", template, "--device", "cpu", "--output", "trained", *more, *quick]
    ran = cli("train", "--data", "talks.jsonl", *words)
    assert ran.code == code, ran
    return ran


def test_a_trained_model_says_how_its_rows_were_made() -> None:
    pytest.importorskip("trl", reason='TRL is missing; it comes with pip install "instdiff[train]"')
    train(*OPTIONS)
    record = json.loads(Path("trained/training.json").read_text(encoding="utf-8"))
    assert record["rendering"] == {"template": "chatml.jinja", "stops": [2], **RECORDED}


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


LONG = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "on and " * 200}]}
NO_END = "no row has an end to learn, so the model will not learn to stop"


def test_training_without_an_end_warns_and_strictly_refuses() -> None:
    pytest.importorskip("trl", reason='TRL is missing; it comes with pip install "instdiff[train]"')
    write_jsonl("talks.jsonl", [TALKS[2], TALKS[2]])
    refused = train("--strict", template="open.jinja", code=2).error
    assert refused.startswith(NO_END) and "--template" in refused and not Path("trained").exists()
    said = train(template="open.jinja").err.splitlines()
    (warning,) = [at for at, line in enumerate(said) if line.startswith(f"warning: {NO_END}")]
    assert Path("trained/training.json").is_file() and warning < len(said) - 1, "before the training"


def test_rows_without_an_end_are_counted() -> None:
    pytest.importorskip("trl", reason='TRL is missing; it comes with pip install "instdiff[train]"')
    write_jsonl("talks.jsonl", [TALKS[0], TALKS[2], LONG])
    said = train("--strict", "train.model_max_length=128").err
    assert "1 of 3 rows have no end to learn after their last answer; 1 of them are cut at the length limit" in said
    assert json.loads(Path("trained/training.json").read_text(encoding="utf-8"))["truncated"] == 1


def test_where_every_row_is_cut_the_limit_is_named() -> None:
    pytest.importorskip("trl", reason='TRL is missing; it comes with pip install "instdiff[train]"')
    write_jsonl("talks.jsonl", [LONG, LONG])
    refused = train("--strict", "train.model_max_length=128", code=2).error
    assert refused == (
        f"{NO_END}; all of them are cut at the length limit, so raise train.model_max_length, or leave --strict out"
    )


# ── a chat template that nobody named, and the clock ──────────────────────────────────────────────────────────────────


@pytest.fixture
def instruct(tmp_path: Path) -> str:
    """The embedded model with a chat template beside its tokenizer."""
    from instdiff.data.builtin import path

    home = tmp_path / "instruct"
    home.mkdir()
    for file in path("tiny").iterdir():
        (home / file.name).write_bytes(file.read_bytes())
    (home / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return str(home)


def test_an_instruct_model_without_a_template_gets_one_line(instruct: str) -> None:
    line = f"the tokenizer of {instruct} has a chat template; rows are rendered with 'alpaca'. --template chat uses it"
    ran = render(model=instruct)
    assert ran.err.splitlines().count(line) == 1 and ran.out == render().out
    assert line not in render("--template", "alpaca", model=instruct).err
    assert line not in render(model=f"proxy={instruct}").err
    assert "<|im_start|>assistant\n⟦The Nile.</s>⟧" in render("--template", "chat", model=instruct).out

    how = ["--data", "talks.jsonl", "--method", "ifd,instructdiff", "--device", "cpu", "--output", "s.parquet"]
    both = ["--model", instruct, "--model", f"calibrated={instruct}"]
    assert ok("score", *how, *both).err.splitlines().count(line) == 1
    assert "has a chat template" not in ok("score", *how, *both, "--template", "alpaca").err
    assert "has a chat template" not in ok("score", *how, "--model", TINY, "--model", f"calibrated={TINY}").err


def test_training_and_a_pipeline_say_it_once(instruct: str) -> None:
    pytest.importorskip("trl", reason='TRL is missing; it comes with pip install "instdiff[train]"')
    line = f"the tokenizer of {instruct} has a chat template; rows are rendered with 'alpaca'. --template chat uses it"
    quick = ["train.num_train_epochs=1", "train.global_batch_size=4", "train.dtype=float32"]
    ran = ok(
        "train", "--data", "builtin:demo", "--limit", 4, "--model", instruct, "--output", "t", "--device", "cpu", *quick
    )
    assert ran.err.splitlines().count(line) == 1
    small = ["warmup.sample_size=4", "eval.suite=heldout", "eval.data_path=builtin:demo/heldout", "eval.limit=4"]
    run = ["--model", instruct, "--limit", 12, "--output", "run", "--device", "cpu", "--max-length", 256]
    ran = ok("pipeline", "--data", "builtin:demo", *run, *small, "select.budget=4", *quick)
    assert ran.err.splitlines().count(line) == 1


class LaterClock(datetime.datetime):
    """The clock, years on."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.datetime(2031, 5, 6, 7, 8, tzinfo=tz)


def score_later(monkeypatch: pytest.MonkeyPatch, data: str, jinja: str, computed: list[tuple[int, int]]) -> None:
    """Scores rows, and again with the clock years on: everything is there already, and values are the same."""
    how = ["--data", data, "--model", TINY, "--template", jinja, "--method", "ifd", "--device", "cpu"]
    ok("score", *how, "--output", "a.parquet")
    assert computed
    computed.clear()
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", LaterClock)
    assert "2031" in find_tokenizer(ModelRef(TINY)).hf.apply_chat_template(
        TALKS[0]["messages"], chat_template=DATED, tokenize=False
    ), "the library reads the clock"
    ran = ok("score", *how, "--output", "b.parquet")
    assert not computed and "all 2 rows cached" in ran.err
    assert pq.read_table("a.parquet").to_pylist() == pq.read_table("b.parquet").to_pylist()
    ok("score", *how, "--output", "c.parquet", "--template-date", "2024-07-27")
    assert computed


def test_the_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch, computed: list[tuple[int, int]]) -> None:
    write_jsonl("two.jsonl", [TALKS[0], TALKS[2]])
    score_later(monkeypatch, "two.jsonl", "dated.jinja", computed)


def test_a_dated_template_of_the_shared_folder(
    monkeypatch: pytest.MonkeyPatch, computed: list[tuple[int, int]], shared: Path
) -> None:
    if not (shared / "field").is_dir():
        pytest.skip("no folder 'field' in the shared one")
    where = shared / "field"
    score_later(monkeypatch, str(where / "multi.jsonl"), str(where / "templates" / "llama3_date.jinja"), computed)


def test_a_written_answer_sees_the_fixed_date() -> None:
    from instdiff.engine.generation.backend import Prompt, in_template

    tokenizer = find_tokenizer(ModelRef(TINY), datetime.date(2024, 12, 31))
    shown = in_template(Prompt("Say it."), template("dated.jinja"), tokenizer)
    assert shown == "31 Dec 2024\n<|im_start|>user\nSay it.</s>\n<|im_start|>assistant\n"


def test_lm_evals_conversations_see_it_too() -> None:
    from instdiff.evaluation.harness.language_model import render_history

    tokenizer = find_tokenizer(ModelRef(TINY), datetime.date(2024, 12, 31))
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.hf.chat_template = refusing + DATED
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "So?"}]
    asked = "31 Dec 2024\n<|im_start|>user\nSo?</s>\n"
    assert render_history(tokenizer, history, ask=True) == f"{asked}<|im_start|>assistant\n"
    begun = [history[1], {"role": "assistant", "content": "The answer is "}]
    assert render_history(tokenizer, begun, ask=False) == f"{asked}<|im_start|>assistant\nThe answer is "
    tokenizer.hf.chat_template = DATED.replace("m.content", "m.content|trim")
    assert render_history(tokenizer, begun, ask=False).endswith("assistant\nThe answer is")


# ── what else shows rows, and why they have no score ──────────────────────────────────────────────────────────────────

CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"place": "Lima"}'}}


def test_thoughts_and_calls_are_shown_and_reasons_are_true() -> None:
    ask = {"role": "user", "content": "Look."}
    called = {"messages": [ask, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}
    write_jsonl("calls.jsonl", [called, TALKS[1], TALKS[2]])
    how = ["--data", "calls.jsonl", "--model", TINY, "--device", "cpu", "--method", "longest,perplexity"]
    ok("score", *how, "--output", "s.parquet")
    rows = pq.read_table("s.parquet").to_pylist()
    for name in ("longest", "perplexity"):
        assert [row[f"{name}.why"] for row in rows] == ["no_target", "empty_response", None]
    said = ok("explain", 0, "--data", "calls.jsonl", "--scores", "s.parquet").out
    assert '[assistant] {"name": "look_up", "arguments": {"place": "Lima"}}' in said
    assert "no score (no_target): nothing of it is to be learnt" in said
    assert (
        "[assistant] <think>\n3 and 4.\n</think>\nSeven."
        in ok("explain", 2, "--data", "calls.jsonl", "--scores", "s.parquet").out
    )
    shown = texts(load("calls.jsonl"), np.array([0, 2]), 500)
    assert shown[0] == ("Look.", '{"name": "look_up", "arguments": {"place": "Lima"}}')
    assert shown[1] == ("7?", "<think>\n3 and 4.\n</think>\nSeven.")
