"""A precision that keeps the difference of two models, and what a coarser one that was asked for loses of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from instdiff.core import Entropy, Log, MeanNll, Method, ModelRef, Nll, Settings, Signal, Top1
from instdiff.core.progress import Quiet
from instdiff.core.settings import dtype_name
from instdiff.core.signals import CrossFitted
from instdiff.engine.precision import is_trained_in_full, reverted_share
from instdiff.errors import EngineError
from instdiff.scoring.planner import plan, view_name
from instdiff.scoring.workbench import Workbench

COMPARED = (Nll, MeanNll, Entropy, Top1)
NOISE_ROWS = 16
FULL_NOISE = 1e-5
"""Nats per token by which fp32 differs from a plain reference at most, whatever the batches."""
TOLD_ABOVE = 0.1
"""Share of reverted weights that is told."""


def settle_precision(
    settings: Settings, methods: Sequence[Method] = (), models: Mapping[str, ModelRef] | None = None
) -> Settings:
    """Settings whose ``auto`` precision keeps what a training has changed.

    It becomes fp32 where a method compares two models, or a model is a folder that was trained here in fp32: half a
    step of bf16 is more than most weights move in a short training. A precision that was asked for stays.
    """
    bound = models or {}
    exact = any(is_trained_in_full(model) for model in bound.values())
    exact = exact or any(True for method in methods for _ in pairs(method, bound))
    return replace(settings, dtype="float32") if exact and settings.dtype == "auto" else settings


def pairs(method: Method, models: Mapping[str, ModelRef]) -> Iterator[tuple[Signal, Signal]]:
    """Pairs of signals that differ in the model alone: what a method takes the difference of."""
    seen: dict[Any, Signal] = {}
    for signal in _of_whole_rows(method):
        if not isinstance(signal.measure, COMPARED) or signal.of != "pool" or signal.model not in models:
            continue
        first = seen.setdefault((signal.measure, signal.view), signal)
        one, other = models[first.model], models[signal.model]
        if replace(one, template=None) != replace(other, template=None):
            yield first, signal


def _of_whole_rows(method: Method) -> Iterator[Signal]:
    """The columns of a method; of a cross-fitted one those of the folds' models, which hold the rows of their folds."""
    for signal in method.signals().values():
        crossed = isinstance(signal.measure, CrossFitted)
        yield from (replace(part, view=signal.view) for part in signal.needs()) if crossed else (signal,)


def reverted(bench: Workbench, methods: Mapping[str, Method]) -> dict[str, float]:
    """Per role the share of its moved weights that the precision makes those of the model it is compared with again."""
    if dtype_name(bench.dtype) == "float32":
        return {}
    shares: dict[str, float] = {}
    for method in methods.values():
        for first, second in pairs(method, bench.models):
            base, trained = bench.source(first.model), bench.source(second.model)
            if second.model not in shares and base.base_key != trained.base_key:
                shares[second.model] = reverted_share(base.folder, trained.folder, bench.dtype)
    return shares


def tell_emulated(bench: Workbench, log: Log) -> None:
    """Warn of a precision that the processor has no instructions for."""
    import torch

    from instdiff.engine.models import is_emulated

    if any(is_emulated(bench.dtype, torch.device(name)) for name in bench.resident.devices):
        name = dtype_name(bench.dtype)
        log(f"warning: this processor has no instructions for {name}; --dtype float32 is many times faster here")


def tell_losses(bench: Workbench, log: Log) -> None:
    """Warn of models that a precision which was asked for brings back to another one, or of which that is not known."""
    name = dtype_name(bench.dtype)
    for role, share in bench.reverted.items():
        if share > TOLD_ABOVE:
            log(
                f"warning: in {name} {share:.0%} of the weights in which {bench.models[role]} differs from the model "
                "it is compared with are the same again; --dtype float32 keeps the difference"
            )
    for role, model in bench.models.items():
        if role not in bench.reverted:
            tell_rounded(model, name, log)


def tell_rounded(model: ModelRef, name: str, log: Log) -> None:
    """Warn where a folder that was trained in fp32 is read at another precision."""
    if name != "float32" and is_trained_in_full(model):
        log(
            f"warning: {model} was trained in fp32, and {name} may take back a part of what it has learnt; "
            "--dtype float32 keeps it"
        )


def noise(
    bench: Workbench, methods: Mapping[str, Method], *, measured: bool = True
) -> dict[str, dict[str, float | None]]:
    """Of each difference of two models its error by the precision beside its spread over rows, in nats per token.

    The error is the root mean square against fp32 on a few rows; of fp32 itself the bound that tests hold. It is None
    where the models cannot be loaded in fp32, and of a coarser precision without ``measured``.
    """
    asked = {_name(pair): pair for method in methods.values() for pair in pairs(method, bench.models)}
    found: dict[str, dict[str, float | None]] = {}
    for name, pair in asked.items():
        if isinstance(pair[0].measure, Top1):
            continue
        whole = _difference(bench, pair)
        some = np.flatnonzero(np.isfinite(whole))
        if not len(some):
            continue
        error: float | None = FULL_NOISE
        if dtype_name(bench.dtype) != "float32":
            rows = some[np.unique(np.linspace(0, len(some) - 1, NOISE_ROWS).astype(np.int64))]
            error = _error(bench, pair, whole, rows) if measured else None
        found[name] = {"noise": error, "sd": float(whole[some].std())}
    return found


def _error(bench: Workbench, pair: tuple[Signal, Signal], whole: np.ndarray[Any, Any], rows: Any) -> float | None:
    exact = replace(bench.settings, dtype="float32", workers=1, executor="local", gpus_per_worker=None)
    try:
        fine = Workbench(bench.pool.take(rows), bench.models, exact, bench.store, target=bench.target, log=_nobody)
        with closing(fine):
            for wave in plan(pair):
                for step in fine.order(wave):
                    fine.run(step, Quiet())
            difference = _difference(fine, pair) - whole[rows]
    except (EngineError, RuntimeError, MemoryError):
        return None
    return float(np.sqrt(np.nanmean(difference**2)))


def _difference(bench: Workbench, pair: tuple[Signal, Signal]) -> np.ndarray[Any, Any]:
    """Per row the mean of the one signal minus that of the other; NaN where one is missing."""
    first, second = (bench.vectors(signal, signal.of).mean() for signal in pair)
    return np.asarray(first - second)


def _name(pair: tuple[Signal, Signal]) -> str:
    first, second = pair
    word = type(first.measure).__name__.lower()
    return f"{word} of {view_name(first.view)}, {first.model} minus {second.model}"


def _nobody(line: str) -> None:
    """Takes what nobody needs to hear twice."""
