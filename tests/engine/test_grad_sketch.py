"""Sketches of the output embedding's gradient: the hand example, autograd, and that nothing but the row matters."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Lab, causal, make_llama, some_rows
from instdiff.core import GradSketch, MeanNll, Measure, Nll, Prompted
from instdiff.data import load
from instdiff.engine.grad_sketch import Projection, Sketch, projection
from instdiff.engine.head import FINISHES, Finished, token_stats
from instdiff.engine.sweep import Sweep
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import EngineError
from instdiff.rendering.renderer import Renderer, Rows
from instdiff.rendering.templates import template

from .test_forward import gemma, granite

SMALL = GradSketch(16, 8)


# ── section 4's example ───────────────────────────────────────────────────────────────────────────────────────────────

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
H = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
Y = torch.tensor([0, 1, 2])
"""Two rows, of two targets and of one."""


def sketched(how: Projection) -> torch.Tensor:
    sketch = Sketch(H, Y, torch.nn.Identity(), how)
    token_stats(P.log(), Y, torch.nn.Identity(), 3, entropy=True, also=sketch, chunk=2)
    return sketch.rows(np.array([2, 1]))


def exact(bucket: tuple[int, ...], sign: tuple[float, ...]) -> Projection:
    return Projection(torch.tensor(bucket), torch.tensor(sign), torch.eye(2), 3)


def test_the_example_of_the_specification() -> None:
    whole = sketched(exact((0, 1, 2), (1.0, 1.0, 1.0)))  # each entry has a bucket of its own: G itself
    np.testing.assert_allclose(whole[0].reshape(3, 2), [[-0.25, 0.05], [0.15, -0.1], [0.1, 0.05]], atol=1e-6)
    np.testing.assert_allclose(whole[1].reshape(3, 2), [[0.2, 0.2], [0.2, 0.2], [-0.4, -0.4]], atol=1e-6)
    assert float(whole[0] @ whole[1]) == pytest.approx(-0.09, abs=1e-6)
    assert float(torch.cosine_similarity(whole[:1], whole[1:])[0]) == pytest.approx(-0.391675, abs=1e-5)
    two = sketched(exact((0, 1, 0), (1.0, -1.0, -1.0)))
    np.testing.assert_allclose(two[0].reshape(3, 2)[:2], [[-0.35, 0], [-0.15, 0.1]], atol=1e-6)
    np.testing.assert_allclose(two[1].reshape(3, 2)[:2], [[0.6, 0.6], [-0.2, -0.2]], atol=1e-6)
    assert float(two[0] @ two[1]) == pytest.approx(-0.2, abs=1e-6)


def test_the_mean_over_all_hashes_is_the_inner_product() -> None:
    found = [
        float(s[0] @ s[1])
        for bucket in itertools.product((0, 1), repeat=3)
        for sign in itertools.product((1.0, -1.0), repeat=3)
        for s in (sketched(exact(bucket, sign)),)
    ]
    assert len(found) == 64 and np.mean(found) == pytest.approx(-0.09, abs=1e-6)


def test_inner_products_of_sketches_are_those_of_the_gradients_on_average() -> None:
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(2, 40, 12, generator=rng)
    found = []
    for seed in range(300):
        how = projection(GradSketch(8, 6, seed), 40, 12, torch.device("cpu"))
        put = torch.zeros(8, 40)
        put[how.bucket, torch.arange(40)] = how.sign
        s = put @ one @ how.across.t()
        found.append(float((s[0] * s[1]).sum()))
    true, error = float((one[0] * one[1]).sum()), np.std(found) / 300**0.5
    assert abs(np.mean(found) - true) < 4 * error


# ── against autograd ──────────────────────────────────────────────────────────────────────────────────────────────────


def rendered(folder: Path, count: int = 9) -> Rows:
    from transformers import AutoTokenizer

    pool = load(some_rows(count, seed=3))
    tokenizer = HFTokenizer(AutoTokenizer.from_pretrained(folder), 200)
    return Renderer(pool, tokenizer).rows(Prompted(), template("alpaca"), 200)


def by_autograd(model: Any, rows: Rows, how: Projection) -> np.ndarray:
    """The gradient of each row's mean NLL by the output embedding, whose input side is a constant, sketched."""
    head, out = model.get_output_embeddings(), []
    weight = torch.nn.Parameter(head.weight.detach().clone())
    put = torch.zeros(how.buckets, len(how.bucket), dtype=torch.float64)
    put[how.bucket, torch.arange(len(how.bucket))] = how.sign.double()
    keep, head.weight = head.weight, weight  # untied: the input embedding keeps its own
    marks = np.split(rows.target, rows.ids.offsets[1:-1])
    for at, mark in enumerate(marks):
        ids, hit = torch.from_numpy(np.asarray(rows.ids[at], np.int64)), torch.from_numpy(np.flatnonzero(mark))
        logits = model(input_ids=ids[None]).logits[0, hit - 1].float()
        (found,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, ids[hit]), weight)
        out.append((put @ found.double() @ how.across.double().t()).flatten().numpy())
    head.weight = keep
    return np.array(out)


def swept(model: Any, rows: Rows, *also: Measure, measure: GradSketch = SMALL, **how: Any) -> np.ndarray:
    out = np.full((len(rows), measure.buckets * measure.width), np.nan, np.float32)
    for batch in Sweep(model, lambda line: None, **how)(rows, (measure, *also)):
        out[batch.at] = batch.columns[measure].values.reshape(len(batch.at), -1)
    return out


@pytest.mark.parametrize("make", [make_llama, granite, gemma], ids=["plain", "scaled", "capped"])
def test_it_is_the_gradient_of_the_output_embedding(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = causal(make(tmp_path / "model"))
    rows, width = rendered(tmp_path / "model"), model.get_output_embeddings().in_features
    how = projection(SMALL, model.get_output_embeddings().out_features, width, torch.device("cpu"))
    expected = by_autograd(model, rows, how)
    assert np.linalg.norm(expected, axis=1).min() > 1e-3
    np.testing.assert_allclose(swept(model, rows), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_tied_embeddings_leave_the_input_side_out(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "tied", tie_word_embeddings=True)
    model, rows = causal(folder), rendered(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    how = projection(SMALL, *model.get_output_embeddings().weight.shape, torch.device("cpu"))
    expected = by_autograd(model, rows, how)
    np.testing.assert_allclose(swept(model, rows), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_batches_lanes_order_and_other_measures_change_nothing(lab: Lab) -> None:
    model, rows = causal(lab.models["llama"]), rendered(lab.models["llama"], 14)
    plain = swept(model, rows)
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6 * np.abs(plain).max()}
    for how in ({"batch_tokens": 1}, {"batch_tokens": 97}, {"lanes": 3}, {"lanes": 3, "batch_tokens": 150}):
        np.testing.assert_allclose(swept(model, rows, **how), plain, **near)
    np.testing.assert_allclose(swept(model, rows, Nll(), MeanNll()), plain, **near)
    padded = Sweep(model, lambda line: None)
    padded.forward.packs = False
    for batch in padded(rows, (SMALL,)):
        np.testing.assert_allclose(batch.columns[SMALL].values.reshape(-1, 128), plain[batch.at], **near)
    order = np.random.default_rng(0).permutation(len(rows))
    np.testing.assert_allclose(swept(model, rows.take(order)), plain[order], **near)
    assert np.abs(swept(model, rows, measure=GradSketch(16, 8, 1)) - plain).max() > 1e-3


def test_the_nll_beside_it_is_the_same(lab: Lab) -> None:
    model, rows = causal(lab.models["llama"]), rendered(lab.models["llama"])
    found = []
    for measures in ((Nll(),), (Nll(), SMALL)):
        values = {}
        for batch in Sweep(model, lambda line: None)(rows, measures):
            values |= {int(at): batch.columns[Nll()][n] for n, at in enumerate(batch.at)}
        found.append(np.concatenate([values[at] for at in range(len(rows))]))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_head_that_is_not_known_is_refused(lab: Lab) -> None:
    model, rows = causal(lab.models["llama"]), rendered(lab.models["llama"])
    forward = model.forward

    def doubled(*args: Any, **given: Any) -> Any:
        out = forward(*args, **given)
        out.logits = 2 * out.logits
        return out

    model.forward = doubled
    with pytest.raises(EngineError, match="LlamaForCausalLM makes its logits in a way of its own"):
        swept(model, rows)
    other = Finished(torch.nn.Linear(2, 3), lambda logits, value: logits, 1.0)
    with pytest.raises(EngineError, match="no known derivative"):
        Sketch(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), other, exact((0, 1, 2), (1.0, 1.0, 1.0)))
    known = replace(other, finish=FINISHES["logit_scale"])
    assert Sketch(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), known, exact((0, 0, 0), (1, 1, 1))).slope


def test_hashes_are_even_and_differ_by_seed() -> None:
    how = projection(GradSketch(), 49152, 576, torch.device("cpu"))
    sizes = np.bincount(how.bucket.numpy(), minlength=128)
    assert sizes.min() > 300 and sizes.max() < 470 and abs(float(how.sign.mean())) < 0.02
    assert set(np.unique((how.across * 8).numpy())) == {-1.0, 1.0} and abs(float(how.across.mean())) < 0.005
    other = projection(GradSketch(seed=1), 49152, 576, torch.device("cpu"))
    assert 0.4 < float((other.sign == how.sign).float().mean()) < 0.6


# ── a published model ─────────────────────────────────────────────────────────────────────────────────────────────────

SMOLLM = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models")) / "smollm2-135m"


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM.is_dir(), reason="the published model is not on this machine")
def test_smollm2_against_the_untied_formula() -> None:
    model, rows, measure = causal(SMOLLM), rendered(SMOLLM, 4), GradSketch()
    head = model.get_output_embeddings().weight.detach()
    how, out = projection(measure, *head.shape, torch.device("cpu")), []
    put = torch.zeros(measure.buckets, len(head), dtype=torch.float64)
    put[how.bucket, torch.arange(len(head))] = how.sign.double()
    for at, mark in enumerate(np.split(rows.target, rows.ids.offsets[1:-1])):
        ids, hit = torch.from_numpy(np.asarray(rows.ids[at], np.int64)), torch.from_numpy(np.flatnonzero(mark))
        with torch.no_grad():
            states = model.model(input_ids=ids[None]).last_hidden_state[0, hit - 1].double()
        error = (states @ head.double().t()).softmax(-1) - torch.nn.functional.one_hot(ids[hit], len(head))
        out.append((put @ error.t() @ (states @ how.across.double().t()) / len(hit)).flatten().numpy())
    expected = np.array(out)
    found = swept(model, rows, measure=measure)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 1 - 1e-6
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4 * np.abs(expected).max())
