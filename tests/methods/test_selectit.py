"""SelectIT on hand-made columns, and as published on recorded probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.config.methods import make_method
from instdiff.core import Asked, Budget, Choice, Signal
from instdiff.core.arrays.ragged import Ragged
from instdiff.errors import ConfigError
from instdiff.methods import SelectIT

from .columns import NAN, run, signals

DIGITS = ("1", "2", "3", "4", "5")


def logs(p: Any) -> Ragged:
    """Log-probabilities of the digits; a row of NaN has none."""
    return Ragged.of([np.log(row) if np.isfinite(row).all() else [] for row in np.asarray(p, float)], np.float64)


def test_three_levels() -> None:
    sure, torn = [0.0625, 0.0625, 0.0625, 0.0625, 0.75], [0.25, 0.25, 0.125, 0.125, 0.25]
    none = [NAN] * 5
    columns = {
        "base_0": logs([sure, torn, none]), "base_1": logs([torn, torn, none]),
        "other_0": logs([torn, sure, none]), "other_1": logs([torn, sure, none]),
    }  # fmt: skip
    method = SelectIT(questions=2, models={"base": 1, "other": 3})
    out = run(method, signals(3, **columns))
    # 5 * 4 * (0.75 - 0.0625) / 4, and 1 * (2 * 0.125) / 4: the lowest of equally likely digits
    a, b = 5 * 0.6875, 0.0625
    np.testing.assert_allclose(out.details["token_level"], [a, b, NAN], rtol=1e-12)
    first = (a + b) / 2 / (1 + 0.2 * (a - b) / 2)
    np.testing.assert_allclose(out.details["sentence_level"], [first, b, NAN], rtol=1e-12)
    np.testing.assert_allclose(out.value, [(first + 3 * b) / 4, (b + 3 * a) / 4, NAN], rtol=1e-12)
    assert out.reason.tolist() == [None, None, "empty_response"]


def test_probabilities_may_be_of_any_size() -> None:
    """Options hold little of the whole vocabulary's probability; only how it is shared among them counts."""
    p = np.array([[0.1, 0.2, 0.3, 0.25, 0.15]])
    wide, narrow = (
        run(SelectIT(questions=1), signals(1, base_0=Ragged.of(np.log(p) - less, np.float64))) for less in (0, 900)
    )
    np.testing.assert_allclose(wide.value, narrow.value, rtol=1e-12)


@pytest.mark.shared_data
def test_published_ratings_and_order(shared: Path) -> None:
    recorded = json.loads((shared / "golden" / "selectit" / "ratings.json").read_text(encoding="utf-8"))
    p = np.array(recorded["probability"])
    columns = {f"base_{number}": logs(p[:, number]) for number in range(5)}
    out = run(SelectIT(compat="official"), signals(len(p), **columns))
    np.testing.assert_allclose(out.details["token_level"], np.array(recorded["token_level"])[:, 0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(out.details["sentence_level"], recorded["sentence_level"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(out.value, recorded["sentence_level"], rtol=0, atol=1e-9)
    assert out.method.pick(out, Budget(1.0)).tolist() == recorded["order"]
    same = run(SelectIT(norm="official"), signals(len(p), **columns))
    np.testing.assert_array_equal(same.value, out.value)
    assert not np.allclose(run(SelectIT(), signals(len(p), **columns)).value, out.value)


def test_ties() -> None:
    p = [[0.1, 0.2, 0.3, 0.25, 0.15]] * 3
    s = signals(["c", "a", "b"], base_0=logs(p))
    ours, official = (run(SelectIT(questions=1, compat=compat), s) for compat in ("default", "official"))
    assert ours.method.pick(ours, Budget(1.0)).tolist() == [1, 2, 0]
    assert official.method.pick(official, Budget(1.0)).tolist() == [2, 1, 0]
    some = run(SelectIT(questions=1, compat="official"), signals(3, base_0=logs([p[0], [NAN] * 5, p[0]])))
    assert some.method.pick(some, Budget(1.0)).tolist() == [2, 0]


def test_signals() -> None:
    assert SelectIT().signals() == {
        f"base_{number}": Signal(Choice(DIGITS), Asked("selectit", number), "base") for number in range(5)
    }
    for method in (SelectIT(questions=1, turns="first"), SelectIT(questions=1, compat="official")):
        assert method.signals() == {"base_0": Signal(Choice(DIGITS), Asked("selectit", 0, turn=0), "base")}
    two = SelectIT(questions=1, prompts="mine.yaml", models={"base": 7, "other": 13}).signals()
    assert two == {f"{role}_0": Signal(Choice(DIGITS), Asked("mine.yaml", 0), role) for role in ("base", "other")}


def test_parameters() -> None:
    made = make_method("selectit", {"models": {"base": 7, "other": 13}, "questions": 3})
    assert isinstance(made, SelectIT) and dict(made.models) == {"base": 7.0, "other": 13.0}
    for params, message in (
        ({"questions": 0}, "questions is 0; the least is 1"),
        ({"models": {}}, "models needs a role or more"),
        ({"models": {"base": 0}}, "not all 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_method("selectit", params)
