"""Races: which rows go on after the first draws, what the others are worth, and that stores do not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import Counting, Lab, some_rows
from instdiff.config.methods import make_method
from instdiff.core import Budget, Scored
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.signals import Contested
from instdiff.errors import ConfigError
from instdiff.methods import Nuggets, TShirt
from instdiff.methods.shared.race import STANDARD_ERRORS, Race, RacingMethod
from instdiff.scoring.cost import plan as price
from instdiff.scoring.planner import label, plan

from .columns import ragged, run, signals

ROWS = some_rows(14, seed=5)


def noisy(rows: int, draws: int, seed: int = 0) -> dict[str, Ragged]:
    """Columns of one token a row: the mean differs from row to row more than a draw from its row."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(-1.5, 0.5, rows)
    out = {"given": ragged(*[[2.0 + c] for c in centre]), "alone": ragged(*[[2.0]] * rows)}
    for draw in range(draws):
        out[f"given_{draw}"] = ragged(*[[2.0 + c] for c in centre + rng.normal(0, 0.1, rows)])
        out[f"alone_{draw}"] = ragged(*[[2.0]] * rows)
    return out


def tshirt(**params: Any) -> TShirt:
    return TShirt(**{"draws": 8, "k": 100, "min_response_tokens": 1, "race": "10%", "race_after": 3} | params)


def ratios(data: dict[str, Ragged], draws: int) -> np.ndarray:
    """[draws, rows]"""
    return np.exp([data[f"given_{draw}"].mean() - data[f"alone_{draw}"].mean() for draw in range(draws)])


# ── who goes on ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_rows_whose_score_may_lie_within_the_budget_go_on() -> None:
    data = noisy(60, 3)
    each, margin = ratios(data, 3), STANDARD_ERRORS * np.sqrt((1 / 3 - 1 / 8) * 3 / 2)
    mean, away = each.mean(0), margin * each.std(0)
    bar = np.sort(np.where(mean + away < 1, mean - away, -np.inf))[-12]  # twice six rows
    expected = (mean - away < 1) & (mean + away >= bar)
    found = Race(tshirt()).contenders(signals(60, **data))
    assert found.tolist() == expected.tolist() and 12 <= found.sum() < 40


@given(seed=st.integers(0, 50), share=st.sampled_from(["5%", "20%", "100%", "3", "10% tokens", "30% eligible"]))
def test_no_row_among_the_best_by_the_first_draws_is_dropped(seed: int, share: str) -> None:
    method = tshirt(race=share, gamma=1.0)
    s = signals(40, **noisy(40, 3, seed))
    first = run(tshirt(race=None, draws=3), s)
    best = method.race_budget().take(first.best(), first)
    assert Race(method).contenders(s)[best].all()


def test_too_few_rows_for_the_budget_all_go_on() -> None:
    s = signals(40, **noisy(40, 3))
    assert Race(tshirt(race=40)).contenders(s).all()


def test_the_share_of_few_anchors_is_not_sure() -> None:
    """After four anchors 0 of 4 may become as good as any that has 2 of 4, and not as good as 4 of 4 surely is."""
    method = Nuggets(anchors=20, race=1, race_after=4)
    won = np.array([4, 4, 2, 0])
    data = [[1.0] * w + [3.0] * (4 - w) for w in won]
    s = signals(4, [None] * 4, given=ragged(*data), alone=ragged(*[[2.0]] * 20), anchor=np.full(20, "x", object))
    likely = (won + 1) / 6
    away = STANDARD_ERRORS * np.sqrt((1 / 4 - 1 / 20) * 4 / 3 * likely * (1 - likely))
    assert Race(method).contenders(s).tolist() == (won / 4 + away >= 1 - away[0]).tolist() == [True, True, True, False]


# ── what rows are worth ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_that_goes_on_has_all_draws_and_the_others_come_last() -> None:
    data, on = noisy(20, 8), np.arange(20) % 3 == 0
    late = {
        name: column if int(name[-1]) < 3 else ragged(*(column[row] if on[row] else [] for row in range(20)))
        for name, column in data.items()
        if "_" in name
    }
    method = tshirt()
    out = run(method, signals(20, [None] * 20, **data | late, contends=on))
    each = ratios(data, 8)
    mean = np.where(on, each.mean(0), each[:3].mean(0))
    np.testing.assert_allclose(out.details["avg_noisy_sifd"], mean)
    np.testing.assert_allclose(out.details["std_noisy_sifd"], np.where(on, each.std(0), each[:3].std(0)))
    assert out.details["contends"].tolist() == on.tolist()
    wide = method.pick(out, Budget(20, "rows"))
    assert set(np.flatnonzero(on & out.eligible)) == set(
        method.pick(out, Budget(int((on & out.eligible).sum()), "rows"))
    )
    assert len(wide) == out.eligible.sum()
    same = run(method, signals(20, **data, contends=on))  # what else the store has is not looked at
    np.testing.assert_array_equal(same.value, out.value)


def test_a_draw_that_lacks_is_left_out() -> None:
    data, on = noisy(6, 8), np.ones(6, bool)
    data["given_5"] = ragged(*([] if row == 2 else data["given_5"][row] for row in range(6)))
    out = run(tshirt(race="50%"), signals(6, [None] * 6, **data, contends=on))
    kept = np.delete(np.arange(8), 5)
    expected = np.exp([data[f"given_{d}"][2][0] - 2.0 for d in kept]).mean()
    assert out.details["avg_noisy_sifd"][2] == pytest.approx(expected)


def test_nuggets_counts_the_anchors_that_were_shown() -> None:
    method = Nuggets(anchors=4, race=1, race_after=2)
    s = signals(
        3, [None] * 3, given=ragged([1.0, 1.0], [1.0, 3.0], [3.0, 1.0]), rest=ragged([3.0, 3.0], [], [1.0, 1.0]),
        alone=ragged(*[[2.0]] * 4), anchor=np.full(4, "x", object), contends=np.array([True, False, True]),
    )  # fmt: skip
    out = run(method, s)
    assert out.value.tolist() == [0.5, 0.5, 0.75] and out.details["contends"].tolist() == [1, 0, 1]
    assert method.pick(out, Budget(3, "rows")).tolist() == [2, 0, 1]


# ── what is asked for and computed ────────────────────────────────────────────────────────────────────────────────────


def test_the_late_draws_are_a_wave_of_their_own() -> None:
    first, late = plan(tshirt().signals().values())
    assert len(first) == 2 + 2 * 3 and len(late) == 2 * 5
    assert all(isinstance(step.view, Contested) for step in late)
    assert {label(step) for step in late} >= {"proxy · contested noisy 3 prompted"}
    assert [len(wave) for wave in plan(Nuggets(anchors=4, race=2, race_after=2).signals().values())] == [1, 2, 1]


RACES: list[RacingMethod] = [tshirt(race=2, k=50), Nuggets(anchors=8, limit=190, race=2, race_after=4)]


@pytest.mark.parametrize("method", RACES, ids=lambda m: m.name)
def test_only_rows_that_go_on_are_computed_and_the_store_never_matters(lab: Lab, method: RacingMethod) -> None:
    def score(store: Any, one: RacingMethod, **more: Any) -> Scored:
        return lab.score(ROWS, [one], store=store, **more)[method.name]

    counting, again, rest, said = Counting(), Counting(), Counting(), list[str]()
    fresh, full = lab.store(), lab.store()
    raced = score(fresh, method, progress=counting, log=said.append)
    on = int(raced.details["contends"].sum())
    assert 2 <= on < len(ROWS)
    assert f"the race of {method.name} for 2: {on} of 14 rows go on" in said
    whole = type(method)(**{name: value for name, value in vars(method).items() if name not in ("race", "race_after")})
    unraced = score(full, whole)
    each = 2 if method.name == "tshirt" else 1  # rows to see for a draw
    late = each * (method.all_draws - method.race_after)
    score(fresh, method, progress=again)
    score(fresh, whole, progress=rest)
    assert again.rows == 0 and rest.rows == late * (len(ROWS) - on)
    other = score(full, method)
    np.testing.assert_allclose(other.value, raced.value, rtol=1e-5)
    assert other.details["contends"].tolist() == raced.details["contends"].tolist()
    assert "have no more" in str(method.approximation) and whole.approximation is None
    if method.name == "nuggets":
        rows = raced.details["contends"] == 1
        np.testing.assert_array_equal(raced.value[rows], unraced.value[rows])
        assert set(method.pick(raced, Budget(2, "rows"))) <= set(np.flatnonzero(rows))


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("tshirt", {"race": "10%", "race_after": 30}, "race_after' is 30; a race of 30 draws is decided after 2 to 29"),
        ("tshirt", {"race": "10%", "race_after": 1}, "race_after' is 1; "),
        ("tshirt", {"race": "10%", "hierarchical": False}, "a race of 1 draws"),
        ("tshirt", {"race": "some"}, "budget 'some' is not understood"),
        ("nuggets", {"race": "10% tokens"}, "nuggets.race' is 10% tokens; it is a number of rows"),
        ("nuggets", {"race": "10%", "compat": "official"}, "nuggets.race' is 10%; "),
    ],
)
def test_races_that_cannot_be(name: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_method(name, params)


def test_a_plan_counts_the_late_draws_of_all_rows(lab: Lab) -> None:
    from instdiff.data import load

    where = str(lab.models["llama"])
    passes = price(load(ROWS), [RACES[1]], where, store=lab.store()).passes
    assert [p.rows for p in passes if "contested" in p.view] == [4 * len(ROWS)]
