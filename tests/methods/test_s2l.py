"""S2L: the published example, the order whose every beginning is even, and a proxy that is trained and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import PLAIN, Counting, Lab, some_rows
from instdiff.config.commands import parse_models
from instdiff.config.train import TrainSettings
from instdiff.core import Budget, Scored, Settings, Signals
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.files import read_json
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, PlanError
from instdiff.experiments.cost import plan_training
from instdiff.methods import S2L
from instdiff.methods.s2l import by_size, cluster_order, even_order
from instdiff.scoring.crossfit import training_of_scores, trainings
from instdiff.scoring.models import bind, template_name
from instdiff.scoring.scorer import score
from instdiff.store import Store, collect_trained
from instdiff.training.digests import RECORD
from instdiff.training.sft import train

from .columns import signals

ROWS = some_rows(16, seed=5)
TRAIN = TrainSettings(model_max_length=200, learning_rate=0.01, warmup_ratio=0.0, global_batch_size=4, dtype="float32")
METHOD = S2L(saves=3, epochs=2, clusters=4)
SIZES = st.lists(st.integers(1, 8), min_size=1, max_size=6)


pytestmark = pytest.mark.usefixtures("one_thread")


# ── the order ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def published(sizes: list[int], budget: int) -> list[int]:
    """How many rows each group gives, the smallest first: what is left over the groups left, or all."""
    given = []
    for at, size in enumerate(sizes):
        given.append(min(size, (budget - sum(given)) // (len(sizes) - at)))
    return given


def in_groups(sizes: list[int]) -> Any:
    return by_size(np.repeat(np.arange(len(sizes)), sizes))


def test_the_published_example() -> None:
    own = in_groups([6, 3, 1])
    order = cluster_order(own, np.random.default_rng(0).random(10))
    assert np.bincount(own[order[:5]], minlength=3).tolist() == [0, 2, 3]
    assert np.bincount(own[order[:10]], minlength=3).tolist() == [1, 3, 6] and order[9] == 9


@given(SIZES, st.integers(0, 40))
def test_every_beginning_is_what_the_published_rule_gives(sizes: list[int], budget: int) -> None:
    own = in_groups(sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    order = even_order(own, place)[:budget]
    assert np.bincount(own[order], minlength=len(sizes)).tolist() == published(sorted(sizes), min(budget, sum(sizes)))


@given(SIZES, st.integers(0, 9))
def test_small_clusters_give_what_the_others_lack(sizes: list[int], seed: int) -> None:
    own, draw = in_groups(sizes), np.random.default_rng(seed).random(sum(sizes))
    order = cluster_order(own, draw)
    assert sorted(order.tolist()) == list(range(len(own)))
    large = sum(size for size in sizes if size > 2)
    count = np.bincount(own)[own]
    assert (count[order[:large]] > 2).all() and (count[order[large:]] <= 2).all()


def test_groups_are_numbered_from_the_smallest_and_equal_ones_by_their_first_row() -> None:
    assert by_size(np.array(["b", "a", "b", "c", "a", "b"])).tolist() == [2, 1, 2, 0, 1, 2]
    assert by_size(np.array([5, 3, 5, 3])).tolist() == [0, 1, 0, 1]


def table(method: S2L, s: Signals) -> Scored:
    out = method.score(s).with_reasons(s)
    return Scored(method.name, method, out.value, out.reason, out.details, s.ids, np.ones(len(s), np.int64), lambda: s)


def trajectories(losses: Any, without: int = 0) -> dict[str, Any]:
    """The column of each save; the last rows have no loss."""
    return {
        f"nll_{at}": Ragged.of([*column[:, None], *[[]] * without], np.float32)
        for at, column in enumerate(np.array(losses).T, 1)
    }


LOSSES = np.repeat([[3.0, 1.0], [3.0, 2.9], [0.1, 0.1]], [9, 4, 2], 0) + 0.001 * np.random.default_rng(1).random(
    (15, 2)
)


def test_rows_of_like_trajectories_share_a_cluster_and_clusters_a_budget() -> None:
    s = signals(16, **trajectories(LOSSES, without=1))
    found = table(S2L(clusters=3, saves=2), s)
    own = found.details["cluster"]
    assert own[:9].tolist() == [2] * 9 and own[9:13].tolist() == [1] * 4 and own[13:15].tolist() == [0, 0]
    assert found.reason[15] == "empty_response" and np.isnan(own[15])
    np.testing.assert_allclose(found.details["nll_first"][:15], LOSSES[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found.details["nll_last"][:15], LOSSES[:, 1], rtol=1e-6)
    six = S2L(clusters=3, saves=2).pick(found, Budget(6, "rows"))
    assert np.bincount(own[six].astype(int), minlength=3).tolist() == [0, 3, 3]
    assert sorted(S2L(saves=2).pick(found, Budget(99, "rows"))) == list(range(15))


@given(st.permutations(range(15)), st.integers(1, 15))
def test_neither_order_nor_budget_change_what_comes_first(order: list[int], size: int) -> None:
    sources = np.array(["a"] * 6 + ["b"] * 9, object)
    s = signals(15, **trajectories(LOSSES), source=sources)
    method = S2L(clusters=2, saves=2, source="source")
    one, other = table(method, s), table(method, s.take(np.array(order)))
    assert [order[at] for at in other.best()] == one.best().tolist()
    head = method.pick(one, Budget(size, "rows"))
    assert head.tolist() == one.best()[:size].tolist()
    counts = published([6, 9], size)
    assert [(sources[head] == name).sum() for name in "ab"] == counts


def test_more_clusters_than_rows_and_equal_rows() -> None:
    s = signals(6, **trajectories([[1.0, 2.0]] * 3 + [[2.0, 3.0]] * 3))
    found = table(S2L(saves=2), s)
    assert found.eligible.all() and found.details["cluster"].tolist() == [0, 0, 0, 1, 1, 1]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ConfigError, match=r"'s2l.clusters' is 0"):
        S2L(clusters=0)
    with pytest.raises(ConfigError, match=r"'s2l.saves' is 0; the least is 1"):
        S2L(saves=0)


# ── the training ──────────────────────────────────────────────────────────────────────────────────────────────────────


def scored(lab: Lab, store: Store, pool: Pool, method: Any = METHOD, **more: Any) -> Any:
    models = {"proxy": str(lab.models["llama"])} | more.pop("models", {})
    return score(pool, [method], models, settings=Settings(**PLAIN), store=store, crossfit=TRAIN, **more)


def place_of(store: Store) -> Path:
    (record,) = store.root.glob(f"trained/*/{RECORD}")
    return record.parent


def test_a_proxy_is_trained_once_and_asked_at_each_save(lab: Lab) -> None:
    store, pool, said, counting = lab.store(), load(ROWS), list[str](), Counting()
    found = scored(lab, store, pool, log=said.append, progress=counting)["s2l"]
    assert found.eligible.all() and counting.rows == 3 * 16
    place = place_of(store)
    record, saves = read_json(place / RECORD), sorted(path.name for path in (place / "saves").iterdir())
    assert record["steps"] == 8 and saves == ["1", "2"] and not list(place.glob("checkpoints"))
    assert any("proxy/3: " in line and "is trained on 16 rows, 2 epochs" in line for line in said)
    assert (found.details["nll_last"] < found.details["nll_first"]).mean() > 0.5
    again = Counting()
    assert (scored(lab, store, pool, progress=again)["s2l"].value == found.value).all() and again.rows == 0
    assert collect_trained(Store(store.root), set(), None) == []  # this store still uses the saves


def test_the_last_save_is_the_model_that_is_trained_without_saves(lab: Lab) -> None:
    store, pool = lab.store(), load(ROWS)
    scored(lab, store, pool)
    place = place_of(store)
    (start,) = bind({"base": str(lab.models["llama"])}).values()
    plain = Settings(**{**PLAIN, "templates": {"*": "plain"}})
    how = TRAIN.model_copy(update={"num_train_epochs": 2})
    train(pool, start, how, plain, store.root / "whole", store=store, seed=42, log=lambda line: None)
    whole = read_json(store.root / "whole" / RECORD)
    assert whole["weights"] == read_json(place / RECORD)["weights"]


def test_adapters_are_kept_too(lab: Lab) -> None:
    store, pool = lab.store(), load(ROWS)
    found = scored(lab, store, pool, S2L(saves=2, epochs=1, clusters=4, lora=2))["s2l"]
    place = place_of(store)
    assert found.eligible.all() and (place / "adapter_config.json").is_file()
    assert (place / "saves/1/adapter_config.json").is_file() and not (place / "saves/2").exists()
    assert (found.details["nll_last"] != found.details["nll_first"]).all()


def test_saves_of_the_users_own(lab: Lab) -> None:
    store, pool, counting = lab.store(), load(ROWS), Counting()
    own = {"proxy/1": str(lab.models["llama"]), "proxy/2": str(lab.models["other"])}
    found = scored(lab, store, pool, S2L(saves=2, clusters=4), models=own, progress=counting)["s2l"]
    assert found.eligible.all() and counting.rows == 32 and not list(store.root.glob("trained/*"))
    with pytest.raises(PlanError, match="'proxy/1' is bound, and 'proxy/3' of the same training is not"):
        scored(lab, store, pool, S2L(), models=own)
    with pytest.raises(
        PlanError, match=r"role 'proxy', which is not bound; give --model proxy=WHERE, or train the base"
    ):
        score(pool, [S2L()], {"base": str(lab.models["llama"])}, settings=Settings(**PLAIN), store=store)
    assert parse_models("proxy/1=x") == {"proxy/1": "x"}
    assert template_name("proxy/1", None, Settings()) == template_name("proxy", None, Settings()) == "plain"


def test_a_plan_prices_the_training_and_a_pass_for_each_save(lab: Lab) -> None:
    store, pool, roles = lab.store(), load(ROWS), bind({"proxy": str(lab.models["llama"])})
    settings = Settings(**PLAIN)
    how = training_of_scores(TRAIN, settings)

    def asked(methods: Any, best: Any) -> Any:
        return trainings(methods.values(), roles, pool, settings, how, 42, None, None, best)

    cost, bench = plan_training(asked, {"s2l": METHOD}, roles, pool, None, settings, store)
    (line,) = cost.stages
    assert (line.kind, line.rows, line.steps, line.count) == ("train", 16, 8, 1) and line.seconds > 0
    assert len({bench.source(f"proxy/{number}").fingerprint for number in (1, 2, 3)}) == 3
    scored(lab, store, pool)
    cost, bench = plan_training(asked, {"s2l": METHOD}, roles, pool, None, settings, store)
    assert cost.stages == [] and Path(bench.models["proxy/1"].where).name == "1"
