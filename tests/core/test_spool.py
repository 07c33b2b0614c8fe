"""What grows beyond a threshold lies in a file that has no name, and is the same."""

from __future__ import annotations

import gc
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core.arrays import ragged
from instdiff.core.arrays import spill as spool
from instdiff.core.arrays.ragged import Ragged, offsets_of
from instdiff.core.arrays.spill import SpillingArray, flatnonzero, take
from instdiff.core.columns import compact_reasons, concat_reasons, no_reasons
from instdiff.errors import StoreError


@pytest.fixture
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@given(st.lists(st.lists(st.integers(-5, 5), max_size=5), max_size=6), st.integers(0, 60))
def test_spooled_is_the_same_as_in_memory(parts: list[list[int]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY_BYTES", most)
        grown = SpillingArray(np.int32)
        for part in parts:
            grown.extend(part)
        values = grown.array()
    assert values.tolist() == [value for part in parts for value in part]
    assert values.dtype == np.int32 and not values.flags.writeable


@given(st.lists(st.integers(0, 9), max_size=40), st.data())
def test_offsets_and_rows_in_pieces(lengths: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20)) if lengths else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY_BYTES", 40)
        patch.setattr(spool, "ROWS_AT_ONCE", 3)
        patch.setattr(ragged, "ROWS_AT_ONCE", 3)
        offsets, some = offsets_of(lengths), take(np.array(lengths, np.int64), np.array(rows, np.int64))
        odd = flatnonzero(np.array(lengths, np.int64) % 2 == 1)
    assert offsets.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert odd.tolist() == [at for at, length in enumerate(lengths) if length % 2]
    assert offsets.dtype == np.int64 and some.tolist() == [lengths[row] for row in rows]


@given(st.lists(st.lists(st.none() | st.sampled_from(["too_long", "empty"]), max_size=5)))
def test_reasons_take_room_only_where_there_are_some(parts: list[list[str | None]]) -> None:
    whole = concat_reasons([compact_reasons(np.array([*part, ""], object)[:-1]) for part in parts])
    assert whole.tolist() == [word for part in parts for word in part]
    assert (compact_reasons(whole).strides == (0,)) == (not any(word for part in parts for word in part))
    assert no_reasons(3).tolist() == [None] * 3


@pytest.mark.skipif(os.name == "nt", reason="an open file has a name there")
def test_a_temporary_file_has_no_name_and_goes_with_its_array(aside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> int:
        return sum(str(aside) in line for line in Path("/proc/self/maps").read_text().splitlines())

    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 0)
    grown = SpillingArray(np.int64)
    grown.extend(range(1000))
    assert list(aside.iterdir()) == []
    values = grown.array()
    assert list(aside.iterdir()) == [] and values.sum() == 499500
    del grown
    if Path("/proc/self/maps").exists():
        assert held() == 1
        del values
        gc.collect()
        assert held() == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_said_in_one_message(aside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.BufferedWriter(io.FileIO("/dev/full", "w"), 16))
    with pytest.raises(StoreError, match=r"cannot write temporary data to '.*': No space left .* with TMPDIR"):
        SpillingArray(np.int64).extend(range(1000))


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StoreError, match=r"cannot write temporary data to '.*gone': No such file or directory"):
        SpillingArray(np.int64).extend(range(1000))


ROWS = st.lists(st.lists(st.sampled_from([1.5, -2.0, float("nan"), 0.25]), max_size=5), max_size=9)
WORK: list[Callable[[Ragged], Any]] = [
    Ragged.sum,
    Ragged.count,
    Ragged.mean,
    lambda column: column.take(np.arange(len(column))[::-1]).values,
]


@pytest.mark.parametrize("work", WORK)
@given(rows=ROWS, at_once=st.integers(1, 7))
def test_rows_at_once_change_nothing(work: Callable[[Ragged], Any], rows: list[list[float]], at_once: int) -> None:
    column = Ragged.of(rows, np.float32)
    whole = work(column)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "AT_ONCE", at_once)
        pieces = work(column)
        covered = [row for span in column.spans() for row in range(span.start, span.stop)]
    np.testing.assert_array_equal(pieces, whole)
    assert covered == list(range(len(rows)))
