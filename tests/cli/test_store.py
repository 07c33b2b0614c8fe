"""``instdiff store``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .shell import cli, ok, score


def test_info_and_gc(model: str) -> None:
    score(model)
    said = json.loads(ok("store", "info", "--json").out)
    assert Path(said["store"]) == Path(os.environ["INSTDIFF_STORE"])
    (column,) = said["columns"]
    assert column["measure"] == "Nll()" and column["rows"] > 10
    assert "Nll()" in ok("store", "info").out
    kept = json.loads(ok("store", "gc", "--keep", model, "--json").out)
    assert kept == {"dropped": [], "dry_run": False}
    assert json.loads(ok("store", "gc", "--older-than", "1h", "--json").out)["dropped"] == []
    dry = json.loads(ok("store", "gc", "--older-than", "0h", "--dry-run", "--json").out)
    assert [c["measure"] for c in dry["dropped"]] == ["Nll()"]
    assert "1 columns dropped" in ok("store", "gc", "--older-than", "0h").out
    assert json.loads(ok("store", "info", "--json").out)["columns"] == []


def test_gc_needs_a_reason() -> None:
    said = cli("store", "gc").error
    assert said == "nothing says what may go; give --keep WHERE, --older-than 30d, or both"
    said = cli("store", "gc", "--older-than", "soon").error
    assert said == "--older-than 'soon' is not understood; write 12h, 30d or 8w"
