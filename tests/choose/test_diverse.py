"""DEITA's filter: its published result, and the plain loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.methods.algorithms import threshold as module
from instdiff.methods.algorithms.threshold import diverse

from . import plain


@pytest.mark.shared_data
def test_published_selection(shared: Path) -> None:
    """Recorded with hkust-nlp/deita @b279f2c."""
    golden = shared / "golden" / "deita"
    data = np.load(golden / "embeddings.npz")
    order = np.argsort(-data["score"], kind="stable")
    expected = json.loads((golden / "filter.json").read_text(encoding="utf-8"))
    assert expected
    for name, rows in expected.items():
        threshold, limit = name.split("_")
        assert diverse(data["embedding"], order, threshold=float(threshold), limit=int(limit)).tolist() == rows


@given(plain.SIGNS, st.data())
def test_the_rows_of_the_plain_loop(x: plain.Array, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(x))))[: data.draw(st.integers(0, len(x)))]
    threshold, alike = data.draw(st.sampled_from([-0.5, 0.0, 0.5, 0.9])), data.draw(st.integers(1, 3))
    weights = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(x), max_size=len(x))))
    limit = data.draw(st.none() | st.integers(0, 60))
    rows = plain.filtered(x, list(order), threshold, alike)
    if limit is not None:
        before = np.cumsum(weights[rows]) - weights[rows]
        rows = [row for row, spent in zip(rows, before, strict=True) if spent < limit]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", data.draw(st.integers(1, 7)))
        patch.setattr(module, "_KEPT", 3)
        out = diverse(x, np.array(order, np.int64), threshold=threshold, alike=alike, limit=limit, weights=weights)
    assert out.tolist() == rows


def test_a_row_is_no_neighbour_of_a_rejected_one() -> None:
    angle = np.deg2rad([0, 20, 40])
    x = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert diverse(x, threshold=0.9).tolist() == [0, 2]
    assert diverse(x, limit=1).tolist() == [0]
    assert diverse(x, threshold=1.0, limit=5, weights=np.array([3, 2, 9])).tolist() == [0, 1]


def test_what_cannot_be_is_said() -> None:
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="alike is 0"):
        diverse(x, alike=0)
    with pytest.raises(ValueError, match="2 weights for 3 rows"):
        diverse(x, weights=np.ones(2))
