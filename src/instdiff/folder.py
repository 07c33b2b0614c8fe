"""A run folder belongs to one configuration and one set of inputs: it goes on with these, and refuses others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from instdiff.artifact import environment, read_json, write_json, writing
from instdiff.config.base import Config
from instdiff.errors import ConfigError, DataError

OPERATIONAL = (
    *("output", "store", "device", "batch_tokens", "workers", "executor"),
    *("ray_address", "gpus_per_worker", "shared"),
)
"""Keys that may change when a run goes on: they change no result."""
LEFT_BEHIND = (".*.partial",)
"""Files that a killed process was writing."""


def same_config(config: Config, folder: Path, *, begun: bool, free: tuple[str, ...] = OPERATIONAL) -> None:
    """Check the configuration against the one that the folder holds, if any.

    Args:
        config: of now.
        folder: of the run.
        begun: whether the folder holds results that belong to its configuration.
        free: keys that may change.

    Raises:
        ConfigError: they differ; names the key.
    """
    if not begun:
        return
    theirs = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    mine = config.model_dump(mode="json")
    changed = [d for d in _differences(mine, theirs, "") if d[0] not in free and d[0].split(".")[0] not in free]
    if changed:
        key, new, old = changed[0]
        more = f" (and {len(changed) - 1} more: {', '.join(c[0] for c in changed[1:])})" if len(changed) > 1 else ""
        raise ConfigError(
            f"'{folder}' holds a run with {key}={old!r}, now it is {new!r}{more}; "
            "give another output_dir, or the same configuration to go on"
        )


def _differences(a: Any, b: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = list(dict.fromkeys([*a, *b]))
        return [d for k in keys for d in _differences(a.get(k), b.get(k), f"{key}.{k}" if key else k)]
    return [] if a == b else [(key, a, b)]


def same_inputs(config: Config, folder: Path, inputs: Mapping[str, str], *, begun: bool) -> None:
    """Write configuration and environment of a new run, or check that its data and models are still the same.

    Raises:
        DataError: they are not; names what has changed.
    """
    if not begun:
        write_json(folder / "environment.json", {**environment(), "inputs": dict(inputs)})
        with writing(folder / "config.yaml") as aside:
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            aside.write_text(text, encoding="utf-8")
        return
    known = read_json(folder / "environment.json").get("inputs", {})
    for key, value in inputs.items():
        if known.get(key) != value:
            raise DataError(f"the {key} has changed since the run in '{folder}' began; give another output_dir")


def sweep_up(folder: Path) -> None:
    """Remove files that a killed process was writing; half-built folders are gone on with."""
    for pattern in LEFT_BEHIND:
        for path in folder.rglob(pattern):
            if path.is_file():
                path.unlink()
