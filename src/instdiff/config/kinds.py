"""Which command a configuration file is of, by its keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instdiff.config.base import Config, read_yaml
from instdiff.config.commands import PipelineConfig, ScoreConfig, TrainConfig
from instdiff.config.compare import CompareConfig
from instdiff.config.evaluate import EvalConfig
from instdiff.config.search import SearchConfig
from instdiff.errors import ConfigError, did_you_mean


class PlanConfig(ScoreConfig):
    """``instdiff plan``: of ``score``, or what a file with the keys of another command has."""

    @classmethod
    def of_file(cls, file: str | Path | None) -> type[Config]:
        """The class of the file's configuration."""
        return kind_of(read_yaml(file), str(file), cls) if file else cls


def kind_of(values: Mapping[str, Any], file: str, scoring: type[ScoreConfig] = ScoreConfig) -> type[Config]:
    """The first kind that knows all keys of a file; a ConfigError where none does."""
    kinds: dict[str, type[Config]] = {"score": scoring, "train": TrainConfig, "eval": EvalConfig}
    kinds |= {"pipeline": PipelineConfig, "compare": CompareConfig, "search": SearchConfig}
    names = {name: {*kind.model_fields, *kind.aliases()} for name, kind in kinds.items()}
    unknown = {name: [str(key) for key in values if key not in known] for name, known in names.items()}
    nearest = min(unknown, key=lambda name: len(unknown[name]))
    if unknown[nearest]:
        key = unknown[nearest][0]
        hint = did_you_mean(key, names[nearest])
        raise ConfigError(
            f"{file} is a configuration of none of {', '.join(kinds)}, which plan prices; the nearest is {nearest}, "
            f"which has no key '{key}'{hint if 'did you mean' in hint else ''}"
        )
    return kinds[nearest]
