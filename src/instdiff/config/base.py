"""One typed tree per command: strict, immutable, from YAML and ``key.sub=value`` overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from instdiff.core.caps import parse_per
from instdiff.errors import ConfigError, InstDiffError, all_of, did_you_mean

C = TypeVar("C", bound="Config")


def key(
    default: Any,
    description: str,
    *,
    also: str = "",
    metavar: str | None = None,
    alone: str | None = None,
    words: int = 1,
    **limits: Any,
) -> Any:
    """A key of the configuration, with what its option, its help text and its page need.

    ``default`` is a value, or a class that makes one; ``also`` has other names, the published ones among them. In a
    help text ``metavar`` stands for the value; ``alone`` is what the option means where its value is left out, and
    ``words`` how many words make a value.
    ``limits`` of the value are as pydantic has them.
    """
    extra: dict[str, Any] = {"also": also, "metavar": metavar, "alone": alone, "words": words}
    given: dict[str, Any] = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return Field(description=description, json_schema_extra=extra, **given, **limits)


class Config(BaseModel):
    """A part of the configuration tree; unknown keys are errors with a suggestion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, defer_build=True)  # few are ever filled

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Other names of keys, by the name they have here."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {other: name for name, e in extras.items() if isinstance(e, dict) for other in str(e["also"]).split()}

    @classmethod
    def resolve_key(cls, path: list[str], values: Mapping[str, Any]) -> list[str]:
        """An override's path as it goes into the tree, given what stands there."""
        return path

    @classmethod
    def shape(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Bring short forms of values to the full one, so that overrides can go into them."""
        return values

    @classmethod
    def of_file(cls, file: str | Path | None) -> type[Config]:
        """The class of a file's configuration, where a command takes several kinds."""
        return cls

    @classmethod
    def open_keys(cls) -> bool:
        """Whether keys that are not fields are kept (they are somebody else's options)."""
        return cls.model_config.get("extra") == "allow"


class OpenPart(Config):
    """A part whose other keys are ``params`` of something that checks them itself."""

    @model_validator(mode="before")
    @classmethod
    def _collect_params(cls, values: Any) -> Any:
        values = dict(values or {})
        # `weights` is the name of a detail here, and a list of numbers for `blend`.
        theirs = {"weights"} if isinstance(values.get("weights"), list | tuple) else set()
        extra = {name: values.pop(name) for name in list(values) if name not in cls.model_fields or name in theirs}
        return {**values, "params": {**extra, **values.get("params", {})}}

    @classmethod
    def open_keys(cls) -> bool:
        """All of them."""
        return True


def _one_or_several(value: Any) -> Any:
    several = isinstance(value, list | tuple)
    return value[0] if several and len(value) == 1 else list(value) or None if several else value


Data = Annotated[str | list[str] | None, BeforeValidator(_one_or_several)]
"""A source of rows, or several."""
Bound = Annotated[str | None, BeforeValidator(lambda value: None if value is None else str(parse_per(value)))]
"""A column and a number, as ``prompt 1``: how many rows of each of its values may be taken."""


def has_stdin(data: str | list[str] | None) -> bool:
    """Whether standard input is among the sources."""
    return "-" in ([data] if isinstance(data, str) else data or [])


def build(kind: type[C], values: Mapping[str, Any], source: str) -> C:
    """A configuration from plain values: nested mappings, as YAML gives them.

    ``source`` says in messages where they come from. Raises a ConfigError for an unknown key, a value of the wrong
    type, or a key given twice under two names.
    """
    try:
        return kind.model_validate(canonical(kind, values, source))
    except ValidationError as error:
        raise all_of([ConfigError(f"{source}: {_fault(one)}") for one in error.errors()]) from None


def _fault(one: Any) -> str:
    """What pydantic says of a key."""
    value = "" if one["type"] == "missing" else f" (given: {one['input']!r})"
    return f"'{'.'.join(map(str, one['loc']))}': {one['msg'].removeprefix('Value error, ')}{value}"


def canonical(kind: type[Config], values: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """The same values under the keys' own names and in their full shape.

    Raises a ConfigError for an unknown key, or one given twice under two names.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: '{prefix.rstrip('.') or 'the file'}' must be a mapping of keys, not {values!r}")
    out: dict[str, Any] = {}
    aliases = kind.aliases()
    names: dict[str, str] = {}
    unknown = [str(given) for given in values if aliases.get(str(given), str(given)) not in kind.model_fields]
    if unknown and not kind.open_keys():
        raise all_of(
            [ConfigError(f"{source}: unknown key '{prefix}{one}'{_suggest(prefix, one, kind)}") for one in unknown]
        )
    for given, value in values.items():
        key = aliases.get(str(given), str(given))
        field = kind.model_fields.get(key)
        if key in out:
            other = given if given != key else names[key]
            raise ConfigError(
                f"{source}: '{prefix}{other}' is another name of '{prefix}{key}', which is given too; keep one"
            )
        names[key] = str(given)
        inner = _config_type(field.annotation) if field is not None else None
        out[key] = canonical(inner, value, source, f"{prefix}{given}.") if inner and value is not None else value
    return kind.shape(out)


def _suggest(prefix: str, given: str, kind: type[Config]) -> str:
    known = [*kind.model_fields, *kind.aliases()]
    hint = did_you_mean(given, known)
    users = [] if prefix else sorted(verbs_with(given))
    if users:
        return f"; it is a key of {', '.join(users)}"
    if "did you mean" not in hint and len(known) > 12:
        verb = re.search(r"instdiff [a-z]+", kind.__doc__ or "")
        return f"; {f'`{verb[0]} --help` and ' if verb else ''}docs/configuration.md list the keys"
    return hint.replace("did you mean '", f"did you mean '{prefix}") if "did you mean" in hint else hint


def verbs_with(key: str) -> set[str]:
    """The commands whose configuration has this key."""
    for module in ("kinds", "compare", "evaluate", "search", "selection"):
        import_module(f"instdiff.config.{module}")
    kinds, verbs = list(Config.__subclasses__()), set[str]()
    for kind in kinds:  # which grows
        kinds += kind.__subclasses__()
        verb = re.match(r"``instdiff ([a-z]+)``", kind.__doc__ or "")
        verbs |= {verb[1]} if verb and key in {*kind.model_fields, *kind.aliases()} else set()
    return verbs


def _config_type(annotation: Any) -> type[Config] | None:
    if get_origin(annotation) is dict:  # names are the user's there, not keys
        return None
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Config)), None)


class _UniqueLoader(yaml.SafeLoader):
    """YAML in which no mapping has a key twice; of two values one would be dropped without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key '{key.value}' is there twice; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; a ConfigError where the file is missing, is not YAML, or holds no mapping."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueLoader)
    except OSError as error:
        raise ConfigError(f"config file '{path}': {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"config file '{path}' is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"config file '{path}' is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config file '{path}' must hold a mapping of keys, not {values!r}")
    return values


def scalar(text: str) -> Any:
    """A value typed on the command line, read as YAML reads it; ``5e-5`` is a number here."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text
    # A text may hold a colon or '#', as templates do; only braces make a mapping, only quotes keep a number a text.
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text
    if isinstance(value, str) and text.lstrip()[:1] not in ("'", '"'):
        try:
            return float(value)
        except ValueError:
            return text
    return text if value is None and text not in ("null", "~", "") else value


def split(override: str) -> tuple[list[str], Any]:
    """The path and the value of ``key.sub=value``; a ConfigError where the key or the ``=`` is missing."""
    path, sign, text = override.partition("=")
    if not sign or not all(path.split(".")):
        raise ConfigError(f"'{override}': an override is written key.sub=value")
    return path.split("."), scalar(text)


def nest(path: Iterable[str], value: Any) -> dict[str, Any]:
    """A value under its path."""
    for part in reversed(list(path)):
        value = {part: value}
    out: dict[str, Any] = value
    return out


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, mapping by mapping."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``merge``, where methods named above replace those below; what both name keeps its parameters."""
    old, new = below.get("method"), above.get("method")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        below = {**below, "method": {name: params for name, params in old.items() if name in new}}
    return merge(below, above)


def load(kind: type[C], file: str | Path | None, options: Mapping[str, Any], overrides: Iterable[str] = ()) -> C:
    """A configuration from a file, options over it, and ``key.sub=value`` overrides over both; raises as ``build``."""
    values = canonical(kind, read_yaml(file), str(file)) if file else {}
    values = _overlay(values, canonical(kind, options, "the command line"))
    faults = list[InstDiffError]()
    for override in overrides:
        try:
            path, value = split(override)
            above = canonical(kind, nest(kind.resolve_key(path, values), value), f"'{override}'")
        except ConfigError as error:
            faults.append(error)
            continue
        values = _overlay(values, above) if len(path) == 1 else merge(values, above)
    if faults:
        raise all_of(faults)
    return build(kind, values, str(file) if file else "the command line")


OPERATIONAL = (
    *("output", "store", "device", "batch_tokens", "workers", "executor"),
    *("ray_address", "gpus_per_worker", "shared", "judge_price", "cluster"),
)
"""Keys that may change when a run goes on: they change no result."""
