"""Answers that were drawn for scores, read again from the store: how often they were right, and which."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from instdiff.config.methods import make_method
from instdiff.core import Log
from instdiff.core.signals import RIGHT, Posed, Solved
from instdiff.data import Pool
from instdiff.errors import ConfigError, DataError
from instdiff.grading.verify import Check
from instdiff.methods import PassRate
from instdiff.scoring.models import recorded
from instdiff.scoring.workbench import Workbench
from instdiff.store import Store

FIELDS = {field.name for field in dataclasses.fields(PassRate)}


@dataclass(frozen=True)
class Drawn:
    """What is known of a row: its pass rate, NaN where it has none, of so many answers, and how they are checked.

    ``right`` are the right ones in the order of their numbers, each with its tokens.
    """

    rate: float
    drawn: int
    check: Check
    right: tuple[tuple[str, int], ...]

    def pick(self, which: str) -> str | None:
        """The ``first`` right answer, or the ``shortest`` in tokens, of equal ones the first; None where none is."""
        if not self.right:
            return None
        return self.right[0][0] if which == "first" else min(self.right, key=lambda one: one[1])[0]


def read_drawn(pool: Pool, record: Mapping[str, Any] | None, store: Store, log: Log) -> list[Drawn]:
    """What the store has of the rows that a record of a selection by pass rates is of.

    Raises a ConfigError where the record has no pass rates, a DataError where the store lacks their answers.
    """
    params = next(_params((record or {}).get("params")), None)
    if record is None or params is None:
        raise ConfigError(
            "these rows were not selected by pass_rate, so that no answers to them are known; give the record of a "
            "selection by pass_rate, or by a method that holds it"
        )
    method = make_method(PassRate.name, params)
    assert isinstance(method, PassRate)
    models, settings = recorded(record)
    with closing(Workbench(pool, models, settings, store, log=log)) as bench:
        found = _read(bench, method)
    if not any(one.drawn for one in found):
        raise DataError(f"the store '{store.root}' has no answers to these rows; name the one of `score` with --store")
    return found


def _params(params: Any) -> Iterator[dict[str, Any]]:
    """The parameters of each `pass_rate` in those of a method."""
    if isinstance(params, Mapping):
        if set(params) == FIELDS:
            yield dict(params)
        params = list(params.values())
    for inner in params if isinstance(params, list | tuple) else ():
        yield from _params(inner)


def _read(bench: Workbench, method: PassRate) -> list[Drawn]:
    signals = bench.signals(method)
    drawn, right, _ = method.counts(signals, method.most)
    rate = np.where(drawn > 0, right / np.maximum(drawn, 1), np.nan)
    shown = bench.render(method.model, Posed(method.verifier, method.answer))
    assert shown.checks is not None
    answers: list[list[tuple[str, int]]] = [[] for _ in range(len(bench.pool))]
    for name, signal in method.steps(method.most).items():
        if not isinstance(signal.measure, Solved):
            continue
        words = getattr(signals, name)
        some = words.map(lambda values: (values == RIGHT).astype(np.float64)).sum()
        first = signal.measure.first  # the store may have more than was asked for
        at = np.flatnonzero(some if not first else some * getattr(signals, f"on{first}"))
        kept = bench.solver(method.model, signal.measure).drawn(shown.rows.take(at), signal.measure)
        for row, said in zip(at.tolist(), kept, strict=True):
            both = zip(words[row].tolist(), said, strict=True)
            answers[row] += [(a.text or "", a.completion_tokens) for word, a in both if word == RIGHT and a is not None]
    return [
        Drawn(float(rate[row]), int(drawn[row]), Check.of(json.loads(shown.checks[row])), tuple(answers[row]))
        for row in range(len(bench.pool))
    ]
