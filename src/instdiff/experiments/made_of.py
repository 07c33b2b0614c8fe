"""What a cell reads beside the texts of its rows: columns of the data, and files. Both belong to what it is made of."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from instdiff.core import Column, Leak, Method, Number
from instdiff.core.files import fingerprint
from instdiff.core.signals import Asked, Group, Labels, Posed, Signal, Split, Text
from instdiff.data import Pool
from instdiff.errors import DataError, InstDiffError
from instdiff.evaluation.subject import Suite

WHOLE = "*"
"""Stands for all columns."""


def signals_of(method: Method) -> list[Signal]:
    """All signals of a method, with those that they need first."""
    return [one for signal in method.signals().values() for one in (*signal.needs(), signal)]


def columns_of(signals: Iterable[Signal]) -> set[str]:
    """The columns of the data that signals read."""
    found = set[str | None]()
    for part in _parts(signals):
        match part:
            case Column(name=name) | Posed(answer=str(name)) | Number(path=name, file=None):
                found.add(name)
            case Labels(column=name) | Group(column=name) | Split(group=name):
                found.add(name)
            case Posed():
                found.add("answer")
            case Text(part="source"):
                found.add(WHOLE)
    return {name for name in found if name}


def contents(pool: Pool, columns: Iterable[str]) -> dict[str, str | None]:
    """What columns of a pool hold, which is no part of what its rows say; None for one that is not there."""

    def hold(name: str) -> str | None:
        try:
            return fingerprint(list(map(str, pool.source_rows() if name == WHOLE else pool.column(name))))
        except DataError:
            return None

    return {name: hold(name) for name in sorted(columns)}


def files_of(method: Method) -> dict[str, str]:
    """The files that a method reads, and its own code, as ``by_name`` has them."""
    named = {origin.rpartition(":")[0] for origin in _origins(method) if origin}
    for part in _parts(signals_of(method)):
        match part:
            case Number(file=str(name)):
                path, sign, _ = name.rpartition(":")
                named.add(path if sign and path.endswith(".parquet") else name)
            case Leak(report=name) | Asked(prompt=name):
                named.add(name)
    return by_name(named)


def by_name(named: Iterable[str]) -> dict[str, str]:
    """Files as they are named, each with its content in place of its folder; without names that are no files here."""
    return {name: f"{Path(name).name} {_sum_of(Path(name))}" for name in named if name and _is_file(name)}


def texts_in(value: Any) -> set[str]:
    """All texts in plain values."""
    if isinstance(value, dict | list | tuple):
        return {text for one in (value.values() if isinstance(value, dict) else value) for text in texts_in(one)}
    return {value} if isinstance(value, str) else set()


def items_of(suite: Suite) -> str | None:
    """The items of a suite by what they say; None where they cannot be read."""
    if isinstance(pool := getattr(suite, "pool", None), Pool):
        return pool.fingerprint
    try:
        return fingerprint([[one.task, one.id, one.text] for one in suite.items(lambda line: None)])
    except InstDiffError:
        return None


def by_content(value: Any, files: dict[str, str]) -> Any:
    """Plain values in which files stand as ``by_name`` has them."""
    if isinstance(value, dict):
        return {by_content(key, files): by_content(one, files) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [by_content(one, files) for one in value]
    for name, content in files.items() if isinstance(value, str) else ():
        if value == name or value.startswith(f"{name}:"):
            return content + value.removeprefix(name)
    return value


def _parts(signals: Iterable[Signal]) -> Iterator[Any]:
    """Measures and views with all that lies inside them, but for methods."""
    left: list[Any] = list(signals)
    while left:
        one = left.pop()
        yield one
        if dataclasses.is_dataclass(one) and not isinstance(one, Method | type):
            left += [getattr(one, field.name) for field in dataclasses.fields(one)]


def _origins(method: Method) -> Iterator[str]:
    """Where a method and those inside it were read from."""
    yield method.origin
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Method):
                yield from _origins(one)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a text, such as a template
        return False


def _sum_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
