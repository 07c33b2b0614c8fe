"""Fold models: trained where none are bound, each asked of its own fold alone, and refused where they know it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import PLAIN, Counting, Lab, read_by_bytes, some_rows
from instdiff.config.train import TrainSettings
from instdiff.core import Nll, Prompted, Settings, Signal
from instdiff.core.files import read_json
from instdiff.core.signals import Folds, Split
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, DataError, PlanError
from instdiff.methods import Blend, Learnability, Rho
from instdiff.rendering.prompts import prompt_groups
from instdiff.scoring.cost import plan
from instdiff.scoring.folds import folds_of, groups_of, rows_outside
from instdiff.scoring.scorer import score
from instdiff.scoring.table import ScoreTable
from instdiff.scoring.workbench import Workbench
from instdiff.store import Store, collect_trained
from instdiff.training.digests import RECORD
from instdiff.training.sft import train
from instdiff.training.trained_rows import TRAINED_ROWS, trained_rows

ROWS = some_rows(16, seed=5)
TRAIN = TrainSettings(
    model_max_length=200, learning_rate=0.01, warmup_ratio=0.0, global_batch_size=4, dtype="float32"
)  # fmt: skip
FOLDS = Folds(epochs=2)
METHOD = Learnability(folds=FOLDS)
SPLIT = Split(FOLDS)


pytestmark = pytest.mark.usefixtures("one_thread")


def scored(lab: Lab, store: Store, pool: Pool, method: Any = METHOD, **more: Any) -> ScoreTable:
    return lab.crossfit(store, pool, method, TRAIN, **more)


def test_fold_models_are_trained_once_and_asked_of_their_own_folds(lab: Lab) -> None:
    store, pool, said, counting = lab.store(), load(ROWS), list[str](), Counting()
    found = scored(lab, store, pool, log=said.append, progress=counting)["learnability"]
    folds = folds_of(pool, SPLIT)
    assert found.details["fold"].tolist() == folds.tolist() and sorted(np.bincount(folds)) == [8, 8]
    assert counting.rows == 16 + 8 + 8
    assert sum("is trained on 8 rows, 2 epochs" in line for line in said) == 2
    places = sorted(path.parent for path in store.root.glob(f"trained/*/{TRAINED_ROWS}"))
    by_ids = {frozenset(rows.ids): place for place in places if (rows := trained_rows_of(place))}
    for fold, outside in enumerate(rows_outside(pool, SPLIT)):
        assert frozenset(outside.ids) in by_ids
        model = {"base": str(by_ids[frozenset(outside.ids)])}
        own = Workbench(pool, bound(model), Settings(**PLAIN), store)
        whole = np.asarray([nll for nll in direct(own)])
        np.testing.assert_allclose(found.details["nll_held"][folds == fold], whole[folds == fold], rtol=1e-5)
    before = {path: path.stat().st_mtime_ns for path in store.root.glob("trained/*/*")}
    again = Counting()
    assert (scored(lab, store, pool, progress=again)["learnability"].value == found.value).all()
    assert collect_trained(Store(store.root), set(), None) == []  # this store still uses them
    assert again.rows == 0 and before == {path: path.stat().st_mtime_ns for path in store.root.glob("trained/*/*")}


def trained_rows_of(place: Path) -> Any:
    from instdiff.core import ModelRef

    return trained_rows(ModelRef(str(place)))


def bound(models: dict[str, str]) -> Any:
    from instdiff.scoring.models import bind

    return bind(models)


def direct(bench: Workbench) -> Any:
    """The NLL of all rows by the model of role ``base``."""
    from instdiff.core.progress import Quiet
    from instdiff.scoring.planner import plan as waves

    signal = Signal(Nll(), Prompted())
    for wave in waves([signal]):
        for step in wave:
            bench.run(step, Quiet())
    return bench.vectors(signal).mean()


def test_another_seed_other_weights_or_another_tokenizer_are_other_trainings(lab: Lab, tmp_path: Path) -> None:
    store, kept = lab.store(), {**ROWS[0], "w": 1.0}
    rows = [{**row, "w": 0.5} for row in ROWS[1:]]

    def asked(weight: float = 1.0, where: Path = lab.models["llama"], **how: Any) -> int:
        pool = load([{**kept, "w": weight}, *rows])
        with_weights = TrainSettings(**{**TRAIN.model_dump(exclude_unset=True), "weights": "w", **how})
        method, options = Learnability(folds=Folds(epochs=1)), {"store": store, "crossfit": with_weights}
        score(pool, [method], {"base": str(where)}, settings=Settings(**PLAIN), **options)
        return len(list(store.root.glob(f"trained/*/{RECORD}")))

    copy = read_by_bytes(shutil.copytree(lab.models["llama"], tmp_path / "copy"))
    assert [asked(), asked(), asked(seed=1), asked(seed=2)] == [2, 2, 4, 6]
    assert [asked(weight=2.0), asked(where=copy)] == [7, 9]  # the row is in one fold, and seen by the other's model


def test_a_shuffled_pool_gives_the_same_folds_and_values(lab: Lab) -> None:
    order = np.random.default_rng(1).permutation(len(ROWS))
    store, pool = lab.store(), load(ROWS)
    models = fold_models(lab, store, pool)
    one = scored(lab, store, pool, models=models)["learnability"]
    other = scored(lab, store, pool.take(order), models=models)["learnability"]
    np.testing.assert_array_equal(one.details["fold"][order], other.details["fold"])
    np.testing.assert_allclose(one.value[order], other.value)


def fold_models(lab: Lab, store: Store, pool: Pool, split: Split = SPLIT) -> dict[str, str]:
    """Trained by `train`, on all rows outside each fold."""
    models = {}
    for fold, rows in enumerate(rows_outside(pool, split)):
        place = store.root / f"fold {fold}"
        (start,) = bound({"base": str(lab.models["llama"])}).values()
        train(rows, start, TRAIN, Settings(**PLAIN), place, store=store, seed=1, log=lambda line: None)
        models[f"held/{fold}"] = str(place)
    return models


def test_a_model_that_has_seen_its_fold_is_refused(lab: Lab) -> None:
    store, pool = lab.store(), load(ROWS)
    models, folds = fold_models(lab, store, pool), folds_of(pool, SPLIT)
    swapped = {"held/0": models["held/1"], "held/1": models["held/0"]}
    first = int(np.flatnonzero(folds == 0)[0])
    with pytest.raises(ConfigError, match=f"held/0 .* was trained on row {first} .*its own fold"):
        scored(lab, store, pool, models=swapped)
    whole = store.root / "whole"
    (start,) = bound({"base": str(lab.models["llama"])}).values()
    train(pool, start, TRAIN, Settings(**PLAIN), whole, store=store, seed=1, log=lambda line: None)
    with pytest.raises(ConfigError, match=r"held/1 .* was trained on row"):
        scored(lab, store, pool, models={**models, "held/1": str(whole)})
    with pytest.raises(ConfigError, match="was trained on row"):  # also where models are trusted
        scored(lab, store, pool, models={**models, "held/1": str(whole)}, settings={"trust_held": True})


def test_a_model_that_has_seen_a_prompt_of_its_fold_is_refused(lab: Lab) -> None:
    store, pool = lab.store(), load(ROWS)
    models = fold_models(lab, store, pool)
    at = int(np.flatnonzero(folds_of(pool, SPLIT) == 0)[0])
    other = {**ROWS[at], "instruction": f"{ROWS[at]['instruction'].upper()}!", "output": "quite another answer"}
    more = load([row for number, row in enumerate(ROWS) if folds_of(pool, SPLIT)[number]] + [other])
    place = store.root / "prompt"
    (start,) = bound({"base": str(lab.models["llama"])}).values()
    train(more, start, TRAIN, Settings(**PLAIN), place, store=store, seed=1, log=lambda line: None)
    with pytest.raises(ConfigError, match=f"trained on another row of the same prompt as row {at} "):
        scored(lab, store, pool, models={**models, "held/0": str(place)})


def test_a_model_without_a_list_is_refused_unless_it_is_trusted(lab: Lab) -> None:
    store, pool = lab.store(), load(ROWS)
    same = {f"held/{fold}": str(lab.models["llama"]) for fold in (0, 1)}
    with pytest.raises(PlanError, match=r"does not say which rows it was trained on.*--trust-held"):
        scored(lab, store, pool, models=same)
    found = scored(lab, store, pool, models=same, settings={"trust_held": True})["learnability"]
    np.testing.assert_allclose(found.value, 0.0, atol=1e-6)


def test_rows_of_one_prompt_share_a_fold() -> None:
    rows = [{"instruction": "Say  «Hi»!", "output": "hi"}, {"instruction": "say hi", "output": "no"}, *some_rows(8)]
    groups = prompt_groups(load(rows), near=True)
    assert groups[0] == groups[1] and len(set(groups)) == 9
    folds = folds_of(load(rows), SPLIT)
    assert folds[0] == folds[1]


def test_the_prompt_is_what_stands_before_the_first_turn_that_is_learnt() -> None:
    talks = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": one},
         {"role": "user", "content": "b"}, {"role": "assistant", "content": two}]
        for one, two in (("x", "y"), ("x", "z"), ("w", "y"))
    ]  # fmt: skip
    rows = [{"messages": talk} for talk in talks]
    assert len(set(prompt_groups(load(rows)))) == 1
    last = prompt_groups(load(rows, targets="last"))
    assert last[0] == last[1] != last[2]


def test_a_column_may_say_what_belongs_together() -> None:
    rows = [{**row, "problem": None if at == 7 else at % 3} for at, row in enumerate(ROWS)]
    rows.append({**ROWS[0], "problem": 1})  # a copy, which is in the group of its first
    groups = groups_of(load(rows), "problem")
    assert groups[0] == groups[3] == groups[16] == "problem=0" and groups[7] == prompt_groups(load(rows), near=True)[7]
    assert len(set(groups)) == 4


def test_what_cannot_be_split_is_said(lab: Lab) -> None:
    alike = [{"instruction": "same", "output": str(at)} for at in range(4)]
    with pytest.raises(DataError, match="1 groups of rows cannot be split into 2 folds"):
        scored(lab, lab.store(), load(alike))
    pool = load(ROWS)
    empty = [
        {**row, "output": "" if fold else row["output"]} for row, fold in zip(ROWS, folds_of(pool, SPLIT), strict=True)
    ]
    with pytest.raises(DataError):
        scored(lab, lab.store(), load(empty))
    two = Blend(of=(METHOD, Learnability(folds=Folds(epochs=1))))
    said = "two methods want other folds of the role 'held': .*folds.epochs: 1; give one of them a role of another name"
    with pytest.raises(ConfigError, match=said):
        scored(lab, lab.store(), pool, method=two)


def test_adapters_and_a_part_of_the_rows(lab: Lab) -> None:
    method = Learnability(folds=Folds(epochs=1, lora=2, fraction=0.5))
    store, pool = lab.store(), load(ROWS)
    found = scored(lab, store, pool, method=method)
    assert found["learnability"].eligible.sum() == 16
    counts = [len(trained_rows_of(path.parent).ids) for path in store.root.glob(f"trained/*/{TRAINED_ROWS}")]
    assert counts == [4, 4] and len(list(store.root.glob("trained/*/adapter_config.json"))) == 2


def test_a_model_of_the_store_that_is_bound_by_name_is_held(lab: Lab) -> None:
    store = lab.store()
    place = store.root / "trained" / "one"
    shutil.copytree(lab.models["llama"], place)
    bench = Workbench(load(ROWS), bound({"base": str(place)}), Settings(**PLAIN), store)
    assert len(collect_trained(Store(store.root), set(), None, dry=True)) == 1
    bench.source("base")
    assert collect_trained(Store(store.root), set(), None) == [] and place.is_dir()


def test_fold_models_may_be_trained_from_a_smaller_proxy(lab: Lab) -> None:
    """Another tokenizer and template than the base's: both terms are of the proxy, and the base is not asked."""
    method = Learnability(folds=Folds(epochs=2, model="proxy"))
    store, pool, counting, proxy = lab.store(), load(ROWS), Counting(), str(lab.models["gpt2"])
    shown = {"templates": {"base": "alpaca", "proxy": "plain"}}
    found = scored(lab, store, pool, method=method, models={"proxy": proxy}, settings=shown, progress=counting)
    table, folds = found["learnability"], folds_of(pool, SPLIT)
    assert counting.rows == 16 + 8 + 8 and not any(label.endswith(" base") for label in counting.labels)
    templates = {role: one["template"] for role, one in found.meta["models"].items()}
    assert templates == {"base": "alpaca", "proxy": "plain", "held/0": "plain", "held/1": "plain"}
    records = [read_json(path) for path in store.root.glob("trained/*/training.json")]
    assert [(one["base"], one["rows"]) for one in records] == [("gpt2", 8), ("gpt2", 8)]
    plain = Settings(**{**PLAIN, "templates": {"*": "plain"}})
    np.testing.assert_allclose(
        table.details["nll_base"], direct(Workbench(pool, bound({"base": proxy}), plain, store)), rtol=1e-5
    )
    for path in store.root.glob(f"trained/*/{TRAINED_ROWS}"):
        fold = int(folds[~np.isin(list(pool.ids), list(trained_rows_of(path.parent).ids))][0])
        own = direct(Workbench(pool, bound({"base": str(path.parent)}), plain, store))
        np.testing.assert_allclose(table.details["nll_held"][folds == fold], own[folds == fold], rtol=1e-5)
    base, held = table.details["nll_base"], table.details["nll_held"]
    np.testing.assert_allclose(table.value, (base - held) / base)
    assert (table.value > 0).mean() > 0.5  # they have learnt something
    with pytest.raises(PlanError, match=r"role 'proxy'"):
        scored(lab, store, pool, method=method)


def test_a_coarse_precision_says_what_it_takes_of_the_difference(lab: Lab) -> None:
    store, pool = lab.store(), load(ROWS)
    models, said = fold_models(lab, store, pool), list[str]()
    meta = scored(lab, store, pool, models=models, settings={"dtype": "bfloat16"}, log=said.append).meta
    names = {f"nll of prompted, base minus held/{fold}" for fold in (0, 1)}
    assert set(meta["precision"]["differences"]) == names
    assert all(one["noise"] > 0 for one in meta["precision"]["differences"].values())
    assert sum("was trained in fp32" in line or "are the same again" in line for line in said) == 2
    assert scored(lab, store, pool, models=models, settings={"dtype": "auto"}).meta["settings"]["dtype"] == "float32"


def test_the_plan_has_a_pass_for_each_fold(lab: Lab) -> None:
    store, pool = lab.store(), load(ROWS)
    models = {"base": str(lab.models["llama"]), **fold_models(lab, store, pool)}
    passes = plan(pool, [METHOD], models, settings=Settings(**PLAIN), store=store).passes
    passes = sorted(passes, key=lambda one: one.role)
    assert [(one.role, one.view, one.rows) for one in passes] == [
        ("base", "prompted", 16), ("held/0", "prompted in fold 0", 8), ("held/1", "prompted in fold 1", 8)
    ]  # fmt: skip
    assert passes[1].tokens + passes[2].tokens == passes[0].tokens


def test_a_second_round_trains_on_the_better_half_by_the_first(lab: Lab) -> None:
    store, pool, said = lab.store(), load(ROWS), list[str]()
    twice = Learnability(folds=Folds(epochs=2, rounds=2), rehearse=0.2)
    found = scored(lab, store, pool, twice, log=said.append)["learnability"]
    assert [sum(f"trained on {count} rows" in line for line in said) for count in (8, 4)] == [2, 2]
    trained, again = set(store.root.glob("trained/*")), Counting()
    once = scored(lab, store, pool, progress=again)["learnability"]
    assert again.rows == 0 and trained == set(store.root.glob("trained/*"))  # its first round is that of one alone
    fold = once.details["fold"]
    better = {frozenset(pool.ids[at] for at in [at for at in once.best() if fold[at] != k][:4]) for k in range(2)}
    seen = {frozenset(rows.ids) for place in trained if (rows := trained_rows_of(place)) and len(rows.ids) == 4}
    assert seen == better
    assert (found.details["fold"] == fold).all() and (found.details["nll_held"] != once.details["nll_held"]).all()
    assert (scored(lab, store, pool, twice, progress=again)["learnability"].value == found.value).all()
    assert again.rows == 0


@given(st.permutations(range(12)), st.integers(2, 3), st.sampled_from([0.1, 0.5, 1.0]))
def test_the_kept_rows_are_the_best_outside_the_fold(order: list[int], k: int, keep: float) -> None:
    pool, best = load(some_rows(12, seed=5)), np.array(order)[:9]  # three rows cannot be taken
    split = Split(Folds(k=k, keep=keep))
    folds = folds_of(pool, split)
    for fold, rows in enumerate(rows_outside(pool, split, best)):
        allowed = [at for at in best if folds[at] != fold]
        assert list(rows.rows) == sorted(allowed[: math.ceil(keep * len(allowed))])


def test_rho_trains_on_the_holdout_set_and_leaves_its_rows_out(lab: Lab) -> None:
    store, pool, holdout = lab.store(), load(ROWS), load([*some_rows(8, seed=9), ROWS[3]])
    found = scored(lab, store, pool, method=Rho(), holdout=holdout)["rho"]
    assert found.reason.tolist() == [None] * 3 + ["filtered"] + [None] * 12
    (place,) = (path.parent for path in store.root.glob(f"trained/*/{TRAINED_ROWS}"))
    again = scored(lab, store, pool, method=Rho(), models={"holdout": str(place)})["rho"]
    assert found.reason.tolist() == again.reason.tolist()
    np.testing.assert_allclose(found.value, again.value)
    with pytest.raises(PlanError, match=r"role 'holdout'.*--holdout FILE"):
        scored(lab, store, pool, method=Rho())
    with pytest.raises(PlanError, match="no list 'holdout' of rows is given; with --holdout FILE"):
        scored(lab, store, pool, method=Rho(), models={"holdout": str(lab.models["other"])})
