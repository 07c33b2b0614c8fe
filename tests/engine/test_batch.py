"""Batches: every row once, longest first, within the budget."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from instdiff.engine.batch import batches
from instdiff.engine.forward import Batch


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 200))
def test_batches(lengths: list[int], budget: int) -> None:
    parts = [part.tolist() for part in batches(np.array(lengths, np.int64), budget)]
    assert sorted(at for part in parts for at in part) == list(range(len(lengths)))
    flat = [lengths[at] for part in parts for at in part]
    assert flat == sorted(lengths, reverse=True)
    for part in parts:
        assert len(part) * lengths[part[0]] <= budget or len(part) == 1


def test_a_batch_is_padded_on_the_right() -> None:
    rows = [([5, 6, 7], [False, True, True]), ([9], [False]), ([8, 4], [False, True])]
    batch = Batch.padded(np.arange(3), [(np.array(ids), np.array(target)) for ids, target in rows])
    assert batch.ids.tolist() == [[5, 6, 7], [9, 0, 0], [8, 4, 0]]
    assert batch.predictor.tolist() == [0, 1, 6]  # the tokens before the targets, counted through the ids
    assert batch.target.tolist() == [6, 7, 4] and batch.counts.tolist() == [2, 0, 1]
