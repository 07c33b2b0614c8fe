"""Methods that need no model: random, full, longest."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import Budget, Column, Length, Signal
from instdiff.data import load
from instdiff.methods import Full, Longest, Random
from instdiff.methods.random import uniform
from instdiff.scoring.scorer import score

from .columns import NAN, run, signals

# ── random ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_draw_is_seeded_by_content() -> None:
    ids = [f"row{i}" for i in range(200)]
    draw = uniform(42, signals(ids))
    assert ((draw >= 0) & (draw < 1)).all() and len(set(draw.tolist())) == 200
    assert abs(draw.mean() - 0.5) < 0.07 and abs(draw.std() - 12**-0.5) < 0.03
    np.testing.assert_array_equal(uniform(42, signals(ids[::-1])), draw[::-1])
    np.testing.assert_array_equal(uniform(42, signals(ids[:50])), draw[:50])
    assert np.abs(uniform(43, signals(ids)) - draw).max() > 0.5
    assert abs(np.corrcoef(uniform(43, signals(ids)), draw)[0, 1]) < 0.25


def test_copies_get_numbers_of_their_own() -> None:
    draw = uniform(1, signals(["a", "b", "a", "a"]))
    assert len(set(draw.tolist())) == 4
    assert uniform(1, signals(["b", "a", "a", "a"]))[1:].tolist() == [draw[0], draw[2], draw[3]]


def test_random_picks_without_rows_that_have_no_response() -> None:
    out = run(Random(seed=3), signals(list("abcd"), ["empty_response", None, None, None]))
    assert out.reason.tolist() == ["empty_response", None, None, None]
    picked = out.method.pick(out, Budget(1.0))
    assert sorted(picked.tolist()) == [1, 2, 3]
    assert picked.tolist() == sorted([1, 2, 3], key=lambda row: -out.value[row])


def test_balanced_random_goes_round() -> None:
    groups = np.array(["x"] * 8 + ["y"] * 3 + ["z"], object)
    reason: list[str | None] = [None] * 12
    reason[0] = "empty_response"
    out = run(Random(balance="source"), signals(12, reason, group=groups))
    assert Random(balance="source").signals()["group"] == Signal(Column("source"))
    order = out.method.pick(out, Budget(1.0))
    rounds = [sorted(groups[order[at : at + n]]) for at, n in ((0, 3), (3, 2), (5, 2), (7, 1))]
    assert rounds == [["x", "y", "z"], ["x", "y"], ["x", "y"], ["x"]]
    assert sorted(order.tolist()) == list(range(1, 12))
    turn = out.details["turn"]
    for group in "xyz":
        assert sorted(turn[(groups == group) & out.eligible].tolist()) == list(
            range(sum((groups == group) & out.eligible))
        )


@given(st.data())
def test_random_ids_do_not_depend_on_order(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xy")), min_size=1, max_size=12))
    order = data.draw(st.permutations(range(len(rows))))
    group = dict(rows)  # equal content has an equal group

    def chosen(ids: list[str]) -> list[str]:
        s = signals(ids, group=np.array([group[i] for i in ids], object))
        out = run(Random(balance="source"), s)
        return [out.ids[row] for row in out.method.pick(out, Budget(0.5))]

    names = [name for name, _ in rows]
    assert chosen(names) == chosen([names[i] for i in order])


# ── full and longest ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_full_is_every_row_with_a_response_by_id() -> None:
    out = run(Full(), signals(list("cab"), [None, "empty_response", None]))
    np.testing.assert_array_equal(out.value, [0.0, NAN, 0.0])
    assert out.best().tolist() == [2, 0]


def lengths() -> dict[str, Any]:
    return {"response": np.array([4.0, 8.0, 0.0, 2.0]), "instruction": np.array([8.0, 8.0, 5.0, 1.0])}


def test_longest() -> None:
    reason = [None, None, "empty_response", None]
    expected = {
        ("response", "max"): [1, 0, 3],
        ("response", "min"): [3, 0, 1],
        ("instruction", "max"): [0, 1, 3],
        ("instruction", "min"): [3, 0, 1],
        ("ratio", "max"): [0, 1, 3],
        ("ratio", "min"): [3, 1, 0],
    }
    for (of, direction), order in expected.items():
        out = run(Longest(of=of, direction=direction), signals(list("abcd"), reason, **lengths()))  # type: ignore[arg-type]
        assert out.best().tolist() == order, (of, direction)
    ratio = run(Longest(of="ratio"), signals(list("abcd"), reason, **lengths()))
    np.testing.assert_array_equal(ratio.details["length"], [2.0, 1.0, NAN, 0.5])
    assert Longest(unit="words").signals() == {
        "response": Signal(Length("response", "words")),
        "instruction": Signal(Length("instruction", "words")),
    }


ROWS = [
    {"instruction": "Say it", "input": "in two lines", "output": "one two\nthree"},
    {"instruction": "Häh", "input": "", "output": ""},
    {"instruction": "x", "input": "", "output": " a  b "},
]


def test_lengths_in_words_and_characters() -> None:
    words = score(load(ROWS), [Longest(unit="words")])["longest"]
    np.testing.assert_array_equal(words.details["length"], [3, 0, 2])
    assert words.reason.tolist() == [None, "empty_response", None]
    chars = score(load(ROWS), [Longest(unit="chars", of="instruction")])["longest"]
    np.testing.assert_array_equal(chars.details["length"], [len("Say it\nin two lines"), 3, 1])


def test_tokens_without_a_model_are_characters_and_the_log_says_so() -> None:
    said: list[str] = []
    out = score(load(ROWS), [Longest()], log=said.append)
    np.testing.assert_array_equal(out["longest"].details["length"], [13, 0, 6])
    assert said.count("no base model is given, so response lengths are in characters, not tokens") == 1
    assert out.n_tokens.tolist() == [-1, -1, -1]
    quiet: list[str] = []
    score(load(ROWS), [Random(), Full()], log=quiet.append)
    assert quiet == []


def test_lengths_are_of_the_turns_that_are_targets(lab: Any) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "two more"},
        {"role": "assistant", "content": "12345"},
    ]
    for targets, expected in (("all", 7), ("last", 5)):
        pool = load([{"messages": turns}], targets=targets)
        chars = score(pool, [Longest(unit="chars")])["longest"]
        assert chars.details["length"].tolist() == [expected]
        table = lab.score(pool, [Longest()])
        assert table["longest"].details["length"].tolist() == table.n_tokens.tolist()
    assert score(pool, [Longest(unit="chars", of="instruction")])["longest"].details["length"].tolist() == [11]
