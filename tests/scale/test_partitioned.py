"""Parts against the exact way: what is equal, what is lost, within which bound, and when the exact way is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from instdiff.config.methods import make_method
from instdiff.core import Budget, Demonstrated, Embedding, Scored, Signal, Signals, Words
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.errors import ConfigError
from instdiff.methods import (
    DEITA,
    DS2,
    MIWV,
    Blend,
    CosineFilter,
    FacilityLocation,
    KCenter,
    KMeansQuota,
    Longest,
    Random,
    SuperfilteringD,
    Then,
)
from instdiff.methods.algorithms import effort
from instdiff.methods.algorithms.facility_location import facility
from instdiff.methods.algorithms.kcenter import kcenter
from instdiff.methods.algorithms.neighbours import nearest
from instdiff.methods.algorithms.partitioned import run_in_partitions
from instdiff.methods.algorithms.threshold import diverse, diverse_by_cell
from instdiff.methods.shared.set_method import SetMethod, parts_of
from instdiff.rendering.rows import Rows
from instdiff.scoring.demonstrations import neighbours
from instdiff.selection.selector import select

Floats = npt.NDArray[np.float32]
FARTHEST = partial(kcenter, start="mean")


@pytest.fixture(scope="module")
def x() -> Floats:
    """Forty clouds of points."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(40, 8))[rng.integers(0, 40, 1200)] * 3 + rng.normal(size=(1200, 8))).astype(np.float32)


def radius(x: Floats, chosen: npt.NDArray[np.int64]) -> float:
    return float(np.sqrt(((x[:, None] - x[chosen][None]) ** 2).sum(-1).min(1).max()))


def coverage(x: Floats, chosen: npt.NDArray[np.int64]) -> float:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return float(np.maximum(unit @ unit[chosen].T, 0).max(1).sum())


@pytest.mark.parametrize("choose", [FARTHEST, facility])
def test_one_part_is_the_exact_way(x: Floats, choose: object) -> None:
    np.testing.assert_array_equal(run_in_partitions(x[:200], 20, choose, parts=1), choose(x[:200], 20))  # type: ignore


@pytest.mark.parametrize("choose", [FARTHEST, facility])
@pytest.mark.parametrize(("parts", "oversample"), [(2, 1.0), (7, 2.0), (7, 7.0), (30, 3.0)])
def test_rows_are_taken_once(x: Floats, choose: object, parts: int, oversample: float) -> None:
    some = x[:300]
    found = run_in_partitions(some, 60, choose, parts=parts, oversample=oversample)  # type: ignore[arg-type]
    assert len(found) == len(set(found.tolist())) == 60 and 0 <= found.min() <= found.max() < 300
    again = run_in_partitions(some, 60, choose, parts=parts, oversample=oversample)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, again)


def test_the_radius_keeps_to_its_bound(x: Floats) -> None:
    """Four times the best, which the exact way cannot be below; what is lost here is far less, whatever the parts."""
    exact = radius(x, FARTHEST(x, 40))
    for seed in range(3):
        whole = radius(x, run_in_partitions(x, 40, FARTHEST, parts=6, oversample=6, seed=seed))
        quick = radius(x, run_in_partitions(x, 40, FARTHEST, parts=6, oversample=2, seed=seed))
        assert whole <= 4 * exact
        assert whole <= 1.5 * exact and quick <= 1.5 * exact  # measured, no theorem


def test_little_coverage_is_lost(x: Floats) -> None:
    exact = coverage(x, facility(x, 40))
    at_random = coverage(x, np.arange(40))
    for seed in range(2):
        found = coverage(x, run_in_partitions(x, 40, facility, parts=6, oversample=2, seed=seed))
        assert found >= 0.97 * exact and found > at_random + 0.5 * (exact - at_random)


def test_a_mapped_array(x: Floats, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        run_in_partitions(mapped, 30, FARTHEST, parts=5), run_in_partitions(x, 30, FARTHEST, parts=5)
    )


def test_without_a_second_stage_parts_take_turns(x: Floats) -> None:
    some, order = x[:301], np.random.default_rng(5).permutation(301)
    parts = [np.sort(part) for part in np.array_split(order, 4)]
    each = [part[FARTHEST(some[part], size)] for part, size in zip(parts, (6, 6, 5, 5), strict=True)]
    turns = [rows[at] for at in range(6) for rows in each if at < len(rows)]
    assert run_in_partitions(some, 22, FARTHEST, parts=4, seed=5).tolist() == turns
    assert sorted(run_in_partitions(some, 301, facility, parts=4)) == list(range(301))
    assert len(run_in_partitions(some, 2, facility, parts=9)) == 2  # seven parts give none


def test_what_is_there_already_is_in_every_part(x: Floats) -> None:
    some, held = x[:200], np.array([150, 3, 77])
    for parts, oversample in ((1, 1.0), (3, 1.0), (3, 2.0)):
        found = run_in_partitions(some, 12, kcenter, parts=parts, oversample=oversample, chosen=held)
        assert len(set(found.tolist()) | set(held.tolist())) == 15
    np.testing.assert_array_equal(
        run_in_partitions(some, 12, kcenter, parts=1, chosen=held), kcenter(some, 12, chosen=held)
    )
    # A copy of what is there lies at distance 0 in every part, and is taken last.
    twice = np.concatenate([some, some[held]])
    found = run_in_partitions(twice, 150, kcenter, parts=3, chosen=held)
    assert not set(found.tolist()) & {200, 201, 202}


def test_columns_beside_go_with_their_rows(x: Floats) -> None:
    quality = np.random.default_rng(0).permutation(300).astype(float)
    best = partial(facility, alpha=1.0)
    found = run_in_partitions(x[:300], 30, best, parts=5, oversample=5, quality=quality)
    assert found.tolist() == np.argsort(-quality)[:30].tolist()


def test_cells_keep_apart_what_lies_in_one(x: Floats) -> None:
    order = np.random.default_rng(3).permutation(len(x))
    exact = diverse(x, order, threshold=0.95)
    np.testing.assert_array_equal(diverse_by_cell(x, order, cells=1, threshold=0.95), exact)
    found = diverse_by_cell(x, order, cells=6, threshold=0.95)
    place = np.argsort(order)
    assert (np.diff(place[found]) > 0).all()  # in the order visited
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.triu(unit[found] @ unit[found].T > 0.95, 1).any(0).sum()
    assert len(exact) <= len(found) <= 1.1 * len(exact) and near <= 0.1 * len(found)  # measured
    np.testing.assert_array_equal(diverse_by_cell(x, order, cells=6, threshold=0.95, limit=20), found[:20])
    tokens = np.full(len(x), 10)
    by_tokens = diverse_by_cell(x, order, cells=6, threshold=0.95, limit=195, weights=tokens)
    np.testing.assert_array_equal(by_tokens, found[:20])
    assert len(diverse_by_cell(x, order, cells=6, limit=0)) == 0
    with pytest.raises(ValueError, match="3 weights for 1200 rows"):
        diverse_by_cell(x, order, cells=6, weights=tokens[:3])


# ── methods ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def signals(x: Floats) -> Signals:
    ids = [f"{row:05d}" for row in range(len(x))]
    return Signals({"vector": Ragged.of(x, np.float32)}, ids, np.full(len(x), None, object))


def scored(method: SetMethod, s: Signals) -> Scored:
    out = method.score(s).with_reasons(s)
    return Scored(method.name, method, out.value, out.reason, out.details, s.ids, np.ones(len(s), np.int64), lambda: s)


def test_methods_deal_out_their_rows(x: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    some, s = x[:400], signals(x[:400])
    assert scored(KCenter(parts=4, start="mean", seed=7), s).best().tolist() == (
        run_in_partitions(some, 40, FARTHEST, parts=4, seed=7).tolist()
    )
    assert scored(FacilityLocation(parts=4, oversample=2), s).best().tolist() == (
        run_in_partitions(some, 40, facility, parts=4, oversample=2, seed=42).tolist()
    )
    assert scored(CosineFilter(parts=4, threshold=0.99), s).best().tolist() == (
        diverse_by_cell(some, cells=4, threshold=0.99, limit=40, seed=42).tolist()
    )
    for exact in (KCenter(), FacilityLocation(), CosineFilter()):
        same = type(exact)(parts=1)
        assert scored(exact, s).best().tolist() == scored(same, s).best().tolist()
        assert scored(type(exact)(parts="auto"), s).best().tolist() == scored(same, s).best().tolist()  # one part
    held = np.isin(np.arange(400), [5, 9])
    onto = Signals({"vector": s.vector, "held": held}, s.ids, s.reason)
    more = run_in_partitions(some, 38, kcenter, parts=4, seed=42, chosen=np.array([5, 9]))
    assert scored(KCenter(parts=4, onto=True), onto).best().tolist()[2:] != []
    np.testing.assert_array_equal(KCenter(parts=4, onto=True).choose(onto, 40)[:2], [5, 9])
    assert len(set(KCenter(parts=4, onto=True).choose(onto, 40).tolist())) == 40 == len(more) + 2
    assert len(KCenter(parts=400, onto=True).choose(onto, 400)) == 400
    monkeypatch.setattr(KCenter, "of_a_part", 100)
    assert parts_of("auto", 401, 100) == 5 and parts_of(7, 3) == 3
    table = scored(KCenter(parts="auto", start="mean"), s)
    assert table.best().tolist() == run_in_partitions(some, 40, FARTHEST, parts=4, seed=42).tolist()
    more = KCenter(parts="auto", start="mean").pick(table, Budget(90, "rows"))
    assert more.tolist() == run_in_partitions(some, 90, FARTHEST, parts=4, seed=42).tolist()


def test_hours_are_refused_unless_they_are_asked_for(x: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    s = signals(x[:300])
    monkeypatch.setattr(effort, "_SOON", 0)
    monkeypatch.setattr(effort, "_rate", lambda: 1.0)
    for method, says in [
        (KCenter(), "'kcenter' would take about 80 hours on this machine; set 'kcenter.parts' to auto"),
        (FacilityLocation(), "'facility_location.parts' to auto"),
        (FacilityLocation(parts=3, oversample=2), "set 'facility_location.oversample' to 1"),
        (CosineFilter(), "lower 'cosine_filter.reach' or the budget, or set 'cosine_filter.parts' to 1 and wait"),
        (KMeansQuota(), "'kmeans_quota.engine' to faiss or minibatch"),
    ]:
        monkeypatch.setattr(effort, "HOURS", 2.0)
        with pytest.raises(ConfigError, match=says):
            method.score(s)
        monkeypatch.setattr(effort, "HOURS", 1e9)
        assert method.score(s).with_reasons(s).value.size == 300
    monkeypatch.setattr(effort, "HOURS", 2.0)
    for method in (KCenter(parts=1), FacilityLocation(parts=3), CosineFilter(parts=3), KMeansQuota(engine="faiss")):
        assert np.isfinite(method.score(s).value).any()
    monkeypatch.setattr(effort.os, "sysconf", lambda name: 64)
    with pytest.raises(ConfigError, match="'kmeans_quota' would copy 0 GB of vectors into memory"):
        KMeansQuota().score(s)


@pytest.mark.parametrize("approximate", [None, False, True])
def test_a_search_of_hours_is_refused_unless_it_is_asked_for(
    approximate: bool | None, x: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "_SOON", 0)
    monkeypatch.setattr(effort, "_rate", lambda: 1.0)
    pool = load([{"instruction": f"Say {row}.", "input": "", "output": "yes"} for row in range(60)])
    nothing = np.zeros(0)
    rows = Rows(Ragged.of([[1, 2]] * 60, np.int32), np.tile([False, True], 60), nothing, np.full(60, None, object))
    column = Ragged(x[:60].reshape(-1), np.arange(61, dtype=np.int64) * x.shape[1])

    def near() -> npt.NDArray[np.int64]:
        by = Signal(Embedding(), Words("instruction"), "embedder")
        return neighbours(Demonstrated(by, approximate=approximate), pool, rows, lambda signal: column)

    if approximate is None:
        message = "the nearest rows of 60 would take about .* hours on this machine; set 'miwv.approximate' to true"
        with pytest.raises(ConfigError, match=message):
            near()
        monkeypatch.setattr(effort, "HOURS", 1e9)
    np.testing.assert_array_equal(near(), nearest(x[:60]))


def test_ds2_refuses_a_search_of_hours(x: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    some = signals(x[:60])
    column = {"vector": some.vector, "score": Ragged(np.tile([5.0, 7.0], 30), np.arange(61, dtype=np.int64))}
    s = Signals(column, some.ids, some.reason)
    expected = DS2(how="exact").score(s).value
    monkeypatch.setattr(effort, "_SOON", 0)
    monkeypatch.setattr(effort, "_rate", lambda: 1.0)
    with pytest.raises(ConfigError, match=r"set .ds2\.how. to hnsw or ivf, which find most"):
        DS2().score(s)
    np.testing.assert_array_equal(DS2(how="exact").score(s).value, expected)
    assert DS2(how="ivf").approximation == "ds2: nearest rows by ivf of faiss" and DS2().approximation is None
    assert MIWV(approximate=True).approximation == "miwv: nearest rows by an index of faiss"


def test_the_record_says_what_is_approximate() -> None:
    assert KCenter().approximation is None and KCenter(parts=1).approximation is None
    assert KCenter(parts="auto").approximation == (
        "kcenter: chosen in random parts of 65,536 rows, an equal share of each"
    )
    assert FacilityLocation(parts=8, oversample=2).approximation == (
        "facility_location: chosen in 8 random parts, an equal share of each; "
        "of 2 times as many rows the exact way takes the last"
    )
    sparse = "facility_location: gains are counted over the nearest 256 rows alone"
    assert FacilityLocation(neighbours=256).approximation == sparse
    assert str(FacilityLocation(neighbours=256, parts=3).approximation).endswith(f"an equal share of each; {sparse}")
    assert SuperfilteringD(neighbours=256).approximation == sparse
    assert CosineFilter(parts=8).approximation == "cosine_filter: only rows of one cell are compared, of 8 cells"
    assert str(DEITA(parts="auto").approximation).endswith("of cells of 1,024 rows")
    assert "(faiss)" in str(KMeansQuota(engine="faiss").approximation) and KMeansQuota().approximation is None
    assert str(SuperfilteringD(parts=3).approximation).startswith("facility_location: chosen in 3")
    assert Then(Longest(), "50%", KCenter()).approximation is None
    assert Blend((KCenter(parts=2), Random(), CosineFilter(parts=2))).approximation == (
        f"{KCenter(parts=2).approximation}; {CosineFilter(parts=2).approximation}"
    )


def test_a_selection_says_so(x: Floats) -> None:
    pool = load([{"instruction": f"say {row}", "output": "x"} for row in range(60)])
    for method, says in ((KCenter(parts=3), KCenter(parts=3).approximation), (KCenter(), None)):
        s = Signals({"vector": Ragged.of(x[:60], np.float32)}, pool.ids, np.full(60, None, object))
        record = select(pool, scored(method, s), 9).record()
        assert record.get("approximation") == says and record["params"]["parts"] == method.parts
        assert record["counts"]["selected_rows"] == 9 and record["excluded"] == {"not_reached": 54}


def test_parts_are_given_as_any_parameter() -> None:
    assert make_method("kcenter", {"parts": "auto"}).params()["parts"] == "auto"
    assert make_method("facility_location", {"parts": "16", "oversample": 2}, seed=3).params() == (
        FacilityLocation(parts=16, oversample=2.0, seed=3).params()
    )
    assert make_method("superfiltering_d", {"parts": 4}).both().second.parts == 4
    for spec, params, says in [
        ("kcenter", {"parts": 0}, "'kcenter.parts' is 0; the least is 1"),
        ("deita", {"parts": -1}, "'deita.parts' is -1"),
        ("cosine_filter", {"parts": 0}, "'cosine_filter.parts' is 0"),
        (
            "facility_location",
            {"oversample": 0.5},
            "'facility_location.oversample' is 0.5; a part gives its share at least",
        ),
        ("kcenter", {"parts": "some"}, "kcenter.parts"),
    ]:
        with pytest.raises(ConfigError, match=says):
            make_method(spec, params)


def test_what_cannot_be(x: Floats) -> None:
    assert len(run_in_partitions(x, 0, FARTHEST, parts=4)) == 0
    for k, parts, oversample, says in [(1201, 2, 2, "1201 rows are asked for"), (5, 1300, 2, "1300 parts of 1200 rows"),
                                 (5, 0, 2, "0 parts"), (5, 2, 0.5, "oversample is 0.5")]:  # fmt: skip
        with pytest.raises(ValueError, match=says):
            run_in_partitions(x, k, FARTHEST, parts=parts, oversample=oversample)
