"""What a training is fed: the rows as a data set, batches of them padded or packed, and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from instdiff.rendering.renderer import Rows
from instdiff.training.losses import IGNORED

WEIGHT = "weight"
"""The column of the rows' factors."""
WIDTHS = 32
"""Batches are padded to a multiple of this: kernels are compiled and kept for each shape, in memory that then grows."""


def dataset(rows: Rows, empty: int | None = None, weights: npt.NDArray[np.float64] | None = None) -> Any:
    """The rows as the trainer reads them; ``empty`` adds one of this token that teaches nothing.

    ``weights`` are factors on the rows' losses, [rows].
    """
    from datasets import Dataset

    ids, labels, offsets = rows.ids.values, np.where(rows.target, rows.ids.values, IGNORED), rows.ids.offsets
    if empty is not None:
        offsets = np.append(offsets, len(ids) + 1)
        ids, labels = np.append(ids, np.asarray(empty, ids.dtype)), np.append(labels, np.asarray(IGNORED, labels.dtype))
    lists = [pa.LargeListArray.from_arrays(pa.array(offsets), values) for values in (ids, labels)]
    columns = dict(zip(("input_ids", "labels"), lists, strict=True))
    if weights is not None:
        columns[WEIGHT] = pa.array(np.append(weights, np.zeros(len(offsets) - 1 - len(weights))), pa.float32())
    return Dataset(pa.table(columns))


class Collator:
    """Rows of a batch, padded on the right; padding is neither seen nor learnt."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors of (rows, tokens of the longest row)."""
        ids, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
        width = -(-max(map(len, ids)) // WIDTHS) * WIDTHS

        def pad_rows(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (width - len(row)) for row in values])

        seen = pad_rows([[1] * len(row) for row in ids], 0)
        batch = {"input_ids": pad_rows(ids, self.pad), "attention_mask": seen, "labels": pad_rows(labels, IGNORED)}
        if WEIGHT in rows[0]:
            batch["weights"] = torch.tensor([row[WEIGHT] for row in rows])[:, None].expand(-1, width)
        return batch


class Packer(Collator):
    """Rows of a batch end to end; positions that begin again tell the model where one ends.

    There is no attention mask, because models would look at it instead of the positions. What fills up the last
    ``WIDTHS`` is one more row, which teaches nothing.
    """

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors of (1, tokens of all rows)."""
        weights = [float(row[WEIGHT]) for row in rows] if WEIGHT in rows[0] else None
        said = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows]
        return pack(said, self.pad, weights=weights)


def pack(
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]],
    pad: int,
    widths: int = WIDTHS,
    weights: Sequence[float] | None = None,
) -> dict[str, torch.Tensor]:
    """Token ids and labels of rows, each [T], as one pass of a multiple of ``widths`` tokens; see ``Packer``.

    ``weights`` are factors on the rows' losses.
    """
    rest = -sum(len(ids) for ids, _ in rows) % widths
    rows = [*rows, (torch.full((rest,), pad), torch.full((rest,), IGNORED))]
    labels = torch.cat([row for _, row in rows])
    place = torch.cat([torch.arange(len(ids)) for ids, _ in rows])
    # A row's first token would be learnt from the row before it.
    labels = torch.where(place == 0, IGNORED, labels)
    batch = {
        "input_ids": torch.cat([ids for ids, _ in rows])[None],
        "position_ids": place[None],
        "labels": labels[None],
    }
    if weights is not None:
        sizes = torch.tensor([len(ids) for ids, _ in rows])
        batch["weights"] = torch.tensor([*weights, 0.0]).repeat_interleave(sizes)[None]
    return batch


class Filled(Sampler[int]):
    """The order in which one process would take the rows, and after it the row that teaches nothing, ``fill`` times.

    Several processes take equal numbers of batches: without a filling the first rows would be learnt once more. The
    empty row comes after the ``rows``. A resumed training begins in ``epoch``: what skips its first batches hides this
    sampler from ``set_epoch``.
    """

    def __init__(self, rows: int, fill: int, seed: int, epoch: int = 0) -> None:
        self.order, self.rows, self.fill = SeedableRandomSampler(range(rows), data_seed=seed), rows, fill
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.rows] * self.fill

    def __len__(self) -> int:
        return self.rows + self.fill

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has its own order."""
        self.order.set_epoch(epoch)
