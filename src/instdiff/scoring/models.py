"""Which model stands in which role, and what a run's settings are."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from instdiff.config.commands import TemplateConfig
from instdiff.core import TEMPLATE_DATE, Embedding, Method, ModelRef, Settings
from instdiff.core.signals import Folded
from instdiff.errors import PlanError, require
from instdiff.rendering.templates import ROLE_TEMPLATES


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


def settings_of(config: TemplateConfig, *, template: str | None = None, max_length: int | None = None) -> Settings:
    """What all passes share, from a command's configuration.

    ``template``, of the base and of training, counts where the configuration names none, ``max_length`` in place of its
    own.
    """
    own = {field.name: getattr(config, field.name) for field in fields(Settings) if hasattr(config, field.name)}
    named = config.template or template
    own |= {"max_length": max_length or config.max_length, "templates": {"*": named} if named else {}}
    return Settings(**own)


def recorded(meta: Mapping[str, Any]) -> tuple[dict[str, ModelRef], Settings]:
    """The models and settings that a score file names; nothing is computed with them."""
    models = {
        role: replace(parse_model(facts["where"]), template=facts.get("template"))
        for role, facts in meta.get("models", {}).items()
    }
    known = {key: value for key, value in meta.get("settings", {}).items() if key in ("max_length", "dtype")}
    date = meta.get("settings", {}).get("template_date")
    known["template_date"] = datetime.date.fromisoformat(date) if date else TEMPLATE_DATE
    return models, Settings(device="cpu", **known)


def template_name(role: str, model: ModelRef | None, settings: Settings) -> str:
    """The name of the template that renders rows for a role."""
    named = model.template if model is not None else None
    own = ROLE_TEMPLATES.get(role.partition("/")[0])  # a save of a proxy is read as the proxy is
    return named or settings.templates.get(role) or own or settings.template


def check_roles(methods: Mapping[str, Method], models: Mapping[str, ModelRef]) -> None:
    """Every role that a method needs is bound, else a PlanError."""
    for name, method in methods.items():
        for signal in method.signals().values():
            for asked in (*signal.needs(), signal):
                for role in asked.measure.also:
                    if role not in models:
                        raise PlanError(
                            f"{name} needs a model for role '{role}'; give --model {role}=WHERE{_HINTS.get(role, '')}"
                        )
                bound = asked.model in models or asked.model == "embedder"
                if asked.measure.needs_model and not bound:
                    own = getattr(method, "model", None) == asked.model and "base" in models
                    hint = f", or --set {name}.model=base" if own else _HINTS.get(asked.model, "")
                    if isinstance(asked.view, Folded) and asked.view.split.given:
                        hint = f", trained by DPO on the pairs that `instdiff export --half {asked.model}` writes"
                    raise PlanError(
                        f"{name} needs a model for role '{asked.model}'; give --model {asked.model}=WHERE{hint}"
                    )


def check_extras(methods: Mapping[str, Method]) -> None:
    """The packages that read what methods need are installed, else a PlanError."""
    for name, method in methods.items():
        signals = [one for signal in method.signals().values() for one in (*signal.needs(), signal)]
        if any(isinstance(signal.measure, Embedding) for signal in signals):  # its extra brings torch too
            require("sentence_transformers", f"the method {name}")
        if any(signal.measure.needs_model for signal in signals):
            require("torch", f"the method {name}")


_HINTS = {
    "policy": ", trained by DPO",
    "calibrated": " or let `instdiff pipeline` train it",
    "holdout": ", or the rows to train it on with --holdout FILE",
    "judge": ", such as openai:MODEL@http://host:port/v1",
}
