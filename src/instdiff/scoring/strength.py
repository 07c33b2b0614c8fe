"""Whether a model is strong enough for the data: how often the prompt helps it with the response, on a few rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instdiff.core import Prompted
from instdiff.core.progress import Progress, Quiet
from instdiff.engine.speed import Machine
from instdiff.methods import IFD
from instdiff.scoring.cost import count_passes, stage_of_passes
from instdiff.scoring.scorer import score, workbench
from instdiff.scoring.workbench import Workbench

ROWS, FEWEST = 200, 20
"""Rows of a trial, and the least that tell anything."""
TRIAL_S = 10.0
"""Seconds that a trial may take by the speed that was measured."""


@dataclass(frozen=True)
class Strength:
    """What a model makes of ``rows`` drawn at random: means of their mean NLL per response token, in nats.

    ``misled`` is the share of them with an IFD of 1 or more: there the prompt makes the response no likelier. ``nll``
    is given the prompt, ``nll_alone`` without it. All are NaN of no rows.
    """

    rows: int
    misled: float
    nll: float
    nll_alone: float


def try_model(
    bench: Workbench, role: str, machine: Machine, seed: int, progress: Progress | None = None
) -> Strength | None:
    """Score a few rows with and without their prompt; None where the model is so slow that they would take too long."""
    ifd = {"ifd": IFD(model=role)}
    scorable = bench.render(role, Prompted()).scorable
    drawn = scorable[np.random.default_rng(seed).permutation(len(scorable))[:ROWS]]
    if not len(drawn):
        return Strength(0, np.nan, np.nan, np.nan)
    models = {role: bench.models[role]}
    few = workbench(bench.pool.take(drawn), ifd, models, bench.settings, bench.store)
    seconds = sum(line.seconds for line in stage_of_passes("", few, count_passes(few, ifd), machine))
    count = min(len(drawn), int(len(drawn) * TRIAL_S / max(seconds, 1e-6)))
    if count < min(FEWEST, len(drawn)):
        return None
    pool = bench.pool.take(drawn[:count])
    scored = score(
        pool,
        ifd,
        models,
        settings=bench.settings,
        store=bench.store,
        log=bench.log,
        progress=progress or Quiet(),
    )["ifd"]
    known = {name: column[scored.scorable] for name, column in scored.details.items()}
    if not len(known["ifd"]):
        return Strength(0, np.nan, np.nan, np.nan)
    nll, alone = (float(known[name].mean()) for name in ("nll_given", "nll_alone"))
    return Strength(len(known["ifd"]), float((known["ifd"] >= 1).mean()), nll, alone)
