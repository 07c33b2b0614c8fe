"""The tokens of a row with what models said about each, as far as the store has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from instdiff.core import (
    Entropy,
    Floats,
    Joint,
    Log,
    Nll,
    Prompted,
    ResponseOnly,
    Scored,
    Side,
    Signal,
    Top1,
    View,
    WholeText,
)
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import Pool
from instdiff.errors import InstDiffError
from instdiff.methods import TShirt
from instdiff.methods.algorithms.token_selection import reaches
from instdiff.methods.shared.token_pairs import pair
from instdiff.rendering.pieces import pieces
from instdiff.store import Store

if TYPE_CHECKING:
    from instdiff.scoring.workbench import Workbench

BY_TOKEN = (Nll, Entropy, Top1)
PLAIN_VIEWS = (Prompted, Side, ResponseOnly, WholeText, Joint)
"""Views of one row by itself; with noise or other rows before it there are too many, and they say little."""
NOTHING = "these methods score no tokens"
"""What is lacking where there is nothing to lack."""


@dataclass(frozen=True)
class Spoken:
    """A row as a model saw it: how it was shown, for people, and the text of each token.

    Of several tokens that make one character all but the last are empty. ``target`` says which were scored;
    ``columns``, such as ``base nll`` or ``delta entropy``, have one value for each of these.
    """

    view: str
    pieces: list[str]
    target: list[bool]
    columns: dict[str, list[float]]


def stored_tokens(
    one: Pool, scored: Iterable[Scored], meta: Mapping[str, Any], store: str | None = None, log: Log | None = None
) -> tuple[list[Spoken], list[str]]:
    """What the store has of the tokens of one row, for all views in which methods scored it; and what it lacks.

    ``meta`` is the metadata of the score file, which names models, settings and the store, unless another is given.
    """
    from instdiff.scoring.models import recorded
    from instdiff.scoring.workbench import Workbench

    scored = list(scored)
    asked = {signal for s in scored for signal in s.method.signals().values() if _of_tokens(signal)}
    if not asked:
        return [], [NOTHING]
    place = Store(store or meta.get("store"))
    if not (place.root / "columns").is_dir():
        return [], [f"there is no store in '{place.root}'"]
    bench = Workbench(one, *recorded(meta), place, log=log or (lambda line: None))
    found: dict[tuple[str, str, View], Spoken] = {}
    lacking: dict[str, None] = {}
    for signal in sorted(asked, key=lambda s: (s.model, repr(s.measure), repr(s.view))):
        try:
            problem = _add(bench, signal, found)
        except InstDiffError as error:
            problem = str(error)
        if problem:
            lacking[problem] = None
    for by in scored:
        _mark_informative(by, {view: spoken for (_, _, view), spoken in found.items()})
    return [_with_deltas(s) for s in found.values()], list(lacking)


def _of_tokens(signal: Signal) -> bool:
    return isinstance(signal.measure, BY_TOKEN) and isinstance(signal.view, PLAIN_VIEWS) and signal.of == "pool"


def _add(bench: Workbench, signal: Signal, found: dict[tuple[str, str, View], Spoken]) -> str:
    """Add a column; what is wrong, if anything."""
    from instdiff.scoring.planner import view_name

    name = f"{signal.model} {type(signal.measure).__name__.lower()}"
    rendered = bench.render_for(signal)
    rows = rendered.tokens
    if rows.reason[0] is not None:
        return f"{view_name(signal.view)}: {rows.reason[0]}"
    values = bench.store.read(bench.column(signal.model, signal.measure), rendered.keys)[0]
    if len(values) == 0:
        return f"the store '{bench.store.root}' has no {name} of this row ({view_name(signal.view)})"
    tokenizer = bench.tokenizer(signal.model)
    place = (tokenizer.fingerprint, repr(bench.template(signal.model)), signal.view)
    if place not in found:
        target = [bool(mark) for mark in rows.target]
        found[place] = Spoken(view_name(signal.view), pieces(tokenizer.hf, rows.ids[0].tolist()), target, {})
    found[place].columns[name] = [float(v) for v in np.asarray(values, np.float64)]
    return ""


def _mark_informative(scored: Scored, found: Mapping[View, Spoken]) -> None:
    """Add to the tokens after the prompt which of them T-SHIRT selects."""
    if not isinstance(scored.method, TShirt):
        return
    given, alone = (found[view].columns if view in found else {} for view in scored.method.views())
    name = f"{scored.method.model} nll"
    marks = informative(scored, np.array(given.get(name, [])), np.array(alone.get(name, [])))
    if marks is not None:
        given[f"{scored.name} informative"] = marks.tolist()


def informative(scored: Scored, given: Floats, alone: Floats) -> Floats | None:
    """Which tokens of a row T-SHIRT selects: 1 or 0, and NaN for those that only ``given`` has.

    ``given`` and ``alone`` are NLLs of its tokens with and without the prompt. None where one is not there, or where
    the scores do not say what the least size is.
    """
    more = len(given) - len(alone)
    if least_of(scored) is None or len(alone) == 0 or more < 0:
        return None
    return np.concatenate([np.full(more, np.nan), selected(scored, np.abs(given[more:] - alone))])


def selected(scored: Scored, sizes: Floats) -> npt.NDArray[np.bool_]:
    """Which tokens T-SHIRT selects, by how much the prompt changes their NLL."""
    return reaches(sizes, least_of(scored) or 0.0, strict=scored.method.params()["compat"] == "official")


def prompt_effects(
    scored: Scored, meta: Mapping[str, Any], pool: Pool, store: str | None
) -> tuple[npt.NDArray[np.int64], Ragged]:
    """By how much the prompt changes the NLL of each token of T-SHIRT's rows without noise; and which rows these are.

    Raises an InstDiffError where the store lacks the values.
    """
    from instdiff.scoring.scorer import recalling

    rows = np.flatnonzero(np.isfinite(scored.details["informative"]))
    return rows, pair(recalling(scored, meta, pool, store=store).signals(), rows, "")[0]


def least_of(scored: Scored) -> float | None:
    """The size from which on T-SHIRT selects a token; None where the scores do not say."""
    known = scored.details.get("least", np.zeros(0))
    known = known[np.isfinite(known)]
    return float(known[0]) if len(known) else None


def _with_deltas(one: Spoken) -> Spoken:
    """Base minus calibrated, where both have said it."""
    columns = dict(one.columns)
    for name, base in one.columns.items():
        other = one.columns.get(name.replace("base ", "calibrated ", 1)) if name.startswith("base ") else None
        if other is not None:
            columns[name.replace("base ", "delta ", 1)] = [a - b for a, b in zip(base, other, strict=True)]
    return replace(one, columns=columns)
