"""Win rates: the published logs' numbers, and what is read off a judge's answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.evaluation.llm_judge.parsing import Weighed, preference, rating, two_scores, verdict
from instdiff.evaluation.llm_judge.win_rate import WinCounts, games, length_controlled, margins, outcomes

PUBLISHED = {"vicuna": (44, 15, 21), "koala": (85, 36, 59), "wizardlm": (102, 54, 62)}


def reviews(shared: Path, name: str) -> list[dict[str, Any]]:
    path = shared / "data" / "judge_logs" / f"{name}_wrap_reviews_gpt4.json"
    if not path.is_file():
        pytest.skip("no judge logs in the shared folder")
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["data"]
    return rows


@pytest.mark.shared_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_logs_give_the_published_counts(shared: Path, name: str) -> None:
    """For the first side of the logs, which is the model of 5 % of the data."""
    rows = reviews(shared, name)
    read = [[two_scores(row[key]) for row in rows] for key in ("review", "review_reverse")]
    tally = WinCounts.of(outcomes(*margins(*read)))
    win, tie, lose = PUBLISHED[name]
    assert tally == WinCounts(win, tie, lose)
    assert tally.win_score == pytest.approx((win - lose) / (win + tie + lose) + 1)
    logged = [[_logged(row[key]) for row in rows] for key in ("scores", "scores_reverse")]
    assert read == logged


def _logged(scores: Any) -> list[float]:
    found: list[float] = json.loads(scores) if isinstance(scores, str) else scores
    return found


def test_both_orders_decide() -> None:
    first = [1, 1, 0, 2, 0, -1, -1, 0, np.nan, 1]
    swapped = [1, 0, 3, -1, 0, 1, -2, -1, 1, np.nan]
    assert outcomes(first, swapped).tolist()[:8] == [1, 1, 1, 0, 0, 0, -1, -1]
    assert np.isnan(outcomes(first, swapped)[8:]).all()
    tally = WinCounts.of(outcomes(first, swapped))
    assert tally.record() == {"win": 3, "tie": 3, "lose": 2, "win_score": 1.125}
    assert WinCounts(0, 0, 0).win_score is None
    ours, theirs = margins([[9, 8], [5, 5]], [[7, 9], [6, 4]])
    assert ours.tolist() == [1, 0] and theirs.tolist() == [2, -2]


def test_strong_verdicts_count_threefold() -> None:
    share, count = games([("A>>B", "B>>A"), ("A>B", "A>>B"), ("A=B", None), (None, None), ("B>A", "A=B")])
    assert count.tolist() == [6, 4, 1, 0, 2]
    assert share[[0, 1, 2, 4]].tolist() == [1, 0.25, 0.5, 0.25] and np.isnan(share[3])


def test_length_control_takes_out_what_length_explains() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.integers(200, 800, 4000)
    ours = theirs + rng.integers(-300, 700, 4000)
    longer = (ours - theirs) / (ours - theirs).std()
    likes = 1 / (1 + np.exp(-(-0.5 + 2.0 * np.tanh(longer))))
    wins = (rng.random(4000) < likes).astype(float)
    even = 1 / (1 + np.exp(0.5))
    assert wins.mean() > even + 0.1
    assert length_controlled(wins, ours, theirs) == pytest.approx(even, abs=0.03)
    assert length_controlled(likes, ours, theirs) == pytest.approx(even, abs=1e-3)
    assert length_controlled(1 - likes, theirs, ours) == pytest.approx(1 - even, abs=1e-3)
    wins[:100] = np.nan
    assert length_controlled(wins, ours, theirs) == length_controlled(wins[100:], ours[100:], theirs[100:])


def test_length_control_where_there_is_nothing_to_fit() -> None:
    assert length_controlled(np.array([np.nan]), [3], [4]) is None
    assert length_controlled(np.array([1.0, 0.0, 0.5]), [5, 6, 7], [5, 6, 7]) == 0.5
    assert length_controlled(np.array([1.0, 1.0]), [5, 9], [5, 6]) == 1.0
    apart = length_controlled(np.array([0.0, 0.0, 1.0, 1.0]), [1, 2, 9, 10], [6, 6, 6, 5])
    assert apart is not None and 0.2 < apart < 0.8


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("9 8.5\nBoth are good.", [9, 8.5]),
        ("\n 10, 1 \n", [10, 1]),
        ("<think>3 4</think>\n7 8", [7, 8]),
        ("0 7", [0, 7]),
        ("7", None),
        ("7 8 9", None),
        ("11 3", None),
        ("Scores: 7 8", None),
        ("-1 8", None),
        ("Both are good.\n7 8", None),
        ("<think>7 8", None),
        ("٣ ٤", None),
        ("", None),
    ],
)
def test_two_scores(answer: str, scores: list[float] | None) -> None:
    assert two_scores(answer) == scores


def test_verdicts_and_ratings() -> None:
    assert verdict("My answer ... so [[B>>A]].") == "B>>A"
    assert verdict("[[A>B]], that is [[A>B]]") == "A>B"
    assert [verdict(said) for said in ("[[A>B]] or [[A=B]]", "A>B", "[[A<B]]", "[[AA]]", "")] == [None] * 5
    assert rating("Well. [[7]]") == 7 and rating("[[8.5]] Rating: [[8.5]]") == 8.5
    assert [rating(said) for said in ("[[0]]", "[[11]]", "[[7]] no, [[8]]", "[7]", "[[seven]]")] == [None] * 5


def test_preferences() -> None:
    assert [preference(said) for said in ("m", " M\n", '"m"', "tie", "both", "Mm", "")] == [1, 0, 1, 0.5] + [None] * 3
    log = np.log
    told = Weighed.of("M", [("M", {"M": log(0.6), "m": log(0.2), " m": log(0.1), "x": log(0.1)})])
    assert preference(told) == pytest.approx(1 / 3)
    late = Weighed.of("\nm", [("\n", {"\n": log(0.9)}), ("m", {"m": log(0.75), "M": log(0.25)})])
    assert preference(late) == pytest.approx(0.75)
    assert preference(Weighed.of("m", [("m", {"m": 0.0})])) == 1
    assert preference(Weighed.of("It", [("It", {"It": log(0.5), "M": log(0.3)})])) == 0
    assert preference(Weighed.of("It", [("It", {"It": log(0.99), "M": log(0.001)})])) is None
