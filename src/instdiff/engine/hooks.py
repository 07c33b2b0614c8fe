"""Hidden states and neurons, read where they arise and reduced to one vector per row at once.

Shapes: n tokens of a batch, D hidden size, F neurons of an MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from instdiff.core import Measure, Neurons, Pooled
from instdiff.engine.upload import upload
from instdiff.errors import EngineError

Indices = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

DOWN = ("mlp.down_proj", "mlp.c_proj", "mlp.fc2", "mlp.dense_4h_to_h", "fc2", "feed_forward.w2")
"""What the last product of an MLP is called."""


@contextmanager
def capture(
    backbone: Any, measures: Sequence[Measure], where: list[Indices], marked: list[Indices]
) -> Iterator[dict[Measure, Vectors]]:
    """Collect, while the block runs the backbone, one vector per row for each ``Pooled`` and ``Neurons``.

    ``where`` has the places of all tokens of each row, ``marked`` those of its marked tokens. A layer that the model
    does not have is an EngineError.
    """
    found: dict[Measure, Vectors] = {}
    handles = []
    try:
        for measure in measures:
            if isinstance(measure, Pooled):
                handles.append(_hook_pooled(backbone, measure, where, found))
            elif isinstance(measure, Neurons):
                handles.append(_hook_neurons(backbone, measure, marked, found))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _hook_pooled(backbone: Any, measure: Pooled, where: list[Indices], found: dict[Measure, Vectors]) -> Any:
    def keep(module: Any, args: Any, out: Any) -> None:
        states = out.last_hidden_state if hasattr(out, "last_hidden_state") else out
        states = (states[0] if isinstance(states, tuple) else states).flatten(0, -2)
        found[measure] = _rows(states, where, _POOLS[measure.how])

    if measure.how not in _POOLS:
        raise EngineError(f"hidden states are pooled by {', '.join(_POOLS)}, not '{measure.how}'")
    return (backbone if measure.layer == -1 else _layer(backbone, measure.layer)).register_forward_hook(keep)


def _hook_neurons(backbone: Any, measure: Neurons, marked: list[Indices], found: dict[Measure, Vectors]) -> Any:
    def keep(module: Any, args: Any) -> None:
        found[measure] = _rows(args[0].flatten(0, -2).abs(), marked, _OVERS[measure.over])

    if measure.over not in _OVERS:
        raise EngineError(f"neurons are taken over a row by {', '.join(_OVERS)}, not '{measure.over}'")
    return _down(_layer(backbone, measure.layer)).register_forward_pre_hook(keep)


def _rows(values: torch.Tensor, places: list[Indices], reduce: Callable[[torch.Tensor], torch.Tensor]) -> Vectors:
    rows = [reduce(values[upload(at, values.device)].float()) for at in places]
    return torch.stack(rows).cpu().numpy()


def _weighted_mean(states: torch.Tensor) -> torch.Tensor:
    weights = torch.arange(1, len(states) + 1, dtype=torch.float32, device=states.device)
    return (weights / weights.sum()) @ states


_POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda states: states.mean(0),
    "last": lambda states: states[-1],
    "weighted": _weighted_mean,
}
_OVERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max": lambda neurons: neurons.amax(0),
    "mean": lambda neurons: neurons.mean(0),
    "last": lambda neurons: neurons[-1],
}


def _layer(backbone: Any, number: int | float) -> Any:
    """A decoder layer, counted from 0, or from the end where negative; a fraction is one of the depth."""
    count = int(backbone.config.get_text_config().num_hidden_layers)
    stacks = [m for m in backbone.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    if not stacks:
        raise EngineError(f"no list of {count} layers was found in {type(backbone).__name__}")
    if isinstance(number, float):
        number = int(number * count)
    if not -count <= number < count:
        raise EngineError(f"layer {number} is asked for, {type(backbone).__name__} has {count} (0 to {count - 1})")
    return stacks[0][number]


def _down(layer: Any) -> Any:
    named = dict(layer.named_modules())
    for name in DOWN:
        if name in named:
            return named[name]
    raise EngineError(
        f"{type(layer).__name__} has no MLP with a known last product ({', '.join(DOWN)}), so its neurons are not known"
    )
