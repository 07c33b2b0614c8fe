"""MIWV on hand-made columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from instdiff.config.methods import make_method
from instdiff.core import Demonstrated, Embedding, Nll, Prompted, Signal, Words
from instdiff.core.signals import Neighbours
from instdiff.errors import ConfigError
from instdiff.methods import MIWV

from .columns import NAN, ragged, run, signals


def test_the_demonstration_that_hurts_most_comes_first() -> None:
    s = signals(
        4,
        zero_shot=ragged([1.0, 3.0], [2.0], [1.0, 1.0], []),
        one_shot=ragged([1.0, 1.0], [2.5], [1.0, 3.0], []),
        neighbours=np.array([[2, 1], [0, -1], [1, 0], [-1, -1]]),
    )
    out = run(MIWV(shots=2), s)
    assert list(out.details) == ["miwv", "nll_zero_shot", "nll_one_shot", "neighbour"]
    np.testing.assert_array_equal(out.value, [-1.0, 0.5, 1.0, NAN])
    np.testing.assert_array_equal(out.details["miwv"], [-1.0, 0.5, 1.0, NAN])
    np.testing.assert_array_equal(out.details["nll_zero_shot"], [2.0, 2.0, 1.0, NAN])
    np.testing.assert_array_equal(out.details["nll_one_shot"], [1.0, 2.5, 2.0, NAN])
    np.testing.assert_array_equal(out.details["neighbour"], [2, 0, 1, NAN])
    assert out.reason.tolist() == [None, None, None, "empty_response"]
    assert out.best().tolist() == [2, 1, 0]


def test_details_without_a_demonstration() -> None:
    s = signals(
        ["a", "b"],
        ["no_neighbour", None],
        zero_shot=ragged([1.0], [2.0]),
        one_shot=ragged([], [1.0]),
        neighbours=np.array([-1, 0]),
    )
    out = run(MIWV(), s)
    assert out.reason.tolist() == ["no_neighbour", None]
    np.testing.assert_array_equal(out.details["nll_zero_shot"], [1.0, 2.0])
    np.testing.assert_array_equal(out.details["neighbour"], [NAN, 0])


def test_signals() -> None:
    by = Signal(Embedding("mean"), Words("instruction"), "embedder")
    shown = Demonstrated(by, 1, "embedding", None, 42)
    assert MIWV().signals() == {
        "zero_shot": Signal(Nll(), Prompted(), "base"),
        "one_shot": Signal(Nll(), shown, "base"),
        "neighbours": Signal(Neighbours(), shown, "base"),
    }
    assert MIWV().signals()["one_shot"].needs() == (by,)
    own: Any = MIWV(pooling="own").signals()["one_shot"].view
    assert own.by == Signal(Embedding(), Words("instruction"), "embedder")
    other = MIWV(retrieval="bm25", shots=3, seed=7, model="proxy").signals()["one_shot"]
    assert other == Signal(Nll(), Demonstrated(None, 3, "bm25", None, 7), "proxy") and other.needs() == ()


def test_parameters() -> None:
    with pytest.raises(ConfigError, match="shots is 0; the least is 1"):
        make_method("miwv", {"shots": 0})
    with pytest.raises(ConfigError, match=r"'miwv\.retrieval'"):
        make_method("miwv", {"retrieval": "nearest"})
