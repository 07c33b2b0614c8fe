"""The GPU's kernel for rows of unlike lengths, by a stand-in that takes the same and gives what the kernel should."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Lab, some_rows
from instdiff.core import Entropy, Nll, Prompted
from instdiff.data import load
from instdiff.engine import attention, varlen
from instdiff.engine.prefix_tree import Tree, trees
from instdiff.engine.sweep import Sweep
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import template

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Lengths of the queries of each call of the stand-in."""
    seen: list[tuple[int, ...]] = []

    def kernel(query: torch.Tensor, *more: Any, **how: Any) -> torch.Tensor:
        seen.append(tuple(more[2].diff().tolist()))
        return varlen.plain(query, *more, **how)

    stand_in(monkeypatch, kernel)
    yield seen
    varlen._agrees.cache_clear()


def stand_in(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
    monkeypatch.setattr(varlen, "DEVICES", ("cpu",))
    monkeypatch.setattr(varlen, "DTYPES", (torch.float32, torch.float64, torch.bfloat16))
    monkeypatch.setattr(varlen, "kernel", lambda: kernel)
    varlen._agrees.cache_clear()


def some_tree(seed: int, share: bool) -> Tree:
    draw = np.random.default_rng(seed)
    heads = [draw.integers(0, 3, size) for size in (0, 7, 7, 21)]
    rows = [np.concatenate([heads[draw.integers(4)], draw.integers(3, 9, draw.integers(1, 30))]) for _ in range(9)]
    (tree,) = trees([*rows, rows[0]], 10_000, share=share)  # two rows are equal: one has no query of its own
    return tree


def attend(tree: Tree, tokens: int, window: int | None, packed: list[torch.Tensor]) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention._now, "layout", attention.Layout(tree, tokens, CPU))
        return attention.tree_attention(None, *packed, None, scaling=0.3, sliding_window=window)[0]


def states(tokens: int, seed: int, heads: int = 4) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(1, count, tokens, 8, generator=draw) for count in (heads, 2, 2)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("window", [None, 5, 500])
@pytest.mark.parametrize("seed", range(4))
def test_each_row_attends_to_itself(calls: list[Any], seed: int, window: int | None, share: bool) -> None:
    tree = some_tree(seed, share)
    tokens = len(tree.ids) + seed  # none, and some, that fill the batch up
    packed = states(tokens, seed, heads=2 + 2 * (seed % 2))
    got = attend(tree, tokens, window, packed)
    assert (len(calls) == 2) == (window != 5), "once for the check; rows longer than a window go another way"
    if window != 5:
        assert sum(calls[-1]) == tokens and 0 not in calls[-1]
    for where in map(torch.from_numpy, tree.where):
        at = torch.arange(len(where))
        seen = (at[:, None] >= at) & (at[:, None] - at < (window or 1000))
        q, k, v = (x[:, :, where] for x in packed)
        alone = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True
        ).transpose(1, 2)
        torch.testing.assert_close(got[:, where], alone, rtol=1e-5, atol=1e-6)


def from_the_start(query: torch.Tensor, *more: Any, **how: Any) -> torch.Tensor:
    """As a kernel that lays the first query on the first key."""
    edges, keys = more[2].tolist(), more[3].tolist()
    for row, (start, stop) in enumerate(pairwise(keys)):
        short = (stop - start) - (edges[row + 1] - edges[row])
        more[0][start:stop] = more[0][start:stop].roll(short, 0)
    return varlen.plain(query, *more, **how)


def broken(*more: Any, **how: Any) -> torch.Tensor:
    raise RuntimeError("no kernel image is available")


def without_gradient(query: torch.Tensor, *more: Any, **how: Any) -> torch.Tensor:
    return varlen.plain(query.detach(), *more, **how)


@pytest.mark.parametrize("kernel", [from_the_start, broken, without_gradient, None])
def test_a_kernel_that_differs_is_not_used(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, kernel)
    tree = some_tree(0, share=True)
    packed = states(len(tree.ids), 0)
    assert not varlen.can_attend(*(x[0].transpose(0, 1) for x in packed))
    got = attend(tree, len(tree.ids), None, packed)
    monkeypatch.undo()
    torch.testing.assert_close(got, attend(tree, len(tree.ids), None, packed), rtol=0, atol=0)
    varlen._agrees.cache_clear()


def test_a_sweep_through_the_kernel_gives_the_same(calls: list[Any], lab: Lab) -> None:
    tokenizer = HFTokenizer(lab.tokenizer("llama"), 180)
    rows = Renderer(load(some_rows(12)), tokenizer).rows(Prompted(), template("alpaca"), 180)
    model = lab.reference("llama")

    def values() -> np.ndarray:
        out = np.zeros((len(rows), 2))
        for part in Sweep(model, print, 600)(rows, (Nll(), Entropy())):
            out[part.at] = np.stack([part.columns[m].mean() for m in (Nll(), Entropy())], 1)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "DEVICES", ())
        expected = values()
    assert calls == []
    np.testing.assert_allclose(values(), expected, rtol=1e-5)
    assert len(calls) > 2


def test_the_installed_kernel_takes_what_it_is_given() -> None:
    found = varlen.kernel()
    if found is None:
        pytest.skip("the installed torch has no such kernel with a scale")
    theirs, ours = (list(inspect.signature(one).parameters) for one in (found, varlen.plain))
    assert ours[:7] == theirs[:7] and set(ours) <= set(theirs)
