"""At most so many rows of each prompt, or of each value of a column."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import Budget, Scored
from instdiff.core.caps import Caps, Per, Room, parse_per
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, DataError
from instdiff.methods import Learnability, Random, TShirt
from instdiff.methods.algorithms.rehearsal import merge
from instdiff.rendering.prompts import prompt_groups
from instdiff.selection.selector import Selection, select

GROUPS = [0] * 10 + [1] + [2] * 3 + [3]
"""Which prompt each row answers: the example of the specification, groups of 10, 1, 3 and 1."""


def pool(groups: list[Any] = GROUPS, **columns: list[Any]) -> Pool:
    rows: list[dict[str, Any]] = [{"instruction": f"ask {of}", "output": f"x {n}"} for n, of in enumerate(groups)]
    return load([row | {name: values[n] for name, values in columns.items()} for n, row in enumerate(rows)])


def scored(of: Pool, value: Any, method: Any = None, tokens: Any = None, **details: Any) -> Scored:
    value = np.asarray(value, float)
    words = np.where(np.isnan(value), "filtered", None)
    counts = np.ones(len(of), np.int64) if tokens is None else np.asarray(tokens)
    return Scored("random", method or Random(), value, words, details, of.ids, counts)


def groups_in(chosen: Selection) -> Counter[str]:
    return Counter(sample.instruction for sample in chosen.to_pool().samples())


# ── the example of the specification ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_each_prompt(seed: int) -> None:
    rows, value = pool(), np.random.default_rng(seed).permutation(15).astype(float)
    one, two = (select(rows, scored(rows, value), per=("prompt", k)) for k in (1, 2))
    assert len(one) == 4 and len(two) == 6
    best = [int(value[:10].argmax()), 10, 11 + int(value[11:14].argmax()), 14]
    assert one.at.tolist() == sorted(best, key=lambda row: -value[row])
    assert sorted(groups_in(two).values()) == [1, 1, 2, 2]
    assert select(rows, scored(rows, value), 2, per="prompt 1").at.tolist() == one.at[:2].tolist()
    assert one.record()["per"] == {
        **{"by": "prompt", "most": 1, "values": 4, "values_without_a_score": 0, "first_without": []},
        **{"values_with_fewer": 0, "rows_dropped": 11},
    }
    assert two.record()["per"]["values_with_fewer"] == 2 and two.record()["per"]["rows_dropped"] == 9
    assert one.shortfall() is None and "at most 1 of each prompt (asked for 100%: 4 rows)" in one.told()


def test_shares_are_of_all_rows_and_tokens_of_the_rows_left() -> None:
    rows = pool()
    of = scored(rows, np.arange(15.0), tokens=[10] * 15)
    assert len(select(rows, of, "20%", per="prompt 1")) == 3
    assert len(select(rows, of, "20% eligible", per="prompt 1")) == 3
    tokens = select(rows, of, "20% tokens", per="prompt 1")
    assert tokens.at.tolist() == [14, 13, 10] and tokens.asked == 30
    short = select(rows, of, "50%", per="prompt 1")
    assert len(short) == 4
    said = "asked for 7 rows, 4 have a score, at most 1 of each prompt; give a smaller budget, or none"
    assert said in str(short.shortfall())


def test_prompts_of_the_same_text_are_one_and_signs_tell_them_apart() -> None:
    said = ["What is 12 - 5?", "What is 12 * 5?", "What is 12 / 5?", "What is 12 - 5?", "what is 12 - 5?"]
    rows = load([{"instruction": text, "output": f"x {n}"} for n, text in enumerate(said)])
    assert select(rows, scored(rows, [1.0, 2.0, 3.0, 4.0, 5.0]), per="prompt 1").at.tolist() == [4, 3, 2, 1]
    folds = prompt_groups(rows, near=True)  # rows that are almost one must not be apart there
    assert len(set(folds)) == 1 and len(set(prompt_groups(rows))) == 4


def test_a_null_is_a_group_of_its_own_and_values_without_a_score_are_named() -> None:
    source = ["a", "a", None, None, "b", "b", "null"]
    rows = pool(list(range(7)), source=source)
    of = scored(rows, [1.0, 2.0, 3.0, np.nan, np.nan, np.nan, 4.0])
    chosen = select(rows, of, per=("source", 1))
    assert chosen.at.tolist() == [6, 2, 1]
    facts = chosen.record()["per"]
    assert facts["values"] == 5 and facts["values_without_a_score"] == 2 and facts["rows_dropped"] == 1
    assert facts["first_without"] == ["row 3, which has none", "b"]


def test_ties_go_by_id() -> None:
    rows = pool()
    chosen = select(rows, scored(rows, np.zeros(15)), per="prompt 1")
    assert rows.ids[int(min(chosen.at))] == min(rows.ids[row] for row in range(10))


def test_the_cap_comes_before_groups() -> None:
    rows = pool([0, 0, 1, 1, 2, 2], source=["a", "b", "a", "b", "a", "b"])
    of = scored(rows, [1.0, 6.0, 2.0, 5.0, 4.0, 3.0])
    chosen = select(rows, of, 3, per="prompt 1", group_by="source")
    # Of each prompt the best row is in b, b and a; a share of a that it cannot fill goes to b.
    assert sorted(chosen.at.tolist()) == [1, 3, 4] and chosen.record()["groups"]["rows"] == {"a": 1, "b": 2}


def test_what_is_not_understood() -> None:
    rows = pool()
    assert parse_per("my column 3") == Per("my column", 3) and str(Per("source", 2)) == "source 2"
    for bad in ("prompt", "prompt 0", "3", "prompt one", ("prompt",), ("prompt", -1), ""):
        with pytest.raises(ConfigError, match="write a column and a number"):
            parse_per(bad)
    with pytest.raises(DataError, match="sauce"):
        select(rows, scored(rows, np.arange(15.0)), per="sauce 1")


def test_tshirt_looks_among_the_best_of_each_prompt() -> None:
    rows, value = pool(), np.arange(15.0)
    of = scored(rows, value, TShirt(gamma=2), std_noisy_sifd=np.arange(15.0)[::-1])
    # Of rows 14, 13, 10 and 9 twice the budget are looked at, and of these the steadiest are taken: 14 and 13.
    assert sorted(select(rows, of, 2, per="prompt 1").at.tolist()) == [13, 14]


# ── rows to rehearse ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_known_rows_come_between_the_best_within_the_cap() -> None:
    best, known, cost = np.arange(6), np.array([6, 7]), np.ones(8, np.int64)
    assert merge(best, known, cost, 0.25).tolist() == [0, 1, 2, 6, 3, 4, 5, 7]
    free = Caps(np.arange(8), np.ones(8, np.int64))
    assert merge(best, known, cost, 0.25, free).tolist() == [0, 1, 2, 6, 3, 4, 5, 7]
    # Rows 0, 1 and 6 share a prompt: 1 and 6 are passed over and cost nothing, so that 7 is the first known one.
    caps = Caps(np.array([0, 0, 1, 2, 3, 4, 0, 5]), np.ones(6, np.int64))
    assert merge(best, known, cost, 0.25, caps).tolist() == [0, 2, 3, 7, 4, 5]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.sampled_from([0.05, 0.1, 0.15, 0.25, 0.3, 0.35, 0.5, 0.7, 0.9]),
)
def test_the_best_go_first_at_equal_keys(first: list[int], second: list[int], share: float) -> None:
    cost, part = np.array(first + second), Fraction(str(share))
    best, known = np.arange(len(first)), np.arange(len(first), len(cost))
    keys = [Fraction(sum(first[: n + 1])) / (1 - part) for n in range(len(first))]
    keys += [Fraction(sum(second[: n + 1])) / part for n in range(len(second))]
    expected = sorted(range(len(cost)), key=lambda row: (keys[row], row))
    assert merge(best, known, cost, share).tolist() == expected
    free = Caps(np.arange(len(cost)), np.ones(len(cost), np.int64))
    assert merge(best, known, cost, share, free).tolist() == expected


def test_learnability_with_rehearsal_holds_the_cap() -> None:
    rows = pool([0, 0, 1, 1, 2, 2])
    value, place = [5.0, 4.0, 3.0, np.nan, np.nan, np.nan], [np.nan, np.nan, np.nan, 0, 1, 2]
    of = scored(rows, value, Learnability(rehearse=0.5), rehearsal=np.array(place), known=np.isfinite(place))
    # Row 3 comes second, so that row 2, which shares its prompt, is passed over.
    assert select(rows, of, per="prompt 1").at.tolist() == [0, 3, 4]


# ── caps and room ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 4), st.randoms(use_true_random=False))
def test_an_order_is_limited_as_a_walk_would(codes: list[int], most: int, random: Any) -> None:
    caps = Caps.of(codes, most)
    order = np.array(random.sample(range(len(codes)), len(codes)))
    room, walked = Room(caps, len(codes)), []
    for row in order.tolist():
        if not room.shut[row]:
            walked.append(row)
            assert set(room.take(row).tolist()) in (set(), {i for i, code in enumerate(codes) if code == codes[row]})
    assert caps.limit(order).tolist() == walked and len(walked) == caps.most
    assert not caps.after(caps.limit(order)).open[[i for i in range(len(codes)) if i not in walked]].any()
    assert caps.binds(order) == (max(Counter(codes).values()) > most)


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=25),
    st.integers(1, 3),
    st.integers(1, 25),
    st.randoms(use_true_random=False),
)
def test_shuffling_changes_nothing_and_no_prompt_has_more(groups: list[int], k: int, budget: int, random: Any) -> None:
    value = [random.random() for _ in groups]
    order = random.sample(range(len(groups)), len(groups))
    rows = pool(groups)
    mixed = rows.take(order)
    one = select(rows, scored(rows, value), budget, per=("prompt", k))
    two = select(mixed, scored(mixed, [value[at] for at in order]), budget, per=("prompt", k))
    assert one.ids == two.ids and max(groups_in(one).values()) <= k
    assert len(one) == min(budget, sum(min(k, count) for count in Counter(groups).values()))
    assert one.record()["per"] == two.record()["per"]


def test_a_part_keeps_its_caps() -> None:
    rows = pool()
    of = replace(scored(rows, np.arange(15.0)), caps=Caps.of(GROUPS, 1))
    part = of.take(np.array([14, 0, 1]))
    assert part.caps is not None and part.caps.codes.tolist() == [3, 0, 0]
    assert Budget(2, "rows").take(part.caps.limit(part.best()), part).tolist() == [0, 2]
