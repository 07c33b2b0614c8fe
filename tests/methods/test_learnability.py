"""Learnability and rho on hand-made columns: the numbers of the definition, folds, rehearsal and edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.config.methods import make_method
from instdiff.core import Budget, Scored, Signals
from instdiff.core.budget import parse_budget
from instdiff.core.signals import Folds
from instdiff.errors import ConfigError, DataError
from instdiff.methods import Learnability, Rho
from instdiff.methods.algorithms.folds import deal, group_order, outside

from .columns import NAN, ones, run, signals

BASE, HELD = (3.0, 6.0, 5.0, 0.10, 4.0), (0.6, 4.5, 5.5, 0.02, 3.0)


def columns(
    base: Sequence[float], held: Sequence[float], ids: Sequence[str] | int | None = None, **more: object
) -> Signals:
    names = len(base) if ids is None else ids
    usual = {"fold": np.arange(len(base)) % 2, "group": np.array([f"g{n}" for n in range(len(base))], object)}
    return signals(names, base=ones(*base), held=ones(*held), **{**usual, **more})


def test_the_numbers_of_rho() -> None:
    scored = run(Rho(), signals(5, base=ones(*BASE), held=ones(*HELD), seen=np.zeros(5, bool)))
    np.testing.assert_allclose(scored.value, [2.4, 1.5, -0.5, 0.08, 1.0])
    assert scored.best().tolist() == [0, 1, 4, 3, 2]


def test_rows_of_the_holdout_set_are_filtered() -> None:
    scored = run(Rho(), signals(5, base=ones(*BASE), held=ones(*HELD), seen=np.arange(5) == 1))
    assert scored.reason.tolist() == [None, "filtered", None, None, None]
    assert scored.details["nll_holdout"][1] == 4.5


def test_a_row_that_one_model_cannot_read_keeps_its_reason() -> None:
    from .columns import ragged

    held, seen = ragged([1, 0], [], [1]), np.zeros(3, bool)
    s = signals(3, [None, "too_long", None], base=ragged([1, 1], [2], [3]), held=held, seen=seen)
    scored = run(Rho(), s)
    np.testing.assert_allclose(scored.value, [0.5, np.nan, 2])
    assert scored.reason.tolist() == [None, "too_long", None]


def test_rho_of_models_that_count_other_tokens() -> None:
    from .columns import ragged

    s = signals(2, base=ragged([1, 1], [2]), held=ragged([1], [1]), seen=np.zeros(2, bool), chars=np.array([4.0, 2.0]))
    with pytest.raises(ConfigError, match=r"count other tokens.*rho\.per=char"):
        run(Rho(), s)
    np.testing.assert_allclose(run(Rho(per="char"), s).value, [0.25, 0.5])


def test_the_ratio_and_the_floor() -> None:
    free = run(Learnability(floor=0.0), columns(BASE, HELD))
    np.testing.assert_allclose(free.value, [0.8, 0.25, -0.1, 0.8, 0.25])
    scored = run(Learnability(floor=0.2), columns(BASE, HELD))
    assert scored.reason.tolist() == [None, None, None, "filtered", None]
    assert scored.best().tolist() == [0, 1, 4, 2]  # equal ones by id
    np.testing.assert_allclose(scored.details["L"], free.value)
    assert scored.details["known"].tolist() == [0, 0, 0, 1, 0] and scored.details["fold"].tolist() == [0, 1, 0, 1, 0]
    assert scored.details["nll_base"][3] == pytest.approx(0.1) and scored.details["nll_held"][3] == pytest.approx(0.02)


def test_the_difference_is_rho_without_a_holdout_set() -> None:
    scored = run(Learnability(form="difference", floor=0.0), columns(BASE, HELD))
    np.testing.assert_allclose(scored.value, [2.4, 1.5, -0.5, 0.08, 1.0])


def test_copies_are_filtered_and_a_row_without_a_column_keeps_its_reason() -> None:
    scored = run(Learnability(), columns((2.0, 2.0, NAN), (1.0, 1.0, NAN), ["a", "a", "b"]))
    assert scored.reason.tolist() == [None, "filtered", "empty_response"]
    assert scored.details["L"][:2].tolist() == [0.5, 0.5]


def mixed(r: float, costs: Sequence[int], kinds: str, budget: str, **more: object) -> list[int]:
    """What is picked of rows named by their kind, ``l`` best first, ``k`` known."""
    base = [0.01 if kind == "k" else 5.0 for kind in kinds]
    held = [0.01 if kind == "k" else 1.0 + 0.1 * at for at, kind in enumerate(kinds)]
    method = make_method("learnability", {"rehearse": r, **more})
    scored = run(method, columns(base, held), costs)
    return method.pick(scored, parse_budget(budget)).tolist()


def test_rehearsal_is_merged_by_keys() -> None:
    chosen = mixed(0.25, [1] * 8, "llllllkk", "8")
    assert [at if at < 6 else "k" for at in chosen] == [0, 1, 2, "k", 3, 4, 5, "k"]
    assert mixed(0.0, [1] * 8, "llllllkk", "8") == [0, 1, 2, 3, 4, 5]


def test_rehearsal_by_tokens() -> None:
    # Keys of l: 4, 8, 12, of k: 2, 22; each row has three tokens but the known ones, with one and ten.
    base, held = [5.0, 5.0, 5.0, 0.01, 0.01], [1.0, 1.1, 1.2, 0.01, 0.01]
    method = Learnability(rehearse=0.5)
    tokens = [2, 2, 2, 1, 10]
    scored = run(method, columns(base, held), tokens)
    order = np.argsort(scored.details["rehearsal"][3:]) + 3
    spent, keys = np.cumsum(np.array(tokens)[order]) / 0.5, np.array([4, 8, 12]) / 1.0
    wanted = sorted(
        [(key, 0, at) for at, key in enumerate(keys)] + [(key, 1, at) for at, key in zip(order, spent, strict=True)]
    )
    assert method.pick(scored, Budget(17, "tokens")).tolist() == [at for _, _, at in wanted]


def test_when_rehearsal_is_used_up_the_rest_goes_on_alone_and_the_record_says_so() -> None:
    method = Learnability(rehearse=0.5)
    scored = run(method, columns([0.01, 5.0, 5.0, 5.0], [0.01, 1.0, 2.0, 3.0]))
    at = method.pick(scored, Budget(4, "rows"))
    assert at.tolist() == [1, 0, 2, 3]
    assert method.remark(scored, at) == "1 of 4 rows rehearse what is known; 50% of the budget was asked for"
    assert Learnability().remark(scored, at) is None


def test_where_all_is_known_nothing_is_selected() -> None:
    method = Learnability(rehearse=0.5)
    scored = run(method, columns([0.01, 0.02], [0.01, 0.02]))
    assert method.pick(scored, Budget(2, "rows")).tolist() == []


def test_rehearsal_takes_one_of_each_group_and_goes_round_a_column() -> None:
    groups, values = np.array(["a", "a", "a", "b", "c", "c"], object), np.array(["x", "x", "x", "x", "x", "y"], object)
    known = [0.01] * 6
    plain = run(Learnability(rehearse=0.5), columns(known, known, group=groups))
    order = np.argsort(plain.details["rehearsal"])
    assert set(groups[order[:3]]) == {"a", "b", "c"} and set(groups[order[3:5]]) == {"a", "c"}
    even = run(Learnability(rehearse=0.5, balance="skill"), columns(known, known, group=groups, balance=values))
    assert set(values[np.argsort(even.details["rehearsal"])[:2]]) == {"x", "y"}


def test_equal_models_teach_nothing() -> None:
    assert run(Learnability(floor=0.0), columns(BASE, BASE)).value.tolist() == [0.0] * 5


def test_folds_take_groups_in_the_order_of_their_hashes() -> None:
    names = sorted("abcd", key=lambda name: int(group_order(list("abcd"), 42)["abcd".index(name)]))
    rows = [name for name, count in zip(names, (2, 1, 1, 2), strict=True) for _ in range(count)]
    folds = deal(group_order(rows, 42), 2)
    assert [int(folds[rows.index(name)]) for name in names] == [0, 1, 1, 0]
    assert all(len({int(fold) for fold, row in zip(folds, rows, strict=True) if row == name}) == 1 for name in names)


@given(
    st.lists(st.integers(0, 12), min_size=6, max_size=40).filter(lambda v: len(set(v)) > 3),
    st.randoms(),
    st.integers(2, 3),
)
def test_folds_do_not_depend_on_the_order_of_rows(values: list[int], random: object, k: int) -> None:
    rows = [f"group {value}" for value in values]
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    place, moved = group_order(rows, 1), group_order([rows[at] for at in order], 1)
    one, other = deal(place, k), deal(moved, k)
    assert [int(one[at]) for at in order] == other.tolist()
    assert set(one.tolist()) == set(range(k))
    for fold in range(k):
        some = set(outside(place, one, fold, 0.4).tolist())
        assert {order[at] for at in outside(moved, other, fold, 0.4)} == some
        assert len(some) >= round(0.4 * (one != fold).sum()) and not any(one[at] == fold for at in some)


def test_fewer_groups_than_folds() -> None:
    with pytest.raises(DataError, match="2 groups of rows cannot be split into 3 folds"):
        deal(group_order(["a", "b", "a"], 42), 3)


def test_parameters() -> None:
    method = make_method("learnability", {"folds": {"k": 3, "lora": 4}})
    assert isinstance(method, Learnability)
    assert method.folds == Folds(k=3, lora=4) and set(method.signals()) == {"base", "held", "fold", "group"}
    assert make_method("learnability", method.params()) == method
    assert method.params()["folds"]["epochs"] == 8
    for wrong in ({"folds": {"epoch": 3}}, {"folds": {"k": 1}}, {"folds": {"fraction": 0}}, {"rehearse": 1}):
        with pytest.raises(ConfigError, match=r"folds|rehearse"):
            make_method("learnability", wrong)


def test_the_start_model_gives_the_first_term() -> None:
    assert make_method("learnability", {"folds": {"model": "proxy"}}).signals()["base"].model == "proxy"
    assert [part.model for part in Learnability().signals()["held"].needs()] == ["held/0", "held/1"]


def test_a_shuffled_pool_gives_the_same_picks() -> None:
    rng = np.random.default_rng(0)
    base, held = rng.uniform(0, 2, 30), rng.uniform(0, 2, 30)
    base[:10] = 0.05
    ids = [f"id{at:02d}" for at in range(30)]
    groups = np.array([f"g{at // 2}" for at in range(30)], object)
    method = Learnability(rehearse=0.3)

    def chosen(order: np.ndarray) -> list[str]:
        s = columns(base[order], held[order], [ids[at] for at in order], group=groups[order])
        scored: Scored = run(method, s)
        return [scored.ids[int(at)] for at in method.pick(scored, Budget(12, "rows"))]

    assert chosen(np.arange(30)) == chosen(rng.permutation(30))
