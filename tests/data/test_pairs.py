"""Preference pairs: the shapes that they come in, what is no pair, their ids, and a map of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from instdiff.data import Message, load
from instdiff.errors import ConfigError
from instdiff.training.pairs import refuse_pairs

U, A = "user", "assistant"
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def talk(*said: str) -> list[dict[str, str]]:
    return [{"role": A if at % 2 else U, "content": text} for at, text in enumerate(said)]


SHAPES: list[dict[str, Any]] = [
    PAIR,
    {"prompt": talk("q"), "chosen": talk("", "a")[1:], "rejected": talk("", "b")[1:]},
    {"chosen": talk("q", "a"), "rejected": talk("q", "b")},
    {"prompt": "q", "chosen": talk("q", "a"), "rejected": talk("q", "b"), "score_chosen": 8.0},
    {"prompt": "q", "chosen": "a", "rejected": talk("q", "b")},
    {"chosen": talk("q", "a"), "rejected": "b"},
    {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
]


@pytest.mark.parametrize("row", SHAPES)
def test_every_shape_is_one_pair(row: dict[str, Any]) -> None:
    pool = load([row])
    assert pool.format == "preference" and pool.pairs.tolist() == [True]
    assert pool.sample(0).messages == (Message(U, "q"), Message(A, "a"))
    assert pool.sample(0).rejected == (Message(U, "q"), Message(A, "b"))
    assert pool.ids[0] == load([PAIR]).ids[0]
    assert pool.source_rows() == [row]


def test_turns_that_both_sides_share_are_not_learnt_on_either() -> None:
    sample = load([{"chosen": talk("q", "a", "r", "b"), "rejected": talk("q", "a", "r", "c")}]).sample(0)
    assert [m.learn for m in sample.messages] == [m.learn for m in sample.rejected] == [None, False, None, None]
    sample = load([{**PAIR, "system": "s"}]).sample(0)
    assert sample.rejected == (Message("system", "s"), Message(U, "q"), Message(A, "b"))


def test_ids_are_of_both_sides() -> None:
    pool = load([PAIR, {**PAIR, "rejected": "c"}, {**PAIR, "chosen": "b", "rejected": "a"}, PAIR])
    assert len(set(pool.ids)) == 3 and pool.ids[0] == pool.ids[3]
    chosen, rejected = pool.side("chosen"), pool.side("rejected")
    assert chosen.ids[0] == chosen.ids[1] == rejected.ids[2] == load([{"prompt": "q", "completion": "a"}]).ids[0]
    assert rejected.ids[0] == chosen.ids[2] != rejected.ids[1]
    assert [sample.response for sample in rejected.samples()] == ["b", "c", "a", "b"]
    assert not rejected.pairs.any() and rejected.rows.tolist() == [0, 1, 2, 3]


def test_rows_beside_pairs_have_one_side() -> None:
    pool = load([PAIR, {"prompt": "q", "completion": "a"}])
    assert pool.pairs.tolist() == [True, False] and pool.format == "preference+prompt_completion"
    assert [sample.response for sample in pool.side("rejected").samples()] == ["b", "a"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"chosen": talk("q", "a"), "rejected": talk("p", "b")},
            "'chosen' and 'rejected' are no two answers to one prompt",
        ),
        ({"chosen": talk("q", "a"), "rejected": talk("q")}, "'chosen' and 'rejected' are no two answers to one prompt"),
        ({**PAIR, "rejected": talk("p", "b")}, "'chosen' and 'rejected' are no two answers to one prompt"),
        ({**PAIR, "rejected": None}, "'rejected' is null, text is expected"),
        ({**PAIR, "chosen": 3}, "'chosen' is a number, text is expected"),
        ({**PAIR, "rejected": {"role": A}}, "turn 1 of 'rejected' has no 'content'; it has: role"),
    ],
)
def test_what_is_no_pair_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    path, said = tmp_path / "p.jsonl", list[str]()
    path.write_text("".join(json.dumps(one) + "\n" for one in (PAIR, row)), encoding="utf-8")
    pool = load(path, log=said.append)
    assert [str(reject) for reject in pool.rejected] == [f"{path}:2: {reason}"]
    assert f"{path}:2: {reason}" in said
    assert said[1] == "1 rows are pairs; methods that know no pairs see the chosen side as the response"


@pytest.mark.parametrize(
    ("row", "map"),
    [
        ({"ask": "q", "good": "a", "bad": "b"}, {"instruction": "ask", "chosen": "good", "rejected": "bad"}),
        ({"good": talk("q", "a"), "bad": talk("q", "b")}, {"chosen": "good", "rejected": "bad"}),
        ({"chat": talk("q"), "good": "a", "bad": "b"}, {"messages": "chat", "chosen": "good", "rejected": "bad"}),
        (
            {"good": [{"who": "Q", "says": "q"}, {"who": "Bot", "says": "a"}], "bad": "b"},
            {"chosen": "good", "rejected": "bad", "role": "who", "content": "says", "assistant": "Bot", "user": "Q"},
        ),
    ],
)
def test_a_map_of_pairs(row: dict[str, Any], map: dict[str, str]) -> None:
    pool = load([row], map=map)
    assert pool.format == "map" and pool.sample(0) == load([PAIR]).sample(0)


def test_a_map_of_half_a_pair() -> None:
    with pytest.raises(ConfigError, match="map lacks 'rejected'"):
        load([PAIR], map={"instruction": "prompt", "chosen": "chosen"})
    with pytest.raises(ConfigError, match="map: a pair is chosen=COLUMN,rejected=COLUMN"):
        load([PAIR], map={"response": "chosen", "chosen": "chosen", "rejected": "rejected"})
    second = load(
        [{**PAIR, "more": "m"}],
        map={"instruction": "prompt", "input": "more", **{k: k for k in ("chosen", "rejected")}},
    )
    assert second.sample(0).rejected[0] == Message(U, "q", "m")


def test_the_input_s_own_columns_come_out_again(tmp_path: Path) -> None:
    rows = [{"prompt_id": "x", **SHAPES[3]}, {"prompt_id": "y", **SHAPES[3], "score_chosen": 2.0}]
    pool = load(rows)
    pool.write(tmp_path / "out.jsonl", [1, 0])
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows[::-1]
    pool.write(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows
    again = load(tmp_path / "out.parquet")
    assert list(again.ids) == list(pool.ids) and again.sample(0) == pool.sample(0)
    assert list(pool.take([1, 0]).samples()) == [pool.sample(1), pool.sample(0)]


def test_reasoning_and_calls_of_the_rejected_side_are_kept() -> None:
    other = {"role": A, "content": "b", "reasoning_content": "t", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    sample = load([{"prompt": "q", "chosen": "a", "rejected": [other]}, PAIR]).sample(0)
    assert sample.messages == (Message(U, "q"), Message(A, "a"))
    assert (sample.rejected[1].reasoning, sample.rejected[1].calls[0].arguments) == ("t", {"x": 1})


def test_training_refuses_pairs_in_a_sentence() -> None:
    assert len(refuse_pairs(load([PAIR], map={"instruction": "prompt", "response": "chosen"}))) == 1
    with pytest.raises(
        ConfigError, match=r"training is supervised fine-tuning on one answer .* 1 rows of rows are pref"
    ):
        refuse_pairs(load([PAIR]))
