"""What there is to say about each method, read off its class."""

from __future__ import annotations

import inspect
from typing import Any

from instdiff.core import Signal
from instdiff.core.signals import CrossFitted
from instdiff.methods import METHODS, resolve


def describe(name: str) -> dict[str, Any]:
    """One method: name, paper, roles, signals, defaults, docstring; a ConfigError where there is none."""
    kind = resolve(name)
    method = kind()
    signals = method.signals()
    asked = [part for signal in signals.values() for part in (signal, *signal.needs())]
    return {
        "name": kind.name or name,
        "paper": kind.paper,
        "roles": sorted({part.model for part in asked if part.measure.needs_model}),
        "signals": {key: _signal_text(signal) for key, signal in signals.items()},
        "defaults": method.params(),
        "doc": inspect.cleandoc(kind.__doc__ or ""),
    }


def describe_all() -> list[dict[str, Any]]:
    """Every built-in method."""
    return [describe(name) for name in METHODS]


def _signal_text(signal: Signal) -> str:
    if isinstance(signal.measure, CrossFitted):
        return f"{type(signal.measure.measure).__name__} of {signal.view!r} by {signal.model}/FOLD"
    if not signal.measure.needs_model:
        return repr(signal.measure)
    return f"{type(signal.measure).__name__} of {signal.view!r} by {signal.model}"
