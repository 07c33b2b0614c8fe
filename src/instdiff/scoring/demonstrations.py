"""Rows in the company of other rows: which ones, and what the model then sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from instdiff.core import Anchored, Demonstrated, Prompted, Signal, View
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.signals import Anchors
from instdiff.data import Pool
from instdiff.errors import DataError, PlanError
from instdiff.methods.algorithms.effort import check_search
from instdiff.methods.algorithms.kmeans import anchors as nearest_to_centres
from instdiff.methods.algorithms.neighbours import at_random, bm25, nearest
from instdiff.rendering.conversations import converse, converse_with_anchors
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.rows import Rows
from instdiff.rendering.templates import Template, TextTemplate
from instdiff.rendering.texts import words
from instdiff.rendering.views import anchors_of, cut_anchors, put_before_anchors, put_demonstrations

Indices = npt.NDArray[np.int64]
Vectors = Callable[[Signal], Ragged]
"""The column of a signal that an earlier wave has computed."""

BETWEEN = "\n\n"
"""What stands after a demonstration under a text template; under a chat template it is an earlier turn."""


def demonstrated_rows(
    view: View, renderer: Renderer, layout: Template, limit: int, pool: Pool, vectors: Vectors
) -> tuple[Rows, int] | None:
    """Rows of a view that shows others, and how many per sample; None for other views, a DataError for too few rows."""
    if not isinstance(view, (Demonstrated, Anchored, Anchors)):
        return None
    most = min(limit, renderer.tokenizer.max_length or limit)
    rows = renderer.rows(Prompted(), layout, limit)
    join, prefix_token = renderer.tokenizer.encode([BETWEEN])[0], renderer.tokenizer.bos

    def ended() -> Rows:
        """A demonstration ends as a response does in training."""
        return renderer.rows(Prompted(score_eos=True), layout, limit)

    if isinstance(view, Demonstrated):
        near = neighbours(view, pool, rows, vectors)
        if not isinstance(layout, TextTemplate):
            return converse(renderer.tokenised, layout, rows, near, most), 1
        return put_demonstrations(rows, near, ended(), join, most, prefix_token=prefix_token), 1
    chosen = anchor_rows(view, rows, vectors)
    if isinstance(view, Anchored):
        chosen = chosen[view.start : view.stop]
    if isinstance(view, Anchors):
        return cut_anchors(rows, chosen, view.limit), 1
    if not isinstance(layout, TextTemplate):
        return converse_with_anchors(renderer.tokenised, layout, rows, chosen, view.limit, most=most), len(chosen)
    before = put_before_anchors(rows, ended(), chosen, view.limit, most=most, join_ids=join, prefix_token=prefix_token)
    return before, len(chosen)


def neighbours(view: Demonstrated, pool: Pool, rows: Rows, vectors: Vectors) -> Indices:
    """Rows that demonstrate each row, [rows, shots], nearest first, -1 where there is none.

    Only rows that can be shown whole, with a prompt and a response, demonstrate or are demonstrated to. Too few rows
    are a DataError, no such retrieval is a PlanError, and an exact search that would take hours and that nobody asked
    for is a ConfigError.
    """
    usable = rows.reason == None  # noqa: E711 - elementwise
    found = None
    if view.retrieval == "embedding" and view.by is not None:
        full, found = _full(vectors(view.by))
        usable[np.setdiff1d(np.arange(len(pool)), full)] = False
        found = found[usable[full]]
    some = np.flatnonzero(usable)
    if view.shots >= len(some):
        raise DataError(
            f"{view.shots} other rows are asked for as demonstrations, {pool.origin} has {len(some)} that can be shown"
        )
    if view.retrieval == "random":
        near = at_random(len(some), view.shots, seed=view.seed)
    elif view.retrieval == "bm25":
        said = [words(sample, "instruction") for sample in pool.samples()]
        near = bm25([said[row] for row in some.tolist()], view.shots)
    elif found is not None:
        if view.approximate is None:
            mend = "set 'miwv.approximate' to true, which finds most of them with an index, or to false and wait"
            check_search(len(found), found.shape[1], mend)
        near = nearest(found, view.shots, how="hnsw" if view.approximate else "exact", seed=view.seed)
    else:
        raise PlanError(f"demonstrations are found by embedding, bm25 or random, not by '{view.retrieval}'")
    out = np.full((len(pool), view.shots), -1, np.int64)
    out[some] = np.where(near >= 0, some[near], -1)
    return out


def anchor_rows(view: Anchored | Anchors, rows: Rows, vectors: Vectors) -> Indices:
    """The rows nearest to the centres of clusters, of those that have a target within the limit; or a DataError."""
    full, found = _full(vectors(view.by))
    fit = anchors_of(rows, view.limit)[full] | view.long
    if fit.sum() < view.count:
        raise DataError(
            f"{view.count} anchors are asked for, {int(fit.sum())} rows have a vector and a response within "
            f"{view.limit} tokens; lower the number of anchors or raise the limit"
        )
    full, found = full[fit], found[fit]
    chosen = full[nearest_to_centres(found, view.count, seed=view.seed)]
    chosen = chosen[anchors_of(rows, view.limit)[chosen]]
    if not len(chosen):
        raise DataError(f"no anchor has a response within {view.limit} tokens; raise the limit")
    return chosen


def _full(column: Ragged) -> tuple[Indices, npt.NDArray[np.float32]]:
    """The rows that have a vector, and their vectors [rows, D]."""
    lengths = column.lengths()
    width = int(lengths.max(initial=0))
    full = np.flatnonzero(lengths == width) if width else np.zeros(0, np.int64)
    if len(full) == len(lengths):
        return full, np.asarray(column.values).reshape(len(full), -1)
    return full, column.take(full).values.reshape(len(full), -1)
