"""What a training is fed: the rows as a data set, batches of them padded or packed, and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from instdiff.rendering.renderer import Rows
from instdiff.training.losses import IGNORED

WIDTHS = 32
"""Batches are padded to a multiple of this: kernels are compiled and kept for each shape, in memory that then grows."""


def dataset(rows: Rows, empty: int | None = None) -> Any:
    """The rows as the trainer reads them; ``empty`` adds one of this token that teaches nothing."""
    from datasets import Dataset

    ids, labels, offsets = rows.ids.values, np.where(rows.target, rows.ids.values, IGNORED), rows.ids.offsets
    if empty is not None:
        offsets = np.append(offsets, len(ids) + 1)
        ids, labels = np.append(ids, np.asarray(empty, ids.dtype)), np.append(labels, np.asarray(IGNORED, labels.dtype))
    lists = [pa.LargeListArray.from_arrays(pa.array(offsets), values) for values in (ids, labels)]
    return Dataset(pa.table(lists, names=["input_ids", "labels"]))


class Collator:
    """Rows of a batch, padded on the right; padding is neither seen nor learnt."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Tensors of (rows, tokens of the longest row)."""
        ids, labels = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
        width = -(-max(map(len, ids)) // WIDTHS) * WIDTHS

        def pad_rows(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (width - len(row)) for row in values])

        seen = pad_rows([[1] * len(row) for row in ids], 0)
        return {"input_ids": pad_rows(ids, self.pad), "attention_mask": seen, "labels": pad_rows(labels, IGNORED)}


class Packer(Collator):
    """Rows of a batch end to end; positions that begin again tell the model where one ends.

    There is no attention mask, because models would look at it instead of the positions. What fills up the last
    ``WIDTHS`` is one more row, which teaches nothing.
    """

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Tensors of (1, tokens of all rows)."""
        return pack([(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows], self.pad)


def pack(rows: Sequence[tuple[torch.Tensor, torch.Tensor]], pad: int, widths: int = WIDTHS) -> dict[str, torch.Tensor]:
    """Token ids and labels of rows, each [T], as one pass of a multiple of ``widths`` tokens; see ``Packer``."""
    rest = -sum(len(ids) for ids, _ in rows) % widths
    rows = [*rows, (torch.full((rest,), pad), torch.full((rest,), IGNORED))]
    labels = torch.cat([row for _, row in rows])
    place = torch.cat([torch.arange(len(ids)) for ids, _ in rows])
    # A row's first token would be learnt from the row before it.
    labels = torch.where(place == 0, IGNORED, labels)
    return {
        "input_ids": torch.cat([ids for ids, _ in rows])[None],
        "position_ids": place[None],
        "labels": labels[None],
    }


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
