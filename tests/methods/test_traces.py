"""The methods for reasoning traces: the numbers of their definitions, and edges."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import instdiff
from helpers import WORDS, Lab, some_rows
from instdiff.core import Prompted, Signals
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError, DataError
from instdiff.methods import (
    Blend,
    ByColumn,
    HighEntropySum,
    Lark,
    LocalLogProbability,
    Longest,
    Perplexity,
    RankSurprisal,
    RatersChoice,
)
from instdiff.methods.lark import gains, weights
from instdiff.methods.rsr import ratio_of_set
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.steps import runs
from instdiff.rendering.templates import template
from instdiff.scoring.planner import plan

from .columns import NAN, ones, ragged, run, signals

# ── rsr ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_numbers_of_rsr() -> None:
    s = signals(2, rank=ragged([1, 1, 100, 3], [2, 1, 4, 3]), nll=ragged([0.1, 0.2, 7.0, 1.2], [1, 0.5, 2.5, 1]))
    scored = run(RankSurprisal(), s)
    np.testing.assert_allclose(scored.value, [-12.352941, -2.0], rtol=1e-6)
    assert scored.best().tolist() == [1, 0]
    remark = scored.method.remark(scored, np.array([0, 1]))
    assert remark == "rank-surprisal ratio of these rows as a set: 8.5185"
    np.testing.assert_allclose(ratio_of_set(scored.details["rank"], scored.details["nll"]), 8.518519, rtol=1e-6)


def test_a_certain_row_comes_last_and_an_empty_one_has_no_ratio() -> None:
    scored = run(RankSurprisal(), signals(3, rank=ragged([1, 1], [], [9]), nll=ragged([0, 0], [], [1])))
    assert scored.best().tolist() == [2, 0] and scored.value[0] == -2e12
    assert scored.reason.tolist() == [None, "empty_response", None]
    with pytest.raises(ConfigError, match=r"'rsr.clip' is 0; the best rank is 1"):
        RankSurprisal(clip=0)


# ── hes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("share", "total", "tokens"), [(0.005, 2.0, 1), (0.25, 3.5, 2), (0.5, 4.9, 4)])
def test_the_numbers_of_hes(share: float, total: float, tokens: int) -> None:
    s = signals(1, entropy=ragged([0.1, 0.5, 2, 0.3, 1.5, 0.2, 0.05, 0.9]))
    scored = run(HighEntropySum(share=share), s)
    np.testing.assert_allclose(scored.value, [total])
    assert scored.details["hes_tokens"].tolist() == [tokens]


def test_how_many_tokens_hes_adds() -> None:
    s = signals(4, entropy=ragged(np.ones(200), np.ones(201), np.ones(1000), []))
    scored = run(HighEntropySum(), s)
    np.testing.assert_array_equal(scored.value, [1, 2, 5, NAN])  # equal ones add no tokens
    assert scored.reason[3] == "empty_response"
    with pytest.raises(ConfigError, match=r"'hes.share' is 2; a share lies in 0 to 1"):
        HighEntropySum(share=2)


# ── lark ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def traces(loss: list[float], brier: list[float], group: list[str], ids: list[str] | int | None = None) -> Signals:
    names = len(loss) if ids is None else ids
    return signals(names, nll=ones(*loss), brier=ones(*brier), group=np.array(group, object))


def test_the_numbers_of_lark() -> None:
    scored = run(Lark(best=2), traces([1, 2, 0.5], [0.6, 0.8, 0.4], ["x"] * 3))
    np.testing.assert_allclose(scored.details["ratio"], [0.6, 0.4, 0.8])
    np.testing.assert_allclose(scored.value, [0.195918, 0.163265, 0.155102], atol=1e-6)
    np.testing.assert_allclose(scored.value.sum(), 0.514286, atol=1e-6)
    np.testing.assert_allclose(scored.details["weight"], [0.833333, 0.166667, 0], atol=1e-6)


def test_problems_do_not_know_of_each_other() -> None:
    alone = run(Lark(best=2), traces([1, 2, 0.5], [0.6, 0.8, 0.4], ["x"] * 3))
    both = run(Lark(best=2), traces([7, 1, 2, 0.5, 3], [1, 0.6, 0.8, 0.4, 1.5], ["y", "x", "x", "x", "z"]))
    np.testing.assert_array_equal(both.value[1:4], alone.value)
    np.testing.assert_allclose(both.value[[0, 4]], [1 / 7, 0.5])  # of one trace the ratio
    np.testing.assert_array_equal(both.details["weight"][[0, 4]], [1, 1])


def test_the_weights_of_few_traces() -> None:
    np.testing.assert_allclose(weights(np.array([0.5, 0.2]), 3), [0.5, 0.5])
    np.testing.assert_allclose(weights(np.array([0.5, 0.2]), 3, official=True), [1, 0], atol=1e-7)
    np.testing.assert_allclose(weights(np.array([0.5, 0.5, 0.5]), 2), [0.5, 0.5])


def test_problems_without_loss_and_copies_are_filtered() -> None:
    s = traces([0, 0, 0, 1, 1], [0, 0, 0.1, 0.5, 0.5], ["x", "x", "y", "y", "y"], ["a", "b", "c", "d", "d"])
    scored = run(Lark(), s)
    assert scored.reason.tolist() == ["filtered", "filtered", None, None, "filtered"]
    assert scored.details["ratio"][2] == 0
    np.testing.assert_allclose(scored.value[3], 0.5)
    counted = run(Lark(compat="official"), s)
    assert counted.reason.tolist() == ["filtered", "filtered", None, None, None]
    np.testing.assert_allclose(counted.value[3:], [0.25, 0.25])
    with pytest.raises(ConfigError, match=r"'lark.best' is 0; the least is 1"):
        Lark(best=0)


@given(st.permutations(range(9)))
def test_the_order_of_the_rows_changes_nothing(order: list[int]) -> None:
    rng = np.random.default_rng(0)
    loss, brier = rng.random(9), rng.random(9)
    ids, group = [f"i{n % 8}" for n in range(9)], [f"g{n % 8 // 3}" for n in range(9)]
    loss[8], brier[8] = loss[0], brier[0]  # a copy

    def scores(at: list[int]) -> dict[tuple[str, float], float]:
        s = traces([*loss[at]], [*brier[at]], [group[n] for n in at], [ids[n] for n in at])
        scored = run(Lark(), s)
        pairs = zip(s.ids, s.occurrence.tolist(), scored.value.tolist(), scored.details["weight"].tolist(), strict=True)
        return {(one, copy): (value, weight) for one, copy, value, weight in pairs if value == value}

    assert scores(order) == scores(list(range(9)))


def test_the_gains_of_no_rows() -> None:
    ratio, gain = gains(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    assert len(ratio) == len(gain) == 0


# ── lalp ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_numbers_of_lalp() -> None:
    scored = run(LocalLogProbability(), signals(2, steps=ragged([2, 0.5, 2], [])))
    np.testing.assert_array_equal(scored.value, [-1.5, NAN])
    assert scored.details["steps"].tolist() == [3, 0]
    with pytest.raises(ConfigError, match=r"'lalp.k' is -1 and 'lalp.share' None; k is 0 or more"):
        LocalLogProbability(k=-1)


ROWS = [
    {"instruction": "the sky", "output": "the grass is. green and blue. explain not why\n\nthen list things. the sky"},
    {"instruction": "list", "output": "things"},
    {"instruction": "why", "output": ""},
    {"messages": [
        {"role": "user", "content": "the sky"},
        {"role": "assistant", "content": "is blue. is green."},
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "list the things. explain grass. then not."},
    ]},
]  # fmt: skip


def plain_steps(lab: Lab, row: dict[str, Any], k: int) -> list[float]:
    """Per step the mean NLL after the prompt and k steps before it, by a pass for each of them."""
    hf, model = lab.tokenizer("llama"), lab.reference("llama")
    tokenizer = HFTokenizer(hf, 200)
    made = Renderer(load([row]), tokenizer).rows(Prompted(), template("alpaca"), 200)
    ids, target, out = made.ids[0].tolist(), made.target, []
    for a, b in runs(target):
        words = [hf.decode([one]) for one in ids[a:b]]
        ends = [n for n in range(1, len(words)) if words[n - 1] == "." or (words[n - 1] == "\n" != words[n])]
        cuts = [a, *(a + end for end in ends), b]
        for n in range(len(cuts) - 1):
            seen = ids[:a] + ids[cuts[max(0, n - k)] : cuts[n + 1]]
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([seen])).logits[0].log_softmax(-1)
            size = cuts[n + 1] - cuts[n]
            last = range(len(seen) - size, len(seen))
            out.append(-float(np.mean([float(logs[at - 1, seen[at]]) for at in last])))
    return out


@pytest.mark.parametrize("k", [0, 1, 4])
def test_steps_in_windows_against_a_pass_for_each(lab: Lab, k: int) -> None:
    scored = lab.score(ROWS, [LocalLogProbability(k=k)])["lalp"]
    assert scored.reason.tolist() == [None, None, "empty_response", None]
    for row in (0, 1, 3):
        plain = plain_steps(lab, ROWS[row], k)
        assert scored.details["steps"][row] == len(plain) == (5, 1, None, 5)[row]
        np.testing.assert_allclose(scored.value[row], -np.mean(plain), rtol=1e-4)


def test_a_wide_window_is_the_whole_pass(lab: Lab) -> None:
    both = lab.score(ROWS[:2], [LocalLogProbability(k=9), Perplexity()])
    share = lab.score(ROWS[:2], [LocalLogProbability(share=1.0)])["lalp"]
    np.testing.assert_array_equal(share.value, both["lalp"].value)
    np.testing.assert_allclose(share.value[1], -both["perplexity"].details["nll"][1], rtol=1e-5)


def test_steps_come_from_the_store_and_rows_are_packed(lab: Lab) -> None:
    store = lab.store()
    first = lab.score(ROWS, [LocalLogProbability()], store=store)["lalp"]
    shuffled = lab.score([ROWS[n] for n in (3, 1, 0, 2)], [LocalLogProbability()], store=store)["lalp"]
    np.testing.assert_array_equal(shuffled.value, first.value[[3, 1, 0, 2]])


def test_a_row_of_very_many_steps(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instdiff.rendering.steps.MOST_STEPS", 3)
    scored = lab.score(ROWS, [LocalLogProbability()])["lalp"]
    assert scored.reason.tolist() == ["too_long", None, "empty_response", "too_long"]


# ── choice, and the recipe of Select2Reason ───────────────────────────────────────────────────────────────────────────


def test_the_share_of_yes() -> None:
    logs = np.log([[0.1, 0.3], [0.6, 0.2]])
    scored = run(RatersChoice(), signals(3, options=ragged(*logs, [])))
    np.testing.assert_allclose(scored.value, [0.75, 0.25, NAN])
    np.testing.assert_allclose(scored.details["mass"], [0.4, 0.8, NAN])


def test_the_numbers_of_select2reason(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"why {n}", "output": "x" * length, "difficulty": difficulty}
        for n, (difficulty, length) in enumerate(zip([0.9, 0.2, 0.6, 0.4], [300, 900, 700, 100], strict=True))
    ]
    blend = Blend(of=(ByColumn(path="difficulty"), Longest(unit="chars")), weights=(0.25, 0.75))
    scored = instdiff.score(load(rows), blend, store=tmp_path)["blend"]
    np.testing.assert_allclose(scored.value, [0.5, 0.75, 0.666667, 0.083333], atol=1e-6)


def test_a_rater_is_asked_about_difficulty(lab: Lab) -> None:
    rows = some_rows(5)
    scored = lab.score(rows, [RatersChoice(model="base")], max_length=512)["choice"]
    assert scored.eligible.all() and (scored.value > 0).all() and (scored.value < 1).all()
    assert len(set(scored.value.tolist())) == 5


def test_weights_go_into_the_rows_and_not_into_layouts(lab: Lab, tmp_path: Path) -> None:
    rows = [{"instruction": f"why {n % 3}", "output": f"the sky is {word}"} for n, word in enumerate(WORDS[:9])]
    pool = load(rows)
    table = lab.score(pool, [Lark(best=2)], base="llama")
    chosen = instdiff.select(pool, table, "100%").with_weights("lark.weight")
    chosen.write(tmp_path / "rows.jsonl")
    written = [json.loads(line)["weight"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(written, table["lark"].details["weight"][chosen.at])
    assert sum(written) == pytest.approx(3) and sum(weight > 0 for weight in written) == 6
    assert chosen.record()["weights"] == "lark.weight" and "weight" not in chosen.head(1)[0]
    told: list[str] = []
    chosen.write_record(tmp_path / "rows.selection.json", tmp_path / "rows.jsonl")
    instdiff.export(tmp_path / "rows.jsonl", "jsonl", tmp_path / "own", log=told.append)
    said = "the weights of the rows are left out of what is written for llamafactory: all rows count the same"
    assert '"weight"' in (tmp_path / "own" / "rows.jsonl").read_text()
    assert said.replace("llamafactory", "jsonl") not in told
    for data in (chosen, tmp_path / "rows.jsonl"):
        instdiff.export(data, "llamafactory", tmp_path / "llamafactory", log=told.append)
    assert told.count(said) == 2
    with pytest.raises(DataError, match=r"'lark' has no detail 'weigth'; did you mean 'weight'"):
        instdiff.select(pool, table, 3).with_weights("weigth")
    with pytest.raises(DataError, match=r"row \d has no 'm.x' of 0 or more"):
        bad = replace(table["lark"], name="m", details={"x": np.full(9, NAN)})
        instdiff.select(pool, bad, 3).with_weights("x")


def test_the_trace_methods_share_one_pass(lab: Lab) -> None:
    methods = [RankSurprisal(), HighEntropySum(), Lark(), Lark(compat="official", best=2), Perplexity()]
    steps = [step for wave in plan(one for method in methods for one in method.signals().values()) for step in wave]
    assert len(steps) == 1
    found = lab.score(some_rows(9), methods[:3] + methods[4:])
    for name in ("rsr", "hes", "lark"):
        assert found[name].eligible.all()
    np.testing.assert_allclose(found["rsr"].details["nll"], found["perplexity"].details["nll"])
