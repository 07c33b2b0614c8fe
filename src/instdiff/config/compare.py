"""``instdiff compare``: which methods, budgets and seeds, trained how, judged by what."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from instdiff.config.base import Config
from instdiff.config.commands import DataConfig, ExecutorConfig, RunConfig, check_role_names, parse_methods
from instdiff.config.pipeline import WarmupPart
from instdiff.config.train import TrainSettings

Baseline = Literal["random", "longest", "full"]
BASELINES: tuple[Baseline, ...] = ("random", "longest", "full")
"""What every comparison has beside the base model."""


class Variant(Config):
    """One line of a comparison; keys that are not here are parameters of its method.

    Args:
        method: name or ``file.py:Class``; by default the name of the line.
        params: the method's parameters.
        rounds: how often rows are scored, selected and trained on.
        rebind: the role that a round's model takes in the next one.
        train_from: ``base`` trains every round anew, ``last`` goes on from the round before (dynamic re-selection).
        models: bound to roles for this line alone, such as a smaller or another family's ``base`` for scoring.
        warmup: rows of the warm-up subset, or a share such as ``10%``; by default the comparison's own.
        limit: the first rows of the pool alone.
        seeds: by default the comparison's own.
        budget: by default the comparison's own.
    """

    method: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    rounds: PositiveInt = 1
    rebind: str = "calibrated"
    train_from: Literal["base", "last"] = "base"
    models: dict[str, str] = Field(default_factory=dict)
    warmup: PositiveInt | str | None = None
    limit: PositiveInt | None = None
    seeds: tuple[int, ...] | None = None
    budget: str | int | None = None

    @model_validator(mode="before")
    @classmethod
    def _params(cls, values: Any) -> Any:
        values = dict(values or {})
        extra = {key: values.pop(key) for key in list(values) if key not in cls.model_fields}
        return {**values, "params": {**extra, **values.get("params", {})}}

    @field_validator("models")
    @classmethod
    def _roles(cls, models: dict[str, str]) -> dict[str, str]:
        check_role_names(models)
        return models

    @classmethod
    def open_keys(cls) -> bool:
        """The method checks its own parameters."""
        return True


class CompareConfig(DataConfig, RunConfig, ExecutorConfig):
    """``instdiff compare``.

    Args:
        model: scores the rows, and is trained unless there is a ``student``.
        student: is trained on what ``model`` chose.
        models: of further roles.
        target: rows that targeted methods match.
        output: the run folder.
        method: one line each, beside the baselines, which are always there.
        budgets: each line is trained and judged at each of them; give response tokens for equal terms.
        seeds: of draws, warm-up and training.
        random_seeds: how many seeds the random baseline has at least, three or more.
        baselines: that are always there; the base model is too.
        train: the same for every line.
        steps: ``epochs`` trains every subset for as many passes; ``equal`` for as many optimizer steps as the first
            random subset of the budget takes.
        warmup: of methods that need a calibrated model.
        eval: keys of ``instdiff eval``.
        by: a column of the rows, such as their source; the shares of its values in every selection are told.
        keep_models: False removes models as soon as no later cell begins with them.
        strict: a cell that fails ends the run.
    """

    model: str | None = None
    student: str | None = None
    models: dict[str, str] = Field(default_factory=dict)
    target: str | None = None
    output: str | None = None
    method: dict[str, Variant] = Field(default_factory=dict)
    budgets: tuple[str | int, ...] = ("10% tokens",)
    seeds: tuple[int, ...] = (0, 1, 2)
    random_seeds: int = Field(3, ge=3)
    baselines: tuple[Baseline, ...] = BASELINES
    train: TrainSettings = Field(default_factory=TrainSettings)
    steps: Literal["epochs", "equal"] = "epochs"
    warmup: WarmupPart = Field(default_factory=WarmupPart)
    eval: dict[str, Any] = Field(default_factory=dict)
    by: str | None = None
    keep_models: bool = True
    strict: bool = False

    ALIASES: ClassVar[dict[str, str]] = {
        "data_path": "data",
        "base_model": "model",
        "output_dir": "output",
        "prompt_template": "template",
        "methods": "method",
        "budget": "budgets",
    }

    @field_validator("method", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return parse_methods(value)

    @field_validator("budgets", "seeds", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int) else value

    @field_validator("seeds", "budgets")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("at least one, each of them once")
        return value

    def lines(self) -> dict[str, Variant]:
        """All lines by name, baselines first; the random baseline has seeds enough."""
        named: dict[str, Variant] = {**dict.fromkeys(self.baselines, Variant()), **self.method}
        if "random" in self.baselines and named["random"].seeds is None:
            more = range(max(self.seeds) + 1, max(self.seeds) + 1 + max(0, self.random_seeds - len(self.seeds)))
            named["random"] = named["random"].model_copy(update={"seeds": (*self.seeds, *more)})
        return named
