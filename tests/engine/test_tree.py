"""Rows packed as trees of shared prefixes: every token where it belongs, none computed twice, same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Lab, some_rows
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine import attention
from instdiff.engine.batch import EVEN
from instdiff.engine.forward import Forward
from instdiff.engine.prefix_tree import Some, in_order, trees
from instdiff.methods import IFD, Perplexity, ResponseEntropy

PREAMBLES = [[1, *range(50, 70)], [1, *range(50, 62), 9, 9, 9, *range(30, 45)], [1]]


@st.composite
def families(draw: st.DrawFn) -> list[np.ndarray]:
    """Rows with shared beginnings, some of them inside others."""
    rows = []
    for _ in range(draw(st.integers(1, 14))):
        tail = draw(st.lists(st.integers(2, 5), max_size=30))
        rows.append([*draw(st.sampled_from(PREAMBLES)), *tail])
    return [np.array(row) for row in sorted(set(map(tuple, rows)))]


@given(families(), st.integers(1, 400))
@settings(deadline=None)
def test_every_token_is_where_it_belongs(rows: list[np.ndarray], budget: int) -> None:
    seen: list[int] = []
    for tree in trees(rows, budget):
        seen += tree.rows.tolist()
        assert len(tree.ids) <= budget or len(tree.rows) == 1
        for number, where in zip(tree.rows, tree.where, strict=True):
            assert tree.ids[where].tolist() == rows[number].tolist()
            assert tree.position[where].tolist() == list(range(len(rows[number])))
        own = [where[common:] for where, common in zip(tree.where, tree.common, strict=True)]
        assert np.concatenate(own).tolist() == list(range(len(tree.ids))), "each token is one row's own"
        beginnings = {tuple(rows[number][:end]) for number in tree.rows for end in range(1, len(rows[number]) + 1)}
        assert len(tree.ids) == len(beginnings), "no beginning is computed twice"
    assert sorted(seen) == list(range(len(rows)))


@given(families(), st.integers(1, 400), st.randoms())
@settings(deadline=None)
def test_some_of_many_rows_are_laid_out_like_a_list_of_them(rows: list[np.ndarray], budget: int, random: Any) -> None:
    which = np.array(random.sample(range(len(rows)), random.randint(1, len(rows))))
    some, alone = Some(Ragged.of(rows, np.int32), which), [rows[number] for number in which]
    assert in_order(some).tolist() == in_order(alone).tolist()
    for tree, other in zip(trees(some, budget), trees(alone, budget), strict=True):
        assert tree.rows.tolist() == other.rows.tolist() and tree.common == other.common
        assert tree.ids.tolist() == other.ids.tolist() and tree.position.tolist() == other.position.tolist()


@given(families(), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.85, 1.0]))
@settings(deadline=None)
def test_attention_over_a_tree_is_attention_row_by_row(rows: list[np.ndarray], seed: int, fill: float) -> None:
    heads, groups, size = 4, 2, 8
    (tree,) = trees(rows, 100_000)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, h, len(tree.ids), size, generator=generator) for h in (heads, groups, groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "LEAST_FULL", fill)
        patch.setattr(attention, "QUERIES", 7)
        patch.setattr(attention, "SCORE_BYTES", 4096)
        patch.setattr(attention._now, "buckets", attention.buckets(tree, torch.device("cpu")))
        got, _ = attention.tree_attention(None, q, k, v, None)
    for where in map(torch.from_numpy, tree.where):
        alone = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, where], k[:, :, where], v[:, :, where], is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(got[:, where], alone.transpose(1, 2), rtol=1e-5, atol=1e-6)


@given(st.integers(1, 9), st.integers(0, 8), st.sampled_from([7, 16, 40, 128]), st.sampled_from([64, 4096, 1 << 20]))
@settings(deadline=None)
def test_attention_in_blocks_is_attention(width: int, first: int, queries: int, room: int) -> None:
    """What bf16 takes on a CPU, in a precision that tells right from nearly right."""
    width, first = EVEN * width, EVEN * min(first, width - 1)
    generator = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(6, width, 8, generator=generator) for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERIES", queries)
        patch.setattr(attention, "SCORE_BYTES", room)
        got = attention._in_blocks(q, k, v, 0.3, first)
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(got[:, first:], whole[:, first:], rtol=1e-5, atol=1e-6)


@given(families())
def test_attention_holds_no_more_tokens_than_the_batch(rows: list[np.ndarray]) -> None:
    (tree,) = trees(rows, 100_000)
    buckets = attention.buckets(tree, torch.device("cpu"))
    assert all(bucket.place.numel() <= max(len(tree.ids), bucket.width) for bucket in buckets)
    assert sum(int((bucket.to < len(tree.ids)).sum()) for bucket in buckets) == len(tree.ids)
    assert all(bucket.width % EVEN == 0 and bucket.first % EVEN == 0 for bucket in buckets)


def test_a_preamble_is_computed_once() -> None:
    rows = [np.array([*range(100), *(200 + at for _ in range(5))]) for at in range(10)]
    (tree,) = trees(rows, 10_000)
    assert len(tree.ids) == 100 + 10 * 5 and tree.tokens == 10 * 105


def test_a_row_that_is_the_beginning_of_another() -> None:
    rows = [np.arange(20), np.arange(30)]
    (tree,) = trees(rows, 1000)
    assert len(tree.ids) == 30 and [len(where) for where in tree.where] == [20, 30]


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_padded_and_packed_give_the_same(lab: Lab, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(30, seed=5)
    methods = [IFD(), Perplexity(), ResponseEntropy()]
    packed = lab.score(rows, methods, base=base)
    ways: list[bool] = []
    init = Forward.__init__

    def padding(self: Forward, *args: Any) -> None:
        init(self, *args)
        ways.append(self.packs is None)
        self.packs = False

    monkeypatch.setattr(Forward, "__init__", padding)
    padded = lab.score(rows, methods, base=base, store=lab.store())
    assert ways and all(ways)
    for name in packed:
        for detail, values in packed[name].details.items():
            np.testing.assert_allclose(padded[name].details[detail], values, rtol=1e-5)


def test_an_attention_that_cannot_follow_a_tree_gets_padded_batches(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores the tree is found out; the numbers stay."""
    rows = some_rows(20, seed=6)
    right = lab.score(rows, [IFD()])["ifd"]
    real = attention.tree_attention

    def blind(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **more: Any) -> Any:
        out, _ = real(module, query, key, value, *args, **more)
        return out.flip(1), None

    monkeypatch.setattr(attention, "tree_attention", blind)
    wrong = lab.score(rows, [IFD()], store=lab.store())["ifd"]
    np.testing.assert_allclose(wrong.value, right.value, rtol=1e-5)
