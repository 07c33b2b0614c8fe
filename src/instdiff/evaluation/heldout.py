"""Held-out response NLL through our own sweep: the cheapest honest measure of a trained model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats, Log, ModelRef, Nll, Prompted, Settings
from instdiff.core.progress import Progress
from instdiff.data import Pool
from instdiff.engine.distributed.hosts import ModelHost
from instdiff.evaluation.statistics import token_mean
from instdiff.scoring.planner import Pass
from instdiff.scoring.workbench import Workbench
from instdiff.store import Store


@dataclass(frozen=True)
class HeldOut:
    """Per held-out row the summed NLL of its response in nats, and its response tokens."""

    total: Floats
    count: npt.NDArray[np.int64]

    @property
    def nll(self) -> float:
        """Nats per response token, over all tokens."""
        return token_mean(self.total, self.count)


def heldout_nll(
    pool: Pool,
    name: str,
    model: ModelRef,
    settings: Settings,
    store: Store,
    *,
    resident: ModelHost | None = None,
    log: Log,
    progress: Progress,
) -> HeldOut:
    """Sum the NLL of every response under a model, which the log calls by ``name``.

    Rows that cannot be scored count no token; the log says how many there are.
    """
    bench = Workbench(pool, {name: model}, settings, store, resident=resident, log=log)
    step = Pass(name, Prompted(), (Nll(),))
    with closing(bench):
        bench.run(step, progress)
    values = store.read(bench.column(name, Nll()), bench.render(name, Prompted()).keys)
    empty = int((values.lengths() == 0).sum())
    if empty:
        log(f"{empty} of {len(pool)} held-out rows cannot be scored and do not count")
    return HeldOut(values.sum(), values.count())
