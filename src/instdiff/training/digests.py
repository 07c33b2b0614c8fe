"""What a finished training left is what it wrote: its record has digests of the weights and of the other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instdiff.core.files import Damaged, read_json
from instdiff.core.sums import file_sum
from instdiff.engine.sources import WEIGHTS, hash_weights
from instdiff.errors import EngineError

RECORD = "training.json"


def digests(folder: Path) -> dict[str, Any]:
    """What the record of a training holds of the model folder that it left."""
    weights = {path for pattern in WEIGHTS for path in folder.glob(pattern)}
    files = [path for path in sorted((*folder.iterdir(), *folder.glob("saves/*/*"))) if path.is_file()]
    sums = {path.relative_to(folder).as_posix(): file_sum(path) for path in files if path not in weights}
    return {"weights": hash_weights(folder), "files": sums}


def changed(folder: Path, memo: Path | None = None, *, again: bool = False) -> str | None:
    """The file of a finished training that is not as it was written; None where all are, or were removed together.

    The hash of the weights is that which ``memo`` remembers, unless they are to be read ``again``.
    """
    try:
        record = read_json(folder / RECORD)
    except Damaged:
        return RECORD
    files = record.get("files", {})  # an earlier version wrote none
    if not any((folder / name).is_file() for name in files):
        return None
    for name, known in files.items():
        if file_sum(folder / name) != known:
            return str(name)
    try:
        same = hash_weights(folder, memo, again=again) == record["weights"]
    except EngineError:
        same = False
    return None if same else "weights"
