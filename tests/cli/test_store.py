"""``instdiff store``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from instdiff.core import Nll
from instdiff.scoring.table import read_scores
from instdiff.store import ColumnId, Store

from .shell import ROWS, cli, ok, score, write_jsonl


def test_info_and_gc(model: str) -> None:
    score(model)
    said = json.loads(ok("store", "info", "--json").out)
    assert Path(said["store"]) == Path(os.environ["INSTDIFF_STORE"])
    (column,) = said["columns"]
    assert column["measure"] == "Nll()" and column["rows"] > 10
    told = ok("store", "info").out
    assert "NLL" in told and "Nll" not in told
    assert told.splitlines()[-1].startswith(f"1 column, {column['bytes'] / 1e3:.3g} kB in ")
    assert len(column["where"]) == 1 and column["where"][0] in ok("store", "info").out  # not by its hash alone
    assert set(column["views"]) <= {"prompted", "response only"} and column["views"]
    kept = json.loads(ok("store", "gc", "--keep", model, "--json").out)
    assert kept == {"dropped": [], "trained": [], "dry_run": False}
    assert json.loads(ok("store", "gc", "--older-than", "1h", "--json").out)["dropped"] == []
    dry = json.loads(ok("store", "gc", "--older-than", "0h", "--dry-run", "--json").out)
    assert [c["measure"] for c in dry["dropped"]] == ["Nll()"]
    assert "1 column dropped" in ok("store", "gc", "--older-than", "0h").out
    assert json.loads(ok("store", "info", "--json").out)["columns"] == []


def test_an_empty_store_has_no_empty_table() -> None:
    assert ok("store", "info", "--store", "nothing").out.splitlines()[0].startswith("0 columns, 0 kB in ")


def test_gc_needs_a_reason() -> None:
    said = cli("store", "gc").error
    assert said == "nothing says what may go; give --keep WHERE, --older-than 30d, or both"
    said = cli("store", "gc", "--older-than", "soon").error
    assert said == "--older-than 'soon' is not understood; write 12h, 30d or 8w"


def damage(path: Path, at: int = 70) -> Path:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)
    return path


def assert_same(path: str) -> None:
    """As the first scores."""
    np.testing.assert_array_equal(read_scores(path)["ifd"].value, read_scores("scores.parquet")["ifd"].value)


def test_check_lists_damage_and_repairs_it(model: str) -> None:
    score(model)
    root = Path(os.environ["INSTDIFF_STORE"])
    assert "rows are whole in" in ok("store", "check").out
    part = damage(next(root.glob("columns/*/*.parquet")))
    ran = cli("store", "check")
    assert ran.out.startswith(f"store part '{part}' is damaged (its bytes are not those that were written); ")
    assert ran.error == "1 files are damaged; give --repair to set them aside, and score again"
    (told,) = json.loads(cli("store", "check", "--json").out)["damaged"]
    assert told["path"] == str(part) and told["rows"] > 10 and told["mended"] is None
    assert f"rows; it is set aside as '{part.name}.damaged'" in ok("store", "check", "--repair").out
    assert json.loads(ok("store", "check", "--json").out)["damaged"] == []


def test_damage_is_told_in_one_line_and_computed_again(model: str, computed: list[tuple[int, int]]) -> None:
    score(model)
    many = len(computed)
    part = damage(next(Path(os.environ["INSTDIFF_STORE"]).glob("columns/*/*.parquet")))
    ran = score(model, "ifd", "again.parquet")
    assert [line for line in ran.err.splitlines() if "damaged" in line] == [
        f"warning: store part '{part}' is damaged (its bytes are not those that were written); "
        f"it is set aside as '{part.name}.damaged', and its rows are computed again"
    ]
    assert len(computed) > many
    assert_same("again.parquet")


def test_a_damaged_index_or_description_ends_no_command(model: str) -> None:
    score(model)
    root = Path(os.environ["INSTDIFF_STORE"])
    Store(root).compact(the_column(root), least=1)
    (index,) = root.glob("columns/*/seg-*/sources.json")
    index.write_bytes(b"")
    write_jsonl("more.jsonl", [*ROWS, {"instruction": "Say yak.", "output": "yak"}])
    score(model, "ifd", "more.parquet", data="more.jsonl")
    Store(root).compact(the_column(root), least=1)
    assert index.with_name("sources.json.damaged").is_file() or not index.parent.exists()
    for path in root.glob("columns/*/column.json"):
        path.write_text("{}")
    ran = ok("store", "info")
    assert ran.err.count("column.json' is damaged ('model'); `instdiff store check --repair` sets it aside") == 1
    assert ok("store", "gc", "--older-than", "0h").out.startswith("0 columns dropped")
    ok("store", "check", "--repair")
    score(model, "ifd", "third.parquet")
    assert_same("third.parquet")


def the_column(root: Path) -> ColumnId:
    (about,) = [json.loads(path.read_text()) for path in root.glob("columns/*/column.json")]
    return ColumnId(about["model"], about["dtype"], Nll())


NO_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
"""Root without the right to write what may not be written."""


@pytest.mark.skipif(os.name != "posix" or (os.geteuid() == 0 and not shutil.which("setpriv")), reason="needs setpriv")
def test_a_store_that_is_not_written_suffices_where_all_is_cached(model: str) -> None:
    score(model)
    root = Path(os.environ["INSTDIFF_STORE"])
    write_jsonl("more.jsonl", [*ROWS, {"instruction": "Say yak.", "output": "yak"}])
    places = [root, *root.rglob("*")]
    for path in places:
        path.chmod(path.stat().st_mode & 0o555)
    try:
        ran = []
        for name in ("my", "more"):
            given = [
                "score",
                "--data",
                f"{name}.jsonl",
                "--model",
                model,
                "--method",
                "ifd",
                "--output",
                f"{name}.parquet",
            ]
            line = [*(NO_RIGHTS if os.geteuid() == 0 else []), sys.executable, "-m", "instdiff", *given]
            ran.append(subprocess.run(line, capture_output=True, text=True, check=False))
    finally:
        for path in places:
            path.chmod(path.stat().st_mode | 0o700)
    cached, fresh = ran
    assert cached.returncode == 0, cached.stderr
    assert_same("my.parquet")
    assert fresh.returncode == 2 and f"error: cannot write '{root}': Permission denied" in fresh.stderr
