"""What only a GPU can show: its kernels give what the plain ways give."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from helpers import Lab, some_rows
from instdiff.core import Entropy, Nll, Prompted
from instdiff.data import load
from instdiff.engine import head as heads
from instdiff.engine import varlen
from instdiff.engine.sweep import Sweep
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import template

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]


def test_the_kernel_for_rows_of_unlike_lengths_is_right() -> None:
    if varlen.kernel() is None:
        pytest.skip("the installed torch has no such kernel with a scale")
    for heads_, groups, size in ((14, 2, 64), (28, 4, 128), (9, 3, 64)):
        assert varlen._agrees(torch.device("cuda", 0), torch.bfloat16, heads_, groups, size)


def test_the_fused_head_is_right() -> None:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    torch.manual_seed(0)
    said: list[str] = []
    for rows, width, entries in ((5, 896, 151936), (300, 64, 4099), (64, 3584, 152064)):
        linear = torch.nn.Linear(width, entries, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
        hidden = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
        fused = heads.fused_kernel(hidden, linear, said.append)
        assert fused is not None, said
        target = torch.randint(0, entries, (rows,), device="cuda")
        got = heads.token_stats(hidden, target, linear, entries, entropy=True, fused=fused)
        exact = heads.token_stats(hidden.double(), target, linear.double(), entries, entropy=True)
        for one, other in zip(got[:2], exact[:2], strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-3)


def test_a_sweep_on_a_gpu_is_near_one_on_a_cpu(lab: Lab) -> None:
    rows = Renderer(load(some_rows(40)), HFTokenizer(lab.tokenizer("llama"), 180)).rows(
        Prompted(), template("alpaca"), 180
    )

    def values(device: str, dtype: torch.dtype) -> np.ndarray:
        out = np.zeros((len(rows), 2))
        for part in Sweep(lab.reference("llama").to(device, dtype), print, 900)(rows, (Nll(), Entropy())):
            out[part.at] = np.stack([part.columns[m].mean() for m in (Nll(), Entropy())], 1)
        return out

    try:
        half, whole = values("cuda", torch.bfloat16), values("cuda", torch.float32)
    finally:
        expected = values("cpu", torch.float32)
    np.testing.assert_allclose(half, expected, rtol=0.03)
    np.testing.assert_allclose(whole, expected, rtol=1e-3)
