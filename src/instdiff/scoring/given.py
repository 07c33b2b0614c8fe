"""What people give in Python, as the inside takes it: names or objects, paths or what lies there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instdiff.config.commands import parse_methods
from instdiff.config.methods import make_method, short_name
from instdiff.core import Method, ModelRef, Settings
from instdiff.core.files import fingerprint, writing
from instdiff.core.settings import dtype_name
from instdiff.data import Pool
from instdiff.data.frames import rows_of_container
from instdiff.data.json_values import to_json
from instdiff.errors import ConfigError, DataError, did_you_mean, kind_of
from instdiff.scoring.models import parse_model
from instdiff.store import Store

DTYPES = ("auto", "float32", "bfloat16", "float16")
Methods = str | Method | type[Method] | Sequence[str | Method | type[Method]] | Mapping[str, Any]
"""Names or instances; or a mapping from column names to instances, names or parameters."""


def named_methods(methods: Methods, seed: int = 42) -> dict[str, Method]:
    """Methods by the names of their columns; named ones with a seed get this one.

    A ConfigError for an unknown name, a type that is no method, or a column twice.
    """
    if isinstance(methods, Mapping):
        return {str(name): _method(one, seed, str(name)) for name, one in methods.items()}
    if isinstance(methods, str | Method | type):
        methods = [methods]
    if not isinstance(methods, Sequence) or not methods:
        raise _no_method(methods)
    out: dict[str, Method] = {}
    for one in methods:
        for spec in parse_methods(one) if isinstance(one, str) else [one]:
            method = _method(spec, seed)
            name = short_name(spec) if isinstance(spec, str) else method.name or type(method).__name__.lower()
            if name in out:
                raise ConfigError(
                    f"method '{name}' is given twice; give a mapping from column names to methods, "
                    f"as {{'{name}': …, '{name}2': …}}"
                )
            out[name] = method
    return out


def _method(one: Any, seed: int, name: str = "") -> Method:
    if isinstance(one, Method):
        return one
    if isinstance(one, str) and one:
        return make_method(one, {}, seed)
    if isinstance(one, type) and issubclass(one, Method):
        return make_method(one.name, {}, seed) if one.name else one()
    if name and (one is None or isinstance(one, Mapping)):
        return make_method(name, one or {}, seed)
    raise _no_method(one)


def _no_method(one: Any) -> ConfigError:
    return ConfigError(
        f"a method is a name such as 'ifd', an instance such as instdiff.IFD(), or a list of these; not {kind_of(one)}"
    )


def given_models(models: Any, store: Store) -> dict[str, ModelRef]:
    """Models by role, of a mapping or of the one that is ``base``; a loaded one is ``(model, tokenizer)``.

    A ConfigError for anything else.
    """
    named = models if isinstance(models, Mapping) else {} if models is None else {"base": models}
    return {str(role): given_model(one, store) for role, one in named.items()}


def given_model(model: Any, store: Store) -> ModelRef:
    """One model: a folder, a hub id, a reference, or a loaded model with its tokenizer, which the store then keeps."""
    if isinstance(model, ModelRef):
        return model
    if isinstance(model, str | Path):
        return parse_model(str(model))
    if isinstance(model, tuple | list) and len(model) == 2:
        from instdiff.engine.held import keep_model

        return ModelRef(str(keep_model(model[0], model[1], store.root)))
    raise ConfigError(
        "a model is a folder, a hub id, 'builtin:tiny', a ModelRef, or a loaded one as (model, tokenizer); "
        f"not {kind_of(model)}"
    )


def given_store(store: Any) -> Store:
    """A store, or the one in a folder; by default that of the user's cache. A ConfigError for anything else."""
    if isinstance(store, Store):
        return store
    if store is None or isinstance(store, str | Path):
        return Store(store)
    raise ConfigError(f"a store is a folder or an instdiff.Store; not {kind_of(store)}")


def given_folder(folder: Any) -> Path:
    """Where something is written; a ConfigError where that is no path."""
    if not isinstance(folder, str | Path):
        raise ConfigError(f"a folder is needed to write to; not {kind_of(folder)}")
    return Path(folder)


def given_settings(settings: Any, **over: Any) -> Settings:
    """Settings with what is given beside them: their own fields, and ``template``.

    A ConfigError for an unknown name or a value that does not fit.
    """
    fields = {field.name for field in dataclasses.fields(Settings)} | {"template"}
    for name in over:
        if name not in fields:
            raise ConfigError(f"there is no keyword '{name}'{did_you_mean(name, fields)}")
    if settings is not None and not isinstance(settings, Settings):
        raise ConfigError(f"settings are an instdiff.Settings; not {kind_of(settings)}")
    made, known = settings or Settings(), {name: value for name, value in over.items() if value is not None}
    template = known.pop("template", None)
    if not isinstance(template, str | Path | None):
        raise ConfigError(f"a template is a name such as 'chat', a file, or inline text; not {kind_of(template)}")
    if template is not None:
        known["templates"] = {**made.templates, "*": str(template)}
    if "dtype" in known and (dtype := dtype_name(known["dtype"])) not in DTYPES:
        raise ConfigError(f"dtype is one of {', '.join(DTYPES)}; not {kind_of(known['dtype'])}")
    elif "dtype" in known:
        known["dtype"] = dtype
    length = known.get("max_length", 1)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ConfigError(f"max_length counts tokens, from 1; not {kind_of(length)}")
    return dataclasses.replace(made, **known)


def kept_rows(data: Any, store: Store) -> Any:
    """What a run can read again: a path or several as they are; other rows from a file that the store keeps.

    A ConfigError for what holds no rows, a DataError where there are none.
    """
    if data is None or isinstance(data, str):
        return data
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, list | tuple) and data and all(isinstance(one, str | Path) for one in data):
        return [str(one) for one in data]
    try:
        lines = [to_json(row) for row in rows_of_container(data)]
    except ValueError as error:
        raise DataError(f"these rows cannot be kept as JSON: {error}") from None
    if not lines:
        raise DataError("there are no rows")
    place = store.root / "given" / f"{fingerprint(*lines)}.jsonl"
    if not place.is_file():
        with writing(place) as aside:
            aside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(place)


def reading_of(data: Any) -> dict[str, Any]:
    """How the rows of a pool or a selection are shown and learnt, as keys of a configuration."""
    pool = data.to_pool() if hasattr(data, "to_pool") else data
    return dataclasses.asdict(pool.turns) if isinstance(pool, Pool) else {}
