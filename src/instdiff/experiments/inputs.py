"""The data of a pipeline: what is scored, what the warm-up is drawn from, what models are judged on."""

from __future__ import annotations

import json
from pathlib import Path

from instdiff.config.commands import PipelineConfig
from instdiff.core import Log
from instdiff.data import Pool, load
from instdiff.errors import ConfigError


def read_pool(config: PipelineConfig, path: str, limit: int | None, log: Log, rejects: Path | None = None) -> Pool:
    """A data file, read as the configuration says."""
    return load(
        path,
        format=config.format,
        map=_mapping(config),
        targets=config.targets,
        limit=limit,
        rejects_path=rejects,
        log=log,
    )


def first_records(pool: Pool, records: int | None) -> Pool:
    """The rows among the first so many records of the input."""
    return pool if records is None else pool.take(range(int((pool.rows < records).sum())))


def warmup_pool(config: PipelineConfig, every: Pool, log: Log) -> Pool:
    """The rows that the warm-up subset is drawn from."""
    part = config.warmup
    return read_pool(config, part.data_path, part.limit, log) if part.data_path else first_records(every, part.limit)


def heldout_pool(config: PipelineConfig, pool: Pool, log: Log) -> Pool | None:
    """The rows that models are judged on.

    Raises:
        ConfigError: they are not named.
    """
    if config.eval is None:
        return None
    path = config.eval.data_path or ("builtin:demo/heldout" if config.data == "builtin:demo" else None)
    if path is None:
        raise ConfigError("'eval.data_path' is missing: which held-out rows should the models be judged on?")
    heldout = read_pool(config, path, config.eval.limit, log)
    shared = set(heldout.ids) & set(pool.ids)
    if shared:
        log(f"warning: {len(shared)} held-out rows are in the training pool too")
    return heldout


def flaws(config: PipelineConfig) -> dict[int, str]:
    """The planted flaws of ``builtin:demo``, by row."""
    if config.data != "builtin:demo":
        return {}
    from instdiff.data.builtin import path

    lines = (path("demo") / "flaws.jsonl").read_text(encoding="utf-8").splitlines()
    return {int(flaw["row"]): str(flaw["flaw"]) for flaw in map(json.loads, lines)}


def target_pool(config: PipelineConfig, log: Log) -> Pool | None:
    """The rows that targeted methods match."""
    return read_pool(config, config.target, None, log) if config.target else None


def _mapping(config: PipelineConfig) -> dict[str, str] | None:
    keys = ("instruction_key", "input_key", "response_key")
    own = {key: getattr(config.score, key) for key in keys if getattr(config.score, key)}
    return config.model_copy(update=own).mapping()
