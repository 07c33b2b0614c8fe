"""Methods by name with checked parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from instdiff.core import Method
from instdiff.errors import ConfigError, did_you_mean
from instdiff.methods import resolve


class NotNamed(ConfigError):
    """A method inside another is in a file that nobody asked to run; ``option`` would."""

    def __init__(self, spec: str, key: str) -> None:
        super().__init__(f"'{key}' is '{spec}', a file that is not run unless you name it")
        self.spec, self.option = spec, f"--set {key}={spec}"


def make_method(
    spec: str, params: Mapping[str, Any], seed: int | None = None, files: Mapping[str, str] | None = None
) -> Method:
    """A method from its name (or ``file.py:Class``) and parameters.

    A parameter that is a method itself is a name, or ``{name: {parameter: value}}``; several are a list of these, or
    names with commas. Methods with a ``seed`` get that of the run, where one is given and they have none of their own.
    With ``files``, by short name, no other file is run for such a parameter. Raises a ConfigError for an unknown name
    or parameter or a value that does not fit, a NotNamed for a file that is not among ``files``.
    """
    kind = resolve(spec)
    fields = {f.name for f in dataclasses.fields(kind)}
    for key in params:
        if key not in fields:
            raise ConfigError(f"method '{spec}' has no parameter '{key}'{did_you_mean(key, fields)}")
    given = dict(params)
    if seed is not None and "seed" in fields:
        given.setdefault("seed", seed)
    for key, several in inner_methods(kind).items():
        if given.get(key) is None:
            given.pop(key, None)
            continue
        made = [_inner(one, f"{short_name(spec)}.{key}", seed, files) for one in _as_list(given[key], several)]
        given[key] = tuple(made) if several else made[0]
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        method: Method = adapter.validate_python(given)
        return method
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"'{short_name(spec)}.{key}': {first['msg']} (given: {first['input']!r})") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method '{spec}': {error}") from None


def inner_methods(kind: type[Method]) -> dict[str, bool]:
    """Parameters that are methods themselves, and whether each holds several."""
    hints = get_type_hints(kind)
    kinds = {Method: False, tuple[Method, ...]: True}
    return {f.name: kinds[hints[f.name]] for f in dataclasses.fields(kind) if hints[f.name] in kinds}


def _as_list(value: Any, several: bool) -> list[Any]:
    if several and isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return list(value) if several and isinstance(value, list | tuple) else [value]


def _inner(value: Any, key: str, seed: int | None, files: Mapping[str, str] | None) -> Method:
    """A method inside another."""
    if isinstance(value, Method):
        return value
    named = {value: {}} if isinstance(value, str) else value
    if not isinstance(named, Mapping) or len(named) != 1:
        raise ConfigError(f"'{key}' is a method: a name, or {{name: {{parameter: value}}}} (given: {value!r})")
    ((spec, params),) = named.items()
    if not isinstance(spec, str) or not isinstance(params or {}, Mapping):
        raise ConfigError(f"'{key}' is a method: a name, or {{name: {{parameter: value}}}} (given: {value!r})")
    if files is not None and is_file(spec):
        if short_name(spec) not in files:
            raise NotNamed(spec, key)
        spec = files[short_name(spec)]
    return make_method(spec, params or {}, seed, files)


def files_in(values: Any) -> Iterator[str]:
    """Every text in these values that names a method's file."""
    if isinstance(values, str):
        yield from (name.strip() for name in values.split(",") if is_file(name.strip()))
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from files_in(key)
            yield from files_in(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from files_in(value)


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

    Raises a ConfigError for a name given twice, parameters of a method that is not asked for, or a method inside
    another that is not named.
    """
    out: dict[str, tuple[str, Method]] = {}
    for spec in specs:
        name = short_name(spec)
        if name in out:
            raise ConfigError(f"method '{name}' is given twice")
        params = settings.get(name, {})
        for key in inner_methods(resolve(spec)):
            if not params.get(key):
                raise ConfigError(f"method '{name}' needs '{key}', a method; give --set {name}.{key}=NAME")
        out[name] = (spec, make_method(spec, params, seed))
    for name in settings:
        if name not in out:
            raise ConfigError(f"parameters for '{name}', which is not among the methods{did_you_mean(name, out)}")
    return out
