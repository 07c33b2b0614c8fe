"""TAP: its examples; a training on the target that keeps saves, made once, resumed, priced and refused with reason."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from helpers import PLAIN, Counting, Lab, some_rows
from instdiff.config.methods import make_method
from instdiff.config.train import TrainSettings
from instdiff.core import ModelRef, Settings
from instdiff.core.files import read_json
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, PlanError
from instdiff.methods import TAP, Blend, Perplexity
from instdiff.methods.tap import Path
from instdiff.scoring.crossfit import lacking, trainings
from instdiff.scoring.scorer import score
from instdiff.scoring.table import ScoreTable
from instdiff.store import Store, collect_trained
from instdiff.training.digests import changed
from instdiff.training.sft import saved_model, train
from instdiff.training.trained_rows import TRAINED_ROWS

from .columns import ones, run, signals

ROWS = some_rows(12, seed=5)
TARGET = load([ROWS[2], {"instruction": "another", "output": "the sky is green"}, ROWS[7]])
TRAIN = TrainSettings(model_max_length=200, dtype="float32", max_steps=1)
METHOD = TAP(path=Path(epochs=4, learning_rate=0.05, rank=2, batch=2))


pytestmark = pytest.mark.usefixtures("one_thread")


def scored(lab: Lab, store: Store, pool: Pool, method: Any = METHOD, **more: Any) -> ScoreTable:
    return lab.crossfit(store, pool, method, TRAIN, **{"target": TARGET, **more})


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [((10, 4), (5, 2), (0.5, 0.5)), ((2.0, 4.0, 0.5), (1.8, 3.9, 0.4), (0.1, 0.025, 0.2))],
)
def test_the_examples_of_the_specification(first: Any, last: Any, expected: Any) -> None:
    seen = np.zeros(len(first), bool)
    out = run(TAP(), signals(len(first), first=ones(*first), last=ones(*last), seen=seen))
    np.testing.assert_allclose(out.value, expected)
    assert out.details["nll_first"].tolist() == list(first) and out.details["nll_last"].tolist() == list(last)
    seen[0] = True
    out = run(TAP(), signals(len(first), first=ones(*first), last=ones(*last), seen=seen))
    assert out.reason.tolist() == ["filtered"] + [None] * (len(first) - 1) and out.scorable.all()


def test_the_path_is_the_papers() -> None:
    how = TAP().path
    assert (how.epochs, how.learning_rate, how.rank, how.alpha, how.dropout) == (2, 1e-5, 1, 4, 0.1)
    (asked,) = [s.measure.saves for s in TAP().signals().values() if hasattr(s.measure, "saves")]
    assert asked.roles == (("path/first", 1.0), ("path/last", 2)) and asked.of == "target"
    assert make_method("tap", {"path": {"epochs": 3}}, seed=7) == TAP(path=Path(epochs=3), seed=7)
    with pytest.raises(ConfigError, match="epochs lie above 1"):
        Path(epochs=1)
    with pytest.raises(ConfigError, match=r"'tap.path"):
        make_method("tap", {"path": {"passes": 3}})


def test_the_path_is_trained_once_on_the_target_and_both_saves_are_kept(lab: Lab) -> None:
    store, pool, said, counting = lab.store(), load(ROWS), list[str](), Counting()
    found = scored(lab, store, pool, log=said.append, progress=counting)["tap"]
    assert [word for word in found.reason] == ["filtered" if at in (2, 7) else None for at in range(12)]
    assert sum("path/last: " in line and "is trained on 3 rows, 4 epochs" in line for line in said) == 1
    assert counting.rows == 24
    (place,) = store.root.glob("trained/*/training.json")
    record = read_json(place)
    assert record["steps"] == 8 and set(record["learning_rates"]) == {0.05} and len(record["losses"]) == 8
    saved, folder = place.parent / "saves" / "1", place.parent
    assert sorted(path.name for path in place.parent.glob("saves/*")) == ["1"]
    assert (saved / TRAINED_ROWS).read_bytes() == (folder / TRAINED_ROWS).read_bytes()
    assert (saved / "adapter_config.json").is_file() and not (saved / "training_args.bin").exists()
    base = str(lab.models["llama"])
    bound = {"path/first": ModelRef(base, adapter=str(saved)), "path/last": ModelRef(base, adapter=str(folder))}
    given = scored(lab, lab.store(), pool, models=bound, target=None)["tap"]
    np.testing.assert_array_equal(given.value, found.value)
    assert given.reason.tolist() == found.reason.tolist()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = Counting()
    np.testing.assert_array_equal(scored(lab, store, pool, progress=again)["tap"].value, found.value)
    assert again.rows == 0 and before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert collect_trained(Store(store.root), set(), None) == []  # a save holds the folder of its training


def test_the_save_is_the_model_after_the_first_pass(lab: Lab) -> None:
    """Which a training of as many steps comes to."""
    store, base = lab.store(), ModelRef(str(lab.models["llama"]))
    (one,) = trainings([METHOD], {"base": base}, load(ROWS), Settings(**PLAIN), TRAIN, 1, None, TARGET, no_method)
    assert (one.role, one.saves, len(one.rows), one.seed) == ("path/last", ("path/first",), 3, 42)
    assert one.how.saves == (1.0,) and one.how.num_train_epochs == 4 and "max_steps" not in (one.how.model_extra or {})
    how: dict[str, Any] = {"settings": Settings(**PLAIN), "store": store, "seed": 42, "log": lambda line: None}
    train(one.rows, base, one.how, output=store.root / "whole", **how)
    short = one.how.model_copy(update={"saves": (), "num_train_epochs": 1.0})
    train(one.rows, base, short, output=store.root / "short", **how)
    model = saved_model(base, one.how, store.root / "whole", 1)
    assert model == ModelRef(base.where, adapter=str(store.root / "whole" / "saves" / "1"))
    weights = [load_adapter(place) for place in (store.root / "whole" / "saves" / "1", store.root / "short")]
    last = load_adapter(store.root / "whole")
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=0)
    assert any(not torch.equal(tensor, last[name]) for name, tensor in weights[0].items())


def no_method(before: Any) -> Any:
    raise AssertionError("no method comes before")


def load_adapter(place: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(place / "adapter_model.safetensors")


def test_saves_of_all_weights_are_models(lab: Lab) -> None:
    store, base = lab.store(), ModelRef(str(lab.models["llama"]))
    how = TrainSettings(model_max_length=200, dtype="float32", num_train_epochs=2, saves=(0.5, 1), global_batch_size=2)
    options: dict[str, Any] = {"settings": Settings(**PLAIN), "store": store, "seed": 1, "log": lambda line: None}
    place = store.root / "whole"
    train(load(ROWS[:4]), base, how, output=place, **options)
    assert changed(place) is None
    found = score(load(ROWS), [Perplexity()], str(saved_model(base, how, place, 2).where), settings=Settings(**PLAIN))
    assert found["perplexity"].eligible.all()
    (place / "saves" / "1" / TRAINED_ROWS).write_text("other")
    assert changed(place) == f"saves/1/{TRAINED_ROWS}"
    with pytest.raises(ConfigError, match=r"saves \[2.0\] do not fit"):
        TrainSettings(num_train_epochs=2, saves=(2,))
    assert "saves" not in TrainSettings().learning() and TrainSettings(saves=(1,)).learning()["saves"] == [1]


def test_a_damaged_or_lost_save_is_made_again(lab: Lab) -> None:
    store, pool, said = lab.store(), load(ROWS), list[str]()
    found = scored(lab, store, pool)["tap"]
    (folder,) = [path.parent for path in store.root.glob("trained/*/training.json")]
    shutil.rmtree(folder / "saves")
    shutil.rmtree(store.root / "columns", ignore_errors=True)
    again = scored(lab, Store(store.root), pool, log=said.append)["tap"]
    assert any("was changed since it was trained" in line for line in said)
    np.testing.assert_allclose(again.value, found.value, atol=1e-6)


def test_copies_of_target_rows_are_left_out_and_the_order_changes_nothing(lab: Lab) -> None:
    store, rows = lab.store(), [*ROWS, ROWS[2], ROWS[5]]
    found = scored(lab, store, load(rows))["tap"]
    assert [at for at, word in enumerate(found.reason) if word == "filtered"] == [2, 7, 12]
    assert found.value[5] == found.value[13]
    order = np.random.default_rng(0).permutation(14)
    mixed = scored(lab, store, load([rows[at] for at in order]))["tap"]
    np.testing.assert_allclose(mixed.value, found.value[order], atol=1e-6)


def test_what_is_missing_is_said(lab: Lab) -> None:
    with pytest.raises(PlanError, match="no rows to train the model of role 'path/last' on are given; --target FILE"):
        scored(lab, lab.store(), load(ROWS), target=None)
    with pytest.raises(PlanError, match=r"role 'base', which is not bound"):
        score(load(ROWS), [METHOD], {}, settings=Settings(**PLAIN), store=lab.store(), target=TARGET)
    with pytest.raises(ConfigError, match="two methods want another training of the role 'path/first'"):
        lacking([METHOD, TAP()], {})
    wanted = lacking([Blend(of=(METHOD, Perplexity()))], {"path/first": ModelRef("x")})
    assert list(wanted) == ["path/first", "path/last"]


def test_a_plan_prices_the_path_and_then_finds_it(lab: Lab) -> None:
    from instdiff.experiments.cost import plan_training
    from instdiff.scoring.cost import count_passes

    store, pool, base = lab.store(), load(ROWS), ModelRef(str(lab.models["llama"]))
    where = Settings(**PLAIN)

    def asked(methods: Any, best: Any) -> Any:
        return trainings(methods.values(), {"base": base}, pool, where, TRAIN, 1, None, TARGET, best)

    priced, bench = plan_training(asked, {"tap": METHOD}, {"base": base}, pool, TARGET, where, store)
    (line,) = priced.stages
    assert (line.kind, line.rows, line.count) == ("train", 3, 1)
    passes = count_passes(bench, {"tap": METHOD})
    assert [cost.rows for _, cost in passes] == [12, 12]
    scored(lab, store, pool)
    priced, bench = plan_training(asked, {"tap": METHOD}, {"base": base}, pool, TARGET, where, store)
    assert priced.stages == []
