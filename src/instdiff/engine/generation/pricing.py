"""What it costs to write answers on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from instdiff.core.arrays.ragged import Ragged
from instdiff.engine.sources import Source
from instdiff.engine.speed import Machine
from instdiff.engine.text.generate import rows_at_once
from instdiff.rendering.rows import Rows


def writing_seconds(
    machine: Machine,
    source: Source,
    hf: Any,
    prompts: Sequence[tuple[Sequence[int], int]],
    dtype: torch.dtype,
) -> float:
    """Seconds to write answers with a model, its loading among them.

    ``prompts`` are token ids, each with the most tokens that its answer may have; ``hf`` is the tokenizer. The prompts
    go through a pass, then comes token by token of the answers that are written at once, whose room is the same.
    """
    from transformers import AutoConfig

    found = sorted(prompts, key=lambda one: (one[1], -len(one[0])))
    ids = [list(row) for row, _ in found]
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False).get_text_config()
    at_once = rows_at_once(config, machine.device.type, dtype, max(len(row) + room for row, room in found))
    turns = sum(room * -(-len(list(some)) // at_once) for room, some in groupby(room for _, room in found))
    flops = 2.0 * source.parameters
    speed = machine.speed(source, _as_rows(ids), dtype, flops)
    token_s = machine.writing(source, hf, ids[:at_once], dtype)
    return speed.load_s + flops * sum(map(len, ids)) / speed.flops_per_s + turns * token_s


def _as_rows(ids: Sequence[list[int]]) -> Rows:
    """Prompts as rows whose last token is a target."""
    some = [np.array(row, np.int32) for row in ids]
    target = np.concatenate([np.arange(len(row)) == len(row) - 1 for row in some])
    return Rows(Ragged.of(some, np.int32), target, np.zeros(len(some), bool), np.full(len(some), None, object))
