"""The control that reads labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.config.methods import make_method
from instdiff.core import Budget, Column, Signal
from instdiff.errors import ConfigError
from instdiff.methods import Oracle, Random
from methods.columns import run, signals


def labels(*values: str) -> np.ndarray:
    return np.array(values, object)


def test_it_takes_unspoiled_rows_alone_and_as_a_random_draw_does() -> None:
    s = signals(
        6, [None, None, None, None, "empty_response", None], label=labels("None", "swapped", "", "copy", "", "")
    )
    assert Oracle().signals()["label"] == Signal(Column("flaw"))
    out = run(Oracle(seed=3), s)
    assert out.reason.tolist() == [None, "filtered", None, "filtered", "empty_response", None]
    draw = run(Random(seed=3), s).value
    assert out.method.pick(out, Budget(1.0)).tolist() == sorted([0, 2, 5], key=lambda row: -draw[row])


def test_wanted_values_come_in_their_order() -> None:
    s = signals(6, label=labels("b", "a", "c", "a", "b", "a"))
    out = run(Oracle(column="kind", wanted=("a", "b")), s)
    order = out.method.pick(out, Budget(1.0)).tolist()
    assert sorted(order[:3]) == [1, 3, 5] and sorted(order[3:]) == [0, 4]
    assert out.reason[2] == "filtered" and out.details["tier"][[0, 1]].tolist() == [1.0, 0.0]


def test_it_goes_round_a_column_and_rehearses() -> None:
    kinds, skills = ["new"] * 8 + ["old"] * 4, ["x"] * 6 + ["y"] * 2 + ["z"] * 4
    s = signals(12, label=labels(*kinds), group=labels(*skills))
    out = run(Oracle(wanted=("new", "old"), balance="skill"), s)
    order = out.method.pick(out, Budget(1.0)).tolist()
    assert [sorted(skills[row] for row in order[at : at + 2]) for at in (0, 2)] == [["x", "y"]] * 2
    mixed = run(Oracle(wanted=("new", "old"), rehearse=0.25), s)
    chosen = mixed.method.pick(mixed, Budget(8, "rows")).tolist()
    assert [kinds[row] for row in chosen].count("old") == 2


@given(st.lists(st.sampled_from(["None", "", "swapped", "copy"]), min_size=1, max_size=20), st.randoms())
def test_the_order_of_rows_changes_nothing(values: list[str], rng: np.random.Generator) -> None:
    def chosen(at: list[int]) -> list[str]:
        out = run(Oracle(seed=1), signals([f"id{i}" for i in at], label=labels(*(values[i] for i in at))))
        return [out.ids[row] for row in out.method.pick(out, Budget(1.0))]

    mixed = list(range(len(values)))
    rng.shuffle(mixed)
    assert chosen(list(range(len(values)))) == chosen(mixed)
    assert len(chosen(mixed)) == sum(value in ("None", "") for value in values)


@pytest.mark.parametrize("params", [{"rehearse": 1.0, "wanted": ["a", "b"]}, {"rehearse": 0.2}])
def test_a_share_of_rehearsal_that_cannot_be(params: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="'rehearse' is a share from 0 to below 1, and needs two values of 'wanted'"):
        make_method("oracle", params)
