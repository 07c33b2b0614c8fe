"""Methods that read a model: values, reasons and order on hand-made columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import Budget, Entropy, Joint, Listed, Nll, Prompted, ResponseOnly, Signal, WholeText
from instdiff.methods import IFD, InstructDiff, Perplexity, ResponseEntropy, Superfiltering
from instdiff.methods.shared.bands import by_band
from instdiff.selection.explain import reasons as why

from .columns import NAN, ones, ragged, run, signals

# ── bands ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bands() -> None:
    x = np.array([3.0, 1.0, NAN, 2.0, 5.0, 4.0])
    np.testing.assert_array_equal(by_band(x, "max"), x)
    np.testing.assert_array_equal(by_band(x, "min"), -x)
    np.testing.assert_array_equal(by_band(x, "mid"), [0, -2, NAN, -1, -2, -1])
    np.testing.assert_array_equal(by_band(np.array([1.0, 2.0, 3.0, 4.0]), "mid"), [-1.5, -0.5, -0.5, -1.5])
    np.testing.assert_array_equal(by_band(np.array([7.0, 1.0, 1.0, 9.0]), "mid"), [-0.5, -1.0, -1.0, -1.5])
    np.testing.assert_array_equal(by_band(np.array([NAN]), "mid"), [NAN])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9).flatmap(lambda x: st.tuples(st.just(x), st.permutations(x))))
def test_the_middle_does_not_depend_on_order(lists: tuple[list[int], list[int]]) -> None:
    plain, mixed = (dict(zip(x, by_band(np.array(x, float), "mid").tolist(), strict=True)) for x in lists)
    assert plain == mixed


# ── perplexity and entropy ────────────────────────────────────────────────────────────────────────────────────────────


def test_perplexity() -> None:
    s = signals(list("abcd"), nll=ragged([1.0, 3.0], [0.5], [], [4.0, 4.0, 4.0]))
    low = run(Perplexity(), s)
    np.testing.assert_array_equal(low.details["nll"], [2.0, 0.5, NAN, 4.0])
    np.testing.assert_array_equal(low.value, [-2.0, -0.5, NAN, -4.0])
    assert low.reason.tolist() == [None, None, "empty_response", None]
    assert low.best().tolist() == [1, 0, 3]
    assert run(Perplexity(band="max"), s).best().tolist() == [3, 0, 1]
    assert run(Perplexity(band="mid"), s).best().tolist() == [0, 1, 3]
    assert Perplexity().signals() == {"nll": Signal(Nll(), Prompted(), "base")}


def test_short_responses_are_named_and_keep_their_number() -> None:
    nll = ragged([1.0, 3.0], [0.5], [], [4.0, 4.0, 4.0])
    for method in (Perplexity(min_response_tokens=2), ResponseEntropy(min_response_tokens=2)):
        name = "nll" if method.name == "perplexity" else "entropy"
        out = run(method, signals(list("abcd"), **{name: nll}))
        assert out.reason.tolist() == [None, "too_short", "empty_response", None]
        np.testing.assert_array_equal(out.details[name], [2.0, 0.5, NAN, 4.0])
        np.testing.assert_array_equal(out.value, [-2.0, NAN, NAN, -4.0])


def test_published_perplexity() -> None:
    """Whole text; ``mid`` starts at rank floor(0.33 n) of the falling order."""
    assert Perplexity(compat="official").signals()["nll"].view == WholeText()
    values = [5.0, 1.0, 4.0, NAN, 3.0, NAN, 2.0, 6.0, NAN]
    out = run(Perplexity(compat="official", band="mid"), signals(9, nll=ones(*values)))
    # Six rows can be scored; the middle starts at rank 1 of 6, 5, 4, 3, 2, 1.
    nothing = "empty_response"
    assert out.reason.tolist() == [None, None, None, nothing, None, nothing, None, "filtered", nothing]
    assert out.best().tolist() == [0, 2, 4, 6, 1]
    low = run(Perplexity(compat="official"), signals(9, nll=ones(*values)))
    assert low.best().tolist() == [1, 6, 4, 2, 0, 7]


def test_entropy() -> None:
    s = signals(list("abc"), entropy=ragged([1.0, 2.0], [0.25], [3.0]))
    out = run(ResponseEntropy(), s)
    np.testing.assert_array_equal(out.details["entropy"], [1.5, 0.25, 3.0])
    assert out.best().tolist() == [1, 0, 2]
    assert run(ResponseEntropy(band="max"), s).best().tolist() == [2, 0, 1]
    assert ResponseEntropy().signals() == {"entropy": Signal(Entropy(), Prompted(), "base")}


# ── IFD ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ifd_columns() -> dict[str, object]:
    given_ = ragged([1.0, 2.0], [2.0, 2.0], [3.0], [], [0.5])
    alone = ragged([2.0, 4.0], [2.0, 2.0], [1.0], [], [1.0])
    return {"given": given_, "alone": alone}


def test_ifd_as_perplexities_and_as_losses() -> None:
    s = signals(list("abcde"), **ifd_columns())
    ppl, loss = (run(IFD(ratio=ratio, min_response_tokens=1), s) for ratio in ("perplexity", "loss"))  # type: ignore[arg-type]
    np.testing.assert_allclose(
        ppl.details["ifd"], [math.exp(-1.5), 1.0, math.exp(2.0), NAN, math.exp(-0.5)], rtol=1e-15
    )
    np.testing.assert_array_equal(loss.details["ifd"], [0.5, 1.0, 3.0, NAN, 0.5])
    for out in (ppl, loss):  # exactly 1 is filtered, and so is what lies above
        assert out.reason.tolist() == [None, "filtered", "filtered", "empty_response", None]
        np.testing.assert_array_equal(out.details["nll_given"], [1.5, 2.0, 3.0, NAN, 0.5])
        np.testing.assert_array_equal(out.details["nll_alone"], [3.0, 2.0, 1.0, NAN, 1.0])
    assert ppl.best().tolist() == [4, 0]  # highest ratio first
    assert loss.best().tolist() == [0, 4]  # a tie: by id
    assert run(IFD(ratio="loss", min_response_tokens=1), signals(list("ebcda"), **ifd_columns())).best().tolist() == [
        4,
        0,
    ]


def test_published_cherry_keeps_exactly_one() -> None:
    s = signals(list("abcde"), **ifd_columns())
    out = run(IFD(ratio="loss", compat="official"), s)
    assert out.reason.tolist() == [None, None, "filtered", "empty_response", None]
    assert out.best().tolist() == [1, 0, 4]
    assert run(IFD(compat="official"), s).reason.tolist() == [None, "filtered", "filtered", "empty_response", None]


def test_ifd_of_short_rows() -> None:
    for method in (IFD(), Superfiltering(), IFD(ratio="loss"), IFD(min_response_tokens=2, compat="official")):
        out = run(method, signals(list("abcde"), **ifd_columns()))
        assert out.reason.tolist() == [None, "filtered", "too_short", "empty_response", "too_short"]
    out = run(IFD(), signals(list("abcde"), **ifd_columns()))
    assert out.details["ifd"][4] == math.exp(-0.5)


def test_ifd_where_the_response_alone_is_certain() -> None:
    out = run(IFD(ratio="loss", min_response_tokens=1), signals(2, given=ones(1.0, 0.0), alone=ones(0.0, 0.0)))
    assert out.reason.tolist() == ["filtered", "non_finite"]
    assert not np.isfinite(out.value).any()


def test_views_of_ifd() -> None:
    assert IFD().views() == (Prompted(), ResponseOnly(context=True))
    assert IFD(first_token="official").views() == (Prompted(), ResponseOnly(context=False))
    assert IFD(compat="official", ratio="loss").views() == (
        Joint("alpaca"),
        Joint("alpaca", alone="### Response:", slack=4),
    )
    assert IFD(compat="official").views() == (Joint("plain"), Joint("plain", alone="", slack=1))
    assert {s.model for s in Superfiltering().signals().values()} == {"proxy"}
    assert Superfiltering().views() == IFD().views()
    s = signals(list("abcde"), **ifd_columns())
    np.testing.assert_array_equal(run(Superfiltering(), s).value, run(IFD(), s).value)


# ── InstructDiff ──────────────────────────────────────────────────────────────────────────────────────────────────────


def both_models(diff_nll: list[float], diff_entropy: list[float]) -> dict[str, object]:
    """Columns whose differences, base minus calibrated, are these."""
    nll, entropy = np.array(diff_nll), np.array(diff_entropy)
    return {
        "base_nll": ones(*(nll + 8)),
        "base_entropy": ones(*(entropy + 4)),
        "calibrated_nll": ones(*np.where(np.isnan(nll), NAN, 8.0)),
        "calibrated_entropy": ones(*np.where(np.isnan(nll), NAN, 4.0)),
    }


DIFF_NLL = [0.5, -4.0, 0.25, 1.0, 6.0, 0.0, NAN, 2.0, -1.0, 3.0, 0.75]
DIFF_ENTROPY = [0.5, -9.0, 0.25, -0.5, -9.0, 0.125, NAN, 2.0, -0.25, 1.0, 0.0]


def test_instructdiff() -> None:
    s = signals(11, **both_models(DIFF_NLL, DIFF_ENTROPY))
    out = run(InstructDiff(), s)
    # Ten scorable rows: one goes from each end of delta NLL, though both have the lowest delta entropy.
    assert [row for row, word in enumerate(out.reason) if word == "filtered"] == [1, 4]
    assert out.reason[6] == "empty_response"
    np.testing.assert_array_equal(out.details["diff_nll"], DIFF_NLL)
    np.testing.assert_array_equal(out.details["diff_entropy"], DIFF_ENTROPY)  # also of filtered rows
    np.testing.assert_array_equal(out.details["base_nll"], np.array(DIFF_NLL) + 8)
    assert out.best().tolist() == [3, 8, 10, 5, 2, 0, 9, 7]
    np.testing.assert_array_equal(out.value[[3, 8, 7]], [0.5, 0.25, -2.0])
    assert run(InstructDiff(abs=True), s).best().tolist() == [10, 5, 2, 8, 0, 3, 9, 7]
    assert run(InstructDiff(band="max"), s).best().tolist() == [7, 9, 0, 2, 5, 10, 8, 3]
    assert len(run(InstructDiff(band="mid"), s).best()) == 8
    assert run(InstructDiff(nll_reject_ratio=0), s).best().tolist() == [1, 4, 3, 8, 10, 5, 2, 0, 9, 7]
    # Where both ends together are everything, nothing is filtered.
    assert len(run(InstructDiff(nll_reject_ratio=0.5), s).best()) == 10
    assert len(run(InstructDiff(nll_reject_ratio=0.49), s).best()) == 2


@pytest.mark.parametrize(("compat", "cut"), [("official", 28), ("default", 29)])
def test_the_published_cut_is_that_of_floating_point(compat: str, cut: int) -> None:
    assert int(100 * 0.29) == 28
    rng = np.random.default_rng(0)
    s = signals(100, **both_models(rng.normal(size=100).tolist(), rng.normal(size=100).tolist()))
    out = run(InstructDiff(nll_reject_ratio=0.29, compat=compat), s)  # type: ignore[arg-type]
    assert int((out.reason == "filtered").sum()) == 2 * cut
    kept = int(np.flatnonzero(out.eligible)[0])
    assert f"{cut} rows are cut on each side" in " ".join(why(out, kept))


def test_instructdiff_token_budget_counts_the_unfiltered_pool() -> None:
    s = signals(11, **both_models(DIFF_NLL, DIFF_ENTROPY))
    tokens = [10] * 11
    tokens[6] = 0
    out = run(InstructDiff(), s, tokens)
    assert Budget(0.1, "token_share").target(out) == 10
    assert out.method.pick(out, Budget(0.1, "token_share")).tolist() == [3]
    assert out.method.pick(out, Budget(0.11, "token_share")).tolist() == [3, 8]
    assert out.method.pick(out, Budget(0.5, "eligible")).tolist() == [3, 8, 10, 5]
    assert out.method.pick(out, Budget(0.2)).tolist() == [3, 8]


def test_instructdiff_without_its_warmup_rows() -> None:
    s = signals(11, warmup=np.arange(11) == 3, **both_models(DIFF_NLL, DIFF_ENTROPY))
    out = run(InstructDiff(exclude_warmup=True), s)
    assert out.reason[3] == "warmup" and out.best().tolist() == [8, 10, 5, 2, 0, 9, 7]
    assert out.scorable[3]
    assert InstructDiff(exclude_warmup=True).signals()["warmup"] == Signal(Listed("warmup"))
    assert "warmup" not in InstructDiff().signals()


def test_instructdiff_short_rows_are_not_of_the_n() -> None:
    columns = both_models(DIFF_NLL, DIFF_ENTROPY)
    columns["base_nll"] = ragged(
        *([] if np.isnan(d) else [d + 8] * (1 if row < 6 else 2) for row, d in enumerate(DIFF_NLL))
    )
    out = run(InstructDiff(min_response_tokens=2, nll_reject_ratio=0.25), signals(11, **columns))
    assert out.reason.tolist()[:7] == ["too_short"] * 6 + ["empty_response"]
    assert out.reason.tolist()[7:] == [None, "filtered", "filtered", None]


def test_ties_at_the_filters_edge_go_by_id_or_as_published_by_row() -> None:
    columns = both_models([0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0])
    s = signals(["e", "d", "c", "b", "a"], **columns)
    assert run(InstructDiff(nll_reject_ratio=0.2), s).reason.tolist() == ["filtered", None, None, None, "filtered"]
    ours = run(InstructDiff(nll_reject_ratio=0.4), signals(["c", "a", "e", "b", "d"], **columns))
    assert [ours.ids[row] for row in ours.best()] == ["c"]
    published = run(
        InstructDiff(nll_reject_ratio=0.4, compat="official"), signals(["c", "a", "e", "b", "d"], **columns)
    )
    assert [published.ids[row] for row in published.method.pick(published, Budget(1.0))] == ["e"]


def test_published_ties_keep_the_order_of_the_delta_nll_sort() -> None:
    columns = both_models([3.0, 1.0, 2.0, 1.0], [0.5, 0.5, 0.5, 0.25])
    official = run(InstructDiff(nll_reject_ratio=0, compat="official"), signals(list("abcd"), **columns))
    assert official.method.pick(official, Budget(1.0)).tolist() == [3, 1, 2, 0]
    ours = run(InstructDiff(nll_reject_ratio=0), signals(list("abcd"), **columns))
    assert ours.method.pick(ours, Budget(1.0)).tolist() == [3, 0, 1, 2]


def test_signals_of_instructdiff() -> None:
    view = Prompted(score_eos=True)
    assert InstructDiff(score_eos=True).signals() == {
        f"{role}_{name}": Signal(measure, view, role)
        for role in ("base", "calibrated")
        for name, measure in (("nll", Nll()), ("entropy", Entropy()))
    }
    official = InstructDiff(compat="official", base="proxy").signals()
    assert official["base_nll"] == Signal(Nll(), Joint("alpaca_no_input", join="\n", limit=4096), "proxy")


NUMBERS = st.integers(-6, 6).map(float)


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30), st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.3, 0.5])
)
def test_the_filter_keeps_n_minus_both_floors(rows: list[tuple[float, float]], ratio: float) -> None:
    s = signals(len(rows), **both_models([a for a, _ in rows], [b for _, b in rows]))
    for compat in ("default", "official"):
        out = run(InstructDiff(nll_reject_ratio=ratio, compat=compat), s)  # type: ignore[arg-type]
        trim = len(rows) * round(ratio * 100) // 100
        assert out.eligible.sum() == (len(rows) - 2 * trim if 2 * trim < len(rows) else len(rows))
        kept, cut = out.details["diff_nll"][out.eligible], out.details["diff_nll"][~out.eligible]
        assert (sum(cut <= kept.min()) >= trim and sum(cut >= kept.max()) >= trim) or not len(cut)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30, unique=True), st.sampled_from([0.1, 0.2, 0.35]))
def test_the_sign_of_delta_nll_does_not_matter(diff: list[int], ratio: float) -> None:
    entropy = [float((7 * d) % 11) for d in diff]
    kept = []
    for sign in (1.0, -1.0):
        s = signals(len(diff), **both_models([sign * d for d in diff], entropy))
        out = run(InstructDiff(nll_reject_ratio=ratio), s)
        kept.append(out.best().tolist())
    assert kept[0] == kept[1]


@given(st.data())
@pytest.mark.parametrize(
    "method",
    [InstructDiff(), InstructDiff(nll_reject_ratio=0.3), InstructDiff(band="mid"), IFD(), Perplexity(band="mid")],
)
def test_chosen_ids_do_not_depend_on_the_inputs_order(method: object, data: st.DataObject) -> None:
    """Rows of equal content have equal numbers; many other rows tie as well."""
    names = data.draw(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=14))
    order = data.draw(st.permutations(range(len(names))))
    share = data.draw(st.sampled_from([0.2, 0.5, 1.0]))

    def chosen(ids: list[str]) -> list[str]:
        number = {name: float(ord(name) % 4) for name in "abcdefghij"}
        other = {name: float(ord(name) % 3) for name in "abcdefghij"}
        s = signals(
            ids,
            **both_models([number[i] for i in ids], [other[i] for i in ids]),
            given=ones(*(1 + other[i] for i in ids)),
            alone=ones(*(2.5 + number[i] for i in ids)),
            nll=ones(*(1 + number[i] for i in ids)),
        )
        out = run(method, s)  # type: ignore[arg-type]
        return [out.ids[row] for row in out.method.pick(out, Budget(share))]

    assert chosen(names) == chosen([names[i] for i in order])
