"""What a coarser precision takes back of a training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instdiff.core import ModelRef

if TYPE_CHECKING:
    import torch

AT_MOST = 1 << 24
"""Weights that are read of a tensor."""
TRAINED = "training.json"
"""What a training leaves beside its weights."""


def is_trained_in_full(model: ModelRef) -> bool:
    """Whether a model is a folder that a training has left here, with weights in fp32."""
    folder = Path(model.where).expanduser()
    if model.adapter or not (folder / TRAINED).is_file():
        return False
    return any(piece.get_dtype() == "F32" for piece in _pieces(folder).values())


def reverted_share(base: Path, trained: Path, dtype: torch.dtype) -> float:
    """Of the weights that a training has moved, the share that a precision makes those of the base again.

    0 where nothing has moved or the two have no weights in common. Of large tensors a part is read.
    """
    before, after = _pieces(base, "pt"), _pieces(trained, "pt")
    moved = back = 0
    for name in before.keys() & after.keys():
        shape = before[name].get_shape()
        if shape != after[name].get_shape() or not shape:
            continue
        old, new = (_middle(pieces[name], shape).float() for pieces in (before, after))
        changed = old != new
        moved += int(changed.sum())
        back += int((changed & (old.to(dtype) == new.to(dtype))).sum())
    return back / moved if moved else 0.0


def _pieces(folder: Path, framework: str = "np") -> dict[str, Any]:
    """The tensors of a folder by name, none of them read yet."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file: Any = safe_open(path, framework)
        found |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return found


def _middle(piece: Any, shape: list[int]) -> torch.Tensor:
    rows = min(shape[0], max(1, AT_MOST // math.prod(shape[1:])))
    start = (shape[0] - rows) // 2
    values: torch.Tensor = piece[start : start + rows]
    return values
