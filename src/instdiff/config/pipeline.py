"""The parts of a pipeline's configuration, one for each stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from instdiff.config.base import Config
from instdiff.config.train import TrainSettings


def names(value: Any) -> list[str]:
    """``a,b``, or a list of such, as names."""
    items = [value] if isinstance(value, str) else list(value or [])
    found = [name.strip() for item in items for name in str(item).split(",")]
    return list(dict.fromkeys(name for name in found if name))


class OpenConfig(Config):
    """A part whose other keys are parameters of somebody who checks them: a method, or ``instdiff eval``."""

    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _params(cls, values: Any) -> Any:
        values = dict(values or {})
        extra = {key: values.pop(key) for key in list(values) if key not in cls.model_fields}
        return {**values, "params": {**extra, **values.get("params", {})}}

    @classmethod
    def open_keys(cls) -> bool:
        """They are kept."""
        return True


class WarmupPart(Config):
    """``warmup:`` of the pipeline: the random subset that the first calibration model is trained on."""

    data_path: str | None = None
    sample_size: PositiveInt = 100
    limit: PositiveInt | None = None
    train: TrainSettings | None = None


class ScorePart(Config):
    """``score:`` of the pipeline."""

    instruction_key: str | None = None
    input_key: str | None = None
    response_key: str | None = None
    template: str | None = None
    max_length: PositiveInt | None = None
    max_samples: PositiveInt | None = None

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Published names."""
        return {"prompt_template": "template"}


class SelectPart(OpenConfig):
    """``select:`` of the pipeline; keys that are not here are parameters of the method.

    Each round after the first adds ``grow`` to the budget.
    """

    method: str = "instructdiff"
    budget: str | int | None = None
    grow: str | int | None = None
    select_ratio: float = 0.1


class SelectTrainPart(Config):
    """``select_train:`` of the pipeline."""

    train: TrainSettings | None = None


class EvalPart(OpenConfig):
    """``eval:`` of the pipeline, with controls at the same token budget.

    Keys that are not here are those of ``instdiff eval``, such as ``task``, ``n``, ``judge`` or ``data_dir``.

    Args:
        suite: names of suites, of which ``heldout`` is response NLL on ``data_path``.
        data_path: rows that are held out.
        limit: at most so many of them, and of the items of each task.
        params: keys of ``instdiff eval``; they may also stand beside ``suite``.
    """

    suite: list[str] = Field(default=["heldout"], min_length=1)
    data_path: str | None = None
    limit: PositiveInt | None = None
    baselines: tuple[Literal["random", "longest", "full"], ...] = ("random",)
    seeds: tuple[int, ...] = (0,)

    @model_validator(mode="before")
    @classmethod
    def _data(cls, values: Any) -> Any:
        named = isinstance(values.get("data"), str)  # else files by task
        return {"data_path" if key == "data" and named else key: value for key, value in values.items()}

    @field_validator("suite", mode="before")
    @classmethod
    def _suites(cls, value: Any) -> Any:
        return names(value)
