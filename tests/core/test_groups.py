"""Selections with a share for each value of a column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import Scored, Signals
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.budget import divide
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, DataError, PlanError
from instdiff.methods import KCenter, Random
from instdiff.selection.selector import Selection, select

SOURCES = ["a"] * 12 + ["b"] * 6 + [None] * 2


def pool() -> Pool:
    rows = [{"instruction": f"say {n}", "output": "x", "source": source} for n, source in enumerate(SOURCES)]
    return load(rows)


def scored(of: Pool, value: Any = None, tokens: Any = None, reason: Any = None) -> Scored:
    value = np.arange(20.0) if value is None else np.asarray(value, float)
    words = np.where(np.isnan(value), "filtered" if reason is None else reason, None)
    counts = np.full(20, -1) if tokens is None else np.asarray(tokens)
    return Scored("random", Random(), value, words, {}, of.ids, counts)


def counts(chosen: Selection) -> dict[str, int]:
    rows: dict[str, int] = chosen.record()["groups"]["rows"]
    assert sum(rows.values()) == len(chosen)
    return rows


# ── a count divided ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_fractions_go_to_the_largest_remainders() -> None:
    assert divide(10, [12, 6, 2], [12, 6, 2]) == [6, 3, 1]
    assert divide(4, [1, 1, 1], [9, 9, 9]) == [2, 1, 1]
    assert divide(5, [10, 10, 1], [9, 9, 9]) == [3, 2, 0]
    assert divide(9, [10, 10, 10], [1, 9, 9]) == [1, 4, 4]
    assert divide(9, [1, 0], [5, 5]) == [5, 0]
    assert divide(0, [1, 2], [5, 5]) == [0, 0] and divide(3, [], []) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8), st.integers(0, 300))
def test_the_sum_holds_and_no_limit_is_passed(parts: list[tuple[int, int]], amount: int) -> None:
    weights, limits = [w for w, _ in parts], [limit for _, limit in parts]
    out = divide(amount, weights, limits)
    assert all(0 <= part <= limit for part, limit in zip(out, limits, strict=True))
    assert sum(out) == min(amount, sum(limit for weight, limit in parts if weight))


# ── selections ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_group_has_the_same_share() -> None:
    of = pool()
    chosen = select(of, scored(of), "50%", group_by="source")
    assert counts(chosen) == {"a": 6, "b": 3, "null": 1}
    assert chosen.at.tolist() == [19, 17, 16, 15, 11, 10, 9, 8, 7, 6]  # best first over all groups
    assert chosen.record()["groups"]["by"] == "source"
    assert counts(select(of, scored(of), 7, group_by="source")) == {"a": 4, "b": 2, "null": 1}
    assert select(of, scored(of), "50%", group_by="source", order="input").at.tolist() == sorted(chosen.at.tolist())
    assert "groups" not in select(of, scored(of), 5).record()


def test_what_a_group_cannot_fill_goes_to_the_others() -> None:
    of = pool()
    value = np.arange(20.0)
    value[1:12] = np.nan
    assert counts(select(of, scored(of, value), 8, group_by="source")) == {"a": 1, "b": 5, "null": 2}
    lacking = select(of, scored(of, value), 20, group_by="source")
    assert len(lacking) == 9


def test_shares_of_eligible_rows() -> None:
    of = pool()
    value = np.arange(20.0)
    value[:8] = np.nan
    assert counts(select(of, scored(of, value), "50% eligible", group_by="source")) == {"a": 2, "b": 3, "null": 1}


def test_tokens() -> None:
    of = pool()
    tokens = np.repeat([10, 20, 5], [12, 6, 2])
    chosen = select(of, scored(of, tokens=tokens), "50% tokens", group_by="source")
    assert counts(chosen) == {"a": 6, "b": 3, "null": 1} and chosen.n_tokens == 125
    over = select(of, scored(of, tokens=tokens), "100 tokens", group_by="source")
    assert over.n_tokens >= 100 and counts(over) == {"a": 5, "b": 3, "null": 1}
    with pytest.raises(PlanError, match="budget '10% tokens' counts tokens"):
        select(of, scored(of), 5, group_by="source", quota={"a": "10% tokens"})


def test_quotas() -> None:
    of = pool()
    chosen = select(of, scored(of), "50%", group_by="source", quota={"a": "25%", "null": 2})
    assert counts(chosen) == {"a": 3, "b": 3, "null": 2}
    every = select(of, scored(of), quota={"a": 1, "b": 1, "null": 1}, group_by="source")
    assert counts(every) == {"a": 1, "b": 1, "null": 1}


def test_set_methods_rank_on_inside_a_group() -> None:
    of = pool()
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    s = Signals({"vector": Ragged.of(list(x), np.float32)}, of.ids, np.full(20, None, object))
    method = KCenter()
    out = method.score(s).with_reasons(s)
    stored = Scored("kcenter", method, out.value, out.reason, out.details, of.ids, np.ones(20, int), lambda: s)
    chosen = select(of, stored, "50%", group_by="source")
    assert counts(chosen) == {"a": 6, "b": 3, "null": 1} and len(set(chosen.at.tolist())) == 10
    alone = method.order(s.take(np.arange(12)), 6)
    assert set(alone.tolist()) == {row for row in chosen.at.tolist() if row < 12}


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"group_by": "sorce"}, DataError, "has a column 'sorce'; did you mean 'source'?"),
        ({"quota": {"a": 1}}, ConfigError, "'quota' is of groups, and none are named; give --group-by COLUMN"),
        (
            {"group_by": "source", "quota": {"c": 1}},
            ConfigError,
            "'quota.c': there is no such group; known: a, b, null",
        ),
        ({"group_by": "source", "quota": {"a": "x"}}, ConfigError, "budget 'x' is not understood"),
        ({"group_by": "source", "budget": "1%"}, DataError, "budget '1%' of 20 rows takes none; give a larger one"),
    ],
)
def test_errors(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    of = pool()
    with pytest.raises(kind) as error:
        select(of, scored(of), **options)
    assert message in str(error.value)
