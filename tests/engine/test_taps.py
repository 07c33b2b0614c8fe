"""Vectors, choices and means that a pass reads, against the model's own outputs for each row alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Lab, causal, reference, some_rows
from instdiff.core import Choice, Entropy, MeanNll, Measure, Neurons, Nll, Pooled, Prompted, Top1
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.forward import Forward
from instdiff.engine.sweep import Sweep
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import EngineError
from instdiff.rendering.renderer import Renderer, Rows
from instdiff.rendering.templates import template

DATA = some_rows(11, seed=5)
LAYERS = (-1, -2, 0, 1)


def rows_of(lab: Lab, name: str) -> Rows:
    return Renderer(load(DATA), HFTokenizer(lab.tokenizer(name), 180)).rows(Prompted(), template("alpaca"), 180)


def swept(model: Any, rows: Rows, measures: tuple[Measure, ...], packs: bool | None) -> dict[Measure, list[np.ndarray]]:
    sweep = Sweep(model, lambda line: None, 400)
    sweep.forward.packs = packs
    out: dict[Measure, list[Any]] = {measure: [None] * len(rows) for measure in measures}
    for part in sweep(rows, measures):
        for measure, values in part.columns.items():
            for at, row in enumerate(part.at.tolist()):
                out[measure][row] = values[at]
    assert sweep.forward.packs is (packs is None)
    return out


def hidden_of(model: Any, ids: np.ndarray) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        given = torch.tensor(ids.astype(int))[None]
        return tuple(state[0] for state in model(given, output_hidden_states=True).hidden_states)


def inner_of(model: Any, down: Any, ids: np.ndarray) -> np.ndarray:
    seen: list[torch.Tensor] = []
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.tensor(ids.astype(int))[None])
    handle.remove()
    return seen[0][0].abs().numpy()


POOLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda x: x.mean(0),
    "last": lambda x: x[-1],
    "weighted": lambda x: (np.arange(1, len(x) + 1)[:, None] * x).sum(0) / (len(x) * (len(x) + 1) / 2),
}


@pytest.mark.parametrize("packs", [None, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_pooled_hidden_states(lab: Lab, models: dict[str, Path], name: str, packs: bool | None) -> None:
    rows, model = rows_of(lab, name), causal(models[name])
    measures = tuple(Pooled(how, layer) for how in POOLS for layer in LAYERS)
    found = swept(model, rows, measures, packs)
    for row in range(len(rows)):
        states = hidden_of(model, rows.ids[row])
        assert len(states) == 3
        for measure in measures:
            # The list begins with the embeddings; its last entry is after the norm, unlike layer 1 by its number.
            if measure.layer == 1:
                continue
            plain = POOLS[measure.how](states[-1 if measure.layer == -1 else 1].numpy())
            np.testing.assert_allclose(found[measure][row], plain, rtol=1e-4, atol=1e-5, err_msg=repr(measure))
    assert np.abs(found[Pooled("mean", -1)][0] - found[Pooled("mean", 1)][0]).max() > 1e-3
    np.testing.assert_array_equal(found[Pooled("mean", -2)][0], found[Pooled("mean", 0)][0])  # two layers


@pytest.mark.parametrize("packs", [None, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_neurons_over_marked_tokens(lab: Lab, models: dict[str, Path], name: str, packs: bool | None) -> None:
    rows, model = rows_of(lab, name), causal(models[name])
    measures = tuple(Neurons(layer, over) for layer in (0, 1, 0.5) for over in ("max", "mean", "last"))
    found = swept(model, rows, measures, packs)
    downs = [
        layer.mlp.down_proj if name == "llama" else layer.mlp.c_proj
        for layer in (model.model.layers if name == "llama" else model.transformer.h)
    ]
    target = Ragged(rows.target, rows.ids.offsets)
    for row in range(len(rows)):
        for layer in (0, 1):
            inner = inner_of(model, downs[layer], rows.ids[row])[target[row]]
            for over, plain in (("max", inner.max(0)), ("mean", inner.mean(0)), ("last", inner[-1])):
                np.testing.assert_allclose(found[Neurons(layer, over)][row], plain, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[Neurons(0.5)][row], found[Neurons(1)][row])


@pytest.mark.parametrize("packs", [None, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_everything_at_once(lab: Lab, models: dict[str, Path], name: str, packs: bool | None) -> None:
    rows, model = rows_of(lab, name), causal(models[name])
    measures = (Nll(), Entropy(), MeanNll(), Top1(), Pooled(), Neurons(0))
    found = swept(model, rows, measures, packs)
    for row in range(len(rows)):
        target = Ragged(rows.target, rows.ids.offsets)[row]
        nll, entropy = reference(model, rows.ids[row].tolist(), target.tolist())
        np.testing.assert_allclose(found[Nll()][row], nll, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[Entropy()][row], entropy, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[MeanNll()][row], [nll.mean()], rtol=1e-4)
        with torch.no_grad():
            best = model(torch.tensor(rows.ids[row].astype(int))[None]).logits[0].argmax(-1).numpy()
        at = np.flatnonzero(target)
        np.testing.assert_array_equal(found[Top1()][row], best[at - 1] == rows.ids[row][at])


@pytest.mark.parametrize("own", [False, True], ids=["fast head", "own head"])
@pytest.mark.parametrize("packs", [None, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_choices(lab: Lab, models: dict[str, Path], name: str, packs: bool | None, own: bool) -> None:
    """The one target of a row only marks the place: which token it is changes nothing."""
    model, rng = causal(models[name]), np.random.default_rng(0)
    texts = [rng.integers(5, 290, size).tolist() for size in (9, 30, 1, 17, 9)]
    lead = Ragged.of([[*ids, dummy] for ids, dummy in zip(texts, [1, 7, 7, 2, 3], strict=True)], np.int32)
    target = np.zeros(len(lead.values), bool)
    target[lead.offsets[1:] - 1] = True
    rows = Rows(lead, target, np.zeros(5, bool), np.full(5, None, object))
    ids = (40, 41, 7, 299)
    sweep = Sweep(model, lambda line: None, 40)
    sweep.forward.packs = packs
    if own:
        sweep.forward.fast = False
    choice = Choice(("a", "b", "c", "d"), ids)
    seen = 0
    for part in sweep(rows, (choice,)):
        for at, row in enumerate(part.at.tolist()):
            with torch.no_grad():
                log_p = model(torch.tensor(texts[row])[None]).logits[0, -1].log_softmax(-1)
            np.testing.assert_allclose(part.columns[choice][at], log_p[list(ids)], rtol=1e-4, atol=1e-5)
            seen += 1
    assert seen == 5


def test_what_a_choice_needs(lab: Lab, models: dict[str, Path]) -> None:
    rows, model = rows_of(lab, "llama"), causal(models["llama"])
    with pytest.raises(EngineError, match="a choice is read where a row has one target; use a view that asks"):
        list(Sweep(model, lambda line: None)(rows, (Choice(("1",), (5,)),)))
    with pytest.raises(EngineError, match="has no token ids"):
        list(Sweep(model, lambda line: None)(rows, (Choice(("1",)),)))


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (Pooled("median"), "hidden states are pooled by mean, last, weighted, not 'median'"),
        (Pooled("mean", 2), "layer 2 is asked for, LlamaModel has 2 (0 to 1)"),
        (Neurons(-3), "layer -3 is asked for, LlamaModel has 2 (0 to 1)"),
        (Neurons(0, "sum"), "neurons are taken over a row by max, mean, last, not 'sum'"),
    ],
)
def test_what_there_is_not(lab: Lab, models: dict[str, Path], measure: Measure, message: str) -> None:
    with pytest.raises(EngineError) as error:
        list(Sweep(causal(models["llama"]), lambda line: None)(rows_of(lab, "llama"), (measure,)))
    assert str(error.value) == message


def test_hooks_are_gone_afterwards(lab: Lab, models: dict[str, Path]) -> None:
    model = causal(models["llama"])
    list(Sweep(model, lambda line: None, 400)(rows_of(lab, "llama"), (Pooled(), Pooled("mean", 0), Neurons(1))))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_mean_with_a_token_that_has_no_number_is_none(lab: Lab, models: dict[str, Path]) -> None:
    rows, model = rows_of(lab, "llama"), causal(models["llama"])
    forward = Forward(model, lambda line: None)
    forward.fast, head = True, model.get_output_embeddings()
    calls = [0]

    def faulty(hidden: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        logits = head(hidden).clone()
        logits[0] = torch.nan
        return logits

    forward.head = faulty
    from instdiff.engine.batch import Batch

    target = Ragged(rows.target, rows.ids.offsets)
    batch = Batch.pad(np.arange(3), [(rows.ids[row], target[row]) for row in range(3)])
    mean = forward(batch, (MeanNll(),))[MeanNll()]
    assert calls[0] == 1 and np.isfinite(mean.values).tolist() == [False, True, True]
