"""What a turn of a conversation holds, from every spelling, and that the table keeps it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instdiff.data import Call, Message, Sample, load
from instdiff.data.formats import FORMATS

Q = {"role": "user", "content": "q"}


def answer(**turn: Any) -> Message:
    """The message that an assistant's turn becomes."""
    said = load([{"messages": [Q, {"role": "assistant", **turn}]}]).sample(0).messages
    assert len(said) == 2
    return said[1]


def refused(*said: Any) -> str:
    pool = load([{"messages": [Q]}, {"messages": [Q, *said]}])
    (reject,) = pool.rejected
    return reject.reason


def log_of(*rows: Any, **how: Any) -> list[str]:
    said: list[str] = []
    load(list(rows), log=said.append, **how)
    return said[1:]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning(key: str) -> None:
    assert answer(content="a", **{key: "t"}) == Message("assistant", "a", reasoning="t")
    assert answer(content=None, **{key: "t"}) == Message("assistant", "", reasoning="t")
    assert answer(**{key: "t"}) == Message("assistant", "", reasoning="t")
    assert answer(content="a", **{key: None}) == answer(content="a", **{key: ""}) == Message("assistant", "a")


def test_reasoning_twice() -> None:
    assert answer(content="a", reasoning="t", reasoning_content="t").reasoning == "t"
    parts = [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]
    assert answer(content=parts, reasoning="t") == Message("assistant", "a", reasoning="t")
    turn = {"role": "assistant", "content": "a", "reasoning": "t", "thinking": "u"}
    assert refused(turn) == "'reasoning' and 'thinking' in turn 2 of 'messages' differ; one thought is expected"


def test_thinking_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": "t"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]},
        {"type": "text", "text": "a", "citations": None},
        {"type": "text", "text": "b"},
    ]
    assert answer(content=parts) == Message("assistant", "ab", reasoning="tuv")
    assert answer(content=parts[:1]) == Message("assistant", "", reasoning="t")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "thinking"])
def test_other_parts_reject_the_row(kind: str) -> None:
    assert refused({"role": "user", "content": [{"type": kind, kind: "u"}]}) == (
        f"'content' in turn 2 of 'messages' has a part that is not text ({kind})"
    )


def test_content_that_is_missing() -> None:
    for role in ("user", "system", "tool", "assistant"):
        assert refused({"role": role, "content": None}) == "'content' in turn 2 of 'messages' is null, text is expected"
        assert refused({"role": role}) == "turn 2 of 'messages' has no 'content'; it has: role"
    assert answer(content="") == Message("assistant", "")


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss_mask", "loss"])
@pytest.mark.parametrize(
    ("value", "learn"), [(0, False), (False, False), (1, True), (True, True), (1.0, True), (None, None)]
)
def test_learn_flags(key: str, value: Any, learn: bool | None) -> None:
    assert answer(content="a", **{key: value}) == Message("assistant", "a", learn=learn)


def test_other_numbers_and_turns() -> None:
    turns = [{**Q, "weight": 0}, {"role": "assistant", "content": "a", "weight": 0.5}]
    row = {"messages": [*turns, Q, {"role": "assistant", "content": "a", "weight": -1}]}
    said = load([row]).sample(0).messages
    assert [m.learn for m in said] == [None, True, None, False]
    assert said[0].extra == {"weight": 0}
    assert log_of(row, row) == [
        "keys of turns that are not read: weight (2)",
        "learn flags that are neither 0 nor 1: weight (4); above 0 the turn is learnt",
    ]


def test_unknown_keys_are_named_once() -> None:
    row = {"messages": [{**Q, "name": "Ann", "at": 3, "no": None}, {"role": "assistant", "content": "a", "at": 4}]}
    said = load([row]).sample(0).messages
    assert [m.extra for m in said] == [{"name": "Ann", "at": 3}, {"at": 4}]
    assert log_of(row, row) == ["keys of turns that are not read: name (2), at (4)"]
    assert load([row]).ids == load([{"messages": [Q, {"role": "assistant", "content": "a"}]}]).ids


@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
        {"tool_calls": [{"id": "1", "name": "f", "arguments": {"x": 1}}]},
        {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}, "arguments": None}]},
        {"tool_calls": '[{"id": "1", "name": "f", "arguments": {"x": 1}}]'},
        {"tool_calls": ['{"id": "1", "name": "f", "arguments": {"x": 1}}']},
        {"function_call": {"id": "1", "name": "f", "arguments": '{"x": 1}'}},
    ],
)
def test_calls(calls: dict[str, Any]) -> None:
    call = Call("f", {"x": 1}, "1")
    assert answer(content=None, **calls) == Message("assistant", "", calls=(call,))
    assert answer(content="a", **calls) == Message("assistant", "a", calls=(call,))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, {}),
        ("", {}),
        ("{}", {}),
        ("x", "x"),
        ("[1]", "[1]"),
        ([1], "[1]"),
        ('{"a": null}', {"a": None}),
        (r'{"a": "\ud800"}', r'{"a": "\ud800"}'),
    ],
)
def test_arguments(given: Any, read: Any) -> None:
    assert answer(tool_calls=[{"name": "f", "arguments": given}]).calls == (Call("f", read),)
    assert answer(tool_calls=[{"name": "f"}]).calls == (Call("f", {}),)


def test_calls_that_are_none() -> None:
    turn = {"role": "assistant", "content": "a"}
    assert refused({**turn, "tool_calls": [{"id": "1"}]}) == "a call in turn 2 of 'messages' is no object with a 'name'"
    assert (
        refused({**turn, "tool_calls": 3})
        == "'tool_calls' in turn 2 of 'messages' is a number, a list of objects is expected"
    )
    assert answer(content="a", tool_calls=[], function_call=None) == Message("assistant", "a")


def test_a_call_belongs_to_the_turn_before_it() -> None:
    def talk(*said: tuple[str, str]) -> list[Message]:
        turns = [{"from": "human", "value": "q"}, *({"from": who, "value": what} for who, what in said)]
        return list(load([{"conversations": turns}]).sample(0).messages[1:])

    f, g = Call("f", {}), Call("g", {"x": 1})
    call, other = ("function_call", '{"name": "f"}'), ("tool_call", '{"name": "g", "arguments": {"x": 1}}')
    assert talk(("gpt", "a"), call) == [Message("assistant", "a", calls=(f,))]
    assert talk(call, other) == [Message("assistant", "", calls=(f, g))]
    assert talk(("gpt", "a"), call, other) == [Message("assistant", "a", calls=(f, g))]
    assert talk(call, ("observation", "o"), other) == [
        Message("assistant", "", calls=(f,)), Message("tool", "o"), Message("assistant", "", calls=(g,))
    ]  # fmt: skip
    assert talk(call, ("gpt", "a")) == [Message("assistant", "", calls=(f,)), Message("assistant", "a")]
    assert talk(("function_call", '[{"name": "f"}, {"function": {"name": "g", "arguments": {"x": 1}}}]')) == [
        Message("assistant", "", calls=(f, g))
    ]
    for text in ("f(x)", "3", '{"x": 1}', '{"name": "f", "parameters": {"x": 1}}', ""):
        assert talk(("function_call", text)) == [Message("assistant", text)]


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        *((name, "user") for name in ("user", "human", "prompter", "Human")),
        *((name, "assistant") for name in ("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model")),
        *((name, "tool") for name in ("tool", "function", "observation", "tool_response", "ipython")),
        *((name, "system") for name in ("system", "developer")),
    ],
)
@pytest.mark.parametrize(
    ("who", "what"),
    [("from", "value"), ("from", "content"), ("role", "content"), ("role", "value"), ("speaker", "text")],
)
def test_speakers_and_their_keys(speaker: str, role: str, who: str, what: str) -> None:
    said = load([{"messages": [Q, {who: speaker, what: "x"}]}]).sample(0).messages
    assert said[1] == Message(role, "x")


def test_tool_turns() -> None:
    turn = {"role": "tool", "content": "1", "tool_call_id": "c", "name": "f", "is_error": False}
    said = load([{"messages": [Q, turn]}]).sample(0).messages[1]
    assert (said, said.extra) == (Message("tool", "1", call_id="c", name="f"), {"is_error": False})


@pytest.mark.parametrize(
    "text", ["[{'from': 'human', 'value': 'it''s'}, {'from': 'gpt', 'value': None", "[1, 2", "[f(x)]"]
)
def test_text_that_begins_like_a_list(text: str) -> None:
    good = {"conversations": ["q", "a"]}
    (reject,) = load([good, {"conversations": text}]).rejected
    assert reject.reason == ("'conversations' is text that begins like a list but is neither JSON nor a Python literal")


def test_a_literal_is_not_evaluated(tmp_path: Any) -> None:
    path = tmp_path / "made"
    row = {"conversations": f"[{{'from': 'human', 'value': open({str(path)!r}, 'w').name}}]"}
    assert len(load([{"conversations": ["q"]}, row]).rejected) == 1
    assert not path.exists()


def test_tools_in_texts() -> None:
    tools = [{"name": "f"}]
    for spelling in (tools, json.dumps(tools), ['{"name": "f"}'], '["{\\"name\\": \\"f\\"}"]', "[{'name': 'f'}]"):
        assert load([{"messages": [Q], "tools": spelling}]).sample(0).tools == '[{"name": "f"}]'
    assert load([{"messages": [Q], "tools": ["f(x)"]}]).sample(0).tools == '["f(x)"]'
    assert load([{"messages": [Q], "tools": 5}]).sample(0).tools == "5"


def test_values_for_the_template() -> None:
    row = {"messages": [Q], "chat_template_kwargs": {"enable_thinking": False}}
    assert load([row]).sample(0).template_values == '{"enable_thinking": false}'
    assert load([{**row, "chat_template_kwargs": '{"enable_thinking": false}'}]).ids == load([row]).ids
    for nothing in (None, {}, ""):
        assert load([{**row, "chat_template_kwargs": nothing}]).ids == load([{"messages": [Q]}]).ids


def test_media_are_said_once() -> None:
    row = {"messages": [Q], "images": ["a.png"], "videos": []}
    assert log_of(row, row) == ["media are not read: images (2)"]


# ── the table keeps a sample ──────────────────────────────────────────────────────────────────────────────────────────

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
CALL = st.fixed_dictionaries(
    {"name": TEXT}, optional={"arguments": st.dictionaries(TEXT, VALUE, max_size=2) | TEXT, "id": TEXT}
)
ASSISTANT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXT},
    optional={
        "reasoning_content": TEXT,
        "tool_calls": st.lists(CALL, max_size=2),
        "weight": st.sampled_from([0, 1]),
        "at": VALUE,
    },
)
OTHERS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "tool"]), "content": TEXT},
    optional={"name": TEXT, "tool_call_id": TEXT, "at": VALUE, "train": st.booleans()},
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ASSISTANT | OTHERS, max_size=4), min_size=1, max_size=4), st.lists(CALL, max_size=2))
def test_a_sample_comes_out_of_the_table_as_it_went_in(talks: list[list[Any]], tools: list[Any]) -> None:
    rows = [{"messages": [Q, *talk], "tools": tools} for talk in talks]
    pool = load(rows)
    parsed = [FORMATS["messages"].parse(row) for row in rows]
    assert list(pool.samples()) == parsed
    assert [[m.extra for m in s.messages] for s in pool.samples()] == [[m.extra for m in s.messages] for s in parsed]
    assert load(pool.source_rows(range(len(pool)))).ids == pool.ids


# ── ids ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

TOOLS = [{"name": "f", "about": "é", "parameters": {"x": None, "y": [1, 2.5]}}]


def sharegpt(*said: str) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in (one.split(":") for one in said)]


GOLDEN = [
    (
        "76226de9d131d8fedea328246f957014",
        {"instruction": "q", "input": "x", "output": "a", "system": "s", "history": [["h", "b"]]},
    ),
    ("731671893ab1cb908b0fc077d910418f", {"instruction": "Dolly", "context": "c", "response": "a"}),
    (
        "3ffafbbb0fb525af655fa4fa059d1b1c",
        {
            "conversations": sharegpt("human:q", "gpt:a é", "human:q2", "gpt:a2"),
            "system": "s",
            "tools": json.dumps(TOOLS),
        },
    ),
    ("fe24a46193853b3f8e7b3a3eb0e85b00", {"conversations": ["q", "a", "q2", "a2"]}),
    ("89f2635bb5eb7c8b631cb9c9bbde55d0", {"conversations": "one prompt"}),
    ("328e1e80fae307601c143f845339c0c3", {"conversations": sharegpt("system:s", "human:q", "observation:o", "gpt:a")}),
    (
        "ab1673dd718e74fa824bd59a7ee58209",
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "<think>\nt\n</think>\n\na"},
            ],
            "tools": TOOLS,
        },
    ),
    ("43421452da982f176a3e807bf7ff52ef", {"messages": json.dumps([Q, {"role": "assistant", "content": "a"}])}),
    (
        "4576dc045c4b44bb0f409ecfe12533a5",
        {
            "messages": [
                Q,
                {"role": "tool", "content": "r"},
                {"role": "assistant", "content": "a", "tool_calls": None},
            ],
            "tools": "f(x)",
        },
    ),
    ("ca88e0951e1d70b0049102083d59f7d3", {"prompt": "q", "completion": "a", "system": "s"}),
    (
        "a6a1e5fd9a85e136e462d92f142c38a4",
        {"prompt": [Q], "completion": [{"role": "assistant", "content": "a b"}], "tools": TOOLS},
    ),
    ("221a8201af5961b692a00ebc519bba6a", {"question": "q?", "answer": "a!"}),
    ("eb5052510ec375797ee06777e96529f9", {"question": "Q", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 2}),
]


@pytest.mark.parametrize(("name", "row"), GOLDEN)
def test_ids_of_plain_rows_stay(name: str, row: dict[str, Any]) -> None:
    assert load([row]).ids == [name]


def test_ids_of_asked_formats_stay() -> None:
    explained = {**GOLDEN[-1][1], "exp": "because"}
    assert load([explained], format="medmcqa+exp").ids == ["4698150bba0362f571d639e516d95671"]
    row = {"q": "Q", "a": "A", "i": "I", "s": "S"}
    map = {"instruction": "q", "response": "a", "input": "i", "system": "s"}
    assert load([row], map=map).ids == ["827ed4b3aa86cf963f95c5ee1cd8aa60"]


def test_what_a_turn_has_more_makes_another_id() -> None:
    plain = {"role": "assistant", "content": "a"}
    more: list[dict[str, Any]] = [{}, {"reasoning": "t"}, {"weight": 0}, {"weight": 1}, {"tool_calls": [{"name": "f"}]}]
    ids = {load([{"messages": [Q, {**plain, **one}]}]).ids[0] for one in more}
    assert len(ids) == len(more)
    assert Sample((Message("user", "q"),)) == load([{"messages": [Q]}]).sample(0)


# ── whatever a row holds, it is read or rejected ──────────────────────────────────────────────────────────────────────

SOME_KEYS = (
    *(
        "role",
        "content",
        "from",
        "value",
        "speaker",
        "text",
        "type",
        "thinking",
        "reasoning",
        "weight",
        "train",
        "name",
    ),
    *("tool_calls", "function_call", "function", "arguments", "id", "tool_call_id"),
)
ROW_KEYS = (
    *("messages", "conversations", "conversation", "instruction", "input", "output", "history", "prompt", "completion"),
    *(
        "chosen",
        "rejected",
        "question",
        "answer",
        "query",
        "answers",
        "tools",
        "system",
        "chat_template_kwargs",
        "images",
    ),
)
SPEAKER = st.sampled_from(["user", "assistant", "gpt", "human", "function_call", "tool", "system", "nobody"])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(0, 1) | SPEAKER | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(SOME_KEYS), inner | SPEAKER, max_size=4)
        | inner.map(json.dumps)
        | inner.map(repr)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(ROW_KEYS), ANY, min_size=1, max_size=5))
def test_any_row_is_read_or_rejected(row: dict[str, Any]) -> None:
    pool = load([{"question": "q", "answer": "a"}, row], log=lambda line: None)
    assert len(pool) + len(pool.rejected) == 2
    for sample in pool.samples():
        assert sample.messages and {m.role for m in sample.messages} <= {"system", "user", "assistant", "tool"}
    assert load(pool.source_rows(range(len(pool)))).ids == pool.ids
