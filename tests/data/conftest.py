"""Files to read, and the shared folder of real ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shared() -> Path:
    folder = Path(os.environ.get("INSTDIFF_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared folder of real data; set INSTDIFF_SHARED")
    return folder


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (or raw bytes, as they are) to a JSON lines file."""

    def make(rows: list[Any], name: str = "my.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return make


def alpaca_rows(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(count)]
