"""Noise by address: the same wherever a response is shown, and the same as noise that is added in plain sight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Lab, causal, some_rows
from instdiff.core import Nll, Noisy, Prompted, ResponseOnly, View
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.forward import Forward
from instdiff.engine.noise import Addressed, uniform
from instdiff.engine.sweep import Sweep
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import Noise, Renderer, Rows
from instdiff.rendering.templates import template

ROWS = some_rows(14, seed=3)
PAIR = (Prompted(), ResponseOnly())


def renderer(lab: Lab, name: str, rows: list[dict[str, str]] = ROWS) -> Renderer:
    return Renderer(load(rows), HFTokenizer(lab.tokenizer(name), 180))


def rendered(lab: Lab, name: str, view: View, rows: list[dict[str, str]] = ROWS) -> Rows:
    return renderer(lab, name, rows).rows(view, template("alpaca"), 180)


def targets(rows: Rows, row: int) -> np.ndarray:
    return Ragged(rows.target, rows.ids.offsets)[row]


def noise_of(rows: Rows, row: int, width: int = 8) -> np.ndarray:
    assert rows.noise is not None
    return (
        Addressed.of(rows.noise, np.array([row]), [targets(rows, row)], width)
        .values(width, torch.device("cpu"))
        .numpy()
    )


def swept(model: Any, rows: Rows, *, batch_tokens: int = 400, packs: bool | None = None) -> dict[int, np.ndarray]:
    sweep = Sweep(model, lambda line: None, batch_tokens)
    sweep.forward.packs = packs
    out: dict[int, np.ndarray] = {}
    for part in sweep(rows, (Nll(),)):
        for at, row in enumerate(part.at.tolist()):
            assert row not in out
            out[row] = part.columns[Nll()][at]
    return out


# ── the numbers themselves ────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_uniform_and_its_dimensions_and_addresses_are_independent() -> None:
    addresses = torch.arange(-2000, 2000)
    drawn = uniform(torch.full((4000,), 7), addresses, 33).double().numpy()
    assert drawn.shape == (4000, 33) and drawn.min() >= -1 and drawn.max() < 1
    n = drawn.size
    assert abs(drawn.mean()) < 4 / np.sqrt(3 * n) and abs((drawn**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)
    counts = np.histogram(drawn, 50, (-1, 1))[0]
    assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 49 + 5 * np.sqrt(2 * 49)
    across = np.corrcoef(drawn.T)
    along = [np.corrcoef(drawn[:-lag, 0], drawn[lag:, 0])[0, 1] for lag in (1, 2, 7)]
    assert np.abs(across - np.eye(33)).max() < 6 / np.sqrt(4000) and np.abs(along).max() < 5 / np.sqrt(4000)


def test_neighbouring_seeds_are_independent() -> None:
    seeds = torch.arange(4000)
    drawn = uniform(seeds, torch.zeros(4000, dtype=torch.long), 4).numpy()
    assert np.abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 5 / np.sqrt(16000)
    assert len(np.unique(drawn[:, 0])) > 3990


def test_a_width_is_the_beginning_of_a_larger_one() -> None:
    seeds, addresses = torch.tensor([5, -9]), torch.tensor([3, -4])
    whole = uniform(seeds, addresses, 10)
    for width in (1, 2, 7):
        assert torch.equal(uniform(seeds, addresses, width), whole[:, :width])


# ── whose noise it is ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("context", [True, False])
def test_a_response_has_the_same_noise_in_both_views(lab: Lab, name: str, context: bool) -> None:
    given, alone = (rendered(lab, name, Noisy(view, 0)) for view in (Prompted(), ResponseOnly(context=context)))
    plain = rendered(lab, name, Prompted())
    for row in range(len(ROWS)):
        size = 5.0 / np.sqrt(len(plain.ids[row]) * 8)
        with_prompt, without = noise_of(given, row), noise_of(alone, row)
        assert np.abs(with_prompt).max() <= size and np.abs(without).max() <= size
        assert (with_prompt != 0).all()
        said = with_prompt[targets(given, row)]
        if context or name == "llama":  # a start token stands before the response, and gets none
            assert not without[0].any()
            without = without[1:]
        np.testing.assert_array_equal(without, said)


def test_rows_draws_and_seeds_have_noise_of_their_own(lab: Lab) -> None:
    views = [Noisy(Prompted(), 0), Noisy(Prompted(), 1), Noisy(Prompted(), 0, seed=43), Noisy(Prompted(), 0, alpha=1.0)]
    first, draw, seed, small = (rendered(lab, "llama", view) for view in views)
    np.testing.assert_allclose(noise_of(small, 0), noise_of(first, 0) / 5, rtol=1e-6)
    size = min(len(first.ids[0]), len(first.ids[1]))
    a = noise_of(first, 0)[:size]
    for other in (noise_of(first, 1), noise_of(draw, 0), noise_of(seed, 0)):
        assert abs(np.corrcoef(a.ravel(), other[:size].ravel())[0, 1]) < 5 / np.sqrt(a.size)
    keys = [set(rows.keys().tolist()) for rows in (first, draw, seed, small, rendered(lab, "llama", Prompted()))]
    assert all(len(some) == len(ROWS) for some in keys) and len(set.union(*keys)) == 5 * len(ROWS)


def test_noise_belongs_to_the_content(lab: Lab) -> None:
    """Order, copies and growth of the pool change nothing."""
    view = Noisy(ResponseOnly(), 3)
    first = rendered(lab, "llama", view, ROWS[:5]).keys().tolist()
    mixed = rendered(lab, "llama", view, [*ROWS[7:9], *ROWS[4::-1], ROWS[0]]).keys().tolist()
    assert mixed[2:7] == first[::-1] and mixed[7] == first[0]
    taken = rendered(lab, "llama", view).take(np.array([4, 1]))
    assert taken.keys().tolist() == [first[4], first[1]]


def test_addresses() -> None:
    target = np.array([False, False, True, True, False, True])
    none = np.zeros(1, np.int64)
    for first, address, noisy in (
        ("prompted", [-1, -2, 0, 1, -5, 2], [True] * 6),
        (None, [-1, -2, 0, 1, -5, 2], [False] + [True] * 5),
        (0, [0, 1, 2, 3, 4, 5], [True] * 6),
    ):
        found, which = Noise(5.0, none, none, first).addresses(target)  # type: ignore[arg-type]
        assert (found.tolist(), which.tolist()) == (address, noisy)


# ── through the model ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("view", PAIR, ids=["prompted", "alone"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_against_noise_that_is_added_in_plain_sight(lab: Lab, models: dict[str, Path], name: str, view: View) -> None:
    rows, model = rendered(lab, name, Noisy(view, 2)), causal(models[name])
    found, clean = swept(model, rows), swept(model, rendered(lab, name, view))
    for row in range(len(rows)):
        ids = torch.tensor(rows.ids[row].astype(int))[None]
        embedded = model.get_input_embeddings()(ids) + torch.from_numpy(noise_of(rows, row, 32))
        with torch.no_grad():
            log_p = model(inputs_embeds=embedded).logits[0].log_softmax(-1)
        at = np.flatnonzero(targets(rows, row))
        plain = -log_p[at - 1, ids[0, at]].numpy()
        np.testing.assert_allclose(found[row], plain, rtol=1e-4, atol=1e-5)
        assert np.abs(found[row] - clean[row]).max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_batch_order_and_padding_do_not_matter(lab: Lab, models: dict[str, Path], name: str) -> None:
    rows, model = rendered(lab, name, Noisy(Prompted(), 1)), causal(models[name])
    plain = swept(model, rows, batch_tokens=1, packs=False)
    order = np.random.default_rng(0).permutation(len(rows))
    for packs in (False, None):
        for tokens in (300, 5000):
            found = swept(model, rows.take(order), batch_tokens=tokens, packs=packs)
            for at, row in enumerate(order.tolist()):
                np.testing.assert_allclose(found[at], plain[row], rtol=1e-4, atol=1e-5)


def test_rows_of_equal_tokens_keep_their_own_noise(lab: Lab, models: dict[str, Path]) -> None:
    """Nothing that two rows begin with is shared when their noise differs."""
    rows = rendered(lab, "llama", Noisy(ResponseOnly(), 0)).take(np.array([2, 2]))
    other = rendered(lab, "llama", Noisy(ResponseOnly(), 1)).take(np.array([2]))
    assert rows.noise is not None and other.noise is not None
    rows.noise.row[1] = other.noise.row[0]
    model = causal(models["llama"])
    found, alone = swept(model, rows), swept(model, other)
    np.testing.assert_allclose(found[1], alone[0], rtol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_noise_does_not_keep_a_model_from_packing(lab: Lab, models: dict[str, Path]) -> None:
    """Whether a tree can be followed is asked without noise, since the row alone has none."""
    sweep = Sweep(causal(models["llama"]), lambda line: None, 500)
    for _ in sweep(rendered(lab, "llama", Noisy(Prompted(), 0)), (Nll(),)):
        pass
    assert sweep.forward.packs is True


def test_the_width_is_that_of_the_embeddings(models: dict[str, Path]) -> None:
    assert Forward(causal(models["gpt2"]), lambda line: None).width == 32
