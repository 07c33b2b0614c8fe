"""One configuration tree per command. The published InstructDiff keys are names of keys here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from instdiff.config.base import Config
from instdiff.config.methods import short_name
from instdiff.config.pipeline import EvalPart, ScorePart, SelectPart, SelectTrainPart, WarmupPart
from instdiff.config.train import TrainSettings
from instdiff.errors import ConfigError, did_you_mean

__all__ = [
    *(
        "DataConfig",
        "EvalPart",
        "ExecutorConfig",
        "PipelineConfig",
        "RunConfig",
        "SampleConfig",
        "ScoreConfig",
        "ScorePart",
    ),
    *("ScorePart", "SelectConfig", "SelectPart", "SelectTrainPart", "TrainConfig", "TrainPart", "WarmupPart"),
    *("check_role_names", "method_path", "parse_methods", "parse_models", "parse_pairs", "normalise_roles"),
]

DTYPES = Literal["auto", "float32", "bfloat16", "float16"]
MAP_KEYS = {"instruction_key": "instruction", "input_key": "input", "response_key": "response"}


class DataConfig(Config):
    """Which rows, and how to read them."""

    data: str | None = None
    format: str | None = None
    map: dict[str, str] | None = None
    targets: Literal["all", "last", "all+calls"] = "all"
    limit: PositiveInt | None = None
    instruction_key: str | None = None
    input_key: str | None = None
    response_key: str | None = None

    ALIASES: ClassVar[dict[str, str]] = {"data_path": "data"}

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Published names."""
        return cls.ALIASES

    @field_validator("map", mode="before")
    @classmethod
    def _map(cls, value: Any) -> Any:
        return parse_pairs(value, "map") if isinstance(value, str) else value

    def mapping(self) -> dict[str, str] | None:
        """The column mapping, from ``map`` or from the published keys.

        The published keys often repeat the default names; those are left to the format's own reading, which also
        knows that ``output`` and ``response`` mean the same.
        """
        keys = {name: getattr(self, key) for key, name in MAP_KEYS.items() if getattr(self, key)}
        named = {**keys, **(self.map or {})}
        usual = all(name == column or (name, column) == ("response", "output") for name, column in named.items())
        return None if usual else named


def parse_pairs(text: str, key: str) -> dict[str, str]:
    """``a=b,c=d`` as a mapping."""
    out = {}
    for pair in text.split(","):
        name, sign, value = pair.partition("=")
        if not (name.strip() and sign and value.strip()):
            raise ConfigError(
                f"'{key}': '{pair}' is not name=column; write {key} as instruction=question,response=answer"
            )
        out[name.strip()] = value.strip()
    return out


class RunConfig(Config):
    """What all commands that run a model share.

    Args:
        judge_concurrency: calls at once to a judge's server; 8 unless given.
    """

    store: str | None = None
    device: str = "auto"
    dtype: DTYPES = "auto"
    max_length: PositiveInt = 2048
    template: str | None = None
    batch_tokens: PositiveInt | None = None
    workers: PositiveInt | None = None
    judge_concurrency: PositiveInt | None = None
    seed: int = 42

    @field_validator("batch_tokens", "workers", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value


class ExecutorConfig(Config):
    """What commands share whose passes may go to a Ray cluster."""

    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    gpus_per_worker: PositiveInt | None = None

    @model_validator(mode="after")
    def _of_ray(self) -> ExecutorConfig:
        given = [key for key in ("ray_address", "gpus_per_worker", "shared") if getattr(self, key, None) is not None]
        if given and self.executor != "ray":
            raise ConfigError(f"'{given[0]}' is of use with the executor ray only; add --executor ray, or leave it out")
        return self


class SampleConfig(DataConfig):
    """``instdiff sample``: a seeded random subset."""

    seed: int = 42
    output: str | None = None
    max_samples: PositiveInt | None = None

    ALIASES: ClassVar[dict[str, str]] = {"data_path": "data", "output_path": "output"}


class ScoreConfig(DataConfig, RunConfig, ExecutorConfig):
    """``instdiff score`` and ``instdiff plan``."""

    model: dict[str, str] = Field(default_factory=dict)
    method: dict[str, dict[str, Any]] = Field(default_factory=dict)
    warmup: str | None = None
    target: str | None = None
    output: str | None = None
    strict: bool = False
    shards: PositiveInt | Literal["auto"] | None = None
    shard_index: NonNegativeInt | None = None
    shared: str | None = None
    cluster: str | dict[str, Any] | None = None

    ALIASES: ClassVar[dict[str, str]] = {
        "data_path": "data",
        "output_path": "output",
        "model_path": "model",
        "models": "model",
        "base_model": "model",
        "methods": "method",
        "max_samples": "limit",
        "prompt_template": "template",
    }

    @field_validator("shards", mode="before")
    @classmethod
    def _shards(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto" and not value.isdigit():
            raise ValueError("a number or auto")
        return value

    @classmethod
    def shape(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Models by role, methods by name."""
        return normalise_roles(values)

    @classmethod
    def resolve_key(cls, path: list[str], values: Mapping[str, Any]) -> list[str]:
        """Parameters go to a method that is asked for, by its short name."""
        return method_path(path, values)


_ROLE = re.compile(r"[a-z_]+(/\d+)?")


def parse_models(value: Any) -> dict[str, str]:
    """``WHERE`` for the base, ``ROLE=WHERE``, a list of them, or a mapping."""
    if isinstance(value, dict):
        named = {str(role): str(where) for role, where in value.items()}
        check_role_names(named)
        return named
    out: dict[str, str] = {}
    for item in [value] if isinstance(value, str) else value:
        role, sign, where = str(item).partition("=")
        role, where = (role, where) if sign and _ROLE.fullmatch(role) else ("base", str(item))
        if role in out:
            raise ConfigError(f"role '{role}' is given twice: '{out[role]}' and '{where}'")
        if not where:
            raise ConfigError(f"'--model {item}': write ROLE=WHERE, or WHERE alone for the base")
        out[role] = where
    check_role_names(out)
    return out


ROLES = ("base", "calibrated", "proxy", "embedder", "rater", "complexity_rater", "quality_rater", "judge")


def check_role_names(models: dict[str, str]) -> None:
    """Roles are a closed list.

    Raises:
        ConfigError: an unknown one, with a suggestion.
    """
    for role in models:
        if role not in ROLES and not role.startswith("warmup/"):
            raise ConfigError(f"unknown model role '{role}'{did_you_mean(role, ROLES)}")


def parse_methods(value: Any) -> dict[str, dict[str, Any]]:
    """``ifd,random``, a list, or a mapping from names to parameters."""
    if isinstance(value, dict):
        return {str(name): dict(params or {}) for name, params in value.items()}
    items = [value] if isinstance(value, str) else list(value)
    names = [name.strip() for item in items for name in str(item).split(",") if name.strip()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"method '{twice}' is given twice")
    return {name: {} for name in names}


def normalise_roles(values: dict[str, Any]) -> dict[str, Any]:
    """``model`` as roles, ``method`` as names with parameters."""
    parsers = {"model": parse_models, "method": parse_methods}
    return {key: parsers[key](v) if key in parsers and v is not None else v for key, v in values.items()}


def method_path(path: list[str], values: Mapping[str, Any]) -> list[str]:
    """``method.ifd.ratio`` with the method's key in full, which for a file has dots of its own.

    Raises:
        ConfigError: that method is not asked for.
    """
    if len(path) < 3 or path[0] not in ("method", "methods"):
        return path
    short = {short_name(key): key for key in values.get("method", {})}
    if path[1] not in short:
        raise ConfigError(f"'{'.'.join(path)}': '{path[1]}' is not among the methods{did_you_mean(path[1], short)}")
    return [path[0], short[path[1]], *path[2:]]


class SelectConfig(DataConfig, RunConfig):
    """``instdiff select``."""

    scores: str | None = None
    method: dict[str, dict[str, Any]] = Field(default_factory=dict)
    model: dict[str, str] = Field(default_factory=dict)
    budget: str | int | None = None
    select_ratio: float | None = None
    order: Literal["rank", "input"] = "rank"
    group_by: str | None = None
    quota: dict[str, str | int] = Field(default_factory=dict)
    with_scores: bool = False
    output: str | None = None
    record: str | None = None

    ALIASES: ClassVar[dict[str, str]] = {"data_path": "data", "output_path": "output", "scores_path": "scores"}

    @classmethod
    def shape(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Models by role, methods by name."""
        return normalise_roles(values)

    @classmethod
    def resolve_key(cls, path: list[str], values: Mapping[str, Any]) -> list[str]:
        """Parameters go to a method that is asked for, by its short name."""
        return method_path(path, values)


class TrainPart(TrainSettings):
    """``train:`` of ``instdiff train``: settings, and what to train on what, to where."""

    model_name_or_path: str | None = None
    data_path: str | None = None
    output_dir: str | None = None


class TrainConfig(DataConfig, RunConfig):
    """``instdiff train``.

    With ``print_launch``, a folder, launch files for ``nodes`` machines with ``gpus_per_node`` processes each are
    written there, and nothing is trained.
    """

    model: str | None = None
    output: str | None = None
    train: TrainPart = Field(default_factory=TrainPart)
    print_launch: str | None = None
    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = 1

    ALIASES: ClassVar[dict[str, str]] = {
        "data_path": "data",
        "output_path": "output",
        "output_dir": "output",
        "base_model": "model",
        "model_name_or_path": "model",
        "prompt_template": "template",
    }


class PipelineConfig(DataConfig, RunConfig, ExecutorConfig):
    """``instdiff pipeline``.

    Args:
        models: those of roles beside the base.
        keep_models: False removes models that nothing later needs: of calibration, of controls, and of all rounds but
            the last.
    """

    model: str | None = None
    models: dict[str, str] = Field(default_factory=dict)
    target: str | None = None
    output: str | None = None
    iterations: PositiveInt = 1
    train: TrainSettings = Field(default_factory=TrainSettings)
    warmup: WarmupPart = Field(default_factory=WarmupPart)
    score: ScorePart = Field(default_factory=ScorePart)
    select: SelectPart = Field(default_factory=SelectPart)
    select_train: SelectTrainPart = Field(default_factory=SelectTrainPart)
    eval: EvalPart | None = None
    keep_models: bool = True

    ALIASES: ClassVar[dict[str, str]] = {
        "data_path": "data",
        "base_model": "model",
        "output_dir": "output",
        "prompt_template": "template",
    }
