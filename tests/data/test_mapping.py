"""Pairs, descriptions by the user and by LLaMA-Factory, and the mapping that a message proposes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instdiff.data import Call, Message, Pool, load
from instdiff.errors import ConfigError, DataError

U, A = "user", "assistant"


def turns(pool: Pool, at: int = 0) -> list[tuple[str, str, bool | None]]:
    return [(m.role, m.content, m.learn) for m in pool.sample(at).messages]


def one(row: dict[str, Any], **how: Any) -> list[tuple[str, str, bool | None]]:
    pool = load([row], **how)
    assert pool.format == how.pop("name", pool.format)
    return turns(pool)


def talk(*said: str) -> list[dict[str, str]]:
    return [{"role": A if i % 2 else U, "content": text} for i, text in enumerate(said)]


# ── prompts and pairs ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_turns_of_a_prompt_are_not_learnt() -> None:
    row = {"prompt": talk("q", "a", "q2"), "completion": [{"role": A, "content": "a2", "weight": 1}]}
    assert one(row) == [(U, "q", None), (A, "a", False), (U, "q2", None), (A, "a2", True)]
    packed = {key: json.dumps(value) for key, value in row.items()}
    assert one(packed) == one(row)
    assert one({"prompt": "[x]", "completion": '{"a": 1}'}) == [(U, "[x]", None), (A, '{"a": 1}', None)]
    assert one({"prompt": "q", "completion": {"role": A, "content": "a"}}) == [(U, "q", None), (A, "a", None)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a"},
        {"question": "q", "chosen": "a"},
        {"prompt": talk("q"), "chosen": [{"role": A, "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}},
        {"prompt": "q", "chosen": talk("q", "a")},
        {"chosen": talk("q", "a")},
    ],
)
def test_pairs(row: dict[str, Any]) -> None:
    for rejected in ("b", talk("q", "b"), [{"role": A, "content": "b"}]):
        pool = load([{**row, "rejected": rejected, "score": 1}])
        assert pool.format == "preference"
        assert turns(pool) == [(U, "q", None), (A, "a", None)]


def test_what_both_conversations_share_is_not_learnt() -> None:
    row = {"chosen": talk("q", "a", "q2", "a2"), "rejected": talk("q", "a", "q2", "b2")}
    assert one(row) == [(U, "q", None), (A, "a", False), (U, "q2", None), (A, "a2", None)]
    row = {"chosen": talk("q", "a", "q2", "a2"), "rejected": talk("q", "b", "q2", "b2")}
    assert [learn for _, _, learn in one(row)] == [None] * 4
    same = {"chosen": talk("q", "a", "q2", "a2"), "rejected": talk("q", "a", "q2", "a2")}
    assert [learn for _, _, learn in one(same)] == [None, False, None, None]
    assert one({"prompt": talk("q", "a", "q2"), "chosen": "a2", "rejected": "b2"})[1] == (A, "a", False)


def test_two_conversations_as_plain_text() -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    (reject,) = load([good, {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q"}]).rejected
    assert "two whole conversations as plain text, with no prompt beside them" in reject.reason
    (reject,) = load([good, {"chosen": [{"role": A, "content": "a"}], "rejected": "b"}]).rejected
    assert reject.reason == "no user turn before the assistant's in 'chosen'"


def test_other_keys_and_nulls() -> None:
    assert one({"conversation": talk("q", "a")}) == [(U, "q", None), (A, "a", None)]
    assert one({"conversation": ["q", "a"]}) == [(U, "q", None), (A, "a", None)]
    rows = [{"messages": None, "instruction": "i", "output": "o"}, {"messages": talk("q", "a"), "instruction": None}]
    pool = load(rows)
    assert (pool.format, pool.rejected) == ("alpaca+messages", ())
    assert [sample.response for sample in pool.samples()] == ["o", "a"]
    assert one({"instruction": "i", "output": "o", "history": '[["q", "a"]]'})[:2] == [(U, "q", None), (A, "a", None)]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "output": "a"},
        {"question": "q", "answer": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"conversations": ["q", "a"]},
        {"messages": talk("q", "a")},
    ],
)
def test_what_stands_beside_every_format(row: dict[str, Any]) -> None:
    beside = {"system": "s", "tools": [{"name": "f"}], "chat_template_kwargs": {"x": 1}}
    sample = load([{**row, **beside}]).sample(0)
    assert (sample.system, sample.tools, sample.template_values) == ("s", '[{"name": "f"}]', '{"x": 1}')
    assert sample.messages[1:] == (Message(U, "q"), Message(A, "a"))


def test_xlam_answers() -> None:
    tools = '[{"name": "f"}]'
    assert load([{"query": "q", "answers": [{"name": "f"}], "tools": tools}]).sample(0).messages[1].calls == (
        Call("f", {}),
    )
    assert one({"query": "q", "answers": "I cannot.", "tools": tools})[1] == (A, "I cannot.", None)
    assert one({"query": "q", "answers": "[]", "tools": tools})[1] == (A, "", None)


# ── maps ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_map_of_turns() -> None:
    row = {
        "chat": [{"who": "Kunde", "said": "q"}, {"who": "bot9", "said": "a", "weight": 0}, {"who": "user", "said": "r"}]
    }
    map = {"messages": "chat", "role": "who", "content": "said", "user": "Kunde", "assistant": "bot9"}
    assert one(row, map=map) == [(U, "q", None), (A, "a", False), (U, "r", None)]
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "bot9", "value": "a"}]}
    assert one(row, map={"assistant": "bot9"}) == [(U, "q", None), (A, "a", None)]


def test_map_of_tools() -> None:
    row = {"q": "q", "a": "a", "functions": '[{"name": "f"}]', "tools": "other", "system": "s"}
    sample = load([row], map={"instruction": "q", "response": "a", "tools": "functions"}).sample(0)
    assert (sample.tools, sample.system) == ('[{"name": "f"}]', "s")


def test_map_that_makes_no_sample() -> None:
    with pytest.raises(ConfigError, match="'role' is of turns"):
        load([{"q": "Q"}], map={"instruction": "q", "response": "a", "role": "who"})
    with pytest.raises(ConfigError, match="unknown map key 'asistant'; did you mean 'assistant'"):
        load([{"q": "Q"}], map={"asistant": "bot"})


@pytest.mark.parametrize(
    ("row", "map"),
    [
        ({"id": 1, "problem": "p", "solution": "s", "level": "x"}, "instruction=problem,response=solution"),
        ({"Question": "p", "Answer": "s"}, "instruction=Question,response=Answer"),
        ({"human_text": "p", "note": "n", "model_answer": "s"}, "instruction=human_text,response=model_answer"),
        ({"chat": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "messages=chat"),
        ({"chat": '[{"from": "user", "value": "q"}]'}, "messages=chat"),
        ({"log": [{"who": "user", "said": "a long text"}]}, "messages=log,role=who,content=said"),
        ({"frage": "a", "antwort": "b"}, "instruction=frage,response=antwort"),
    ],
)
def test_a_map_that_would_do_is_proposed(row: dict[str, Any], map: str) -> None:
    with pytest.raises(DataError, match="the rows fit no known format") as refused:
        load([row])
    assert str(refused.value).endswith(f"They would be read with --map {map}")
    pairs = dict(pair.split("=") for pair in map.split(","))
    assert len(load([row], map=pairs)) == 1


def test_a_speaker_is_proposed() -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "Narrator", "content": "a"}]}
    with pytest.raises(DataError) as refused:
        load([row])
    assert str(refused.value).endswith("They would be read with --map messages=messages,assistant=Narrator")
    assert len(load([row], map={"messages": "messages", "assistant": "Narrator"})) == 1


def test_nothing_is_proposed_where_nothing_would_do() -> None:
    for row in ({"text": "t"}, {"a": 1, "b": 2}, {"a": "x", "b": "y", "c": "z"}):
        with pytest.raises(DataError, match=r"Say which column is which with --map instruction=\.\.\.,response=\.\.\."):
            load([row])


# ── LLaMA-Factory ─────────────────────────────────────────────────────────────────────────────────────────────────────


def described(folder: Path, row: dict[str, Any], **entry: Any) -> Pool:
    (folder / "a.json").write_text(json.dumps([row]), encoding="utf-8")
    (folder / "b.json").write_text(json.dumps([{"question": "q", "answer": "a"}]), encoding="utf-8")
    info = {"mine": {"file_name": "a.json", **entry}, "hub": {"hf_hub_url": "a/b"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    pool = load(folder)
    assert pool.ids[:1] == load(folder / "a.json").ids
    assert pool.format.endswith("+question_answer") and pool.rejected == ()
    return pool


def test_described_columns(tmp_path: Path) -> None:
    row = {"p": "q", "q": "i", "r": "a", "s": "sys", "h": [["q0", "a0"]], "t": '[{"name": "f"}]'}
    columns = {"prompt": "p", "query": "q", "response": "r", "system": "s", "history": "h", "tools": "t"}
    pool = described(tmp_path, row, columns=columns)
    assert turns(pool) == [("system", "sys", None), (U, "q0", None), (A, "a0", None), (U, "q", None), (A, "a", None)]
    assert (pool.sample(0).messages[3].input, pool.sample(0).tools) == ("i", '[{"name": "f"}]')
    pool = described(tmp_path, row, columns=columns, mask_history=True)
    assert turns(pool)[2] == (A, "a0", False)


def test_described_turns(tmp_path: Path) -> None:
    said = [("U", "q"), ("F", '{"name": "f"}'), ("O", "r"), ("B", "a")]
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "B", "observation_tag": "O"}
    pool = described(
        tmp_path,
        {"chat": [{"who": who, "what": what} for who, what in said]},
        formatting="sharegpt",
        columns={"messages": "chat"},
        tags={**tags, "function_tag": "F"},
    )
    assert [m.role for m in pool.sample(0).messages] == [U, A, "tool", A]
    assert pool.sample(0).messages[1].calls == (Call("f", {}),)


def test_described_pairs(tmp_path: Path) -> None:
    columns = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    pool = described(tmp_path, {"p": "q", "good": "a", "bad": "b"}, ranking=True, columns=columns)
    assert turns(pool) == [(U, "q", None), (A, "a", None)]
    good, bad = ({"from": "gpt", "value": said} for said in "ab")
    row = {"conversations": [{"from": "human", "value": "q"}], "good": good, "bad": bad}
    pool = described(tmp_path, row, ranking=True, formatting="sharegpt", columns={"chosen": "good", "rejected": "bad"})
    assert turns(pool) == [(U, "q", None), (A, "a", None)]
    assert pool.sample(0).rejected == (Message(U, "q"), Message(A, "b"))


def test_a_file_that_is_only_named_is_read_by_its_keys(tmp_path: Path) -> None:
    assert described(tmp_path, {"instruction": "q", "output": "a"}).format == "alpaca+question_answer"
