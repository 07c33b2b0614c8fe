"""Methods by name with checked parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from instdiff.core import Method
from instdiff.errors import ConfigError, did_you_mean
from instdiff.methods import resolve


def make_method(spec: str, params: Mapping[str, Any]) -> Method:
    """A method from its name (or ``file.py:Class``) and parameters.

    Raises:
        ConfigError: an unknown name or parameter, or a value that does not fit.
    """
    kind = resolve(spec)
    fields = {f.name for f in dataclasses.fields(kind)}
    for key in params:
        if key not in fields:
            raise ConfigError(f"method '{spec}' has no parameter '{key}'{did_you_mean(key, fields)}")
    try:
        method: Method = _adapter(kind).validate_python(dict(params))
        return method
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"'{short_name(spec)}.{key}': {first['msg']} (given: {first['input']!r})") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method '{spec}': {error}") from None


def _adapter(kind: type[Method]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def is_file(spec: str) -> bool:
    """Whether a method is named by a file of the user's."""
    return ":" in spec or spec.endswith(".py")


def short_name(spec: str) -> str:
    """The name of a method's columns: ``ifd``, or ``margin`` for ``./mine.py:Margin``."""
    return spec.rpartition(":")[2].lower() if ":" in spec else spec


def make_methods(
    specs: list[str], settings: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, tuple[str, Method]]:
    """Methods by column name, with their parameters; a method with a ``seed`` takes the run's unless it has its own.

    Raises:
        ConfigError: a name given twice, or parameters for a method that is not asked for.
    """
    out: dict[str, tuple[str, Method]] = {}
    for spec in specs:
        name = short_name(spec)
        if name in out:
            raise ConfigError(f"method '{name}' is given twice")
        params = dict(settings.get(name, {}))
        kind = resolve(spec)
        if any(f.name == "seed" for f in dataclasses.fields(kind)):
            params.setdefault("seed", seed)
        out[name] = (spec, make_method(spec, params))
    for name in settings:
        if name not in out:
            raise ConfigError(f"parameters for '{name}', which is not among the methods{did_you_mean(name, out)}")
    return out
