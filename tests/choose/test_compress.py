"""ZIP: the published selection, and the default against an implementation that compresses everything anew."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instdiff.methods.algorithms.compression import zip_greedy

STAGES = {"k1": 20, "k2": 8, "k3": 4}

texts = st.lists(st.text("ab \u00e9", min_size=1, max_size=60), max_size=14)


def ratio(rows: Sequence[str]) -> float:
    whole = "\n".join(rows).encode()
    return len(whole) / len(zlib.compress(whole, 9))


def plain(rows: list[str], limit: int, weights: list[int], k1: int, k2: int, k3: int) -> list[int]:
    """The default by its definition."""
    state = [ratio([row]) for row in rows]
    left, taken = set(range(len(rows))), []
    while left:
        outer = sorted(left, key=lambda i: (state[i], i))[:k1]
        for i in outer:
            state[i] = ratio([rows[j] for j in taken] + [rows[i]])
        inner = sorted(outer, key=lambda i: (state[i], i))[:k2]
        batch: list[int] = []
        while inner and len(batch) < k3:
            best = min(inner, key=lambda i: (ratio([rows[j] for j in batch] + [rows[i]]), i))
            inner.remove(best)
            if sum(weights[i] for i in taken + batch) >= limit:
                return taken + batch
            batch.append(best)
        taken += batch
        left -= set(batch)
    return taken


@given(texts, st.integers(0, 16), st.integers(1, 6), st.integers(0, 6), st.integers(0, 8), st.booleans())
def test_the_default_is_its_definition(rows: list[str], limit: int, k3: int, d2: int, d1: int, weighed: bool) -> None:
    weights = [len(row) % 4 for row in rows] if weighed else [1] * len(rows)
    stages = {"k1": k3 + d2 + d1, "k2": k3 + d2, "k3": k3}
    got = zip_greedy(rows, limit, weights=weights if weighed else None, **stages, threads=1 + limit % 2)
    assert got.tolist() == plain(rows, limit, weights, **stages)


def test_long_rows_go_beyond_the_window() -> None:
    """A growing set of 200 KB is compressed row by row exactly as it is at once."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshr"), size)) for size in rng.integers(2, 9, 300)]
    rows = [" ".join(rng.choice(words, 1500)) for _ in range(24)]
    got = zip_greedy(rows, 24, k1=3, k2=3, k3=3)
    assert got.tolist() == plain(rows, 24, [1] * 24, 3, 3, 3)
    assert sum(map(len, rows)) > 5 * 32768


def test_neither_threads_nor_the_type_of_text_change_anything() -> None:
    rng = np.random.default_rng(1)
    rows = ["".join(rng.choice(list("abcd é"), size)) for size in rng.integers(1, 200, 120)]
    one = zip_greedy(rows, 60, k1=90, k2=30, k3=10, threads=1)
    assert one.tolist() == zip_greedy([row.encode() for row in rows], 60, k1=90, k2=30, k3=10, threads=4).tolist()


def test_a_token_limit_includes_the_row_that_crosses_it() -> None:
    rows = [f"row number {n} with {'some ' * n}words" for n in range(30)]
    weights = np.arange(30) + 5
    got = zip_greedy(rows, 100, weights=weights, **STAGES)
    spent = weights[got].cumsum()
    assert spent[-1] >= 100 > spent[-2]
    assert len(set(got.tolist())) == len(got)


def test_nothing_is_taken_twice() -> None:
    rows = [f"{n * n} and {n}" for n in range(30)]
    got = zip_greedy(rows, 1000, **STAGES)
    assert sorted(got.tolist()) == list(range(30))


@pytest.mark.shared_data
def test_the_published_selection(shared: Path) -> None:
    """USTC-StarTeam/ZIP @ f77b0b5: budget 10 gives 12 rows."""
    rows = json.loads((shared / "golden" / "data_sharegpt.json").read_text(encoding="utf-8"))
    wanted = json.loads((shared / "golden" / "zip" / "sel_budget10k120k28k34.json").read_text(encoding="utf-8"))
    got = zip_greedy([repr(row) for row in rows], 10, **STAGES, official=True)
    assert [rows[row] for row in got] == wanted
    assert zip_greedy([repr(row) for row in rows], 10, **STAGES).size == 10


def test_the_published_faults() -> None:
    rows = [repr({"id": n, "text": "abc" * (n % 7) + str(n)}) for n in range(40)]
    got = zip_greedy(rows, 41, **STAGES, official=True).tolist()
    assert len(got) == 44
    assert len(set(got[:12])) == 12 and len(set(got)) < 44  # the stamped come back, the taken with them
    assert len(set(zip_greedy(rows, 41, **STAGES).tolist())) == 40


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (["a", "b"], {"official": True}, "at least k1 = 20 rows, not 2"),
        (["a", ""], {}, "row 1 has no text"),
        (["a"], {"weights": [1, 2]}, "1 texts need as many weights"),
        (["a", "b"], {"weights": [1, -2]}, "row 1 has weight -2"),
        (["a"], {"k2": 30}, "k1 >= k2 >= k3 >= 1 must hold, not 20, 30, 4"),
    ],
)
def test_what_cannot_be(rows: list[str], options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        zip_greedy(rows, 1, **{**STAGES, **options})
