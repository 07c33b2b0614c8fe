"""NLL and entropy from hidden states, in chunks, against the plain formula."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from helpers import Lab, some_rows
from instdiff.core import Brier, Entropy, Nll, Prompted, Rank
from instdiff.data import load
from instdiff.engine import head as heads
from instdiff.engine.head import FINISHES, Finished, Head, More, choice_logs, token_stats
from instdiff.engine.sweep import Sweep
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import template


def plain(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = logits.double().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1)
    return -log_p.gather(-1, target[:, None])[:, 0], entropy


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 1000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_against_the_plain_formula(chunk: int | None, scale: float) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden, target = torch.randn(7, 8) * scale, torch.randint(0, 50, (7,))
    with torch.no_grad():
        nll, entropy, *_ = token_stats(hidden, target, head, 50, entropy=True, chunk=chunk)
        expected = plain(head(hidden), target)
    assert entropy is not None and nll.dtype == entropy.dtype == torch.float32
    np.testing.assert_allclose(nll, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-5, atol=1e-5)
    assert token_stats(hidden, target, head, 50, entropy=False, chunk=chunk)[1] is None


@given(st.integers(2, 80), st.sampled_from([0.0, 1e-3, 1.0, 20.0, 500.0]), st.integers(0, 5))
def test_entropy_lies_between_zero_and_log_v(size: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, size, generator=generator) * scale
    nll, entropy, *_ = token_stats(logits, torch.zeros(6, dtype=torch.long), torch.nn.Identity(), size, entropy=True)
    assert entropy is not None
    assert (entropy >= 0).all() and (entropy <= math.log(size) * (1 + 1e-6)).all()
    assert (nll >= 0).all()
    if scale == 0.0:
        np.testing.assert_allclose(entropy, math.log(size), rtol=1e-6)
        np.testing.assert_allclose(nll, math.log(size), rtol=1e-6)


def test_a_token_that_is_ruled_out() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [1.0, -torch.inf, -torch.inf]])
    nll, entropy, *_ = token_stats(logits, torch.tensor([1, 0]), torch.nn.Identity(), 3, entropy=True)
    assert entropy is not None
    np.testing.assert_allclose(nll, [math.log(2), 0.0], atol=1e-7)
    np.testing.assert_allclose(entropy, [math.log(2), 0.0], atol=1e-7)
    assert token_stats(logits, torch.tensor([2, 0]), torch.nn.Identity(), 3, entropy=False)[0][0] == math.inf


def test_half_precision_is_reduced_in_fp32() -> None:
    torch.manual_seed(1)
    logits = (torch.randn(5, 4000) * 3).bfloat16()
    target = torch.arange(5)
    nll, entropy, *_ = token_stats(logits, target, torch.nn.Identity(), 4000, entropy=True)
    expected = plain(logits, target)
    assert entropy is not None and nll.dtype == torch.float32
    np.testing.assert_allclose(nll, expected[0], rtol=1e-5)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-5)


# ── the place of the logits ───────────────────────────────────────────────────────────────────────────────────────────


def listened(linear: torch.nn.Linear) -> Head:
    linear.register_forward_hook(lambda module, args, out: out * 2)
    return linear


def stood_in_for(linear: torch.nn.Linear) -> Head:
    """As accelerate does it with a layer that lies elsewhere."""
    forward = linear.forward
    linear.forward = lambda hidden: forward(hidden) * 2  # type: ignore[method-assign]
    return linear


def quantised(linear: torch.nn.Linear) -> Head:
    class Packed(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden) * 2

    linear.__class__ = Packed
    return linear


def capped(linear: torch.nn.Linear) -> Head:
    return Finished(linear, FINISHES["final_logit_softcapping"], 3.0)


def scaled(linear: torch.nn.Linear) -> Head:
    return Finished(linear, FINISHES["logits_scaling"], 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [lambda linear: linear, listened, stood_in_for, quantised, capped, scaled])
def test_a_head_of_any_kind_is_asked_as_it_is(make: Callable[..., Head], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    hidden, target = torch.randn(23, 8).to(dtype), torch.randint(0, 50, (23,))
    head = make(torch.nn.Linear(8, 50, bias=bias).to(dtype))
    with torch.no_grad():
        expected = plain(head(hidden).float(), target)
    before = hidden.clone()
    for chunk in (None, 1, 7):  # the last one leaves a smaller chunk
        nll, entropy, *_ = token_stats(hidden, target, head, 50, entropy=True, chunk=chunk)
        assert entropy is not None
        rtol = 1e-5 if dtype == torch.float32 else 2e-2  # a product of fewer rows may round another way
        np.testing.assert_allclose(nll, expected[0], rtol=rtol, atol=rtol)
        np.testing.assert_allclose(entropy, expected[1], rtol=rtol, atol=rtol)
    torch.testing.assert_close(hidden, before, rtol=0, atol=0)


def test_no_target_at_all() -> None:
    nll, entropy, top, *_ = token_stats(
        torch.zeros(0, 8), torch.zeros(0, dtype=torch.long), torch.nn.Linear(8, 50), 50, entropy=True
    )
    assert entropy is not None and len(nll) == len(entropy) == len(top) == 0


def test_chunks_of_logits_lie_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    places, mm = set[int](), torch.mm

    def watched(*args: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        places.add(out.data_ptr())
        return mm(*args, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    head = torch.nn.Linear(8, 50, bias=False)
    token_stats(torch.randn(23, 8), torch.zeros(23, dtype=torch.long), head, 50, entropy=True, chunk=4)
    assert len(places) == 1


# ── tiles of the vocabulary ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TILED_FROM", 0), ("TILE", 16), ("TILE_ROWS", 3)):
        monkeypatch.setattr(f"instdiff.engine.head.{name}", value)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cap", [True, False])
def test_tiles_give_what_the_whole_vocabulary_gives(scale: float, bias: bool, cap: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 50, bias=bias)
    head = Finished(linear, FINISHES["final_logit_softcapping"], 3.0) if cap else linear
    hidden = torch.randn(7, 8) * scale
    with torch.no_grad():
        logits = head(hidden)
        target = logits.argmax(-1)
        target[::2] = torch.tensor([0, 49, 16, 15])
        nll, entropy, top, *_ = token_stats(hidden, target, head, 50, entropy=True)
        expected = plain(logits, target)
        choices = choice_logs(hidden, head, (3, 40, 17), 50)
    assert entropy is not None
    np.testing.assert_allclose(nll, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-5, atol=1e-5)
    assert top.bool().tolist() == (logits.argmax(-1) == target).tolist()
    np.testing.assert_allclose(choices, logits.log_softmax(-1)[:, [3, 40, 17]], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("out", [slice(0, 20), slice(16, 40), slice(30, 50)])
def test_a_tile_that_is_ruled_out(out: slice) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 50)
    with torch.no_grad():
        linear.bias[out] = -torch.inf
        hidden, target = torch.randn(7, 8), torch.tensor([25, 5, 45, 25, 5, 45, 0])
        nll, entropy, *_ = token_stats(hidden, target, linear, 50, entropy=True)
        expected = plain(linear(hidden), target)
    assert entropy is not None
    np.testing.assert_allclose(nll, expected[0], rtol=1e-5)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-5)
    assert torch.isinf(nll).any()


@pytest.mark.usefixtures("tiled")
def test_tiles_of_half_precision_are_reduced_in_fp32() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(32, 500, bias=False).bfloat16()
    hidden, target = torch.randn(9, 32).bfloat16(), torch.arange(9)
    with torch.no_grad():
        nll, entropy, *_ = token_stats(hidden, target, linear, 500, entropy=True)
        expected = plain(linear(hidden), target)
    assert entropy is not None
    np.testing.assert_allclose(nll, expected[0], rtol=1e-5)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-5)


# ── the fused kernel ──────────────────────────────────────────────────────────────────────────────────────────────────


def shares_of(hidden: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, size: int = 7) -> torch.Tensor:
    """What the kernel gives for shares of the vocabulary, from plain logits."""
    out = []
    logits = hidden.float() @ weight.float().t()
    for first in range(0, logits.shape[1], size):
        part, here = logits[:, first : first + size], target - first
        own = torch.where(
            (here >= 0) & (here < part.shape[1]), part.gather(1, here.clamp(0, part.shape[1] - 1)[:, None])[:, 0], 0.0
        )
        z = part - part.amax(1, keepdim=True)
        out.append(torch.stack([part.amax(1), z.exp().sum(1), (z.exp() * z).sum(1), own]))
    return torch.stack(out, 1)


def few(scale: float, rows: int = 9, size: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    torch.manual_seed(2)
    linear = torch.nn.Linear(24, size, bias=False).requires_grad_(False)
    return torch.randn(rows, 24) * scale, torch.randint(0, size, (rows,)), linear


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 300.0])
def test_shares_of_the_vocabulary_are_joined(scale: float) -> None:
    hidden, target, linear = few(scale)
    expected = token_stats(hidden, target, linear, 50, entropy=True)
    got = token_stats(hidden, target, linear, 50, entropy=True, fused=shares_of)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert token_stats(hidden, target, linear, 50, entropy=False, fused=shares_of).entropy is None


def test_a_token_that_is_ruled_out_in_a_share() -> None:
    hidden, target, linear = few(1.0)
    with torch.no_grad():
        linear.weight[3] = torch.inf
        hidden = hidden.abs().neg()  # its logit is minus infinity
        expected = token_stats(hidden, target, linear, 50, entropy=True)
        got = token_stats(hidden, target, linear, 50, entropy=True, fused=shares_of)
    torch.testing.assert_close(got.nll, expected.nll)
    torch.testing.assert_close(got.entropy, expected.entropy)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The module of the kernel, of which a machine without a GPU has a stand-in."""
    module = types.ModuleType("instdiff.engine.fused_head")
    module.reduce_shares = shares_of  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(heads, "FUSED_ON", ("cpu",))
    monkeypatch.setattr(heads, "FUSED_TYPES", (torch.float32, torch.bfloat16))
    yield module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_agrees_is_used(kernel: types.ModuleType, dtype: torch.dtype) -> None:
    hidden, _, linear = few(1.0)
    said: list[str] = []
    assert heads.fused_kernel(hidden.to(dtype), linear.to(dtype), said.append) is kernel.reduce_shares
    assert heads.fused_kernel(hidden.to(dtype), torch.nn.Linear(24, 50).to(dtype), said.append) is None, "it has a bias"
    assert heads.fused_kernel(hidden.to(dtype), Finished(linear, FINISHES["logit_scale"], 0.5), said.append) is None
    assert said == []


def test_a_kernel_that_differs_or_fails_is_not_used(kernel: types.ModuleType) -> None:
    hidden, _, linear = few(1.0)
    said: list[str] = []
    kernel.reduce_shares = lambda *given: shares_of(*given) * 1.01
    assert heads.fused_kernel(hidden, linear, said.append) is None
    kernel.reduce_shares = lambda *given: shares_of(*given) * torch.nan
    assert heads.fused_kernel(hidden, linear, said.append) is None
    kernel.reduce_shares = lambda *given: given[99]
    assert heads.fused_kernel(hidden, linear, said.append) is None
    assert said == [
        "the fused head differs from plain products; using these (slower)",
        "the fused head differs from plain products; using these (slower)",
        "the fused head fails on this GPU (IndexError); using plain products (slower)",
    ]


def test_a_model_is_read_through_the_kernel(
    kernel: types.ModuleType, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Renderer(load(some_rows(6)), HFTokenizer(lab.tokenizer("llama"), 180)).rows(
        Prompted(), template("alpaca"), 180
    )

    def values() -> tuple[bool, np.ndarray]:
        sweep = Sweep(lab.reference("llama"), print, 400, 1)
        parts = [(part.at, part.columns[Entropy()].mean()) for part in sweep(rows, (Nll(), Entropy()))]
        order = np.argsort(np.concatenate([at for at, _ in parts]))
        return sweep.forward.fused is not None, np.concatenate([found for _, found in parts])[order]

    used, got = values()
    monkeypatch.setattr(heads, "FUSED_ON", ())
    plainly, expected = values()
    assert used and not plainly
    np.testing.assert_allclose(got, expected, rtol=1e-5)


INTERPRETED = """
import sys, torch
from instdiff.engine import fused_head
from instdiff.engine.head import join_shares, token_stats
fused_head.ROWS, fused_head.ENTRIES, fused_head.INNER = 16, 16, 16
for rows, entries, width, processors in ((5, 70, 24, 1), (35, 16, 16, 1), (33, 130, 40, 2)):
    fused_head._processors = lambda device: processors
    torch.manual_seed(rows)
    hidden, target = torch.randn(rows, width) * 3, torch.randint(0, entries, (rows,))
    linear = torch.nn.Linear(width, entries, bias=False).requires_grad_(False)
    got = join_shares(fused_head.reduce_shares(hidden, target, linear.weight), entropy=True)
    for one, other in zip(got, token_stats(hidden, target, linear, entries, entropy=True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
"""


def test_the_kernel_itself_in_tritons_interpreter() -> None:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    there = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ── ranks and Brier scores ────────────────────────────────────────────────────────────────────────────────────────────


def plain_more(
    logits: torch.Tensor, target: torch.Tensor, likeliest: int
) -> tuple[list[int], list[float], list[float]]:
    """Ranks, and Brier scores over the whole vocabulary and over a few entries, by loops in fp64."""
    ranks, briers, few = [], [], []
    for row, y in zip(logits.double(), target.tolist(), strict=True):
        ranks.append(1 + sum(z > float(row[y]) for z in row.tolist()))
        p = row.softmax(-1).tolist()
        briers.append(sum((q - (v == y)) ** 2 for v, q in enumerate(p)))
        most = row.topk(likeliest).indices.tolist()
        of = row[most].softmax(-1)
        few.append(1 - 2 * (float(of[most.index(y)]) if y in most else 0.0) + float((of * of).sum()))
    return ranks, briers, few


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_ranks_and_brier_scores_against_a_plain_loop(
    tiles: bool, cap: bool, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TILED_FROM", 0 if tiles else 10**9), ("TILE", 16), ("TILE_ROWS", 3)):
        monkeypatch.setattr(f"instdiff.engine.head.{name}", value)
    torch.manual_seed(3)
    linear = torch.nn.Linear(8, 50)
    head = Finished(linear, FINISHES["final_logit_softcapping"], 3.0) if cap else linear
    hidden, target = torch.randn(9, 8) * scale, torch.randint(0, 50, (9,))
    with torch.no_grad():
        ranks, briers, few = plain_more(head(hidden), target, 7)
        for kinds, chunk in (((None,), None), ((None, 7), None), ((7,), 2)):
            stats = token_stats(hidden, target, head, 50, entropy=True, more=More(True, kinds), chunk=chunk)
            assert stats.rank is not None and stats.brier is not None
            assert stats.rank.tolist() == ranks
            for kind, found in zip(kinds, stats.brier, strict=True):
                np.testing.assert_allclose(found, few if kind else briers, rtol=1e-4, atol=1e-6)
    assert token_stats(hidden, target, head, 50, entropy=True).rank is None


def test_the_brier_score_and_the_ranks_of_three_tokens() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]]).log()
    stats = token_stats(logits, torch.tensor([1, 1]), torch.nn.Identity(), 3, entropy=False, more=More(True, (None, 1)))
    assert stats.brier is not None and stats.rank is not None
    assert stats.brier[0, 0].item() == pytest.approx(0.78)
    assert stats.brier[1].tolist() == pytest.approx([2.0, 0.0])  # the likeliest alone: y is not it, or shares its place
    assert stats.rank.tolist() == [2, 1]


@pytest.mark.usefixtures("tiled")
def test_equal_logits_of_half_precision_share_the_better_rank() -> None:
    torch.manual_seed(4)
    linear = torch.nn.Linear(8, 50, bias=False).bfloat16()
    with torch.no_grad():
        linear.weight[20:40] = linear.weight[:20].clone()
        hidden, target = torch.randn(9, 8).bfloat16(), torch.arange(20, 29)
        stats = token_stats(hidden, target, linear, 50, entropy=False, more=More(True))
        logits = linear(hidden).float()
    assert stats.rank is not None
    ranks = 1 + (logits > logits.gather(-1, target[:, None])).sum(-1)
    assert (stats.rank - ranks).abs().max() <= 2  # a product may round another way


def check_model(model: torch.nn.Module, hf: Any, rows: list[dict[str, str]], slack: int) -> None:
    """Ranks and Brier scores of a sweep against loops; so many ranks may be one off, where logits are nearly equal."""
    measures = (Nll(), Rank(5), Rank(100), Brier(), Brier(3))
    made = Renderer(load(rows), HFTokenizer(hf, 64)).rows(Prompted(), template("plain"), 64)
    off = 0
    for result in Sweep(model, print)(made, measures):
        for at, row in enumerate(result.at.tolist()):
            a, b = made.ids.offsets[row : row + 2]
            ids, marks = torch.tensor(made.ids[row])[None].long(), torch.tensor(made.target[a + 1 : b])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1][marks]
            ranks, briers, few = plain_more(logits, ids[0, 1:][marks], 3)
            found = {measure: column[at] for measure, column in result.columns.items()}
            gap = np.abs(found[Rank(100)] - np.minimum(ranks, 100))
            off += int((gap > 0).sum())
            assert gap.max(initial=0) <= min(slack, 1)
            np.testing.assert_array_equal(found[Rank(5)], np.minimum(found[Rank(100)], 5))
            np.testing.assert_allclose(found[Brier()], briers, atol=1e-4)
            np.testing.assert_allclose(found[Brier(3)], few, atol=1e-4)
    assert off <= slack


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_ranks_and_brier_scores_of_a_model(lab: Lab, name: str) -> None:
    check_model(lab.reference(name), lab.tokenizer(name), some_rows(6), 0)


MODELS = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_ranks_and_brier_scores_of_published_models(name: str) -> None:
    if not (MODELS / name).is_dir():
        pytest.skip("the published model is not on this machine")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32)
    check_model(model.eval(), transformers.AutoTokenizer.from_pretrained(MODELS / name), some_rows(4), 1)
