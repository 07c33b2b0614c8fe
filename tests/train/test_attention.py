"""Training on a CPU attends row by row without padding: the same losses and gradients as with the model's own way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import distance, make_rows, run
from torch.utils.checkpoint import checkpoint

from instdiff.engine import attention as engine
from instdiff.engine import varlen
from instdiff.training import attention, plain_attention
from instdiff.training.plain_attention import PlainAttention
from instdiff.training.trainer import Job

LENGTHS = [3, 40, 1, 17, 33, 40]


def positions(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


def states(heads: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, heads, sum(LENGTHS), 8, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("window", [None, 1, 9, 20, 500])
@pytest.mark.parametrize("plain", [True, False], ids=["plain products", "fused"])
def test_losses_and_gradients_are_those_of_each_row_alone(
    window: int | None, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(engine, "QUERIES", 16)
    monkeypatch.setattr(plain_attention, "SCORE_BYTES", 4096)
    monkeypatch.setattr(plain_attention, "SHORT", 24)
    q, k, v = states(4, torch.float64), states(2, torch.float64), states(2, torch.float64)
    attention.begin(positions(LENGTHS))
    if plain:
        packed, rows = (x[0] for x in (q, k, v)), attention._now.layout
        assert rows is not None
        got = PlainAttention.apply(*packed, rows.parts, 0.3, window)[None]  # type: ignore[no-untyped-call]
    else:
        got, _ = attention.row_attention(None, q, k, v, None, scaling=0.3, sliding_window=window)
    expected = []
    for part in torch.arange(sum(LENGTHS)).split(LENGTHS):
        at = torch.arange(len(part))
        seen = (at[:, None] >= at) & (at[:, None] - at < (window or len(part)))
        alone = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, part], k[:, :, part], v[:, :, part], attn_mask=seen, scale=0.3, enable_gqa=True
        )
        expected.append(alone.transpose(1, 2))
    whole = torch.cat(expected, 1)
    torch.testing.assert_close(got, whole)
    weight = torch.randn_like(whole)
    mine = torch.autograd.grad((got * weight).sum(), (q, k, v))
    for one, other in zip(mine, torch.autograd.grad((whole * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(one, other)


def test_bf16_takes_plain_products_and_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    used: list[torch.dtype] = []
    apply = PlainAttention.apply

    def watched(q: torch.Tensor, *more: Any) -> Any:
        used.append(q.dtype)
        return apply(q, *more)

    monkeypatch.setattr(PlainAttention, "apply", watched)
    q, k, v = states(4, torch.float32), states(2, torch.float32), states(2, torch.float32)
    attention.begin(positions(LENGTHS))
    exact, _ = attention.row_attention(None, q, k, v, None)
    weight = torch.randn_like(exact)
    expected = torch.autograd.grad((exact * weight).sum(), (q, k, v))
    assert used == []
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = attention.row_attention(None, q, k, v, None)
    assert used == [torch.bfloat16] and got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), exact, rtol=0.02, atol=0.02)
    for one, other in zip(torch.autograd.grad((got * weight).sum(), (q, k, v)), expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.01


def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "_follows_rows", lambda self, halves: False)


HOW: list[dict[str, Any]] = [
    {},
    {"mode": "dft"},
    {"mode": "asft"},
    {"mode": "sft+kl", "use_lora": True},
    {"use_lora": True, "lora_target_modules": "all-linear"},
    {"activation_checkpointing": True},
    {"packing": True},
    {"per_device_train_batch_size": 3, "global_batch_size": 6},
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_training_without_padding_is_the_same(
    base: Path, tmp_path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"lora_dropout": 0.0, **how}
    packed = run(base, tmp_path / "packed", **how)
    with monkeypatch.context() as patch:
        padded(patch)
        plain = run(base, tmp_path / "plain", **how)
    assert packed.losses == pytest.approx(plain.losses, rel=1e-5) and len(plain.losses) >= 4
    assert distance(tmp_path / "plain", tmp_path / "packed") < 1e-5


def test_training_in_bf16_is_near(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = run(base, tmp_path / "packed", dtype="bfloat16")
    padded(monkeypatch)
    plain = run(base, tmp_path / "plain", dtype="bfloat16")
    np.testing.assert_allclose(packed.losses, plain.losses, atol=1e-2)


def changed(base: Path, folder: Path, **config: Any) -> Path:
    """The base with other words in its configuration."""
    import json
    import shutil

    shutil.copytree(base, folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | config))
    return folder


def test_dropout_of_attention_takes_the_models_own_way(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = changed(base, tmp_path / "base", attention_dropout=0.1)
    asked: list[bool] = []
    follows = Job._follows_rows
    monkeypatch.setattr(Job, "_follows_rows", lambda self, halves: asked.append(follows(self, halves)) or asked[-1])
    run(other, tmp_path / "dropout", num_train_epochs=1)
    run(base, tmp_path / "plain", num_train_epochs=1)
    assert asked == [False, True]


def test_the_saved_model_keeps_its_own_attention(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", make_rows(4), num_train_epochs=1)
    assert attention.NAME not in (tmp_path / "out" / "config.json").read_text()


# ── the kernel of a GPU, by a stand-in ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Tokens of each call of the stand-in."""
    seen: list[int] = []

    def kernel(query: torch.Tensor, *more: Any, **how: Any) -> torch.Tensor:
        seen.append(len(query))
        return varlen.plain(query, *more, **how)

    monkeypatch.setattr(varlen, "DEVICES", ("cpu",))
    monkeypatch.setattr(varlen, "DTYPES", (torch.float32, torch.float64))
    monkeypatch.setattr(varlen, "kernel", lambda: kernel)
    varlen._agrees.cache_clear()
    yield seen
    varlen._agrees.cache_clear()


def test_the_kernel_gives_the_same_gradients(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = states(4, torch.float64), states(2, torch.float64), states(2, torch.float64)
    attention.begin(positions(LENGTHS))
    whole, _ = attention.row_attention(None, q, k, v, None, scaling=0.3)
    assert calls[-1] == sum(LENGTHS)
    monkeypatch.setattr(varlen, "DEVICES", ())
    got, _ = attention.row_attention(None, q, k, v, None, scaling=0.3)
    torch.testing.assert_close(got, whole)
    weight = torch.randn_like(whole)
    mine = torch.autograd.grad((got * weight).sum(), (q, k, v))
    for one, other in zip(mine, torch.autograd.grad((whole * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_backward_pass_in_another_thread_knows_the_rows(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where layers are computed again in a thread of autograd's own, whatever model came in between."""
    monkeypatch.setattr(attention, "BY_MODEL", ("cpu",))
    torch.manual_seed(0)
    q, k, v = states(4, torch.float64), states(2, torch.float64), states(2, torch.float64)
    mine, other = (SimpleNamespace(config=SimpleNamespace()) for _ in range(2))
    attention.begin(positions(LENGTHS), mine.config)
    assert varlen.can_attend(*(x[0].transpose(0, 1) for x in (q, k, v)))

    def summed(*x: torch.Tensor) -> torch.Tensor:
        return attention.row_attention(mine, *x, None)[0].sum()

    plain = torch.autograd.grad(summed(q, k, v), (q, k, v))
    again = checkpoint(summed, q, k, v, use_reentrant=False)
    attention.begin(positions([sum(LENGTHS)]), other.config)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(torch.autograd.grad, again, (q, k, v)).result()
    for one, expected in zip(got, plain, strict=True):
        torch.testing.assert_close(one, expected)
    with pytest.raises(engine.Unsupported):
        attention.row_attention(SimpleNamespace(config=SimpleNamespace()), q, k, v, None)


@pytest.mark.parametrize("how", [{"packing": True}, {"mode": "asft"}, {"activation_checkpointing": True}], ids=str)
def test_training_by_the_kernel_is_the_same(
    base: Path, tmp_path: Path, how: dict[str, Any], calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BY_MODEL", ("cpu",))
    kernel = run(base, tmp_path / "kernel", **how)
    assert len(calls) > len(kernel.losses)
    monkeypatch.setattr(varlen, "DEVICES", ())
    plain = run(base, tmp_path / "plain", **how)
    assert kernel.losses == pytest.approx(plain.losses, rel=1e-5)
    assert distance(tmp_path / "plain", tmp_path / "kernel") < 1e-5
