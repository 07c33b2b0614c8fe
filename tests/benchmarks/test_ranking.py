"""What benchmarks say of rankings is the definition, and skills are what their names say."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ranking
import skills


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    score, sought = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = score[sought][:, None] - score[~sought][None]
    assert ranking.auc(score, sought) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert np.isnan(ranking.auc(score, np.zeros(60, bool)))


def test_rows_without_a_score_share_the_last_place() -> None:
    np.testing.assert_array_equal(ranking.last(np.array([2.0, np.nan, -3.0, np.nan])), [2, -4, -3, -4])
    assert ranking.last(np.full(2, np.nan)).tolist() == [-1, -1]


def test_the_interval_holds_the_value() -> None:
    score = np.random.default_rng(0).random(80)
    found = ranking.auc_interval(score, score + np.linspace(0, 1, 80) > 1)
    assert 0 <= found.low < found.value < found.high <= 1


@pytest.mark.parametrize(
    ("skill", "words", "answer"),
    [
        ("copy", "cat ant dog", "cat ant dog"),
        ("reverse", "cat ant dog", "dog ant cat"),
        ("capitals", "cat ant dog", "CAT ANT DOG"),
        ("sort", "cat ant dog", "ant cat dog"),
        ("last", "cat ant dog", "dog"),
        ("twice", "cat ant", "cat cat ant ant"),
        ("rotate", "cat ant dog", "ant dog cat"),
        ("sum", "9 + 4", "13"),
    ],
)
def test_skills(skill: str, words: str, answer: str) -> None:
    assert " ".join(skills.SKILLS[skill][1](words.split())) == answer


def test_a_sequence_is_tokenised_as_the_package_does() -> None:
    known, rng = skills.tokenizer(), Random(0)
    for _ in range(20):
        parts = skills.shown(rng, "reverse", ["ant", "7", "CAT"])
        ids, labels = skills.batch([parts], known.get_vocab())
        assert ids[0].tolist() == known("".join(text for text, _ in parts) + "</s>")["input_ids"]
        learnt = " ".join(text for text, wanted in parts if wanted) + " </s>"
        assert known.decode(labels[0][labels[0] >= 0]).split() == learnt.split()


def test_each_skill_but_copying_is_lacking_once_and_present_once() -> None:
    for place in range(len(skills.OTHERS)):
        assert {place in half for half in skills.LACKING} == {True, False}
    assert all(len(half) == len(skills.SKILLS) // 2 for half in skills.LACKING)
