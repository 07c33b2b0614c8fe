"""What there is to say about each method, read off its class."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from instdiff.core import Signal
from instdiff.core.signals import CrossFitted, TrainedOn
from instdiff.methods import METHODS, resolve


def describe(name: str) -> dict[str, Any]:
    """One method: name, paper, roles, signals, defaults, docstring; a ConfigError where there is none."""
    kind = resolve(name)
    method = kind()
    signals = method.signals()
    asked = [part for signal in signals.values() for part in (signal, *signal.needs())]
    together = roles_together(signals.values())
    return {
        "name": kind.name or name,
        "paper": kind.paper,
        "roles": sorted({together.get(part.model, part.model) for part in asked if part.measure.needs_model}),
        "signals": {key: _signal_text(signal) for key, signal in signals.items()},
        "defaults": method.params(),
        "doc": inspect.cleandoc(kind.__doc__ or ""),
    }


def describe_all() -> list[dict[str, Any]]:
    """Every built-in method."""
    return [describe(name) for name in METHODS]


def roles_together(signals: Iterable[Signal]) -> dict[str, str]:
    """Numbered roles of one training, and the name of all of them, such as ``proxy/1..12``."""
    out: dict[str, str] = {}
    for kept in (signal.measure.saves for signal in signals if isinstance(signal.measure, TrainedOn)):
        names = [name for name, _ in kept.roles]
        if len(names) > 1 and all(name.rpartition("/")[2].isdigit() for name in names):
            out |= dict.fromkeys(names, f"{names[0]}..{len(names)}")
    return out


def _signal_text(signal: Signal) -> str:
    if isinstance(signal.measure, CrossFitted):
        return f"{type(signal.measure.measure).__name__} of {signal.view!r} by {signal.model}/FOLD"
    if not signal.measure.needs_model:
        return repr(signal.measure)
    return f"{type(signal.measure).__name__} of {signal.view!r} by {signal.model}"
