"""Options are made of the keys of the configuration: type, default and description."""

from __future__ import annotations

from typing import Any, Literal

import click
import pytest
from pydantic import NonNegativeInt, PositiveInt

from instdiff.cli.app import Group, Verb
from instdiff.cli.console import Console
from instdiff.cli.options import make_option
from instdiff.config import commands
from instdiff.config.base import Config, key
from instdiff.config.commands import Auto, Pairs


class Kind(Config):
    text: str | None = key(None, "A text (default: none).", metavar="FILE")
    count: PositiveInt = key(3, "How many.")
    rate: float = key(0.5, "How fast.", ge=0)
    off: bool = key(False, "Leave it.")
    order: Literal["rank", "input"] = key("rank", "Order of the rows.")
    names: list[str] = key(list, "Names, see [the list](#list).")
    budgets: tuple[str | int, ...] = key(("10%", 5), "Budgets.", also="budget sizes")
    by_name: dict[str, int] = key(dict, "Numbers by name.")
    pairs: Pairs = key(None, "Columns.")
    size: Auto = key(None, "Tokens, or auto.")
    either: NonNegativeInt | Literal["auto"] | None = key(None, "A number or auto.")
    folder: str | None = key(None, "Where to.", metavar="[DIR]", alone="here")


@pytest.mark.parametrize(
    ("name", "type_", "more", "text"),
    [
        ("text", "text", {"metavar": "FILE"}, "A text (default: none)."),
        ("count", "integer", {}, "How many (default 3)."),
        ("rate", "float", {}, "How fast (default 0.5)."),
        ("off", "boolean", {"is_flag": True}, "Leave it."),
        ("order", "text", {}, "Order of the rows: rank (default), input."),
        ("names", "text", {"multiple": True}, "Names, see the list."),
        ("budget", "text", {"multiple": True}, "Budgets (default 10%, 5)."),
        ("by_name", "text", {"multiple": True}, "Numbers by name."),
        ("pairs", "text", {"multiple": False}, "Columns."),
        ("size", "text", {}, "Tokens, or auto."),
        ("either", "text", {}, "A number or auto."),
        ("folder", "text", {"is_flag": False, "flag_value": "here"}, "Where to."),
    ],
)
def test_an_option_of_a_key(name: str, type_: str, more: dict[str, Any], text: str) -> None:
    option = make_option(Kind, name)
    assert option.opts == [f"--{name.replace('_', '-')}"] and option.type.name == type_ and option.help == text
    assert {key: getattr(option, key) for key in more} == more


def test_other_names() -> None:
    assert Kind.aliases() == {"budget": "budgets", "sizes": "budgets"}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration and the arguments that a command gets."""
    monkeypatch.setattr(commands, "Kind", Kind, raising=False)

    def run(*words: str) -> tuple[Any, Console, str]:
        seen: list[Any] = []
        verb = Verb(
            "go",
            lambda settings, console, row: seen.extend([settings, console, row]),
            "commands.Kind",
            "config text count rate off order names budget by_name pairs size either folder json",
            "Example:  go 3",
            click.Argument(["row"]),
        )
        group = Group("program")
        group.add_command(verb)
        group(["go", *words], standalone_mode=False)
        return seen[0], seen[1], seen[2]

    return run


def test_only_what_is_given_goes_into_the_configuration(ran: Any) -> None:
    settings, console, row = ran("7", "--count", "4", "--names", "a", "--names", "b", "--size", "auto", "rate=0.25")
    assert settings == Kind(count=4, names=["a", "b"], rate=0.25) and row == "7" and not console.as_json
    assert settings.model_fields_set == {"count", "names", "size", "rate"}
    settings, console, row = ran("7", "--rate", "0", "--off", "--pairs", "a=b,c=d", "--json")
    assert settings == Kind(rate=0.0, off=True, pairs={"a": "b", "c": "d"}) and console.as_json
    assert settings.model_fields_set == {"rate", "off", "pairs"}


@pytest.mark.parametrize(
    ("words", "folder", "count"),
    [
        (["--folder"], "here", 3),
        (["--folder", "there"], "there", 3),
        (["--folder", "--count", "4"], "here", 4),
        (["--folder", "count=4"], "here", 4),  # an override is no folder
        (["--folder", "there", "count=4"], "there", 4),
        ([], None, 3),
    ],
)
def test_an_option_whose_value_may_be_left_out(ran: Any, words: list[str], folder: str | None, count: int) -> None:
    settings, _, _ = ran("7", *words)
    assert (settings.folder, settings.count) == (folder, count)


def test_every_key_is_described() -> None:
    from instdiff.cli.entry import app

    verbs = [verb for one in app.commands.values() for verb in getattr(one, "commands", {"": one}).values()]
    kinds = {verb.kind() for verb in verbs if verb.config}
    assert len(kinds) >= 16
    for kind in kinds:
        for name, field in kind.model_fields.items():
            assert field.description and field.description.endswith("."), f"{kind.__name__}.{name}"
