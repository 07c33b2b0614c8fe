"""Signals in, forward passes out. Pure: no torch, no files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from instdiff.core import (
    Asked,
    Measure,
    Noisy,
    Side,
    Signal,
    View,
    Windowed,
    Words,
)
from instdiff.core.signals import Contested, Folded, Sides


@dataclass(frozen=True)
class Pass:
    """One sweep of one model over one view, reading every measure that any method asked for.

    ``of`` says of which rows: the pool's, or those of the target.
    """

    model: str
    view: View
    measures: tuple[Measure, ...]
    of: str = "pool"


def plan(signals: Iterable[Signal]) -> list[list[Pass]]:
    """The fewest passes for these signals, in waves.

    A wave needs only columns of earlier waves. All measures of the same model and view share one pass, in the earliest
    wave that has it; passes of one model stand together, so that it is loaded once. Signals that need no model (text
    lengths, columns of the input) are left out.
    """
    depth: dict[Signal, int] = {}

    def visit(signal: Signal) -> int:
        if signal not in depth:
            needs = [replace(need, of=signal.of) for need in signal.needs()]
            depth[signal] = 1 + max((visit(need) for need in needs), default=-1)
        return depth[signal]

    for signal in signals:
        if signal.measure.needs_model:
            visit(signal)
        for need in signal.needs():
            visit(replace(need, of=signal.of))
    waves: list[dict[tuple[str, View, str, bool], set[Measure]]] = [
        {} for _ in range(max(depth.values(), default=-1) + 1)
    ]
    for signal, level in sorted(depth.items(), key=lambda item: item[1]):
        place = (signal.model, view_of_pass(signal.view), signal.of, signal.measure.of_text)
        home = next((wave for wave in waves[: level + 1] if place in wave), waves[level])
        home.setdefault(place, set()).add(signal.measure)
    return [
        [
            Pass(model, view, tuple(sorted(measures, key=repr)), of)
            for (model, view, of, _), measures in sorted(wave.items(), key=lambda item: repr(item[0]))
        ]
        for wave in waves
    ]


def view_of_pass(view: View) -> View:
    """The view that a pass sweeps for a signal's: both sides of pairs at once."""
    if isinstance(view, Folded):
        return replace(view, view=view_of_pass(view.view))
    return Sides() if isinstance(view, Side) else view


def label(step: Pass) -> str:
    """A pass for people."""
    other = "" if step.of == "pool" else f" of {step.of}"
    return f"{step.model} · {view_name(step.view)}{other}"


def view_name(view: View) -> str:
    """A view for people."""
    words = [re.sub(r"(?<!^)(?=[A-Z])", " ", type(view).__name__).lower()]
    match view:
        case Contested(view=inner):
            words.append(view_name(inner))
        case Folded(view=inner, fold=fold):
            words = [view_name(inner), f"in fold {fold}"]
        case Noisy(view=inner, draw=draw):
            words += [str(draw), view_name(inner)]
        case Asked(prompt=prompt, number=number, turn=turn):
            words += [prompt, str(number)] + ([] if turn is None else [f"turn {turn}"])
        case Side(name=name):
            words = [f"{name} side"]
        case Sides():
            words = ["both sides"]
        case Words(part=part):
            words.append(part)
        case Windowed(unit=unit):
            words = [f"{unit}s in windows"]
    return " ".join(words)
