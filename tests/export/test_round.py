"""File, sample, export, sample: the same, with the same targets, or counted."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.data import Call, Message, Sample, load
from instdiff.data.formats import FORMATS
from instdiff.data.sample import TARGETS
from instdiff.rendering.templates import calls_text, is_target
from instdiff.selection.export.export import export
from instdiff.selection.export.layouts import ALPACA, MESSAGES, PROMPT_COMPLETION, SHAREGPT, with_tool_objects
from instdiff.selection.record import Reading

from .rows import CALLS, CHAT, FLAGGED, HISTORY, SEVERAL, SINGLE, THOUGHT, TOOLS_USED, of_trl, read, write

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(
    Call,
    words,
    st.dictionaries(words, values, max_size=2) | words.map("go {}".format),
    st.sampled_from(["", "c1", "c2"]),
)
answers = st.builds(
    Message,
    st.just("assistant"),
    words,
    reasoning=st.just("") | words,
    calls=st.lists(calls, max_size=2).map(tuple),
    learn=st.sampled_from([None, True, False]),
)
alone = st.builds(
    Message,
    st.just("assistant"),
    st.just(""),
    calls=st.lists(calls, min_size=1, max_size=2).map(tuple),
    reasoning=words,
)
results = st.builds(
    Message, st.just("tool"), words, call_id=st.sampled_from(["", "c1"]), name=st.sampled_from(["", "rain"])
)
users, systems = st.builds(Message, st.just("user"), words), st.builds(Message, st.just("system"), words)
tools = st.lists(st.fixed_dictionaries({"name": words, "parameters": st.dictionaries(words, values, max_size=2)}))
samples = st.builds(
    lambda head, ask, turns, offered: Sample(
        (*head, ask, *turns), json.dumps(offered, ensure_ascii=False) if offered else ""
    ),
    st.lists(systems, max_size=1),
    users,
    st.lists(answers | alone | results | users, max_size=5),
    tools,
)


def again(row: Any, format: str) -> Sample:
    """The row as it comes back from a file."""
    return FORMATS[format].parse(json.loads(json.dumps(row)))


def targets(sample: Sample, which: str) -> list[bool]:
    return [is_target(sample.messages, at, which) for at in range(len(sample.messages))]


@given(samples)
def test_messages_hold_everything(sample: Sample) -> None:
    assert MESSAGES.exact(sample) and again(MESSAGES.make(sample), "messages") == sample


@given(samples, st.sampled_from(TARGETS), st.booleans())
def test_axolotl_learns_the_same_turns(sample: Sample, which: str, text: bool) -> None:
    back = again(with_tool_objects(sample, which, text=text), "messages")
    assert targets(back, which) == targets(sample, which)
    for got, said in zip(back.messages, sample.messages, strict=True):
        assert replace(got, learn=said.learn) == said
        # Only what is context for another reason gets a flag that the row does not have.
        assert got.learn == said.learn or got.learn is False
    assert back.tools == sample.tools
    if all(targets(sample, which)[at] for at, m in enumerate(sample.messages) if m.role == "assistant"):
        assert back == sample


@given(samples)
def test_a_completion_is_the_last_target(sample: Sample) -> None:
    row = PROMPT_COMPLETION.make(sample)
    if row is None:
        return
    back = again(row, "prompt_completion")
    before, last = back.messages[:-1], back.messages[-1]
    assert last == sample.messages[-1]
    assert all(m.learn is False for m in before if m.role == "assistant")
    assert [replace(m, learn=None) for m in before] == [replace(m, learn=None) for m in sample.messages[:-1]]


@given(samples)
def test_one_field_holds_all_that_is_said(sample: Sample) -> None:
    held = {"reasoning": "", "call_id": "", "name": "", "learn": None}
    plain = all(all(getattr(m, key) == value for key, value in held.items()) for m in sample.messages)
    plain &= not any(call.id for m in sample.messages for call in m.calls)
    row = SHAREGPT.make(sample)
    assert row is not None and (not plain or SHAREGPT.exact(sample) or _ambiguous(sample))
    values = [turn["value"] for turn in row["conversations"]]
    for made in (values, _alpaca_texts(sample)):
        for m in sample.messages if made else ():
            thought = f"<think>\n{m.reasoning}\n</think>\n\n" if m.reasoning else ""
            assert any(value.startswith(thought + m.content) for value in made or ())
            assert not m.calls or any(value.endswith(calls_text(m.calls)) for value in made or ())


def _ambiguous(sample: Sample) -> bool:
    """An answer and then a turn of calls alone are one turn in ShareGPT."""
    turns = sample.messages
    return any(a.role == b.role == "assistant" and b.only_calls for a, b in pairwise(turns))


def _alpaca_texts(sample: Sample) -> list[str]:
    row = ALPACA.make(sample)
    if row is None:
        return []
    said = [text for pair in row.get("history", ()) for text in pair]
    return [*said, row.get("system", ""), row["instruction"], row["output"]]


FILES = {
    "chat": CHAT,
    "calls": CALLS,
    "history": HISTORY,
    "several": SEVERAL,
    "thought": [*SINGLE, *THOUGHT],
    "tools": [*SEVERAL, *TOOLS_USED],
    "flagged": [*SINGLE, *FLAGGED],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose template shows thoughts and calls."""
    return str(of_trl("qwen3", tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("format", ["trl", "axolotl", "jsonl", "parquet", "hub", "llamafactory"])
@pytest.mark.parametrize("name", FILES)
def test_what_differs_is_counted(tmp_path: Path, model: str, name: str, format: str) -> None:
    source = write(tmp_path / "selected.jsonl", FILES[name])
    lines: list[str] = []
    options: dict[str, Any] = {"model": model, "template": "chat", "reading": Reading(targets="all+calls")}
    done = export(source, format, tmp_path / "out", log=lines.append, **options)
    before, after = (load(str(path), targets="all+calls") for path in (source, done.files[0]))
    same = [a == b for a, b in zip(before.ids, after.ids, strict=True)]
    assert same.count(False) == done.changed
    assert (done.changed > 0) == any("divided otherwise" in line for line in lines)
    # One field for a turn has no place for a thought, the id of a call, or a flag; messages have none for an input.
    lost = {("thought", "llamafactory"), ("tools", "llamafactory"), ("flagged", "llamafactory"), ("history", "axolotl")}
    assert done.changed == ((name, format) in lost)


@pytest.mark.shared_data
@pytest.mark.parametrize("format", ["trl", "llamafactory", "axolotl"])
def test_field_inputs_keep_their_thoughts_and_flags(tmp_path: Path, shared: Path, format: str) -> None:
    source = shared / "field" / "reasoning_key.jsonl"
    done = export(str(source), format, tmp_path / "thought")
    text = done.files[0].read_text(encoding="utf-8")
    assert "3 and 4 make 7." in text and "Easy." in text
    for name in ("weights", "prompt_with_history"):
        source = shared / "field" / f"{name}.jsonl"
        done = export(str(source), format, tmp_path / name)
        (sample,) = load(str(done.files[0])).samples()
        answers = [m.learn for m in sample.messages if m.role == "assistant"]
        if format == "llamafactory":  # the row ends at what is learnt, and the last turn alone is
            assert done.extra["training"]["mask_history"] is True and len(read(done.files[0])) == 1
        else:
            assert answers[0] is False and answers[-1] is not False
