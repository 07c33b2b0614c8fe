"""Which model stands in which role, and what a run's settings are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from instdiff.config.commands import RunConfig
from instdiff.core import (
    Method,
    ModelRef,
    Settings,
)
from instdiff.errors import PlanError


def bind(models: str | ModelRef | Mapping[str, str | ModelRef]) -> dict[str, ModelRef]:
    """Roles to references; a bare model is ``base``."""
    if isinstance(models, (str, ModelRef)):
        models = {"base": models}
    return {role: parse_model(where) if isinstance(where, str) else where for role, where in models.items()}


def parse_model(where: str) -> ModelRef:
    """``WHERE``, ``NAME@REVISION``, ``WHERE+ADAPTER``."""
    from pathlib import Path

    if Path(where).is_dir():
        return ModelRef(where)
    base, plus, adapter = where.partition("+")
    if base.startswith("openai:"):
        return ModelRef(where)
    name, at, revision = base.partition("@")
    if at and not Path(base).is_dir():
        return ModelRef(name, revision, adapter if plus else None)
    return ModelRef(base, None, adapter if plus else None)


def settings_of(config: RunConfig, *, template: str = "alpaca", max_length: int | None = None) -> Settings:
    """What all passes share, from a command's configuration.

    ``template``, of the base and of training, counts where the configuration names none, ``max_length`` in place of its
    own.
    """
    own = {field.name: getattr(config, field.name) for field in fields(Settings) if hasattr(config, field.name)}
    own |= {"max_length": max_length or config.max_length, "templates": {"*": config.template or template}}
    return Settings(**own)


def check_roles(methods: Mapping[str, Method], models: Mapping[str, ModelRef]) -> None:
    """Every role that a method needs is bound, else a PlanError."""
    for name, method in methods.items():
        for signal in method.signals().values():
            for asked in (*signal.needs(), signal):
                bound = asked.model in models or asked.model == "embedder"
                if asked.measure.needs_model and not bound:
                    raise PlanError(
                        f"{name} needs a model for role '{asked.model}'; "
                        f"give --model {asked.model}=WHERE{_HINTS.get(asked.model, '')}"
                    )


_HINTS = {
    "calibrated": " or let `instdiff pipeline` train it",
    "judge": ", such as openai:MODEL@http://host:port/v1",
}
