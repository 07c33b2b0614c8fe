"""Methods that match a target: their hand examples, one chooser for all, and that order never matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import Lab, some_rows
from instdiff.config.methods import make_method
from instdiff.core import Budget, GradSketch, Method, Scored, Signals
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.errors import ConfigError, DataError
from instdiff.methods import BM25, DSIR, LESS, RDS
from instdiff.methods.algorithms.words import Search, hash_ngrams, importance
from instdiff.methods.random import uniform
from instdiff.scoring.scorer import score

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = (X[:5] + 0.2).astype(np.float32)
TASKS = np.array(["b", "a", "b", "a", "c"], object)
WORDS = ["add", "two", "numbers", "sort", "the", "list", "of", "translate", "text", "into", "french", "sum", "prime"]
TEXTS = [" ".join(RNG.choice(WORDS, RNG.integers(2, 9))) for _ in range(40)]
QUERIES = ["sort numbers", "translate text", "nothing shared here", "french", "prime sum of two"]


def texts(pool: Sequence[str], target: Sequence[str], **more: Any) -> Signals:
    columns = {"text": np.array(pool, object), "target": np.array(target, object)} | more
    ids = [f"id{n:03d}" for n in range(len(pool))]
    return Signals(columns, ids, np.full(len(pool), None, object), None, {"target", "task"})


def gradients(x: Any, y: Any, **more: Any) -> Signals:
    names = {"vector0": Ragged.of(list(x), np.float32), "target0": Ragged.of(list(y), np.float32)} | more
    ids = [f"id{n:03d}" for n in range(len(x))]
    return Signals(names, ids, np.full(len(x), None, object), None, {"target0", "target1", "task"})


def table(method: Method, s: Signals) -> Scored:
    out = method.score(s).with_reasons(s)
    return Scored(method.name, method, out.value, out.reason, out.details, s.ids, np.ones(len(s), int), lambda: s)


def made(method: Method) -> Signals:
    if isinstance(method, LESS):
        return gradients(X, Y, task=TASKS)
    if isinstance(method, RDS):
        columns = {"vector": Ragged.of(list(X), np.float32), "target": Ragged.of(list(Y), np.float32), "task": TASKS}
        return Signals(columns, [f"id{n:03d}" for n in range(40)], np.full(40, None, object), None, {"target", "task"})
    return texts(TEXTS, QUERIES, task=TASKS)


EVERY = [
    kind(match=match, task=task)
    for kind in (RDS, BM25, LESS)
    for match in ("robin", "max", "mean")
    for task in (None, "task")
]
every = pytest.mark.parametrize(
    "method", [*EVERY, DSIR()], ids=lambda m: f"{m.name}-{getattr(m, 'match', '')}-{getattr(m, 'task', '')}"
)


# ── what all share ────────────────────────────────────────────────────────────────────────────────────────────────────


@every
@given(order=st.permutations(range(40)))
def test_the_inputs_order_never_matters(method: Method, order: list[int]) -> None:
    s = made(method)
    mixed = s.take(np.array(order))
    plain, other = table(method, s), table(method, mixed)
    assert [mixed.ids[row] for row in other.best()] == [s.ids[row] for row in plain.best()]
    if method.by_score:  # of turns a share is ranked, which is one of as many rows
        np.testing.assert_array_equal(other.value, plain.value[order])


@every
def test_a_larger_budget_keeps_the_head(method: Method) -> None:
    out = table(method, made(method))
    picks = [method.pick(out, Budget(n, "rows")).tolist() for n in (3, 9, 30)]
    assert picks[2][:9] == picks[1] and picks[1][:3] == picks[0] and len(set(picks[2])) == len(picks[2]) > 9


@pytest.mark.parametrize("kind", [RDS, LESS])
def test_likeness_is_the_mean_of_a_task_and_then_the_largest(kind: type[RDS | LESS]) -> None:
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X.astype(float), Y.astype(float))]
    cosine = unit[0] @ unit[1].T
    by_task = np.stack([cosine[:, name == TASKS].mean(1) for name in ("b", "a", "c")])
    for match, task, expected in (
        ("max", None, cosine.max(1)),
        ("mean", None, cosine.mean(1)),
        ("max", "task", by_task.max(0)),
        ("mean", "task", by_task.mean(0)),
    ):
        method = kind(match=match, task=task)  # type: ignore[arg-type]
        np.testing.assert_allclose(table(method, made(method)).value, expected, atol=1e-6)
        assert method.by_score and not kind(match="robin").by_score


def test_the_words_for_matching_are_the_same_everywhere() -> None:
    for name in ("rds", "bm25", "less"):
        for match in ("robin", "max", "mean"):
            assert make_method(name, {"match": match}).params()["match"] == match
        with pytest.raises(ConfigError, match=f"'{name}.match'"):
            make_method(name, {"match": "nearest"})
    assert (RDS().match, BM25().match, LESS().match) == ("robin", "robin", "max")


# ── bm25 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = ["add two numbers", "sort the list of numbers", "translate the text"]


def test_bm25_of_the_specification() -> None:
    out = table(BM25(match="max"), texts(NUMBERS, ["sort numbers"]))
    np.testing.assert_allclose(out.value, [0.511885, 1.246810, np.nan], atol=1e-6)
    assert out.reason.tolist() == [None, None, "filtered"] and out.scorable.all()
    turns = table(BM25(reach=1.0), texts(NUMBERS, ["sort numbers"]))
    np.testing.assert_array_equal(turns.value, [-1, 0, np.nan])
    assert turns.reason.tolist() == [None, None, "filtered"]
    assert BM25(k1=1.2).k1 == 1.2
    with pytest.raises(ConfigError, match="k1 is 0 or more and b lies in 0 to 1, not -1 and"):
        BM25(k1=-1)


def test_bm25_goes_round_and_passes_over_targets_without_a_common_word() -> None:
    s = texts(NUMBERS, ["Sort!", "unheard of? no: unheard", "TEXT translate", "sort numbers"])
    out = table(BM25(reach=1.0), s)  # the second shares "of" with one row
    assert out.best().tolist() == [1, 2, 0]
    none = table(BM25(reach=1.0), texts(NUMBERS, ["", "nothing"]))
    assert set(none.reason) == {"filtered"} and not none.eligible.any()
    with pytest.raises(DataError, match="no row has a word in its instruction"):
        BM25().score(texts(["!", ""], ["sort"]))


def test_bm25_of_a_task_is_the_mean_over_its_queries() -> None:
    s = texts(TEXTS, QUERIES, task=TASKS)
    search = Search(TEXTS)
    scores = search.scores(search.count(QUERIES))
    by_task = np.stack([scores[name == TASKS].mean(0) for name in ("b", "a", "c")])
    found = table(BM25(match="max", task="task"), s)
    np.testing.assert_allclose(found.value, np.where(scores.max(0) > 0, by_task.max(0), np.nan), atol=1e-12)
    found = table(BM25(match="mean", task="task"), s)
    np.testing.assert_allclose(found.value, np.where(scores.max(0) > 0, by_task.mean(0), np.nan), atol=1e-12)


def test_rows_of_text_methods_without_a_response_say_so() -> None:
    rows = [{"instruction": "sort numbers", "output": ""}, {"instruction": "sort two", "output": "ok"}]
    target = load([{"instruction": "sort", "output": "x"}])
    found = score(load(rows), [BM25(reach=1.0), DSIR()], target=target)
    assert [found[name].reason.tolist() for name in ("bm25", "dsir")] == [["empty_response", None]] * 2


# ── dsir ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dsir_of_the_specification() -> None:
    weights = importance(np.array([8, 2]), np.array([1, 3]))
    np.testing.assert_allclose(weights, [-1.163151, 1.321756], atol=1e-6)
    np.testing.assert_allclose(np.array([[4, 0], [2, 2]]) @ weights, [-4.652603, 0.317210], atol=1e-6)
    np.testing.assert_allclose(importance(np.array([8, 2]), np.array([0, 3]), 1.0)[0], np.log(0.2 / 0.8), atol=1e-6)


def test_ngrams_are_hashed_as_published() -> None:
    from hashlib import sha256

    grams, sizes, words = hash_ngrams(["Don't stop", "", "a"], 2, 10_000)
    wanted = ["don", "'", "t", "stop", "don '", "' t", "t stop", "a"]
    assert grams.tolist() == [int(sha256(gram.encode()).hexdigest(), 16) % 10_000 for gram in wanted]
    assert sizes.tolist() == [7, 0, 1] and words.tolist() == [4, 0, 1]


def test_dsir_sums_over_ngrams_and_draws_by_the_seed() -> None:
    s = texts(TEXTS, QUERIES)
    plain = table(DSIR(noise=False), s)
    grams, sizes, _ = hash_ngrams(TEXTS, 2, 10_000)
    weights = importance(
        np.bincount(grams, minlength=10_000), np.bincount(hash_ngrams(QUERIES, 2, 10_000)[0], minlength=10_000)
    )
    expected = [weights[part].sum() for part in np.split(grams, np.cumsum(sizes)[:-1])]
    np.testing.assert_allclose(plain.value, expected)
    per = table(DSIR(noise=False, per_token=True), s)
    np.testing.assert_allclose(per.value, np.array(expected) / sizes)
    drawn = table(DSIR(seed=3), s)
    np.testing.assert_allclose(drawn.value - drawn.details["log_ratio"], -np.log(-np.log(uniform(3, s))))
    np.testing.assert_allclose(drawn.details["log_ratio"], expected)
    assert (table(DSIR(seed=4), s).value != drawn.value).all()


def test_dsir_leaves_short_rows_out() -> None:
    out = table(DSIR(min_tokens=3), texts(["one two", "one two three", ""], ["one"]))
    assert out.reason.tolist() == ["too_short", None, "too_short"] and np.isnan(out.details["log_ratio"][2])
    with pytest.raises(DataError, match="no row of the target file has a word"):
        DSIR().score(texts(["one"], ["", " "]))
    with pytest.raises(ConfigError, match="buckets 1, ngrams 2"):
        DSIR(buckets=1)


# ── less ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_less_leaves_out_what_has_no_gradient() -> None:
    x = X.copy()
    x[3] *= 1e-9
    s = gradients(x, Y)
    for method in (LESS(), LESS(match="robin", reach=1.0)):
        out = table(method, s)
        assert out.reason.tolist() == [None] * 3 + ["filtered"] + [None] * 36
        np.testing.assert_allclose(out.details["norm"], np.linalg.norm(x, axis=1), rtol=1e-6)
    faint = gradients(X, np.concatenate([Y, Y[:1] * 1e-9]))
    np.testing.assert_array_equal(table(LESS(), faint).value, table(LESS(), gradients(X, Y)).value)
    with pytest.raises(DataError, match="no row of the target file"):
        LESS().score(gradients(X, Y * 1e-9))


def test_less_weighs_models_by_their_rates() -> None:
    other = RNG.normal(size=(40, 6)).astype(np.float32)
    more = {"vector1": Ragged.of(list(other), np.float32), "target1": Ragged.of(list(other[:5]), np.float32)}
    method = LESS(models=("warmup/1", "warmup/2"), weights=(3.0, 1.0), match="mean")
    found = table(method, gradients(X, Y, **more)).value
    one = table(LESS(match="mean"), gradients(X, Y)).value
    two = table(LESS(match="mean"), gradients(other, other[:5])).value
    np.testing.assert_allclose(found, 0.75 * one + 0.25 * two, atol=1e-6)
    asked = method.signals()
    assert {signal.model for signal in asked.values()} == {"warmup/1", "warmup/2"}
    assert {signal.measure for signal in asked.values()} == {GradSketch(128, 64)}
    with pytest.raises(ConfigError, match="2 models have 1 weights"):
        LESS(models=("a", "b"), weights=(1.0,))
    with pytest.raises(ConfigError, match="weights lie above 0"):
        LESS(weights=(0.0,))


def test_less_through_a_model_is_kept_and_prefers_the_target_itself(lab: Lab) -> None:
    rows, store = some_rows(12, seed=1), lab.store()
    target = load([{**rows[4], "task": "one"}, {**rows[7], "task": "two"}])
    first = score(
        load(rows), [LESS(task="task")], str(lab.models["llama"]), store=store, target=target, dtype="float32"
    )
    found = first["less"]
    assert set(found.best()[:2].tolist()) == {4, 7} and found.value[4] == pytest.approx(1.0, abs=1e-5)
    again = score(load(rows), [LESS()], str(lab.models["llama"]), store=store, target=target, dtype="float32")
    np.testing.assert_array_equal(again["less"].value, found.value)
