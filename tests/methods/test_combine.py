"""Filter by one, rank by another; weigh several; what people write for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.config.base import load
from instdiff.config.commands import ScoreConfig
from instdiff.config.methods import make_method, make_methods, short_name
from instdiff.core import Budget, Column, Length, Method, Scored, Scores, Signal, Signals, reasons
from instdiff.core.arrays.ragged import Ragged
from instdiff.errors import ConfigError, PlanError
from instdiff.methods import (
    IFD,
    Blend,
    CosineFilter,
    FacilityLocation,
    Longest,
    Random,
    Superfiltering,
    SuperfilteringD,
    Then,
)
from instdiff.methods.algorithms.facility_location import facility
from instdiff.scoring.table import NotRun, ScoreTable, read_scores

from .columns import NAN, ragged, run, signals


@dataclass(frozen=True)
class One(Method):
    """The column itself; below zero it is filtered."""

    name: ClassVar[str] = "one"
    column: str = "x"

    def signals(self) -> dict[str, Signal]:
        return {self.column: Signal(Column(self.column))}

    def score(self, s: Signals) -> Scores:
        x = getattr(s, self.column).astype(float)
        return Scores(np.where(x < 0, np.nan, x), reasons(len(s), filtered=x < 0), twice=2 * x)


A = np.array([5.0, 1, 4, 2, 3, -1, 0, 6, 7, 8])
B = np.array([0.0, 9, 1, 8, 2, 7, 3, 6, 4, 5])
BOTH = {"first.x": A, "second.y": B}


def then(keep: str | int, second: Method | None = None) -> Then:
    return Then(One(), keep, second or One("y"))


@pytest.mark.parametrize(
    ("keep", "rows"),
    [
        ("20%", [9, 8]),
        ("25%", [9, 8]),
        ("50% eligible", [9, 8, 7, 0]),
        (3, [9, 8, 7]),
        ("100%", [9, 8, 7, 0, 2, 4, 3, 1, 6]),
        ("0%-34%", [3, 1, 6]),
        ("10%-90%", [8, 7, 0, 2, 4, 3, 1, 6]),
        ("mid 34%", [0, 2, 4]),
        (">=6", [9, 8, 7]),
        (">6", [9, 8]),
        ("<= 1", [1, 6]),
        ("< 1e0", [6]),
    ],
)
def test_what_is_kept(keep: str | int, rows: list[int]) -> None:
    out = run(then(keep), signals(10, **BOTH))
    assert np.flatnonzero(out.details["kept"] == 1).tolist() == sorted(rows)
    assert out.best().tolist() == sorted(rows, key=lambda row: -B[row])
    left = sorted(set(range(10)) - set(rows))
    assert set(out.reason[left]) <= {"filtered"} and np.isnan(out.value[left]).all()
    np.testing.assert_array_equal(out.details["first"], np.where(A < 0, NAN, A))
    np.testing.assert_array_equal(out.details["first.twice"], 2 * A)
    np.testing.assert_array_equal(out.details["second.twice"][sorted(rows)], 2 * B[sorted(rows)])


@pytest.mark.parametrize("keep", ["", "20 percent", "0.2", "120%", "90%-10%", "mid 130%", ">=x", "2.5", "-3"])
def test_what_cannot_be_kept(keep: str) -> None:
    with pytest.raises(ConfigError, match=r"^keep '"):
        then(keep)


def test_rows_that_the_first_cannot_score_keep_their_reason() -> None:
    s = signals(10, reason=["empty_response", *[None] * 9], **BOTH)
    out = run(then("30%"), s)
    assert out.reason.tolist() == ["empty_response", *["filtered"] * 6, None, None, None]


def test_shares_are_of_all_rows() -> None:
    out = run(then("50%"), signals(10, **BOTH))
    assert out.method.pick(out, Budget(0.2)).tolist() == [7, 9]
    assert out.method.pick(out, Budget(0.5, "eligible")).tolist() == [7, 9]
    assert len(out.method.pick(out, Budget(0.9))) == 5
    tokens = run(then("50%"), signals(10, **BOTH), tokens=[1] * 10)
    assert out.method.pick(tokens, Budget(0.3, "token_share")).tolist() == [7, 9, 8]


def test_the_second_goes_by_the_scores_of_the_first_and_ranks_on() -> None:
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    columns = {"first.x": A, "second.vector": Ragged.of(list(x), np.float32)}
    s = signals(10, **columns)
    method = then("60%", FacilityLocation(alpha=0.2, reach=0.34))
    kept = np.flatnonzero(A >= 3)
    out = run(method, s)
    quality = (A[kept] - 3) / 5
    order = kept[facility(x[kept], len(kept), alpha=0.2, quality=quality)]
    assert out.best().tolist() == order[:3].tolist()
    assert method.pick(out, Budget(3, "rows")).tolist() == order[:3].tolist()
    with pytest.raises(PlanError, match="and there is no store"):
        method.pick(out, Budget(4, "rows"))
    stored = Scored(**{**vars(out), "recall": lambda: s})
    assert method.pick(stored, Budget(0.5)).tolist() == order[:5].tolist()
    part = stored.take(np.array([9, 2, 0, 8]))
    assert sorted(method.pick(part, Budget(4, "rows")).tolist()) == [0, 1, 2, 3]


def test_near_duplicates_are_left_out_and_the_count_holds() -> None:
    alike = np.repeat(np.eye(5, dtype=np.float32), 2, 0)
    columns = {"first.x": np.arange(10.0), "second.vector": Ragged.of(list(alike), np.float32)}
    s = signals(10, **columns)
    method = then("100%", CosineFilter(threshold=0.95))
    stored = Scored(**{**vars(run(method, s)), "recall": lambda: s})
    assert method.pick(stored, Budget(5, "rows")).tolist() == [9, 7, 5, 3, 1]


def test_a_first_that_stopped_early_ranks_on() -> None:
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    s = signals(10, **{"first.vector": Ragged.of(list(x), np.float32), "second.y": B})
    out = run(Then(FacilityLocation(reach=0.1), "50%", One("y")), s)
    kept = facility(x, 5)
    assert out.best().tolist() == sorted(kept, key=lambda row: -B[row])


def test_superfiltering_d_is_both_methods_in_one() -> None:
    x = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    ratio = np.linspace(0.1, 1.2, 30)
    nll = {"first.given": ragged(*([v, v] for v in 1 + np.log(ratio))), "first.alone": ragged(*[[1.0, 1.0]] * 30)}
    s = signals(30, **nll, **{"second.vector": Ragged.of(list(x), np.float32)})
    method = SuperfilteringD(reach=0.5)
    assert set(method.signals()) == {"first.given", "first.alone", "second.vector"}
    kept = np.flatnonzero(ratio < 1)[-6:]
    order = kept[facility(x[kept], 3, kernel="official")]
    out = run(method, s)
    assert out.best().tolist() == order.tolist()
    assert method.pick(out, Budget(0.05)).tolist() == order[:1].tolist()
    same = Then(Superfiltering(), "20%", FacilityLocation(kernel="official", pooling="mean", reach=0.5))
    assert method.both() == same
    with pytest.raises(ConfigError, match="keep 'few' is not understood"):
        SuperfilteringD(keep="few")


# ── blend ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_blend_is_the_weighted_mean_of_ranks() -> None:
    s = signals(4, **{"0.x": np.array([1.0, 2, 2, 4]), "1.y": np.array([10.0, 30, 20, 0])})
    out = run(Blend((One(), One("y"))), s)
    np.testing.assert_allclose(out.details["0"], [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(out.details["1"], [1 / 3, 1, 2 / 3, 0])
    np.testing.assert_allclose(out.value, [1 / 6, 0.75, 7 / 12, 0.5])
    weighed = run(Blend((One(), One("y")), (3, 1)), s)
    np.testing.assert_allclose(weighed.value, (3 * out.details["0"] + out.details["1"]) / 4)
    assert out.details["1.twice"].tolist() == [20, 60, 40, 0]


def test_only_rows_that_all_score_are_ranked() -> None:
    s = signals(4, **{"0.x": np.array([-1.0, 2, 3, 4]), "1.y": np.array([10.0, -3, 20, 0])})
    out = run(Blend((One(), One("y"))), s)
    assert out.reason.tolist() == ["filtered", "filtered", None, None]
    assert out.details["0"][2:].tolist() == [0, 1] and out.value[2:].tolist() == [0.5, 0.5]


@given(st.lists(st.floats(0, 9), min_size=1, max_size=9))
def test_a_blend_of_one_keeps_its_order(x: list[float]) -> None:
    s = signals(len(x), **{"0.x": np.array(x)})
    alone = run(One(), signals(len(x), x=np.array(x)))
    assert run(Blend((One(),)), s).best().tolist() == alone.best().tolist()


def test_weights_fit() -> None:
    for weights in ((1.0,), (1.0, -1.0), (0.0, 0.0)):
        with pytest.raises(ConfigError, match=r"'blend.weights' are .* for 2 methods; give one each"):
            Blend((One(), One("y")), weights)


# ── as people write them ──────────────────────────────────────────────────────────────────────────────────────────────

YAML = """
method:
  then:
    first: ifd
    keep: 30%
    second: {facility_location: {kernel: rbf}}
  blend:
    of: [longest, {ifd: {ratio: loss}}]
    weights: [1, 2]
"""


def methods(file: Path | None, options: dict[str, Any], *sets: str) -> dict[str, Method]:
    config = load(ScoreConfig, file, options, [f"method.{one}" for one in sets])
    made = make_methods(list(config.method), {short_name(k): v for k, v in config.method.items()}, config.seed)
    return {name: method for name, (_, method) in made.items()}


def test_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(YAML, encoding="utf-8")
    assert methods(file, {}) == {
        "then": Then(IFD(), "30%", FacilityLocation(kernel="rbf")),
        "blend": Blend((Longest(), IFD(ratio="loss")), (1, 2)),
    }


def test_on_the_command_line() -> None:
    sets = ["then.first=ifd", "then.keep=10%-90%", "then.second=random"]
    assert methods(None, {"method": ["then"], "seed": 7}, *sets) == {"then": Then(IFD(), "10%-90%", Random(seed=7))}
    assert methods(None, {"method": ["then"]}, *sets, "then.second.random.seed=3", "then.keep=500") == {
        "then": Then(IFD(), 500, Random(seed=3))
    }
    assert methods(None, {"method": ["then"]}, "then.keep=>=4.5", "then.first={ifd: {ratio: loss}}", *sets[2:]) == {
        "then": Then(IFD(ratio="loss"), ">=4.5", Random())
    }
    assert methods(None, {"method": ["blend"]}, "blend.of=ifd, longest", "blend.weights=[1, 3]") == {
        "blend": Blend((IFD(), Longest()), (1, 3))
    }


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["then.first=ifd"], "method 'then' needs 'second', a method; give --set then.second=NAME"),
        (["then.first=idf", "then.second=ifd"], "unknown method 'idf'; did you mean 'ifd'?"),
        (
            ["then.first=3", "then.second=ifd"],
            "'then.first' is a method: a name, or {name: {parameter: value}} (given: 3)",
        ),
        (
            ["then.first={ifd: {}, full: {}}", "then.second=ifd"],
            "'then.first' is a method: a name, or {name: {parameter: value}} (given: {'ifd': {}, 'full': {}})",
        ),
        (
            ["then.first.ifd.ratios=1", "then.second=ifd"],
            "method 'ifd' has no parameter 'ratios'; did you mean 'ratio'?",
        ),
        (
            ["then.first.ifd.ratio=x", "then.second=ifd"],
            "'ifd.ratio': Input should be 'perplexity' or 'loss' (given: 'x')",
        ),
        (
            ["then.first=ifd", "then.second=ifd", "then.keep=x"],
            "keep 'x' is not understood; write 20%, '20% eligible', 500,",
        ),
    ],
)
def test_errors(sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        methods(None, {"method": ["then"]}, *sets)
    assert str(error.value).startswith(message)


def test_unnamed_methods_in_python() -> None:
    for method in (Then(), Then(IFD())):
        with pytest.raises(ConfigError, match="'then' needs two methods, and has no "):
            method.score(signals(1))
    with pytest.raises(ConfigError, match="'blend' needs methods"):
        Blend().score(signals(1))


def test_through_json() -> None:
    for method in (
        Then(IFD(ratio="loss"), 30, Then(Longest(), "mid 50%", Random(seed=9))),
        Blend((Longest(), IFD()), (0.5, 2)),
    ):
        assert make_method(method.name, json.loads(json.dumps(method.params()))) == method


# ── a score file runs no file that the user has not named ─────────────────────────────────────────────────────────────

MINE = """
from pathlib import Path
from dataclasses import dataclass
from instdiff.core import Length, Method, Scores, Signal
Path("ran").touch()

@dataclass(frozen=True)
class Mine(Method):
    def signals(self):
        return {"length": Signal(Length(unit="chars"))}
    def score(self, s):
        return Scores(s.length)
"""


@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_inside_another_method_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_text: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    method = make_method("then", {"first": "./mine.py:Mine", "second": "longest"})
    assert method.params()["first"] == {"./mine.py:Mine": {}}
    columns = {"first.length": np.arange(3), "second.response": np.arange(3), "second.instruction": np.arange(3)}
    out = run(method, signals(3, **columns))
    params = method.params() | ({"first": "./mine.py:Mine"} if as_text else {})
    meta = {"methods": {"then": {"spec": "then", "params": params}}}
    ScoreTable(np.arange(3), out.ids, out.n_tokens, np.zeros(3, bool), {"then": out}, meta).write("scores.parquet")
    Path("ran").unlink()
    unknown = read_scores("scores.parquet")["then"]
    assert isinstance(unknown.method, NotRun) and not Path("ran").exists()
    with pytest.raises(ConfigError, match=r"not run unless you name it; give --set then\.first=\./mine\.py:Mine$"):
        unknown.method.pick(unknown, Budget(1, "rows"))
    known = read_scores("scores.parquet", run=["./mine.py:Mine"])["then"]
    assert isinstance(known.method, Then) and Path("ran").exists()


def test_length_is_a_signal() -> None:
    assert Then(Longest(), "1%", Longest()).signals()["first.response"] == Signal(Length("response"))
