"""Small inputs from the field: what is read of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from instdiff.data import Call, Message, Pool, load
from instdiff.data.load import load_shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def field() -> Path:
    folder = Path(os.environ.get("INSTDIFF_SHARED", ROOT.parent / "shared")) / "field"
    if not folder.is_dir():
        pytest.skip("no shared folder of small inputs; set INSTDIFF_SHARED")
    return folder


def read(source: Any, **how: Any) -> tuple[Pool, list[str]]:
    said: list[str] = []
    pool = load(source, log=said.append, **how)
    assert pool.rejected == ()
    return pool, said


def turns(pool: Pool, at: int = 0) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in pool.sample(at).messages]


def test_tools_struct(field: Path) -> None:
    """The file fills the tools of each row with nulls of the other's; JSON's own nulls stay."""
    pool, said = read(field / "tools_struct.parquet")
    assert len(pool) == 2
    assert all("null" not in sample.tools and sample.tools for sample in pool.samples())
    assert sum("nulls in tools and calls" in line for line in said) == 1
    own = [{"name": "f", "parameters": {"default": None}}]
    row = {"messages": [{"role": "user", "content": "q"}], "tools": own}
    assert json.loads(load([row]).sample(0).tools) == own


def test_union_struct(field: Path) -> None:
    pool, _ = read(field / "union_struct.parquet")
    assert len(pool) == 2
    assert all([m.role for m in sample.messages] == ["user", "assistant"] for sample in pool.samples())
    assert all(m.content and not m.extra for sample in pool.samples() for m in sample.messages)


def test_repr_string(field: Path) -> None:
    pool, _ = read(field / "repr_string.jsonl")
    assert [sample.response for sample in pool.samples()] == ["Hello there.", "See you."]


def test_k1(field: Path) -> None:
    pool, _ = read(field / "k1.jsonl")
    assert len(pool) == 2
    assert turns(pool) == [("user", "Hi"), ("assistant", "Yo")]


def test_other_speakers(field: Path) -> None:
    pool, _ = read(field / "other_speakers.jsonl")
    assert len(pool) == 5
    assert pool.sample(0).messages == (
        Message("user", "Rain in Lima?"),
        Message("assistant", "", calls=(Call("rain", {}),)),
        Message("tool", "0 mm"),
        Message("assistant", "None."),
    )
    assert turns(pool, 1) == [("user", "Hi"), ("assistant", "Hello.")]


def test_lf_pref(field: Path) -> None:
    pool, said = read(field / "lf_pref.jsonl")
    assert pool.format == "preference"
    assert [sample.response for sample in pool.samples()] == ["Hardly any.", "A lot."]
    assert "2 rows are pairs; methods that know no pairs see the chosen side as the response" in said
    assert pool.source_rows([0])[0]["rejected"] == {"from": "gpt", "value": "dunno"}


def test_compressed(field: Path) -> None:
    pool, _ = read(field / "x.jsonl.zst")
    assert len(pool) == 3


def test_splits(field: Path) -> None:
    folder = field / "splits"
    pool, said = read(folder)
    assert len(pool) == 3
    assert pool.ids == load(folder / "train.jsonl").ids
    (line,) = [line for line in said if "left out" in line]
    assert line.startswith(f"{folder}: split train: read train.jsonl (3 rows); left out ")
    assert "test.jsonl (2 rows)" in line and "validation.jsonl (" in line
    assert load(f"{folder}:test").ids == load(folder / "test.jsonl").ids
    assert len(load(f"{folder}:test")) == 2
    assert load(f"{folder}:validation").ids == load(folder / "validation.jsonl").ids
    assert [i for part in load_shards(str(folder), 3) for i in part.ids] == list(pool.ids)


def test_two_sources(field: Path) -> None:
    first, second = field / "qa_sys.jsonl", field / "multi.jsonl"
    pool, said = read([first, second])
    assert len(pool) == 3
    assert list(pool.ids) == [*load(first).ids, *load(second).ids]
    assert pool.format == "question_answer+messages"
    assert said[0].startswith(f"{first} + {second}: 3 rows, formats question_answer 1, messages 2")
    assert pool.source == [str(first), str(second)]


def test_weights(field: Path) -> None:
    pool, _ = read(field / "weights.jsonl")
    assert [m.learn for m in pool.sample(0).messages] == [None, False, None, True]


def test_prompt_with_history(field: Path) -> None:
    pool, _ = read(field / "prompt_with_history.jsonl")
    assert [(m.role, m.learn) for m in pool.sample(0).messages] == [
        ("system", None), ("user", None), ("assistant", False), ("user", None), ("assistant", None)
    ]  # fmt: skip


def test_empty_system(field: Path) -> None:
    pool, _ = read(field / "empty_system.jsonl")
    assert len(pool) == 2 and pool.n_duplicates == 1
    assert turns(pool) == [("user", "Three plus four?"), ("assistant", "Seven.")]
    row = {"system": "", "question": "Three plus four?", "answer": "Seven."}
    assert load([row]).ids == pool.ids[:1]


def test_qa_sys(field: Path) -> None:
    pool, _ = read(field / "qa_sys.jsonl")
    assert turns(pool) == [("system", "Be kind."), ("user", "Hi?"), ("assistant", "Hello.")]


def test_xlam(field: Path) -> None:
    pool, _ = read(field / "xlam.jsonl")
    assert pool.format == "xlam"
    assert pool.sample(0).messages == (
        Message("user", "Rain in Lima?"),
        Message("assistant", "", calls=(Call("rain", {"city": "Lima"}),)),
    )
    tools = [{"name": "rain", "description": "rain of a city"}]
    assert json.loads(pool.sample(0).tools) == tools
    mapped, _ = read(field / "xlam.jsonl", map={"instruction": "query", "response": "answers"})
    assert json.loads(mapped.sample(0).tools) == tools
    assert mapped.sample(0).response == '[{"name": "rain", "arguments": {"city": "Lima"}}]'


def test_tools_text(field: Path) -> None:
    pool, _ = read(field / "tools_text.jsonl")
    assert [sample.tools for sample in pool.samples()] == ["get_weather(city): tells the weather", ""]


def test_tool_calls(field: Path) -> None:
    """Arguments as JSON text and as an object are the same call."""
    pool, _ = read(field / "tool_calls.jsonl")
    call = Call("rain", {"city": "Lima"}, "c1")
    assert [sample.messages[1] for sample in pool.samples()] == [
        Message("assistant", "Let me look.", calls=(call,)), Message("assistant", "", calls=(call,))
    ]  # fmt: skip
    assert pool.sample(0).messages[2] == Message("tool", '{"mm": 0}', call_id="c1")


def test_reasoning_key(field: Path) -> None:
    pool, _ = read(field / "reasoning_key.jsonl")
    assert [sample.messages[1].reasoning for sample in pool.samples()] == ["3 and 4 make 7.", "Easy."]


def test_thoughts_in_the_content_stay_there(field: Path) -> None:
    pool, _ = read(field / "think_tight.jsonl")
    assert [sample.response for sample in pool.samples()] == [
        "<think>3 and 4 make 7.</think>It is seven.", "<think>\nEasy.\n</think>\n\nFour.", "Seven."
    ]  # fmt: skip
    assert not any(m.reasoning for sample in pool.samples() for m in sample.messages)
