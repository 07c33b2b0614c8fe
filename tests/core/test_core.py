"""Scores with reasons, rankings and budgets: arithmetic on hand-made columns."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import Budget, Method, Scored, Scores, Signals, reasons
from instdiff.core.budget import parse_budget
from instdiff.errors import ConfigError


def signals(ids: list[str], reason: list[str | None] | None = None, **columns: object) -> Signals:
    words = np.full(len(ids), None, object)
    words[:] = reason if reason is not None else [None] * len(ids)
    return Signals(columns, ids, words)  # type: ignore[arg-type]


def scored(
    value: list[float],
    ids: list[str] | None = None,
    tokens: list[int] | None = None,
    reason: list[str | None] | None = None,
) -> Scored:
    n = len(value)
    words = np.full(n, None, object)
    words[:] = reason if reason is not None else [None if np.isfinite(v) else "empty_response" for v in value]
    names = ids if ids is not None else [f"id{i:03d}" for i in range(n)]
    counts = np.array(tokens if tokens is not None else [1] * n, np.int64)
    return Scored("m", Method(), np.array(value, float), words, {}, names, counts)


# ── Scores and Signals ────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_nan_gets_a_reason() -> None:
    nan = np.nan
    own = reasons(6, filtered=np.array([False, False, True, False, True, False]))
    given_ = Scores([1.0, nan, nan, np.inf, 5.0, 6.0], own, detail=[1, 2, 3, 4, 5, 6])
    out = given_.with_reasons(signals(list("abcdef"), [None, "empty_response", "too_long", None, None, None]))
    np.testing.assert_array_equal(out.value, [1.0, nan, nan, nan, nan, 6.0])
    # The signals' word goes first; an infinite value has none of its own; a named row keeps no value.
    assert out.reason.tolist() == [None, "empty_response", "too_long", "non_finite", "filtered", None]
    assert out.details["detail"].tolist() == [1, 2, 3, 4, 5, 6]
    assert own.tolist() == [None, None, "filtered", None, "filtered", None]  # untouched


def test_a_row_that_a_signal_cannot_score_gets_no_value_from_the_method() -> None:
    out = Scores([1.0, 2.0]).with_reasons(signals(["a", "b"], ["too_long", None]))
    np.testing.assert_array_equal(out.value, [np.nan, 2.0])
    assert out.reason.tolist() == ["too_long", None]


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="'detail' has 2 rows, expected 3"):
        Scores([1.0, 2.0, 3.0], detail=[1.0, 2.0])
    with pytest.raises(ValueError, match="'reason' has 1 rows, expected 3"):
        Scores([1.0, 2.0, 3.0], np.array([None], object))


def test_the_first_named_reason_counts() -> None:
    reason = reasons(3, too_short=np.array([True, True, False]), filtered=np.array([True, False, False]))
    assert reason.tolist() == ["too_short", "too_short", None]


def test_signals_know_copies_and_name_what_was_declared() -> None:
    s = signals(["a", "b", "a", "a", "b"], nll=np.arange(5))
    assert s.occurrence.tolist() == [0, 0, 1, 2, 1]
    assert s.nll.tolist() == [0, 1, 2, 3, 4] and len(s) == 5
    with pytest.raises(AttributeError, match=r"no signal 'ppl'; declared are \['nll'\]"):
        _ = s.ppl


# ── ranking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_best_first_ties_by_id_then_row() -> None:
    table = scored([1.0, 3.0, np.nan, 3.0, 1.0, 3.0], ids=["d", "b", "a", "a", "c", "a"])
    assert table.best().tolist() == [3, 5, 1, 4, 0]


@given(st.data())
def test_the_inputs_order_never_matters(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)), min_size=1, max_size=12))
    order = data.draw(st.permutations(range(len(rows))))
    value = {name: float(score) for name, score in rows}  # equal content has equal scores
    ids = [name for name, _ in rows]
    plain = scored([value[name] for name in ids], ids=ids)
    mixed = scored([value[ids[i]] for i in order], ids=[ids[i] for i in order])
    assert [mixed.ids[i] for i in mixed.best()] == [plain.ids[i] for i in plain.best()]


def test_scorable_rows_are_the_eligible_and_the_filtered() -> None:
    table = scored([1.0, np.nan, np.nan, np.nan], reason=[None, "filtered", "warmup", "too_long"])
    assert table.eligible.tolist() == [True, False, False, False]
    assert table.scorable.tolist() == [True, True, True, False]


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_five_kinds() -> None:
    nan = np.nan
    table = scored(
        [5.0, 4.0, nan, 3.0, nan, 2.0, 1.0, nan],
        tokens=[10, 20, 30, 40, 0, 50, 60, 70],
        reason=[None, None, "filtered", None, "empty_response", None, None, "too_long"],
    )
    best = table.best()
    assert best.tolist() == [0, 1, 3, 5, 6]

    def take(amount: float, kind: str) -> list[int]:
        return Budget(amount, kind).take(best, table).tolist()

    assert take(2, "rows") == [0, 1]
    assert take(100, "rows") == [0, 1, 3, 5, 6]
    assert take(0.49, "share") == [0, 1, 3]  # floor(3.92) of 8 rows
    assert take(0.5, "eligible") == [0, 1]  # floor(2.5) of 5 rows
    # The unfiltered pool has 210 tokens: the filtered row counts, rows that could not be scored do not.
    assert Budget(1.0, "token_share").target(table) == 210
    assert take(30, "tokens") == [0, 1]  # reached exactly
    assert take(31, "tokens") == [0, 1, 3]  # the crossing row is included
    assert take(1, "tokens") == [0]
    assert take(1e9, "tokens") == [0, 1, 3, 5, 6]
    assert take(0.1, "token_share") == [0, 1]  # 21 of 210
    assert take(0.001, "token_share") == []  # no whole token


def test_thoughts_and_answers_are_counted_apart() -> None:
    plain = scored([3.0, 2.0, 1.0], tokens=[10, 20, 30])
    table = replace(plain, n_thought=np.array([9, 5, 20]))
    best = table.best()

    def take(text: str, of: Scored = table) -> list[int]:
        return parse_budget(text).take(best, of).tolist()

    assert take("2 answer tokens") == [0, 1] and take("2 thought tokens") == [0]
    assert [parse_budget(f"50% {part} tokens").target(table) for part in ("answer", "thought")] == [13, 17]
    assert take("50% answer tokens") == [0, 1] and take("50% thought tokens") == [0, 1, 2]
    half = parse_budget("50% answer tokens").as_count(table)
    assert str(half) == "13 answer tokens"
    assert half.is_filled_by(best[:2], table) and not half.is_filled_by(best[:1], table)
    assert take("2 answer tokens", plain) == [0] and take("2 thought tokens", plain) == [0, 1, 2]  # without thoughts
    part = table.take(np.array([2, 0]))
    assert part.n_thought is not None and part.n_thought.tolist() == [20, 9]
    with pytest.raises(ConfigError, match=r"budget '10% other tokens' is not understood"):
        parse_budget("10% other tokens")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=15), st.integers(1, 800))
def test_a_token_budget_stops_at_the_first_crossing(tokens: list[int], amount: int) -> None:
    table = scored([float(-i) for i in range(len(tokens))], tokens=tokens)
    taken = Budget(amount, "tokens").take(table.best(), table)
    assert taken.tolist() == list(range(len(taken)))
    assert sum(tokens[: len(taken) - 1]) < amount
    assert sum(tokens[: len(taken)]) >= min(amount, sum(tokens))


@given(st.integers(1, 9999), st.sampled_from([1, 7, 10, 100, 300, 52_002, 10**6, 10**9, 3 * 10**11 + 1]))
def test_a_share_is_the_decimal_that_was_typed(hundredths: int, rows: int) -> None:
    """29 % of 100 is 29, though 0.29 * 100 is 28.999..., and no large base is rounded up."""
    table = scored([1.0], tokens=[rows])
    assert Budget(hundredths / 10_000, "token_share").target(table) == Fraction(hundredths, 10_000) * rows // 1


def test_twenty_nine_percent_of_a_hundred() -> None:
    assert int(0.29 * 100) == 28
    table = scored([1.0] * 100)
    for kind in ("share", "eligible", "token_share"):
        assert Budget(0.29, kind).target(table) == 29
    assert len(Budget(0.57).take(table.best(), table)) == 57


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(500, "rows"), "500"),
        (Budget(0.1), "10%"),
        (Budget(0.29), "29%"),
        (Budget(0.125, "eligible"), "12.5% eligible"),
        (Budget(200_000, "tokens"), "200000 tokens"),
        (Budget(0.07, "token_share"), "7% tokens"),
        (Budget(0.1, "token_share", "answer"), "10% answer tokens"),
        (Budget(3000, "tokens", "thought"), "3000 thought tokens"),
    ],
)
def test_budgets_say_what_they_are(budget: Budget, text: str) -> None:
    assert str(budget) == text
