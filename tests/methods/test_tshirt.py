"""T-SHIRT on hand-made columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from instdiff.config.methods import make_method
from instdiff.core import Budget, Joint, Nll, Noisy, Prompted, ResponseOnly, Scored, Signal, Signals
from instdiff.core.arrays.ragged import Ragged
from instdiff.errors import ConfigError
from instdiff.methods import TShirt
from instdiff.methods.algorithms.token_selection import Running, least_size, selective

from .columns import NAN, ragged, run, signals


def columns(rows: int, draws: int, seed: int = 0, first: int = 0) -> dict[str, Ragged]:
    """Random float32 columns; ``first`` more values with the prompt than without."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, rows)
    out = {}
    for end in ["", *(f"_{draw}" for draw in range(draws))]:
        out[f"given{end}"] = Ragged.of([rng.normal(2, 1, size + first) for size in sizes], np.float32)
        out[f"alone{end}"] = Ragged.of([rng.normal(2.2, 1, size) for size in sizes], np.float32)
    return out


def by_hand(data: dict[str, Ragged], draws: int, least: float, first: int = 0, strict: bool = False) -> np.ndarray:
    """S-IFD, [rows, draws]."""
    out = []
    for row in range(len(data["alone"])):
        each = []
        for draw in range(draws):
            diff = data[f"given_{draw}"][row][first:] - data[f"alone_{draw}"][row]
            chosen = diff[np.abs(diff) > least] if strict else diff[np.abs(diff) >= least]
            each.append(np.exp(chosen.astype(float).mean()) if len(chosen) else 1.0)
        out.append(each)
    return np.array(out)


def sizes_of(data: dict[str, Ragged], draws: int, first: int = 0) -> np.ndarray:
    pairs = [(data[f"given_{i}"], data[f"alone_{i}"]) for i in range(draws)]
    return np.concatenate([np.abs(g[row][first:] - a[row]) for g, a in pairs for row in range(len(g))]).astype(float)


# ── arithmetic ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_least_size() -> None:
    draws = [ragged([1.0, -4.0], [2.0]), ragged([-3.0, 5.0], [0.0])]
    assert least_size(lambda: draws, 100) == 0 and least_size(lambda: draws, 20) == 4
    assert least_size(lambda: draws, 50) == 2.5


def test_selective() -> None:
    column = ragged([1.0, -2.0, 3.0], [0.5], [], [2.0, -2.0])
    for strict, values, counts in (
        (False, [np.exp(0.5), 1, 1, 1], [2, 0, 0, 2]),
        (True, [np.exp(3.0), 1, 1, 1], [1, 0, 0, 0]),
    ):
        value, count = selective(column, 2.0, strict=strict)
        np.testing.assert_allclose(value, values, rtol=1e-15)
        assert count.tolist() == counts


def test_running() -> None:
    draws = np.random.default_rng(0).normal(5, 2, (30, 4))
    draws[:, 3] = 0.1
    seen = Running(4)
    for draw in draws:
        seen.add(draw)
    np.testing.assert_allclose(seen.mean, draws.mean(0), rtol=1e-13)
    np.testing.assert_allclose(seen.std, draws.std(0), rtol=1e-12, atol=1e-15)
    assert seen.std[3] == 0


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("k", [10.0, 50.0, 75.0])
@pytest.mark.parametrize("compat", ["default", "official"])
def test_scores(k: float, compat: Any) -> None:
    first = int(compat == "official")
    data = columns(40, 5, first=first)
    out = run(TShirt(min_response_tokens=1, k=k, draws=5, compat=compat), signals(40, **data))
    least = float(np.percentile(sizes_of(data, 5, first), 100 - k))
    each = by_hand(data, 5, least, first, strict=bool(first))
    ifds = np.array([[np.exp(data[f"given_{i}"][r].astype(float).mean() - data[f"alone_{i}"][r].astype(float).mean())
                      for i in range(5)] for r in range(40)])  # fmt: skip
    clean = [np.exp(data["given"][r].astype(float).mean() - data["alone"][r].astype(float).mean()) for r in range(40)]
    noisy = ["avg_noisy_ifd", "std_noisy_ifd", "avg_noisy_sifd", "std_noisy_sifd"]
    assert list(out.details) == ["ifd", *noisy, "informative", "least"]
    size = [np.abs(data["given"][r][first:] - data["alone"][r]).astype(float) for r in range(40)]
    share = [np.mean(one > least if first else one >= least) for one in size]
    for name, plain in (
        ("ifd", clean),
        ("avg_noisy_ifd", ifds.mean(1)),
        ("std_noisy_ifd", ifds.std(1)),
        ("avg_noisy_sifd", each.mean(1)),
        ("std_noisy_sifd", each.std(1)),
        ("informative", share),
        ("least", [least] * 40),
    ):
        np.testing.assert_allclose(out.details[name], plain, rtol=1e-6, err_msg=name)
    misled = ifds.mean(1) >= 1
    assert 0 < misled.sum() < 40
    silent = (each == 1).all(1) & (compat == "default")  # no token of theirs is selected
    assert silent.any() == (k == 10 and compat == "default")
    np.testing.assert_allclose(out.value, np.where(misled | silent, NAN, each.mean(1)), rtol=1e-6)
    assert [word == "filtered" for word in out.reason] == (misled | silent).tolist()
    kept = run(TShirt(min_response_tokens=1, k=k, draws=5, compat=compat, keep_misled=True), signals(40, **data))
    np.testing.assert_allclose(kept.value, np.where(silent, NAN, each.mean(1)), rtol=1e-6)


def test_every_token_is_ifd() -> None:
    out = run(TShirt(min_response_tokens=1, k=100, draws=3, keep_misled=True), signals(20, **columns(20, 3)))
    np.testing.assert_allclose(out.value, out.details["avg_noisy_ifd"], rtol=1e-6)
    np.testing.assert_allclose(out.details["std_noisy_sifd"], out.details["std_noisy_ifd"], rtol=1e-5)


def test_the_threshold_of_the_clean_rows() -> None:
    data = columns(30, 4)
    out = run(TShirt(min_response_tokens=1, draws=4, threshold="clean", keep_misled=True), signals(30, **data))
    clean = np.abs(data["given"].values - data["alone"].values).astype(float)
    np.testing.assert_allclose(out.value, by_hand(data, 4, float(np.median(clean))).mean(1), rtol=1e-6)


def test_without_noise() -> None:
    data = columns(30, 0)
    method = TShirt(min_response_tokens=1, hierarchical=False, keep_misled=True)
    assert list(method.signals()) == ["given", "alone"]
    out = run(method, signals(30, **data))
    least = float(np.median(np.abs(data["given"].values - data["alone"].values).astype(float)))
    once = by_hand({**data, "given_0": data["given"], "alone_0": data["alone"]}, 1, least)[:, 0]
    np.testing.assert_allclose(out.value, np.where(once == 1, NAN, once), rtol=1e-6)
    assert all(np.isnan(out.details[name]).all() for name in ("avg_noisy_ifd", "std_noisy_sifd"))
    every = run(TShirt(min_response_tokens=1, hierarchical=False, k=100), signals(30, **data))
    ifd = every.details["ifd"]
    np.testing.assert_allclose(every.value, np.where(ifd >= 1, NAN, ifd), rtol=1e-6)
    assert out.method.pick(out, Budget(5, "rows")).tolist() == out.best()[:5].tolist()


def test_a_response_of_one_token_is_no_ratio() -> None:
    data = {"given": ragged([1.0], [2.0, 0.5], [1.0, 1.0]), "alone": ragged([2.0], [6.0, 6.0], [4.0, 1.25])}
    data |= {f"{name}_0": data[name] for name in ("given", "alone")}
    ours, published = (run(TShirt(draws=1, compat=compat), signals(3, **data)) for compat in ("default", "official"))
    assert (ours.reason[0], ours.reason[1], published.reason[0]) == ("too_short", None, None)
    assert ours.details["ifd"][0] == published.details["ifd"][0]


def test_a_row_of_which_nothing_is_selected() -> None:
    """Its S-IFD of 1 never varies, so as published it comes first."""
    data = {"given": ragged([1.0], [2.0, 0.5], [1.0, 1.0]), "alone": ragged([1.125], [6.0, 6.0], [4.0, 1.25])}
    for draw in range(2):
        data |= {f"given_{draw}": data["given"], f"alone_{draw}": data["alone"]}
    ours = run(TShirt(min_response_tokens=1, k=60, draws=2), signals(3, **data))
    assert ours.reason.tolist() == ["filtered", None, None] and ours.details["avg_noisy_sifd"][0] == 1
    published = run(TShirt(k=60, draws=2, compat="official"), signals(3, **data))
    assert published.reason.tolist() == [None, None, None] and published.value[0] == 1
    assert published.method.pick(published, Budget(1, "rows")).tolist() == [0]


def test_rows_without_columns_and_rows_that_do_not_align() -> None:
    data = columns(12, 2, first=1)
    short = {name: Ragged.of([c[row] for row in range(12)] + [[]], np.float32) for name, c in data.items()}
    odd = {
        name: Ragged.of([*(c[row] for row in range(13)), [1.0, 1.0]], np.float32) for name, c in short.items()
    }  # as many tokens alone as with the prompt, unlike all others
    s = signals(14, **odd)
    out = run(TShirt(draws=2, compat="official", keep_misled=True), s)
    assert out.reason.tolist() == [None] * 12 + ["empty_response", "misaligned"]
    same = run(TShirt(draws=2, compat="official", keep_misled=True), signals(12, **data))
    np.testing.assert_array_equal(out.value[:12], same.value)
    assert out.details["ifd"][13] == 1 and np.isnan(out.details["avg_noisy_sifd"][12:]).all()


def test_a_pool_without_any_row_to_score() -> None:
    empty = {name: ragged([], []) for name in ("given", "alone", "given_0", "alone_0")}
    out = run(TShirt(draws=1), signals(2, **empty))
    assert out.reason.tolist() == ["empty_response"] * 2 and np.isnan(out.details["avg_noisy_ifd"]).all()


def test_one_draw_is_read_at_a_time() -> None:
    data = columns(10, 4)
    asked: list[str] = []

    class Lazy(Signals):
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return super().__getattr__(name)

    s = Lazy(data, [f"{row}" for row in range(10)], np.full(10, None, object))
    TShirt(draws=4).score(s)
    noisy = [name for name in asked if "_" in name and name.split("_")[-1].isdigit()]
    once = [f"{name}_{draw}" for draw in range(4) for name in ("given", "alone")]
    assert noisy == once * 3  # twice for the threshold, once for the numbers


# ── picks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def scored(mean: list[float], std: list[float], tokens: list[int] | None = None, **params: Any) -> Scored:
    reason = np.where(np.isnan(mean), "filtered", None)
    details = {"std_noisy_sifd": np.array(std)}
    count = np.array(tokens or [1] * len(mean))
    ids = [f"id{row}" for row in range(len(mean))][::-1]
    return Scored("tshirt", TShirt(**params), np.array(mean), reason, details, ids, count)


def test_the_steadiest_of_the_best() -> None:
    table = scored([0.9, 0.8, 0.7, 0.6, NAN, 0.5], [0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    pick = table.method.pick
    assert pick(table, Budget(2, "rows")).tolist() == [3, 2]
    assert pick(table, Budget(1, "rows")).tolist() == [1]
    assert pick(table, Budget(1 / 3, "share")).tolist() == [3, 2]
    assert pick(table, Budget(0.4, "eligible")).tolist() == [3, 2]
    assert pick(table, Budget(6, "rows")).tolist() == [5, 3, 2, 1, 0]
    high = scored(table.value.tolist(), table.details["std_noisy_sifd"].tolist(), variance="high")
    assert high.method.pick(high, Budget(2, "rows")).tolist() == [0, 1]
    wide = scored(table.value.tolist(), table.details["std_noisy_sifd"].tolist(), gamma=1.0)
    assert wide.method.pick(wide, Budget(2, "rows")).tolist() == [1, 0]
    one_more = scored(table.value.tolist(), table.details["std_noisy_sifd"].tolist(), gamma=2.5)
    assert one_more.method.pick(one_more, Budget(2, "rows")).tolist() == [5, 3]


def test_token_budgets_oversample_in_tokens() -> None:
    table = scored([0.9, 0.8, 0.7, 0.6, NAN, 0.5], [0.4, 0.3, 0.2, 0.1, 0.0, 0.0], [10, 10, 30, 5, 45, 100])
    # Twice 25 tokens are rows 0, 1 and 2; of those the steadiest until 25 are reached.
    assert table.method.pick(table, Budget(25, "tokens")).tolist() == [2]
    assert table.method.pick(table, Budget(0.125, "token_share")).tolist() == [2]


def test_ties() -> None:
    table = scored([0.5, 0.5, 0.5], [0.0, 0.0, 0.0])
    assert table.method.pick(table, Budget(1, "rows")).tolist() == [2]  # by id
    official = scored([0.5, 0.5, 0.5], [0.0, 0.0, 0.0], compat="official")
    assert official.method.pick(official, Budget(1, "rows")).tolist() == [0]  # by row


# ── what it asks for ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_signals() -> None:
    asked = TShirt(draws=2, seed=7, alpha=3.0).signals()
    assert asked == {
        "given": Signal(Nll(), Prompted(), "proxy"),
        "alone": Signal(Nll(), ResponseOnly(), "proxy"),
        "given_0": Signal(Nll(), Noisy(Prompted(), 0, 3.0, 7), "proxy"),
        "alone_0": Signal(Nll(), Noisy(ResponseOnly(), 0, 3.0, 7), "proxy"),
        "given_1": Signal(Nll(), Noisy(Prompted(), 1, 3.0, 7), "proxy"),
        "alone_1": Signal(Nll(), Noisy(ResponseOnly(), 1, 3.0, 7), "proxy"),
    }
    assert len(TShirt().signals()) == 62
    assert TShirt(compat="official").views() == (Joint("plain"), Joint("plain", alone="", slack=None))


@pytest.mark.parametrize("params", [{"k": 0}, {"k": 101}, {"draws": 0}, {"gamma": 0.5}])
def test_parameters_out_of_range(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="k lies above 0 and up to 100, draws and gamma are 1 or more"):
        make_method("tshirt", params)
