"""Methods on preference pairs: the numbers of their definitions, both sides through real passes, halves and leaks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import PLAIN, Counting, Lab, reference, some_rows
from instdiff.core import ModelRef, Nll, Prompted, Settings, Side, Signal
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.signals import Folded, Sides
from instdiff.data import Pool, load
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError, DataError, PlanError
from instdiff.methods import IFD, RewardGap, SelectiveDPO
from instdiff.methods.shared.preference import same_sides
from instdiff.rendering.prompts import prompt_groups
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import template
from instdiff.scoring.cost import plan
from instdiff.scoring.folds import folds_of
from instdiff.scoring.planner import plan as waves_of
from instdiff.scoring.scorer import score
from instdiff.scoring.table import ScoreTable
from instdiff.store import Store
from instdiff.training.trained_rows import TRAINED_ROWS, text_of

from .columns import NAN, ones, ragged, run, signals

BASE = {"base_chosen": ones(22, 29), "base_rejected": ones(24, 30)}
POLICY = ones(20, 30), ones(25, 28)
ROWS = [
    {"prompt": row["instruction"], "chosen": row["output"], "rejected": other["output"], "n": at}
    for at, (row, other) in enumerate(zip(some_rows(12, seed=3), some_rows(12, seed=4), strict=True))
]


# ── the numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gaps_of_the_definition() -> None:
    s = signals(2, **BASE, policy_chosen=POLICY[0], policy_rejected=POLICY[1])
    scored = run(RewardGap(), s)
    np.testing.assert_allclose(scored.details["gap"], [0.3, -0.3])
    np.testing.assert_allclose(scored.value, [-0.3, 0.3])
    assert scored.best().tolist() == [1, 0]  # smallest first, signed
    np.testing.assert_allclose(scored.details["policy_rejected"], [25, 28])
    cut = run(RewardGap(floor=0.0), s)
    assert cut.reason.tolist() == [None, "filtered"] and cut.details["gap"][1] == pytest.approx(-0.3)
    assert run(RewardGap(beta=1.0), s).best().tolist() == [1, 0]


def test_sums_not_means_and_rows_without_a_side() -> None:
    two = ragged([10, 12], [14, 15], [1])
    s = signals(
        3,
        base_chosen=two,
        base_rejected=ragged([24], [10, 20], []),
        policy_chosen=ragged([10, 10], [15, 15], [1]),
        policy_rejected=ragged([25], [14, 14], []),
    )
    scored = run(RewardGap(), s)
    np.testing.assert_allclose(scored.details["gap"], [0.3, -0.3, NAN])
    assert scored.reason.tolist() == [None, None, "empty_response"]
    assert math.isnan(scored.details["base_rejected"][2]) and scored.details["base_chosen"][2] == 1


def test_equal_sides_are_left_out() -> None:
    column = ragged([1, 2], [2, 1], [3], [])
    assert same_sides(column, ragged([1, 2], [1, 2], [1, 2], [])).tolist() == [True, False, False, False]
    same = signals(
        2, **{f"{role}_{side}": ones(1, 2) for role in ("base", "policy") for side in ("chosen", "rejected")}
    )
    assert run(RewardGap(), same).reason.tolist() == ["filtered"] * 2


def halves(columns: Mapping[str, tuple[Ragged, Ragged]]) -> dict[str, Any]:
    crossed = {
        f"{role}_{side}": pair[at] for role, pair in columns.items() for at, side in enumerate(("chosen", "rejected"))
    }
    return {**BASE, **crossed, **{f"half_{seed}": np.array([0, 1]) for seed in range(3)}}


def test_the_losses_of_the_definition() -> None:
    s = signals(2, **halves({f"dpo/{seed}": POLICY for seed in range(3)}))
    scored = run(SelectiveDPO(beta=0.1), s)
    np.testing.assert_allclose(scored.details["loss"], [0.554355, 0.854355], atol=5e-7)
    np.testing.assert_allclose(scored.value, [-0.554355, NAN], atol=5e-7)
    assert scored.reason.tolist() == [None, "filtered"]
    assert run(SelectiveDPO(beta=0.1, keep=1.0), s).best().tolist() == [0, 1]  # easy to hard


def test_losses_are_means_over_seeds_and_evaluations() -> None:
    none = (BASE["base_chosen"], BASE["base_rejected"])
    s = signals(2, **halves({"dpo/0": POLICY, "dpo/1": none, "dpo/2": none}))
    scored = run(SelectiveDPO(beta=0.1, keep=1.0), s)
    np.testing.assert_allclose(
        scored.details["loss"], [(0.554355 + 2 * math.log(2)) / 3, (0.854355 + 2 * math.log(2)) / 3], atol=5e-7
    )
    np.testing.assert_allclose(scored.details["gap"], [0.1, -0.1])
    method = SelectiveDPO(seeds=1, evaluations=5)
    assert list(method.roles()) == [f"dpo/0.{at}" for at in range(1, 6)]
    assert {need.model for one in method.signals().values() for need in one.needs()} == {
        f"dpo/0.{at}/{half}" for at in range(1, 6) for half in (0, 1)
    }
    for wrong in ({"keep": 0.0}, {"seeds": 0}, {"evaluations": 0}):
        with pytest.raises(ConfigError):
            SelectiveDPO(**wrong)


def test_ties_are_kept_by_id_and_unscored_rows_do_not_count() -> None:
    columns = {f"{role}_{side}": ones(1, 1, 1, 1) for role in ("base", "dpo/0") for side in ("chosen", "rejected")}
    columns |= {"base_rejected": ragged([2], [2], [2], []), "dpo/0_rejected": ragged([2], [2], [2], [])}
    s = signals(["d", "b", "a", "c"], **columns, half_0=np.zeros(4))
    scored = run(SelectiveDPO(seeds=1, keep=0.7), s)
    assert scored.reason.tolist() == ["filtered", None, None, "empty_response"]
    assert scored.best().tolist() == [2, 1]


# ── both sides in one pass ────────────────────────────────────────────────────────────────────────────────────────────


def test_both_sides_are_one_pass() -> None:
    passes = [step for wave in waves_of(RewardGap().signals().values()) for step in wave]
    assert [(step.model, step.view) for step in passes] == [("base", Sides()), ("policy", Sides())]
    crossed = [step for wave in waves_of(SelectiveDPO(seeds=1).signals().values()) for step in wave]
    assert len(crossed) == 3 and all(step.view == Sides() or isinstance(step.view, Folded) for step in crossed)


def test_a_side_is_the_prompted_view_of_that_side(lab: Lab) -> None:
    pool = load([*ROWS, {"prompt": "p", "completion": "c"}])
    renderer, layout = Renderer(pool, tokenizer(lab)), template("alpaca")
    both = renderer.rows(Sides(), layout, 200)
    for at, side in enumerate(("chosen", "rejected")):
        rows = renderer.rows(Side(side), layout, 200)
        plain = load([{"prompt": row["prompt"], "completion": row[side]} for row in ROWS])
        alone = Renderer(plain, renderer.tokenizer).rows(Prompted(), layout, 200)
        assert rows.keys()[:-1].tolist() == alone.keys().tolist() == both.keys()[at:-2:2].tolist()
        assert rows.reason.tolist() == [None] * 12 + ["no_pair"]
    assert len(both) == 26


def tokenizer(lab: Lab) -> HFTokenizer:
    return load_tokenizer(resolve(ModelRef(str(lab.models["llama"]))))


def bound(lab: Lab) -> dict[str, str]:
    return {"base": str(lab.models["llama"]), "policy": str(lab.models["other"])}


def scored(
    lab: Lab, store: Store, pool: Pool, method: Any, models: dict[str, str] | None = None, **more: Any
) -> ScoreTable:
    settings = Settings(**{**PLAIN, **more.pop("settings", {})})
    return score(pool, method, models or bound(lab), settings=settings, store=store, **more)


def test_reward_gap_against_a_plain_reference(lab: Lab) -> None:
    counting, pool = Counting(), load(ROWS)
    table = scored(lab, lab.store(), pool, [RewardGap(), IFD()], progress=counting)
    found = table["reward_gap"]
    sums = {}
    for side in ("chosen", "rejected"):
        plain = load([{"prompt": row["prompt"], "completion": row[side]} for row in ROWS])
        rows = Renderer(plain, tokenizer(lab)).rows(Prompted(), template("alpaca"), 200)
        for name, role in (("llama", "base"), ("other", "policy")):
            sums[role, side] = np.array(
                [
                    reference(
                        lab.reference(name), rows.ids[at], rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]]
                    )[0].sum()
                    for at in range(12)
                ]
            )
            np.testing.assert_allclose(found.details[f"{role}_{side}"], sums[role, side], rtol=1e-4)
    gap = 0.1 * (
        sums["base", "chosen"] - sums["policy", "chosen"] - sums["base", "rejected"] + sums["policy", "rejected"]
    )
    np.testing.assert_allclose(found.details["gap"], gap, atol=1e-4)
    assert found.best()[0] == gap.argmin()
    # Of `ifd` the chosen side is what `reward_gap` has seen already, so it costs the response alone.
    assert counting.rows == 4 * 12 + 12
    chosen = load([{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS])
    np.testing.assert_array_equal(table["ifd"].value, lab.score(chosen, [IFD()])["ifd"].value)


def test_data_without_pairs_and_without_a_policy(lab: Lab) -> None:
    with pytest.raises(DataError, match="reward_gap compares the two sides of preference pairs, and rows has none"):
        scored(lab, lab.store(), load(some_rows(3)), [RewardGap()])
    with pytest.raises(PlanError, match="role 'policy'; give --model policy=WHERE, trained by DPO"):
        scored(lab, lab.store(), load(ROWS), [RewardGap()], {"base": str(lab.models["llama"])})
    mixed = load([*ROWS[:3], {"prompt": "p", "completion": "c"}])
    assert scored(lab, lab.store(), mixed, [RewardGap()])["reward_gap"].reason.tolist() == [None] * 3 + ["no_pair"]


def test_a_cut_side_marks_the_pair(lab: Lab) -> None:
    pool = load([{**ROWS[0], "rejected": "why " * 300}, ROWS[1]])
    table = scored(lab, lab.store(), pool, [RewardGap()])
    assert table.truncated.tolist() == [True, False]


# ── halves ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def half_models(lab: Lab, home: Path, pool: Pool, method: SelectiveDPO) -> dict[str, str]:
    """Copies of a model, each with the list of the rows outside its half."""
    import shutil

    models = {"base": str(lab.models["llama"])}
    for seed in range(method.seeds):
        folds = folds_of(pool, method.split(seed))
        for half in (0, 1):
            place = home / f"{seed}-{half}"
            shutil.copytree(lab.models["other" if half else "llama"], place)
            rows = pool.take(np.flatnonzero(folds != half))
            text = text_of(rows.ids, prompt_groups(rows, near=True), [None] * len(rows))
            (place / TRAINED_ROWS).write_text(text, encoding="utf-8")
            models[f"dpo/{seed}/{half}"] = str(place)
    return models


def test_each_pair_is_read_by_the_model_of_its_half(lab: Lab, tmp_path: Path) -> None:
    pool, method = load(ROWS), SelectiveDPO(seeds=2, keep=1.0, beta=0.1)
    models = half_models(lab, tmp_path, pool, method)
    counting = Counting()
    found = scored(lab, lab.store(), pool, [method], models, progress=counting)["selective_dpo"]
    gap = scored(lab, lab.store(), pool, [RewardGap()])["reward_gap"].details["gap"]
    expected = np.zeros(12)
    for seed in range(2):
        folds = folds_of(pool, method.split(seed))
        assert found.details[f"half_{seed}"].tolist() == folds.tolist()
        # The model of half 0 is the base itself, which gives a gap of 0.
        expected += np.logaddexp(0, -np.where(folds == 1, gap, 0.0)) / 2
    np.testing.assert_allclose(found.details["loss"], expected, rtol=1e-4)
    assert "base · both sides" in {label.partition("] ")[2] for label in counting.labels}
    kept = scored(lab, lab.store(), pool, [SelectiveDPO(seeds=2, beta=0.1)], models)["selective_dpo"]
    assert kept.eligible.sum() == 6 and kept.reason.tolist().count("filtered") == 6
    assert kept.best().tolist() == found.best()[:6].tolist()


def test_a_model_that_has_seen_its_half_is_refused(lab: Lab, tmp_path: Path) -> None:
    pool, method = load(ROWS), SelectiveDPO(seeds=1)
    models = half_models(lab, tmp_path, pool, method)
    with pytest.raises(ConfigError, match=r"dpo/0/0 .*was trained on row .*export --half dpo/0/0"):
        scored(lab, lab.store(), pool, [method], {**models, "dpo/0/0": models["dpo/0/1"]})
    (Path(models["dpo/0/1"]) / TRAINED_ROWS).unlink()
    with pytest.raises(PlanError, match=r"does not say which rows .*export --half dpo/0/1.*--trust-held"):
        scored(lab, lab.store(), pool, [method], models)
    assert scored(lab, lab.store(), pool, [method], models, settings={"trust_held": True})[
        "selective_dpo"
    ].eligible.any()
    del models["dpo/0/1"]
    with pytest.raises(PlanError, match="role 'dpo/0/1'; give --model dpo/0/1=WHERE, trained by DPO on the pairs"):
        scored(lab, lab.store(), pool, [method], models)  # never trained here


def test_plans_count_both_sides(lab: Lab, tmp_path: Path) -> None:
    pool, method = load(ROWS), SelectiveDPO(seeds=1)
    told = plan(pool, [method], half_models(lab, tmp_path, pool, method), settings=Settings(**PLAIN), store=lab.store())
    assert [(line.view, line.rows) for line in told.passes] == [
        ("both sides", 24),
        ("both sides in fold 0", 12),
        ("both sides in fold 1", 12),
    ]
    assert Signal(Nll(), Side("chosen")).needs() == ()
