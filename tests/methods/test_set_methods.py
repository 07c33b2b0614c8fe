"""Methods that take rows one after the other: ranks, reach, ranking on, order, and each method's own rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import Lab, some_rows
from instdiff.config.methods import make_method
from instdiff.core import Budget, Method, Pooled, Scored, Signals, vectors
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError, DataError, PlanError
from instdiff.methods import DEITA, MADS, RDS, CosineFilter, FacilityLocation, KCenter, KMeansQuota, Zip
from instdiff.methods.algorithms.coverage import coverage
from instdiff.methods.algorithms.facility_location import facility
from instdiff.methods.algorithms.kcenter import kcenter
from instdiff.methods.algorithms.kmeans import principal_components
from instdiff.methods.algorithms.round_robin import robin, robin_tasks
from instdiff.methods.shared.set_method import SetMethod
from instdiff.rendering.renderer import render
from instdiff.rendering.templates import template

from .columns import NAN, ragged, signals

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
TEXTS = np.array([f"row {n} says " + " ".join(str(n * k % 7) for k in range(n % 9 + 1)) for n in range(40)], object)
ACTIVE = np.abs(RNG.normal(size=(40, 30))).astype(np.float32)


def column(x: Any) -> Ragged:
    return Ragged.of([np.asarray(row) for row in x], np.float32)


def columns(method: SetMethod) -> dict[str, Any]:
    """What each method reads, for forty rows."""
    if isinstance(method, Zip):
        return {"text": TEXTS}
    if isinstance(method, MADS):
        return {"layer0": column(ACTIVE), "length": np.arange(40)}
    if isinstance(method, RDS):
        return {"vector": column(X), "target": column(X[:3] + 0.1)}
    return {"vector": column(X)}


def table(method: SetMethod, s: Signals, tokens: Any = None, store: bool = True) -> Scored:
    out = method.score(s).with_reasons(s)
    counts = np.full(len(s), 1) if tokens is None else np.asarray(tokens)
    recall = (lambda: s) if store else None
    return Scored(method.name, method, out.value, out.reason, out.details, s.ids, counts, recall)


EVERY: list[SetMethod] = [
    KCenter(),
    KCenter(start="mean"),
    FacilityLocation(),
    FacilityLocation(kernel="official"),
    FacilityLocation(neighbours=8),
    KMeansQuota(clusters=5, reach=0.1),
    CosineFilter(threshold=0.99),
    Zip(k1=20, k2=8, k3=4),
    MADS(reach=0.1, common=1.0),
    RDS(),
]
every = pytest.mark.parametrize("method", EVERY, ids=lambda m: f"{m.name}-{m.params().get('start', '')}")


def made(method: SetMethod, **changes: Any) -> Signals:
    every = columns(method) | changes
    of_pool = {name: values for name, values in every.items() if name not in ("target", "task")}
    s = signals(40, **of_pool)
    return Signals(every, s.ids, s.reason, None, {"target", "task"})


# ── what all share ────────────────────────────────────────────────────────────────────────────────────────────────────


@every
def test_the_score_is_minus_the_rank_as_far_as_was_ranked(method: SetMethod) -> None:
    out = table(method, made(method))
    assert sorted(-out.value[out.eligible]) == [0, 1, 2, 3]
    assert set(out.reason[~out.eligible]) == {"not_reached"}
    assert out.scorable.all() and out.takeable.all()


@every
def test_a_selection_within_needs_no_store_and_a_larger_one_ranks_on(method: SetMethod) -> None:
    s = made(method)
    out = table(method, s, store=False)
    head = method.pick(out, Budget(3, "rows")).tolist()
    assert head == out.best()[:3].tolist()
    with pytest.raises(
        PlanError, match=rf"needs more of {method.name} than its scores hold.*run `instdiff score` again"
    ):
        method.pick(out, Budget(5, "rows"))
    more = method.pick(table(method, s), Budget(0.5)).tolist()
    assert len(more) == len(set(more)) == 20 and more[:3] == head
    assert more == table(replace(method, reach=0.5), s).best().tolist()
    assert sorted(method.pick(table(method, s), Budget(1.0))) == list(range(40))
    assert len(method.pick(table(method, s), Budget(0.25, "eligible"))) == 10


@every
def test_a_token_budget_ranks_on_until_it_is_met(method: SetMethod) -> None:
    tokens = np.arange(40) % 5 + 1
    at = method.pick(table(method, made(method), tokens), Budget(60, "tokens"))
    assert tokens[at].sum() >= 60 > tokens[at[:-1]].sum()
    assert len(method.pick(table(method, made(method), tokens), Budget(1.0, "token_share"))) == 40
    assert len(method.pick(table(method, made(method), tokens), Budget(10**6, "tokens"))) == 40


@every
@given(order=st.permutations(range(40)))
def test_the_inputs_order_never_matters(method: SetMethod, order: list[int]) -> None:
    s = made(method)
    mixed = s.take(np.array(order))
    plain, other = table(method, s), table(method, mixed)
    assert [mixed.ids[row] for row in other.best()] == [s.ids[row] for row in plain.best()]


@every
def test_rows_without_a_column_are_never_taken(method: SetMethod) -> None:
    given = columns(method)
    name = next(iter(given))
    rows = [given[name][row] if row % 4 else given[name][row][:0] for row in range(40)]
    lacking = np.array(rows, object) if isinstance(method, Zip) else Ragged.of(rows, np.float32)
    s = made(method, **{name: lacking})
    out = table(method, s)
    assert sorted(method.pick(out, Budget(1.0))) == [row for row in range(40) if row % 4]
    assert set(out.reason[::4]) == {"no_signal" if isinstance(method, Zip) else "empty_response"}


@every
def test_nothing_to_take(method: SetMethod) -> None:
    given = columns(method)
    name = next(iter(given))
    empty = np.full(40, "", object) if isinstance(method, Zip) else Ragged.of([[]] * 40, np.float32)
    out = table(method, made(method, **{name: empty}))
    assert not out.eligible.any() and not out.scorable.any()


def test_the_least_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"'facility_location.neighbours' is 0; the least is 1"):
        FacilityLocation(neighbours=0)


def test_the_reach_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"'kcenter.reach' is 1.5; a share lies in 0 to 1"):
        KCenter(reach=1.5)


def test_parts_of_columns_are_read_when_they_are_asked_for() -> None:
    read: list[str] = []

    class Lazy(dict[str, Callable[[], Any]]):
        def __getitem__(self, name: str) -> Any:
            read.append(name)
            return super().__getitem__(name)()

    s = Signals(
        Lazy({"a.x": lambda: np.arange(4), "b.t": lambda: "whole"}), list("wxyz"), np.full(4, None), None, ["b.t"]
    )
    part = s.take(np.array([3, 1])).part("a").take(np.array([1]))
    assert read == []
    assert part.x.tolist() == [1] and part.ids == ["x"] and read == ["a.x"]
    assert s.take(np.array([0])).part("b").take(np.array([0])).t == "whole"
    with pytest.raises(AttributeError, match=r"no signal 'y'; declared are \['x'\]"):
        _ = part.y


def test_vectors_are_not_copied() -> None:
    full = column(X)
    x, mask = vectors(full)
    assert mask.all() and np.shares_memory(x, full.values)
    some = Ragged.of([[1, 2], [], [3, NAN], [5, 6]], np.float32)
    x, mask = vectors(some)
    assert x.tolist() == [[1, 2], [5, 6]] and mask.tolist() == [True, False, False, True]
    gaps = Ragged.of([[1, 2], [], [5, 6]], np.float32)
    assert np.shares_memory(vectors(gaps)[0], gaps.values)
    assert vectors(Ragged.of([[], []], np.float32))[0].shape == (0, 1)
    with pytest.raises(ValueError, match="a vector has 3 values, another 2"):
        vectors(Ragged.of([[1, 2], [1, 2, 3]], np.float32))


# ── one by one ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kcenter_and_facility_location_are_the_choosers() -> None:
    s = made(KCenter())
    assert table(KCenter(seed=3), s).best().tolist() == kcenter(X, 4, seed=3).tolist()
    assert (
        table(FacilityLocation(kernel="rbf", gamma=0.2), s).best().tolist()
        == facility(X, 4, kernel="rbf", gamma=0.2).tolist()
    )


def test_quality_comes_from_the_method_before() -> None:
    prior = np.arange(40.0)
    prior[7] = NAN
    s = made(FacilityLocation())
    known = Signals(s._columns, s.ids, s.reason, prior)
    quality = np.where(np.isnan(prior), 0, prior / 39)
    out = table(FacilityLocation(alpha=0.3), known)
    assert out.best().tolist() == facility(X, 4, quality=quality, alpha=0.3).tolist()
    assert table(FacilityLocation(alpha=1.0), known).best().tolist() == [39, 38, 37, 36]
    with pytest.raises(
        ConfigError, match=r"'facility_location\.alpha' weighs an earlier method's scores, and there is none"
    ):
        FacilityLocation(alpha=0.3).score(s)
    with pytest.raises(ConfigError, match=r"'facility_location\.alpha' is 2"):
        FacilityLocation(alpha=2)


def test_quotas_take_turns_and_the_score_before_orders_a_cluster() -> None:
    x = np.repeat([[0.0, 9], [9, 0]], [30, 10], 0) + 0.01 * RNG.normal(size=(40, 2))
    s = made(KMeansQuota(), vector=column(x))
    at = table(KMeansQuota(clusters=2), s).best()
    assert len(at) == 40 and (at[:20] < 30).sum() == 10
    known = Signals(s._columns, s.ids, s.reason, np.arange(40.0))
    assert sorted(table(KMeansQuota(clusters=2), known).best()[:4]) == [28, 29, 38, 39]
    assert KMeansQuota().reach == 1 and table(KMeansQuota(), s).eligible.all()


def test_vectors_may_be_cut_to_their_principal_axes_first() -> None:
    rng = np.random.default_rng(0)
    axis, noise = 100 * rng.normal(size=(40, 1)), rng.normal(size=(40, 6))
    x = np.concatenate([axis, noise], 1).astype(np.float32)
    one = principal_components(x, 0.95)
    assert one.shape == (40, 1) and abs(np.corrcoef(one[:, 0], axis[:, 0])[0, 1]) > 0.999
    assert principal_components(x, 1.0).shape == (40, 7)
    s = signals(40, vector=Ragged.of(list(x), np.float32))
    plain, alone = (
        table(method, part)
        for method, part in (
            (KMeansQuota(clusters=4, pca=0.95, starts=10), s),
            (KMeansQuota(clusters=4, starts=10), signals(40, vector=Ragged.of(list(one), np.float32))),
        )
    )
    np.testing.assert_array_equal(plain.value, alone.value)
    same = table(KMeansQuota(clusters=1, pca=0.95), signals(3, vector=ragged([1.0, 2.0], [1.0, 2.0], [1.0, 2.0])))
    assert same.eligible.all()
    for params in ({"pca": 1.5}, {"pca": -0.1}, {"starts": 0}):
        with pytest.raises(ConfigError, match=r"'kmeans_quota.pca' is above 0"):
            make_method("kmeans_quota", params)


def test_the_filter_visits_rows_by_the_score_before() -> None:
    x = np.repeat(np.eye(4), 10, 0)
    s = made(CosineFilter(), vector=column(x))
    out = table(CosineFilter(reach=1), s)
    assert out.best().tolist() == [0, 10, 20, 30]
    assert set(out.reason[~out.eligible]) == {"filtered"}
    assert len(CosineFilter(reach=1).pick(out, Budget(8, "rows"))) == 4
    known = Signals(s._columns, s.ids, s.reason, np.arange(40.0))
    assert table(CosineFilter(reach=1), known).best().tolist() == [39, 29, 19, 9]
    assert table(CosineFilter(reach=1, alike=2), known).best().tolist() == [39, 38, 29, 28, 19, 18, 9, 8]
    with pytest.raises(ConfigError, match="alike 0 at least 1"):
        CosineFilter(alike=0)


@pytest.mark.shared_data
def test_the_published_zip(shared: Path) -> None:
    """USTC-StarTeam/ZIP @ f77b0b5: budget 10 gives 12 rows."""
    rows = json.loads((shared / "golden" / "data_sharegpt.json").read_text(encoding="utf-8"))
    wanted = json.loads((shared / "golden" / "zip" / "sel_budget10k120k28k34.json").read_text(encoding="utf-8"))
    method = Zip(k1=20, k2=8, k3=4, compat="official")
    s = signals(len(rows), text=np.array([json.dumps(row, ensure_ascii=False) for row in rows], object))
    for reach in (0.1, 0.25, 1.0):
        out = table(replace(method, reach=reach), s)
        assert [rows[row] for row in replace(method, reach=reach).pick(out, Budget(10, "rows"))] == wanted
    again = method.pick(table(method, s), Budget(40, "rows"))
    assert len(again) == 40 and len(set(again.tolist())) < 40  # rows that were set aside come back, taken or not


def test_zip_says_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="'zip': k1 >= k2 >= k3 >= 1 must hold, not 1, 2, 3"):
        Zip(k1=1, k2=2, k3=3)
    with pytest.raises(ConfigError, match="needs k1 = 10000 rows or more, and 40 can be taken"):
        Zip(compat="official").score(made(Zip()))


def test_rds_goes_round_targets_or_tasks() -> None:
    targets = np.concatenate([X[:3] + 0.1, np.zeros((1, 6))])
    lacking = Ragged.of([*(targets[:3]), []], np.float32)
    s = made(RDS(), target=lacking, task=np.array(["b", "a", "b", "a"], object))
    assert table(RDS(), s).best().tolist() == robin(X, targets[:3], 4).tolist()
    by_task = robin_tasks(X, [targets[[0, 2]], targets[[1]]], 4)
    assert table(RDS(task="task"), s).best().tolist() == by_task.tolist()
    with pytest.raises(DataError, match="no row of the target file could be read"):
        RDS().score(made(RDS(), target=Ragged.of([[], []], np.float32)))
    assert [signal.of for signal in RDS(task="x").signals().values()] == ["pool", "target", "target"]


def test_mads_covers_strong_neurons() -> None:
    s = made(MADS())
    strong = np.quantile(ACTIVE, 0.9) < ACTIVE
    out = table(MADS(quantile=0.9, reach=0.5, common=1.0), s)
    indptr = np.concatenate([[0], strong.sum(1).cumsum()])
    assert out.best().tolist() == coverage(indptr, np.nonzero(strong)[1], 20).tolist()
    assert out.details["n_tags"].tolist() == strong.sum(1).tolist()
    assert out.details["length"].tolist() == list(range(40))
    expected = np.corrcoef(strong.sum(1), np.arange(40))[0, 1]
    np.testing.assert_allclose(out.details["length_correlation"], expected)
    even = table(MADS(), made(MADS(), length=np.ones(40)))
    assert np.isnan(even.details["length_correlation"]).all()


def test_mads_layers() -> None:
    def places(**fields: Any) -> list[Any]:
        return [
            signal.measure.layer for signal in MADS(**fields).signals().values() if hasattr(signal.measure, "layer")
        ]

    assert places() == [0.5]
    assert places(layers="spread", count=2) == [0.25, 0.75]
    assert places(layers=(1, 8, 0.9)) == [1, 8, 0.9]
    alike = np.tile(ACTIVE[:1], (40, 1)) + 0.001 * ACTIVE
    both = {"layer0": column(alike), "layer1": column(ACTIVE), "length": np.arange(40)}
    diverse = table(MADS(layers="diverse", count=2), made(MADS(), **both))
    assert diverse.best().tolist() == table(MADS(), made(MADS())).best().tolist()
    spread = table(MADS(layers="spread", count=2), made(MADS(), **both))
    one = [table(MADS(), made(MADS(), layer0=both[name])).details["n_tags"] for name in ("layer0", "layer1")]
    np.testing.assert_array_equal(spread.details["n_tags"], one[0] + one[1])
    with pytest.raises(ConfigError, match="'mads': quantile and calibration lie in 0 to 1"):
        MADS(quantile=1.0)


def test_a_width_of_one_is_a_vector_too() -> None:
    s = signals(3, vector=ragged([1.0], [2.0], [9.0]))
    assert table(KCenter(start="mean", reach=1), s).eligible.all()


@pytest.mark.parametrize(
    "method",
    [
        RDS(),
        DEITA(vector="end"),
        DEITA(compat="official"),
        *(kind(model="base") for kind in (KCenter, FacilityLocation, KMeansQuota, CosineFilter)),
    ],
    ids=lambda method: method.name,
)
def test_vectors_of_hidden_states_see_the_end_token(method: Method, lab: Lab) -> None:
    asked = [signal for signal in method.signals().values() if isinstance(signal.measure, Pooled)]
    assert asked
    tokenizer = HFTokenizer(lab.tokenizer("llama"), 200)
    for signal in asked:
        rows = render(signal.view, load(some_rows(3)), tokenizer, template("alpaca"), 200)
        assert [int(rows.ids[row][-1]) for row in range(3)] == [tokenizer.eos] * 3
