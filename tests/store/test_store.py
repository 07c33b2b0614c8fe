"""Keyed columns: missing, append, read; whole parts, several writers, damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.core import Entropy, Nll
from instdiff.core.arrays.ragged import Ragged
from instdiff.errors import StoreError
from instdiff.store import ColumnId, Keys, Store, check_writable, default_root

COLUMN = ColumnId("weights", "float32", Nll())


def keys(*numbers: int) -> Keys:
    return np.frombuffer(b"".join(n.to_bytes(16, "big") for n in numbers), "S16")


def values(*rows: list[float]) -> Ragged:
    return Ragged.of(rows, np.float32)


def parts(store: Store, column: ColumnId = COLUMN) -> list[Path]:
    return sorted((store.root / "columns" / column.name).glob("*.parquet"))


def listed(column: Ragged) -> list[list[float]]:
    return [column[row].tolist() for row in range(len(column))]


# ── round trip ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_store_lacks_everything(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    assert store.missing(COLUMN, keys(1, 2)).tolist() == [True, True]
    assert listed(store.read(COLUMN, keys(1, 2))) == [[], []]
    assert store.missing(COLUMN, keys()).tolist() == []
    assert not (tmp_path / "s").exists()  # looking writes nothing


def test_what_is_appended_is_read_in_any_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(COLUMN, keys(5, 1, 3), values([0.5, 1.5], [2.5], [3.5, 4.5, 5.5]))
    store.append(COLUMN, keys(2), values([7.0]))
    for reader in (store, Store(tmp_path)):
        assert reader.missing(COLUMN, keys(1, 4, 5, 2)).tolist() == [False, True, False, False]
        assert listed(reader.read(COLUMN, keys(2, 3, 4, 5, 3))) == [
            [7.0],
            [3.5, 4.5, 5.5],
            [],
            [0.5, 1.5],
            [3.5, 4.5, 5.5],
        ]


@given(
    st.dictionaries(
        st.integers(0, 2**128 - 1), st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4), max_size=9
    ),
    st.data(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, list[float]], data: st.DataObject
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    names = list(rows)
    cut = data.draw(st.integers(0, len(names)))
    for some in (names[:cut], names[cut:]):
        store.append(COLUMN, keys(*some), values(*(rows[n] for n in some)))
    asked = data.draw(st.permutations(names))
    assert listed(store.read(COLUMN, keys(*asked))) == [rows[n] for n in asked]
    assert not store.missing(COLUMN, keys(*asked)).any()


def test_columns_do_not_mix(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(COLUMN, keys(1), values([1.0]))
    others = [
        ColumnId("other", "float32", Nll()),
        ColumnId("weights", "bfloat16", Nll()),
        ColumnId("weights", "float32", Entropy()),
    ]
    for other in others:
        assert store.missing(other, keys(1)).tolist() == [True]
        store.append(other, keys(1), values([2.0]))
    assert listed(store.read(COLUMN, keys(1))) == [[1.0]]
    assert len({COLUMN.name, *(other.name for other in others)}) == 4


def test_keys_that_end_in_zero_bytes(tmp_path: Path) -> None:
    """Numpy drops trailing zeros of byte strings; the store must not."""
    store = Store(tmp_path)
    raw = [b"\x07" + bytes(15), b"\x07\x00\x01" + bytes(13), bytes(16), b"\x07" + bytes(14) + b"\x01", b"a" * 16]
    several = np.frombuffer(b"".join(raw), "S16")
    store.append(COLUMN, several, values(*([float(i)] for i in range(5))))
    assert listed(Store(tmp_path).read(COLUMN, several[::-1])) == [[4.0], [3.0], [2.0], [1.0], [0.0]]
    on_disk = pq.read_table(parts(store)[0])["key"].to_pylist()
    assert on_disk == raw
    assert Store(tmp_path).missing(COLUMN, np.array([b"\x07", b"\x08", b""], "S16")).tolist() == [False, True, False]


def test_length_mismatch_and_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with pytest.raises(ValueError, match="2 keys for 1 values"):
        store.append(COLUMN, keys(1, 2), values([1.0]))
    store.append(COLUMN, keys(), values())
    assert not (tmp_path / "s").exists()


# ── several writers ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_appending_twice_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(COLUMN, keys(1, 2), values([1.0], [2.0]))
    before = [(path.name, path.read_bytes()) for path in parts(store)]
    store.append(COLUMN, keys(1, 2), values([1.0], [2.0]))
    assert [(path.name, path.read_bytes()) for path in parts(store)] == before
    assert listed(store.read(COLUMN, keys(2, 1))) == [[2.0], [1.0]]


def test_two_writers_see_each_other(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    assert one.missing(COLUMN, keys(1, 2, 3)).all() and two.missing(COLUMN, keys(1, 2, 3)).all()
    one.append(COLUMN, keys(1, 2), values([1.0], [2.0]))
    assert two.missing(COLUMN, keys(1, 2, 3)).tolist() == [False, False, True]
    two.append(COLUMN, keys(2, 3), values([2.0], [3.0]))  # overlapping
    for store in (one, two):
        assert listed(store.read(COLUMN, keys(3, 2, 1))) == [[3.0], [2.0], [1.0]]
    assert len(parts(one)) == 2


WRITER = """
import sys
import numpy as np
from instdiff.core import Nll
from instdiff.core.arrays.ragged import Ragged
from instdiff.store import ColumnId, Store

store, first = Store(sys.argv[1]), int(sys.argv[2])
for n in range(first, first + 30):
    keys = np.frombuffer(n.to_bytes(16, "big"), "S16")
    store.append(ColumnId("weights", "float32", Nll()), keys, Ragged.of([[n, n / 2]], np.float32))
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), first]) for first in ("0", "15")]
    assert [writer.wait() for writer in writers] == [0, 0]
    store = Store(tmp_path)
    assert listed(store.read(COLUMN, keys(*range(45)))) == [[n, n / 2] for n in range(45)]
    assert len(parts(store)) == 45
    assert [path.name for path in (tmp_path / "columns" / COLUMN.name).iterdir() if "partial" in path.name] == []


def test_half_written_parts_are_not_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(COLUMN, keys(1), values([1.0]))
    (parts(store)[0].parent / ".abc.parquet.99.partial").write_bytes(b"PAR1 half")
    (parts(store)[0].parent / ".abc.parquet").write_bytes(b"half")
    assert Store(tmp_path).missing(COLUMN, keys(1, 2)).tolist() == [False, True]


# ── damage ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def filled(tmp_path: Path) -> tuple[Path, Keys]:
    store, rng = Store(tmp_path), np.random.default_rng(0)
    several = keys(*range(200))
    store.append(COLUMN, several, values(*(rng.normal(size=5).tolist() for _ in range(200))))
    return parts(store)[0], several


def passed_over(tmp_path: Path, part: Path, several: Keys) -> None:
    """The part is set aside, one line says so, and its rows are missing until they are added again."""
    said: list[str] = []
    store = Store(tmp_path, log=said.append)
    assert store.missing(COLUMN, several).all() and len(store.read(COLUMN, several).values) == 0
    (line,) = said
    assert line.startswith(f"warning: store part '{part}' is damaged (")
    assert line.endswith(f"); it is set aside as '{part.name}.damaged', and its rows are computed again")
    assert not part.exists() and part.with_name(f"{part.name}.damaged").exists()
    store.append(COLUMN, several, values(*([1.0] for _ in several)))
    assert part.exists() and not Store(tmp_path).missing(COLUMN, several).any()


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_a_truncated_part_is_set_aside(tmp_path: Path, kept: float) -> None:
    part, several = filled(tmp_path)
    raw = part.read_bytes()
    part.write_bytes(raw[: int(kept * len(raw)) if isinstance(kept, float) else kept])
    passed_over(tmp_path, part, several)


def test_damaged_values_are_set_aside(tmp_path: Path) -> None:
    """The keys could still be read; the values could not."""
    part, several = filled(tmp_path)
    raw = bytearray(part.read_bytes())
    at = pq.ParquetFile(part).metadata.row_group(0).column(1).data_page_offset
    raw[at : at + 400] = b"\xff" * 400
    part.write_bytes(bytes(raw))
    passed_over(tmp_path, part, several)


def test_a_part_of_something_else_is_set_aside(tmp_path: Path) -> None:
    import pyarrow as pa

    part, several = filled(tmp_path)
    pq.write_table(pa.table({"other": [1]}), part)
    passed_over(tmp_path, part, several)


def test_a_part_without_sums_is_read(tmp_path: Path) -> None:
    """As an earlier version wrote it."""
    part, several = filled(tmp_path)
    table = pq.read_table(part)
    pq.write_table(table, part)
    assert listed(Store(tmp_path).read(COLUMN, several)) == table["value"].to_pylist()


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for attempt in (
        lambda: check_writable(tmp_path / "file" / "store"),
        lambda: Store(tmp_path / "file").append(COLUMN, keys(1), values([1.0])),
    ):
        with pytest.raises(StoreError, match=f"cannot write '{tmp_path / 'file'}"):
            attempt()


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "named"))
    assert default_root() == Store().root == tmp_path / "named"
    monkeypatch.delenv("INSTDIFF_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "instdiff" / "store"
    assert Store(tmp_path / "given").root == tmp_path / "given"
