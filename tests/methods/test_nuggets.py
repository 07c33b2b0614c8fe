"""NUGGETS on hand-made columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from instdiff.config.methods import make_method
from instdiff.core import Anchored, MeanNll, Pooled, Prompted, Signal, Signals
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.signals import Anchors, Neighbours
from instdiff.errors import ConfigError
from instdiff.methods import Nuggets

from .columns import NAN, ones, ragged, run, signals

ALONE = ones(2.0, 3.0, 1.0, 4.0)


def table(alone: Ragged = ALONE, anchors: Sequence[str] = ("a", "b", "c", "d")) -> Signals:
    """Five rows before four anchors; the anchors' own column has a row for each anchor."""
    given = ragged([1.0, 2.0, 0.5, 3.0], [2.0, 3.0, 1.0, 3.5], [], [3.0, 4.0, 2.0, 5.0], [1.0, NAN, NAN, 5.0])
    return signals(
        5, [None, None, "empty_response", None, None], given=given, alone=alone, anchor=np.array(anchors, object)
    )


def test_the_share_of_anchors_that_a_row_helps() -> None:
    out = run(Nuggets(anchors=4), table())
    np.testing.assert_array_equal(out.value, [1.0, 0.25, NAN, 0.0, 0.5])  # no change is no help
    np.testing.assert_array_equal(out.details["share"], out.value)
    np.testing.assert_array_equal(out.details["saved"], [0.875, 0.125, NAN, -1.0, 0.0])
    assert out.reason.tolist() == [None, None, "empty_response", None, None]
    assert out.best().tolist() == [0, 4, 1, 3]


def test_no_anchor_counts_for_itself() -> None:
    out = run(Nuggets(anchors=4), table(anchors=("id000", "id001", "id001", "id004")))
    np.testing.assert_array_equal(out.value, [1.0, 0.5, NAN, 0.0, 1.0])  # of 3, 2, none, 4 and 1 anchors
    np.testing.assert_array_equal(out.details["saved"], [2.5 / 3, 0.25, NAN, -1.0, 1.0])


def test_the_published_way_counts_an_anchor_for_itself_and_long_prompts_as_losses() -> None:
    method = Nuggets(anchors=5, compat="official")  # one of the five has a prompt that fills the limit
    out = run(method, table(anchors=("id000", "id001", "id001", "id004")))
    np.testing.assert_allclose(out.value, [4 / 5, 1 / 5, NAN, 0.0, 1 / 5])
    np.testing.assert_array_equal(out.details["saved"], [0.875, 0.125, NAN, -1.0, 0.0])
    assert method.signals()["given"].view == Anchored(Signal(Pooled(), Prompted(), "base"), 5, 200, 0, long=True)


def test_a_threshold() -> None:
    out = run(Nuggets(anchors=4, above=0.5), table())
    assert out.reason.tolist() == [None, "filtered", "empty_response", "filtered", "filtered"]
    np.testing.assert_array_equal(out.details["share"], [1.0, 0.25, NAN, 0.0, 0.5])
    assert out.best().tolist() == [0]


def test_an_anchor_without_a_number() -> None:
    out = run(Nuggets(anchors=4), table(ones(2.0, NAN, 1.0, 4.0)))
    np.testing.assert_array_equal(out.value, [1.0, 1 / 3, NAN, 0.0, 0.5])
    assert out.reason.tolist() == [None, None, "empty_response", None, None]
    none = run(Nuggets(anchors=4), table(ones(*[NAN] * 4)))
    assert none.reason.tolist() == ["non_finite", "non_finite", "empty_response", "non_finite", "non_finite"]


def test_signals() -> None:
    by = Signal(Pooled(), Prompted(), "base")
    assert Nuggets().signals() == {
        "given": Signal(MeanNll(), Anchored(by, 100, 200, 0), "base"),
        "alone": Signal(MeanNll(), Anchors(by, 100, 200, 0), "base"),
        "anchor": Signal(Neighbours(), Anchors(by, 100, 200, 0), "base"),
    }
    assert all(signal.needs() == (by,) for signal in Nuggets().signals().values())


def test_parameters() -> None:
    for params in ({"anchors": 0}, {"limit": 1}):
        with pytest.raises(ConfigError, match="anchors is 1 or more, limit 2 or more"):
            make_method("nuggets", params)
