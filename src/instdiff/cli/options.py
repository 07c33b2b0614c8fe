"""The options of commands, made from the keys of their configuration."""

from __future__ import annotations

import re
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

if TYPE_CHECKING:
    from instdiff.config.base import Config

SPECIAL = {
    "config": click.Option(["--config"], metavar="FILE", help="YAML file with the same keys."),
    "set": click.Option(["--set"], multiple=True, metavar="M.P=VALUE", help="A method's parameter, as ifd.ratio=loss."),
    "quiet": click.Option(["--quiet"], is_flag=True, help="Only results and errors."),
    "json": click.Option(["--json"], is_flag=True, help="Results and log lines as JSON."),
}
"""Options that are no keys: ways to give keys, and how this one call speaks."""
OVERRIDES = click.Argument(
    ["overrides"], nargs=-1, metavar="[KEY=VALUE]...", help="Overrides of configuration keys, written key.sub=value."
)


def make_option(kind: type[Config], name: str, *, required: bool = False) -> click.Option:
    """The option of a key, with the type, the default and the description that the configuration has.

    A ``required`` one is marked; the configuration may name it instead, so that its lack is told elsewhere.
    What may be written in several ways, such as a number or ``auto``, is a text here; the configuration reads it.
    """
    from pydantic import BeforeValidator

    field = kind.model_fields[kind.aliases().get(name, name)]
    default, extra = field.get_default(call_default_factory=True), field.json_schema_extra
    assert isinstance(extra, dict), f"{kind.__name__}.{name} is not made by `key`"
    union = get_origin(field.annotation) in (Union, UnionType)
    parts = [part for part in (get_args(field.annotation) if union else (field.annotation,)) if part is not NoneType]
    plain = [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]
    several = len(plain) > 1 or any(isinstance(mark, BeforeValidator) for mark in field.metadata)
    one: Any = str if several else plain[0]
    more: dict[str, Any] = {"type": {int: click.INT, float: click.FLOAT}.get(one, click.STRING)}
    if one is bool:
        more = {"is_flag": True}
    elif get_origin(one) in (list, tuple, dict) or any(get_origin(part) is list for part in plain):
        more["multiple"] = True
    elif extra["alone"]:
        more |= {"is_flag": False, "flag_value": extra["alone"]}
    more |= {"nargs": extra["words"], "type": _Words()} if extra["words"] != 1 else {}
    text = describe(str(field.description), default, get_args(one) if get_origin(one) is Literal else ())
    told = f"{text.removesuffix('.')} (required)." if required else text
    return click.Option([f"--{name.replace('_', '-')}"], metavar=extra["metavar"] or _metavar(one), help=told, **more)


class _Words(click.ParamType[str]):
    """One of several words of an option: an option after it means that they were quoted as one."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word; a usage error where it is an option."""
        if str(value).startswith("--"):
            self.fail(
                f"'{value}' stands where a word is wanted; write the words apart, as in --per prompt 1", param, ctx
            )
        return str(value)


def _metavar(one: Any) -> str | None:
    """What stands for a value of this type, in a word."""
    return None if one is bool else {int: "N", float: "X"}.get(one, "WORD" if get_origin(one) is Literal else "VALUE")


def describe(description: str, default: Any, choices: tuple[Any, ...]) -> str:
    """What an option's help says: the key's description with its choices and its default."""
    text = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", description).removesuffix(".")
    if choices:
        return f"{text}: {', '.join(f'{c} (default)' if c == default else str(c) for c in choices)}."
    if default is None or isinstance(default, bool | dict) or default in ([], ()):
        return f"{text}."
    values = default if isinstance(default, tuple | list) else [default]
    return f"{text} (default {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)})."
