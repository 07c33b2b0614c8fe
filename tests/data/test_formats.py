from __future__ import annotations

import json
from typing import Any

import pytest

from instdiff.data import Call, Message, Pool, Sample, load
from instdiff.errors import ConfigError, DataError


def user(text: str, second: str = "") -> Message:
    return Message("user", text, second)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def one(row: dict[str, Any], **options: Any) -> Sample:
    return load([row], **options).sample(0)


def reason_of(row: dict[str, Any], good: dict[str, Any] | None = None, **options: Any) -> str:
    """The reason for which the row is rejected among good ones."""
    pool = load([good or {"instruction": "i", "output": "o"}, row], **options)
    assert len(pool) == 1
    (reject,) = pool.rejected
    return reject.reason


ALPACA = [
    ({"instruction": "i", "input": "x", "output": "o"}, (user("i", "x"), assistant("o"))),
    ({"instruction": "i", "input": None, "output": "o"}, (user("i"), assistant("o"))),
    ({"instruction": "i", "output": "o"}, (user("i"), assistant("o"))),
    ({"instruction": "i", "response": "r"}, (user("i"), assistant("r"))),
    ({"instruction": "i", "output": "o", "response": "r"}, (user("i"), assistant("o"))),
    ({"instruction": "i", "output": "", "response": "r"}, (user("i"), assistant("r"))),
    ({"instruction": "i", "output": None, "response": "r"}, (user("i"), assistant("r"))),
    ({"instruction": "i", "output": ""}, (user("i"), assistant(""))),
    ({"instruction": " i\n", "output": "\to "}, (user(" i\n"), assistant("\to "))),
    ({"instruction": "i", "context": "c", "response": "r"}, (user("i", "c"), assistant("r"))),
    ({"instruction": "i", "input": "", "context": "c", "response": "r"}, (user("i"), assistant("r"))),
    ({"instruction": "i", "output": "o", "system": "s"}, (Message("system", "s"), user("i"), assistant("o"))),
    ({"instruction": "i", "output": "o", "system": None, "history": None}, (user("i"), assistant("o"))),
    (
        {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]]},
        (user("q"), assistant("a"), user("i", "x"), assistant("o")),
    ),
]


@pytest.mark.parametrize(("row", "messages"), ALPACA)
def test_alpaca(row: dict[str, Any], messages: tuple[Message, ...]) -> None:
    pool = load([row])
    assert pool.format == "alpaca"
    assert pool.sample(0) == Sample(messages)


def test_properties_of_a_sample() -> None:
    sample = one({"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]})
    assert (sample.instruction, sample.input, sample.response, sample.system) == ("q", "", "o", "s")
    empty = Sample((Message("system", "s"),))
    assert (empty.instruction, empty.input, empty.response, empty.system) == ("", "", "", "s")


def test_sharegpt_with_calls() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "w"}'},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "Rain."},
        ],
        "system": "Be brief.",
        "tools": '[{"name":"w"}]',
    }
    assert load([row]).format == "sharegpt"
    assert one(row) == Sample(
        (
            Message("system", "Be brief."),
            user("Weather?"),
            Message("assistant", "", calls=(Call("w", {}),)),
            Message("tool", "rain"),
            assistant("Rain."),
        ),
        tools='[{"name": "w"}]',
    )


@pytest.mark.parametrize("speaker", ["gpt", "assistant", "chatgpt", "bard", "model", "GPT"])
def test_sharegpt_names_of_the_assistant(speaker: str) -> None:
    row = {"conversations": [{"from": "user", "value": "q"}, {"from": speaker, "value": "a"}]}
    assert one(row) == Sample((user("q"), assistant("a")))


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        (["q", "a", "q2", "a2"], (user("q"), assistant("a"), user("q2"), assistant("a2"))),
        (["q"], (user("q"),)),
        ("q", (user("q"),)),
        ("{not JSON", (user("{not JSON"),)),
    ],
)
def test_plain_conversations(value: Any, messages: tuple[Message, ...]) -> None:
    assert one({"conversations": value}) == Sample(messages)
    assert one({"conversations": value}).response == ("a2" if len(messages) == 4 else "")


def test_openai_messages() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x":1,"ü":"é"}'}}
                ],
            },
            {"role": "tool", "content": "1", "tool_call_id": "call_1"},
            {"role": "function", "content": "2"},
            {"role": "assistant", "content": "c", "tool_calls": None},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    assert load([row]).format == "messages"
    assert one(row) == Sample(
        (
            Message("system", "s"),
            user("ab"),
            Message("assistant", "", calls=(Call("f", {"x": 1, "ü": "é"}, "call_1"),)),
            Message("tool", "1", call_id="call_1"),
            Message("tool", "2"),
            assistant("c"),
        ),
        tools='[{"type": "function", "function": {"name": "f"}}]',
    )


def test_several_calls_beside_a_text() -> None:
    calls = [{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "g", "arguments": "not JSON"}}]
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "t", "tool_calls": calls}]}
    expected = (Call("f", {}), Call("g", "not JSON"))
    assert one(row).messages[1:] == (Message("assistant", "t", calls=expected),)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"prompt": [{"role": "user", "content": "q"}], "completion": "a"},
    ],
)
def test_prompt_completion(row: dict[str, Any]) -> None:
    assert load([row]).format == "prompt_completion"
    assert one(row) == Sample((user("q"), assistant("a")))


def test_question_answer() -> None:
    row = {"question": "q", "answer": "a"}
    assert load([row]).format == "question_answer"
    assert one(row) == Sample((user("q"), assistant("a")))


MEDMCQA = {
    "id": "45258d3d", "question": "Longest nerve?", "opa": "Sciatic", "opb": "Ulnar ", "opc": "", "opd": "All",
    "cop": 0, "choice_type": "multi", "exp": "Ans-a.\nFrom L4 to the foot",
    "subject_name": "Anatomy", "topic_name": None,
}  # fmt: skip
QUESTION = user("Longest nerve?\nA. Sciatic\nB. Ulnar \nC. \nD. All")


@pytest.mark.parametrize(
    ("cop", "answer"), [(0, "A. Sciatic"), (1, "B. Ulnar "), (2, "C. "), (3, "D. All"), ("3", "D. All")]
)
def test_medmcqa(cop: int | str, answer: str) -> None:
    lines: list[str] = []
    pool = load([{**MEDMCQA, "cop": cop, "answer": "not read"}], log=lines.append)
    assert pool.format == "medmcqa"
    assert pool.sample(0) == Sample((QUESTION, assistant(answer)))
    assert lines == ["rows: 1 rows, format medmcqa (question, opa, opb, opc, opd, cop)"]
    assert pool.source_rows([0]) == [{**MEDMCQA, "cop": cop, "answer": "not read"}]


@pytest.mark.parametrize("exp", [None, "", " \n"])
def test_medmcqa_with_explanation(exp: str | None) -> None:
    rows = [MEDMCQA, {**MEDMCQA, "exp": exp}, {key: value for key, value in MEDMCQA.items() if key != "exp"}]
    pool = load(rows, format="medmcqa+exp")
    assert pool.format == "medmcqa+exp"
    assert [sample.messages[0] for sample in pool.samples()] == [QUESTION] * 3
    assert [sample.response for sample in pool.samples()] == [
        "A. Sciatic\n\nAns-a.\nFrom L4 to the foot", "A. Sciatic", "A. Sciatic"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cop": -1}, "'cop' is -1: the row does not say which option is right"),
        ({"cop": 4}, "'cop' is 4, one of 0 (opa) to 3 (opd) is expected; a file that counts from 1 must be shifted"),
        ({"cop": 5}, "'cop' is 5, one of 0 (opa) to 3 (opd) is expected"),
        ({"cop": "A"}, "'cop' is A, one of 0 (opa) to 3 (opd) is expected"),
        ({"cop": None}, "'cop' is null, one of 0 (opa) to 3 (opd) is expected"),
        ({"cop": True}, "'cop' is true or false, one of 0 (opa) to 3 (opd) is expected"),
        ({"opd": None}, "'opd' is null, text is expected"),
        ({"question": 3}, "'question' is a number, text is expected"),
    ],
)
def test_medmcqa_rejects(change: dict[str, Any], reason: str) -> None:
    assert reason_of({**MEDMCQA, **change}, MEDMCQA) == reason


def test_medmcqa_without_a_key() -> None:
    row = {key: value for key, value in MEDMCQA.items() if key != "cop"}
    assert reason_of(row, MEDMCQA).startswith("missing key 'cop'; it has: id, question, opa")
    assert reason_of({**MEDMCQA, "exp": 3}, MEDMCQA, format="medmcqa+exp") == "'exp' is a number, text is expected"


def test_medmcqa_that_is_not_answered_is_refused() -> None:
    with pytest.raises(DataError, match=r"2 of 2 records cannot be used(.|\n)*'cop' is -1"):
        load([{**MEDMCQA, "cop": -1}] * 2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "i", "text": "o"}, "missing key 'output' (or 'response'); it has: instruction, text"),
        ({"output": "o"}, "missing key 'instruction'; it has: output"),
        ({"instruction": 3, "output": "o"}, "'instruction' is a number, text is expected"),
        ({"instruction": "i", "output": None}, "'output' is null, text is expected"),
        ({"instruction": "i", "output": ["o"]}, "'output' is a list, text is expected"),
        ({"instruction": "i", "input": 1.5, "output": "o"}, "'input' is a number, text is expected"),
        ({"instruction": "i", "output": "o", "history": [["q"]]}, "entry 1 of 'history' is not a pair of texts"),
    ],
)
def test_alpaca_rejects(row: dict[str, Any], reason: str) -> None:
    assert reason_of(row) == reason


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "'messages' is empty"),
        (None, "'messages' is null, a list of turns is expected"),
        ("hello", "'messages' is text, a list of turns is expected"),
        ([{"role": "narrator", "content": "x"}], "unknown speaker \"narrator\" in turn 1 of 'messages'"),
        ([{"role": "assistant", "content": "x"}], "no user turn before the assistant's"),
        ([{"role": "tool", "content": "x"}], "no user turn before the tool's"),
        ([{"role": "system", "content": "x"}], "no user turn"),
        ([{"content": "x"}], "turn 1 of 'messages' has neither 'role' nor 'from'; it has: content"),
        ([{"role": "user"}], "turn 1 of 'messages' has no 'content'; it has: role"),
        ([{"role": "user", "content": None}], "'content' in turn 1 of 'messages' is null, text is expected"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}],
            "'content' in turn 1 of 'messages' has a part that is not text (image_url)",
        ),
        ([3], "turn 1 of 'messages' is a number, an object is expected"),
    ],
)
def test_messages_rejects(turns: Any, reason: str) -> None:
    assert reason_of({"messages": turns}, {"messages": [{"role": "user", "content": "q"}]}) == reason


def test_a_row_without_an_answer_is_a_row() -> None:
    pool = load([{"messages": [{"role": "user", "content": "q"}]}, {"conversations": [], "messages": ["q", "a"]}])
    assert [sample.response for sample in pool.samples()] == ["", "a"]


def test_two_user_turns_stay_two() -> None:
    assert one({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}).messages == (
        user("a"),
        user("b"),
    )


def test_each_row_has_its_own_shape() -> None:
    rows = [
        {"question": "q", "answer": "a"},
        *({"prompt": f"p{i}", "completion": "c"} for i in range(3)),
        {"prompt": "p"},
    ]
    said: list[str] = []
    pool = load(rows, log=said.append)
    assert pool.format == "question_answer+prompt_completion"
    assert pool.rows.tolist() == [0, 1, 2, 3]
    assert pool.rejected[0].reason == "missing key 'completion'; it has: prompt"
    assert said[0] == (
        "rows: 4 rows, formats question_answer 1, prompt_completion 3 "
        "(question, answer, prompt, completion); 1 rejected"
    )


def test_forced_format() -> None:
    row = {"instruction": "i", "output": "o", "question": "q", "answer": "a"}
    assert one(row).instruction == "i"
    assert one(row, format="question_answer").instruction == "q"
    with pytest.raises(ConfigError, match="unknown format 'alpacca'; did you mean 'alpaca'"):
        load([row], format="alpacca")


def test_map() -> None:
    row = {"q": "Q", "a": "A", "more": "M", "who": "W"}
    pool = load([row], map={"instruction": "q", "response": "a", "input": "more", "system": "who"})
    assert pool.format == "map"
    assert pool.sample(0) == Sample((Message("system", "W"), user("Q", "M"), assistant("A")))


def test_map_of_messages() -> None:
    row = {"chat": [{"from": "human", "value": "q"}], "sys": "s", "tools": [{"name": "f"}]}
    sample = one(row, map={"messages": "chat", "system": "sys"})
    assert sample == Sample((Message("system", "s"), user("q")), tools='[{"name": "f"}]')


@pytest.mark.parametrize(
    ("map", "message"),
    [
        ({"instructon": "q", "response": "a"}, "unknown map key 'instructon'; did you mean 'instruction'"),
        ({"instruction": "q"}, "map lacks 'response'"),
        ({"messages": "q", "response": "a"}, "'response' cannot stand beside it"),
    ],
)
def test_map_that_makes_no_sample(map: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load([{"q": "Q", "a": "A"}], map=map)
    with pytest.raises(ConfigError, match="not both"):
        load([{"q": "Q", "a": "A"}], map={"instruction": "q", "response": "a"}, format="alpaca")


def test_mapped_column_that_no_row_has() -> None:
    message = r"map response=answr: no row has a column 'answr'; did you mean 'answer'\?; columns: question, answer"
    with pytest.raises(DataError, match=message):
        load([{"question": "Q", "answer": "A"}], map={"instruction": "question", "response": "answr"})
    with pytest.raises(DataError, match="no row has a column 'context'"):
        options = {"instruction": "question", "response": "answer", "input": "context"}
        load([{"question": "Q", "answer": "A"}], map=options)


def test_ids_depend_on_what_is_said_only() -> None:
    same = [
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "response": "a", "source": "elsewhere"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": ["q", "a"]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"text": "a"}]}]},
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
    ]
    other = [
        {"instruction": "q", "input": "a", "output": "a"},
        {"instruction": "q", "output": "a "},
        {"instruction": "qa", "output": ""},
        {"instruction": "q", "output": "a", "system": "s"},
        {"conversations": ["q", "a"], "tools": "[1]"},
        {"conversations": ["q", "a", "q"]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "a"}]},
    ]
    ids = {load([row]).ids[0] for row in same}
    assert len(ids) == 1
    assert len(ids | {load([row]).ids[0] for row in other}) == 1 + len(other)
    assert all(len(one_id) == 32 and int(one_id, 16) >= 0 for one_id in ids)


def test_ids_do_not_change_with_versions() -> None:
    assert load([{"instruction": "q", "output": "a"}]).ids == ["43421452da982f176a3e807bf7ff52ef"]


def test_tools_in_one_spelling() -> None:
    turns = [{"role": "user", "content": "q"}]
    tools = [{"name": "f", "about": "é"}]
    spellings: list[Any] = [tools, json.dumps(tools), json.dumps(tools, ensure_ascii=False, indent=1)]
    assert {load([{"messages": turns, "tools": value}]).ids[0] for value in spellings} == {
        load([{"messages": turns, "tools": tools}]).ids[0]
    }
    for nothing in (None, "", "[]", [], " "):
        assert one({"messages": turns, "tools": nothing}).tools == ""
    assert one({"messages": turns, "tools": "f(x)"}).tools == "f(x)"


def test_targets_are_kept() -> None:
    rows = [{"instruction": "q", "output": "a"}]
    pool: Pool = load(rows, targets="all+calls")
    assert pool.targets == "all+calls"
    assert pool.take([0]).targets == "all+calls"
    with pytest.raises(ConfigError, match="unknown targets 'lst'; did you mean 'last'"):
        load(rows, targets="lst")
