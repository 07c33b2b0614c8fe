"""Scores depend on a row's own tokens and the weights, and on nothing else.

Everything is compared with full logits of one unpadded row at a time in fp32 (``helpers.reference``), over token ids
put together by hand (``helpers.by_hand``).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import PLAIN, Counting, Lab, by_hand, make_llama, read_by_bytes, reference
from instdiff.core import Entropy, Measure, Method, ModelRef, Nll, Prompted, Settings
from instdiff.data import load
from instdiff.engine import head
from instdiff.methods import IFD, Grape, InstructDiff, Perplexity, ResponseEntropy, Superfiltering
from instdiff.scoring.models import bind
from instdiff.scoring.scorer import Workbench, score
from instdiff.scoring.table import ScoreTable
from instdiff.store import Store

Row = dict[str, str]

TEXT = st.text(alphabet="abc {}1\né漢", max_size=9)
ROW = st.fixed_dictionaries({"instruction": TEXT, "input": st.one_of(st.just(""), TEXT), "output": TEXT})
# A few of the cases that go wrong elsewhere: nothing to score, one token, cut, all lost.
HARD = st.sampled_from(
    [
        {"instruction": "a", "input": "", "output": ""},
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "cut", "input": "", "output": "long " * 30},
        {"instruction": "lost " * 40, "input": "", "output": "b"},
    ]
)
ROWS = st.lists(st.one_of(ROW, HARD), min_size=1, max_size=7).filter(
    # A pool without any response is refused by the loader.
    lambda rows: sum(bool(row["output"]) for row in rows) * 2 >= len(rows)
)

METHODS: tuple[Method, ...] = (
    InstructDiff(nll_reject_ratio=0.2),
    IFD(),
    Perplexity(),
    ResponseEntropy(),
)
LIMIT = 170


def numbers(table: ScoreTable) -> dict[str, np.ndarray]:
    return {f"{name}.{detail}": values for name in table for detail, values in table[name].details.items()}


def close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        # Differences of two numbers are as exact as the numbers: their scale is that of nats, not their own.
        np.testing.assert_allclose(values, theirs[name], rtol=1e-5, atol=1e-4 if "diff" in name else 0, err_msg=name)


def expected(lab: Lab, rows: list[Row], base: str) -> dict[str, np.ndarray]:
    """Every detail of every method, from the reference."""
    hf, models = lab.tokenizer(base), {"base": base, "calibrated": "other" if base == "llama" else base}
    out: dict[str, list[float]] = {}
    for row in rows:
        views = by_hand(hf, row, LIMIT)
        read = {
            (role, view): [float(v.mean()) for v in reference(lab.reference(name), *views[view])]
            if views[view]
            else [math.nan] * 2
            for role, name in models.items()
            for view in ("given", "alone")
        }
        (base_nll, base_entropy), (nll, entropy) = read["base", "given"], read["calibrated", "given"]
        alone = read["base", "alone"][0]
        values = {
            "instructdiff.base_nll": base_nll,
            "instructdiff.base_entropy": base_entropy,
            "instructdiff.calibrated_nll": nll,
            "instructdiff.calibrated_entropy": entropy,
            "instructdiff.diff_nll": base_nll - nll,
            "instructdiff.diff_entropy": base_entropy - entropy,
            "ifd.ifd": math.exp(base_nll - alone),
            "ifd.nll_given": base_nll,
            "ifd.nll_alone": alone,
            "perplexity.nll": base_nll,
            "entropy.entropy": base_entropy,
        }
        for name, value in values.items():
            out.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in out.items()}


def bench_of(lab: Lab, rows: list[Row], store: Store) -> Workbench:
    """What tells rows and columns of ``base``."""
    settings_ = Settings(max_length=LIMIT, dtype="float32", device="cpu")
    return Workbench(load(rows), bind({"base": str(lab.models["llama"])}), settings_, store)


def scored(lab: Lab, rows: list[Row], base: str = "llama", **changes: Any) -> ScoreTable:
    calibrated = "other" if base == "llama" else base
    table = lab.score(rows, METHODS, base=base, calibrated=calibrated, max_length=LIMIT, **changes)
    assert len(table) == len(rows) and table.rows.tolist() == list(range(len(rows)))  # one row out for each row in
    for name in table:
        assert (table[name].reason == None).tolist() == table[name].eligible.tolist()  # noqa: E711 - elementwise
    return table


# ── against the reference, however it is computed ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@given(rows=ROWS, batch_tokens=st.sampled_from([1, 50, 300, 10**6]), chunk=st.sampled_from([1, 5, 10**6]))
def test_equal_to_the_reference(lab: Lab, base: str, rows: list[Row], batch_tokens: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHUNK_BYTES", 4 * 300 * chunk)  # so many positions of a vocabulary of 300
        table = scored(lab, rows, base, batch_tokens=batch_tokens)
    close(numbers(table), expected(lab, rows, base))
    hf = lab.tokenizer(base)
    views = [by_hand(hf, row, LIMIT)["given"] for row in rows]
    assert table.n_tokens.tolist() == [sum(view[1]) if view else 0 for view in views]
    lost = {True: "empty_response", False: "too_long"}
    reason = [None if view else lost[not row["output"]] for view, row in zip(views, rows, strict=True)]
    assert table["perplexity"].reason.tolist() == reason


# ── nothing else matters ──────────────────────────────────────────────────────────────────────────────────────────────


@given(rows=ROWS, data=st.data())
def test_order_does_not_matter(lab: Lab, rows: list[Row], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    plain, mixed = scored(lab, rows, batch_tokens=400), scored(lab, [rows[i] for i in order], batch_tokens=400)
    close({name: values[order] for name, values in numbers(plain).items()}, numbers(mixed))
    assert mixed.ids == [plain.ids[i] for i in order]
    assert mixed["ifd"].reason.tolist() == plain["ifd"].reason[order].tolist()


@given(rows=ROWS, data=st.data())
def test_copies_are_scored_once_and_share_the_result(lab: Lab, rows: list[Row], data: st.DataObject) -> None:
    at = [*range(len(rows)), *data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))]
    once, twice = Counting(), Counting()
    plain, more = scored(lab, rows, progress=once), scored(lab, [rows[i] for i in at], progress=twice)
    assert once.rows == twice.rows and once.tokens == twice.tokens
    for values in numbers(more).values():
        for row, original in enumerate(at):
            np.testing.assert_array_equal(values[row], values[original])  # to the last bit
    close({name: values[at] for name, values in numbers(plain).items()}, numbers(more))


def distinct(lab: Lab, rows: list[Row]) -> int:
    """Rows that three passes compute: two of the prompted view, one of the response alone."""
    hf = lab.tokenizer("llama")
    views = [by_hand(hf, row, LIMIT) for row in rows]
    given_ = {(tuple(v["given"][0]), tuple(v["given"][1])) for v in views if v["given"]}
    return 2 * len(given_) + len({tuple(v["alone"][0]) for v in views if v["alone"]})


@given(rows=ROWS, data=st.data())
def test_resume_and_growth(lab: Lab, rows: list[Row], data: st.DataObject) -> None:
    """A store that already holds any part of the work: only the rest is computed, and no number changes."""
    part = data.draw(
        st.lists(st.sampled_from(rows), min_size=1, max_size=len(rows), unique_by=lambda row: tuple(row.values()))
    )
    if sum(bool(row["output"]) for row in part) * 2 < len(part):
        part = rows
    store, before, after, third = lab.store(), Counting(), Counting(), Counting()
    first = scored(lab, part, store=store, progress=before, batch_tokens=300)
    assert before.rows == distinct(lab, part)
    grown = scored(lab, rows, store=store, progress=after)
    assert after.rows == distinct(lab, rows) - distinct(lab, part)
    again = scored(lab, rows, store=store, progress=third, batch_tokens=1)
    assert third.rows == 0 and third.labels == []
    for name, values in numbers(again).items():
        np.testing.assert_array_equal(values, numbers(grown)[name])
        old = [numbers(first)[name][part.index(row)] for row in rows if row in part]
        np.testing.assert_array_equal(old, [value for value, row in zip(values, rows, strict=True) if row in part])
    close(numbers(grown), expected(lab, rows, "llama"))


@pytest.mark.parametrize("held", [Entropy(), Nll()])
@given(rows=ROWS, mask=st.integers(0, 2**7 - 1))
def test_a_store_with_any_part_of_one_column(lab: Lab, held: Measure, rows: list[Row], mask: int) -> None:
    """A crash between two columns: one is there for some rows, the other is not. One more pass reads both."""
    store, other = lab.store(), lab.store()
    bench = bench_of(lab, rows, store)
    rendered = bench.render("base", Prompted())
    lab.score(rows, [Perplexity(), ResponseEntropy()], max_length=LIMIT, store=other)
    some = rendered.keys[[row for row in rendered.scorable if mask >> row & 1]]
    store.append(bench.column("base", held), some, other.read(bench.column("base", held), some))
    counting = Counting()
    table = lab.score(rows, [Perplexity(), ResponseEntropy()], max_length=LIMIT, store=store, progress=counting)
    truth = expected(lab, rows, "llama")
    close(numbers(table), {name: truth[name] for name in ("perplexity.nll", "entropy.entropy")})
    assert counting.rows == len(set(rendered.keys[rendered.scorable].tolist()))


def test_methods_together_or_one_by_one(lab: Lab) -> None:
    rows = [{"instruction": f"do {i}", "input": "", "output": "yes " * (i % 5 + 1)} for i in range(12)]
    together, alone = Counting(), Counting()
    all_at_once = numbers(scored(lab, rows, progress=together))
    separate: dict[str, np.ndarray] = {}
    for method in METHODS:
        separate |= numbers(lab.score(rows, [method], max_length=LIMIT, progress=alone))
    close(all_at_once, separate)
    # The response alone is the same five texts, the prompted rows are all different.
    assert together.rows == 2 * 12 + 5 and alone.rows == 2 * 12 + (12 + 5) + 12 + 12


def test_tokens_are_those_of_the_base_in_any_order_of_methods(lab: Lab, tmp_path: Path) -> None:
    """A small proxy may count other tokens, and so may a view that scores the end too."""
    rows = [{"instruction": f"do {i}", "input": "", "output": "the sky is blue " * (i + 1)} for i in range(4)]
    proxy = read_by_bytes(make_llama(tmp_path / "proxy", 3, num_hidden_layers=1))
    truth = lab.score(rows, [Perplexity()]).n_tokens
    models = bind({"base": str(lab.models["llama"]), "proxy": str(proxy)})

    def counted(*methods: Method, **bound: ModelRef) -> list[int]:
        table = score(load(rows), methods, bound or models, settings=Settings(**PLAIN), store=lab.store())
        return [int(count) for count in table.n_tokens]

    own = counted(Superfiltering(), proxy=models["proxy"])  # without a base, those of what is asked
    assert all(more > count for more, count in zip(own, truth, strict=True))
    for methods in ([Superfiltering()], [Superfiltering(), IFD()], [IFD(), Superfiltering()], [Grape(), Perplexity()]):
        assert counted(*methods) == counted(*reversed(methods)) == truth.tolist()


# ── InstructDiff on real columns ──────────────────────────────────────────────────────────────────────────────────────


@given(rows=ROWS)
@settings(max_examples=5)
def test_identical_models_differ_by_nothing(lab: Lab, rows: list[Row]) -> None:
    table = lab.score(rows, [InstructDiff()], calibrated="llama", max_length=LIMIT)["instructdiff"]
    for name in ("diff_nll", "diff_entropy"):
        finite = np.isfinite(table.details["base_nll"])
        assert (table.details[name][finite] == 0).all() and np.isnan(table.details[name][~finite]).all()


@given(rows=ROWS)
@settings(max_examples=5)
def test_entropy_and_nll_in_their_range_token_by_token(lab: Lab, rows: list[Row]) -> None:
    store = lab.store()
    lab.score(rows, [Perplexity(), ResponseEntropy()], max_length=LIMIT, store=store)
    bench = bench_of(lab, rows, store)
    keys = bench.render("base", Prompted()).keys
    entropy, nll = store.read(bench.column("base", Entropy()), keys), store.read(bench.column("base", Nll()), keys)
    assert (
        entropy.lengths().tolist()
        == nll.lengths().tolist()
        == bench.render("base", Prompted()).rows.n_targets().tolist()
    )
    assert (entropy.values >= 0).all() and (entropy.values <= math.log(300) * (1 + 1e-6)).all()
    assert (nll.values >= 0).all()


@pytest.mark.parametrize(("count", "gamma"), [(10, 0.1), (23, 0.1), (9, 0.1), (20, 0.29), (5, 0.5)])
def test_the_filter_and_the_sign_of_delta_nll(lab: Lab, count: int, gamma: float) -> None:
    rows = [{"instruction": f"say {i}", "input": "", "output": f"{i} " * (i % 4 + 1)} for i in range(count)]
    rows.append({"instruction": "none", "input": "", "output": ""})
    forth = lab.score(rows, [InstructDiff(nll_reject_ratio=gamma)], max_length=LIMIT)["instructdiff"]
    trim = math.floor(gamma * count + 1e-9)
    assert forth.eligible.sum() == (count - 2 * trim if 2 * trim < count else count)
    assert forth.scorable.sum() == count
    # With base and calibrated exchanged every difference changes its sign, and the same rows are kept.
    back = lab.score(rows, [InstructDiff(nll_reject_ratio=gamma)], base="other", calibrated="llama", max_length=LIMIT)
    np.testing.assert_array_equal(back["instructdiff"].details["diff_nll"], -forth.details["diff_nll"])
    assert back["instructdiff"].reason.tolist() == forth.reason.tolist()
