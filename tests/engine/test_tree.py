"""Rows packed as trees of shared prefixes: every token where it belongs, none computed twice, same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Lab, reference, some_rows
from instdiff.core import Nll
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine import attention, prefix_tree
from instdiff.engine.batch import EVEN
from instdiff.engine.forward import Forward
from instdiff.engine.prefix_tree import Some, in_order, trees
from instdiff.engine.sweep import Sweep
from instdiff.methods import IFD, Perplexity, ResponseEntropy
from instdiff.rendering.renderer import Rows

PREAMBLES = [[1, *range(50, 70)], [1, *range(50, 62), 9, 9, 9, *range(30, 45)], [1]]


@st.composite
def families(draw: st.DrawFn) -> list[np.ndarray]:
    """Rows with shared beginnings, some of them inside others."""
    rows = []
    for _ in range(draw(st.integers(1, 14))):
        tail = draw(st.lists(st.integers(2, 5), max_size=30))
        rows.append([*draw(st.sampled_from(PREAMBLES)), *tail])
    return [np.array(row) for row in sorted(set(map(tuple, rows)))]


@given(families(), st.integers(1, 400), st.integers(1, 3))
@settings(deadline=None)
def test_every_token_is_where_it_belongs(rows: list[np.ndarray], budget: int, lanes: int) -> None:
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_tree, "LEAST_EVEN", 20)
        found = list(trees(rows, budget, lanes=lanes))
    for tree in found:
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


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(9000, [2250] * 4), (4000, [2000, 2000]), (600, [600]), (9600, [2400] * 4)]
)
def test_lanes_get_trees_of_like_size(tokens: int, sizes: list[int]) -> None:
    rows = [np.full(50, number + 2) for number in range(tokens // 50)]
    assert [len(tree.ids) for tree in trees(rows, 4096, lanes=2)] == sizes
    assert len(list(trees(rows, 4096))) == -(-tokens // 4096)


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
    (tree,) = trees([*rows, *rows[:2]], 100_000)  # rows may be equal where a token that nobody sees is left out
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, h, len(tree.ids), size, generator=generator) for h in (heads, groups, groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "LEAST_FULL", fill)
        patch.setattr(attention, "QUERIES", 7)
        patch.setattr(attention, "SCORE_BYTES", 4096)
        patch.setattr(attention._now, "layout", attention.Layout(tree, len(tree.ids), torch.device("cpu")))
        got, _ = attention.tree_attention(None, q, k, v, None)
    for where in map(torch.from_numpy, tree.where):
        alone = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, where], k[:, :, where], v[:, :, where], is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(got[:, where], alone.transpose(1, 2), rtol=1e-5, atol=1e-6)


WINDOWS = st.sampled_from([None, 1, 5, 16, 33, 64, 1000])


@given(
    st.integers(1, 9),
    st.integers(0, 8),
    st.sampled_from([7, 16, 40, 128]),
    st.sampled_from([64, 4096, 1 << 20]),
    WINDOWS,
)
@settings(deadline=None)
def test_attention_in_blocks_is_attention(width: int, first: int, queries: int, room: int, window: int | None) -> None:
    """What bf16 takes on a CPU, in a precision that tells right from nearly right; and the fused kernel's way."""
    width, first = EVEN * width, EVEN * min(first, width - 1)
    generator = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(6, width, 8, generator=generator) for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERIES", queries)
        patch.setattr(attention, "SCORE_BYTES", room)
        got = attention._in_blocks(q, k, v, 0.3, first, window)
        fused = attention.fused_attention(q[None], k[None], v[None], 0.3, first, window)[0]
    at = torch.arange(width)
    seen = (at[:, None] >= at) & (at[:, None] - at < (window or width))
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3)
    for way in (got, fused):
        torch.testing.assert_close(way[:, first:], whole[:, first:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [4, 24, 512])
def test_a_model_with_sliding_windows_is_packed(window: int, dtype: str) -> None:
    """Layers with a window, shorter and longer than the rows, and layers without."""
    model = windowed(window).to(getattr(torch, dtype))
    rows = random_rows(9, seed=window)
    sweep = Sweep(model, print)
    got = [np.zeros(0)] * len(rows)
    for swept in sweep(rows, (Nll(),)):
        for at, row in enumerate(swept.at):
            got[row] = swept.columns[Nll()][at]
    assert sweep.forward.packs is True
    exact = model.float()
    for at in range(len(rows)):
        span = slice(*rows.ids.offsets[at : at + 2])
        expected, _ = reference(exact, rows.ids[at].tolist(), rows.target[span].tolist())
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.05, "atol": 0.05}
        np.testing.assert_allclose(got[at], expected, **tolerance)


def windowed(window: int) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.3, sliding_window=window,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval().requires_grad_(False)


def random_rows(count: int, seed: int) -> Rows:
    """Rows of 10 to 150 tokens, of which the second half is predicted; some begin alike."""
    rng = np.random.default_rng(seed)
    ids = [np.concatenate([[1, *range(2, 30)] if at % 2 else [1], rng.integers(2, 99, rng.integers(10, 120))])
           for at in range(count)]  # fmt: skip
    target = [np.arange(len(row)) >= len(row) // 2 for row in ids]
    nothing = np.full(count, None, object)
    return Rows(Ragged.of(ids, np.int32), Ragged.of(target, np.bool_).values, np.zeros(count, bool), nothing)


@given(families())
def test_attention_holds_no_more_tokens_than_the_batch(rows: list[np.ndarray]) -> None:
    (tree,) = trees(rows, 100_000)
    buckets = attention.buckets(tree, torch.device("cpu"))
    assert all(bucket.place.numel() <= max(len(tree.ids), bucket.width) for bucket in buckets)
    assert sum(int((bucket.to < len(tree.ids)).sum()) for bucket in buckets) == len(tree.ids)
    assert all(bucket.width % EVEN == 0 and bucket.first % EVEN == 0 for bucket in buckets)


@pytest.mark.parametrize("packs", [True, False])
def test_a_last_token_needs_no_position(lab: Lab, packs: bool) -> None:
    """GPT-2 has 192 positions; the 193rd token is predicted all the same, whichever it is."""
    model, draw = lab.reference("gpt2"), np.random.default_rng(0)
    whole = draw.integers(5, 200, 193)
    ids = [whole, np.append(whole[:-1], 7), draw.integers(5, 200, 20), draw.integers(5, 200, 192)]
    target = [np.arange(len(row)) > len(row) - 4 for row in ids]
    rows = Rows(Ragged.of(ids, np.int32), np.concatenate(target), np.zeros(4, bool), np.full(4, None, object))
    sweep, found = Sweep(model, print), dict[int, np.ndarray]()
    sweep.forward.packs = packs
    for batch in sweep(rows, (Nll(),)):
        found |= {int(at): batch.columns[Nll()][place] for place, at in enumerate(batch.at)}
    for number, (row, marks) in enumerate(zip(ids, target, strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(row[None, :-1])).logits[0].log_softmax(-1)
        at = np.flatnonzero(marks)
        np.testing.assert_allclose(found[number], -logits[at - 1, row[at]], atol=1e-5)


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
