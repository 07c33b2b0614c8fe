"""A page of a selection that takes at most so many rows of each value, and what ``explain`` and ``diff`` say of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cli.shell import cli, ok
from instdiff.core.caps import Per
from instdiff.reporting.sources import gather
from instdiff.scoring.table import read_scores
from instdiff.selection.per import caps_of
from instdiff.selection.selector import select

from .kit import make_table, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("per")
    pool = write_rows(place / "rows.jsonl", 60, hostile=0)
    table = make_table(60, list(pool.ids), str(place / "rows.jsonl"), pool)
    table.write(place / "scores.parquet")
    chosen = select(pool, table["longest"], 6, per="source 2", meta=table.meta)
    chosen.write(place / "cut.jsonl")
    chosen.write_record(place / "cut.selection.json", place / "cut.jsonl")
    return place


def test_another_cut_takes_what_select_would(folder: Path) -> None:
    sources = gather(folder / "scores.parquet")
    part, pool = sources.parts[-1], sources.pool
    assert pool is not None and part.per("longest") == Per("source", 2) and len(part.chosen) == 6
    for name in part.table:
        for count in (1, 4, 8):
            same = select(pool, part.table[name], count, per="source 2")
            assert part.best(name)[:count].tolist() == same.at.tolist()
    assert part.top("random").tolist() == select(pool, part.table["random"], 6, per="source 2").at.tolist()


def test_without_the_rows_there_is_no_other_cut(folder: Path, tmp_path: Path) -> None:
    for name in ("scores.parquet", "cut.selection.json", "cut.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    rows = folder / "rows.jsonl"
    rows.rename(folder / "away.jsonl")
    try:
        sources = gather(tmp_path / "scores.parquet")
    finally:
        (folder / "away.jsonl").rename(rows)
    assert sources.pool is None and not sources.parts[-1].caps
    assert any("source 2 bounds together" in note for note in sources.notes)


def test_the_row_that_is_better_is_named(folder: Path) -> None:
    table, pool = read_scores(folder / "scores.parquet"), gather(folder / "scores.parquet").pool
    assert pool is not None
    caps, best = caps_of(pool, Per("source", 2)), table["longest"].best()
    kept = caps.limit(best)
    dropped = next(int(row) for row in best if row not in kept)
    better = [row for row in kept.tolist() if caps.codes[row] == caps.codes[dropped]]
    some = ["--data", folder / "rows.jsonl", "--scores", folder / "scores.parquet"]
    facts = ok("explain", dropped, *some, "--selection", folder / "cut.jsonl", "--json").json["selection"]
    rows = f"rows {better[0]}, {better[1]} of its 'source' are better"
    assert facts["reason"] == f"not chosen: {rows}, and at most 2 of each 'source' are taken"
    said = ok("explain", int(kept[7]), *some, "--selection", folder / "cut.jsonl", "--json").json["selection"]
    assert said["reason"].startswith("not chosen: rank 8 of 8") and not said["chosen"]
    taken = ok("explain", int(kept[0]), *some, "--selection", folder / "cut.jsonl", "--json").json["selection"]
    assert taken["reason"].startswith("chosen: rank 1 of 8") and taken["place"] == 1


def test_diff_says_what_bounds_each(folder: Path) -> None:
    other = folder / "free.jsonl"
    ok("select", "--data", folder / "rows.jsonl", "--scores", folder / "scores.parquet", "--method", "longest",
       "--budget", "6", "--output", other)  # fmt: skip
    found = ok("diff", folder / "cut.jsonl", other, "--json").json
    assert found["a"]["per"]["most"] == 2 and "per" not in found["b"]
    assert "longest within 6, at most 2 of each 'source'" in ok("diff", folder / "cut.jsonl", other).out


def test_random_rows_beside_a_selection_are_bound(folder: Path) -> None:
    sources = gather(folder / "scores.parquet")
    assert sources.pool is not None
    chosen = select(sources.pool, sources.parts[-1].table["longest"], per="source 2")
    beside = chosen.compare("random", by="source")
    assert beside.rows == (8, 8) and all(there == 2 for _, _, _, there in beside.sources)


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    some = ["--data", folder / "rows.jsonl", "--scores", folder / "scores.parquet", "--method", "longest"]
    facts = ok("select", *some, "--per", "source", "2", "--output", tmp_path / "out.jsonl", "--json").json
    assert facts["counts"]["selected_rows"] == 8 and facts["per"]["rows_dropped"] == 52
    by_key = ok("select", *some, "per=source 2", "--output", tmp_path / "out.jsonl", "--json").json
    assert by_key["rows"] == facts["rows"]
    assert np.array_equal(facts["rows"], select(*_both(folder), per=("source", 2)).rows)


def _both(folder: Path) -> tuple[object, object]:
    return folder / "rows.jsonl", read_scores(folder / "scores.parquet")["longest"]


def test_two_words_in_one_are_told() -> None:
    ran = cli("select", "--data", "builtin:demo", "--method", "longest", "--per", "prompt 1", "--output", "out.jsonl")
    assert ran.code == 2 and "write the words apart, as in --per prompt 1" in ran.err
