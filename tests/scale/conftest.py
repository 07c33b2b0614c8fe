"""Rows, and a working folder with a store of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import some_rows


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with 23 rows in ``my.jsonl``: one without a response, two that are equal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    rows = some_rows(21)
    rows += [{"instruction": "Say nothing.", "input": "", "output": ""}, dict(rows[4])]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ID", "COUNT", "MIN", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    return tmp_path
