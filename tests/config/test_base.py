"""The mechanism: files, options, overrides, other names, suggestions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from instdiff.config.base import Config, build, load, merge, nest, read_yaml, scalar, split
from instdiff.errors import ConfigError


class Leaf(Config):
    size: int = 1
    name: str | None = None

    @classmethod
    def aliases(cls) -> dict[str, str]:
        return {"max_size": "size"}


class Tree(Config):
    leaf: Leaf = Field(default_factory=Leaf)
    spare: Leaf | None = None
    rate: float = 0.5
    flag: bool = False

    @classmethod
    def aliases(cls) -> dict[str, str]:
        return {"twig": "leaf", "lr": "rate"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("5e-5", 5e-5),
        ("1e3", 1000.0),
        ("5.0e-5", 5e-5),
        ("-2", -2),
        ("1_000", 1000),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("None", "None"),
        ("ifd", "ifd"),
        ("'5'", "5"),
        ("10%", "10%"),
        ("[a, 2]", ["a", 2]),
        ("{a: 1}", {"a": 1}),
        ("ifd,random", "ifd,random"),
        ("Q: {instruction}", "Q: {instruction}"),
        ("# {instruction}", "# {instruction}"),
        ("say {instruction} # now", "say {instruction} # now"),
        ("'a # b'", "a # b"),
        ("[broken", "[broken"),
        ("name@main", "name@main"),
        ("C:/models/base", "C:/models/base"),
    ],
)
def test_scalars_are_read_as_yaml_and_numbers_as_numbers(text: str, value: Any) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_split() -> None:
    assert split("leaf.size=3") == (["leaf", "size"], 3)
    assert split("a=b=c") == (["a"], "b=c")
    for bad in ("leaf.size", "=3", "leaf.=3", ".size=3", ""):
        with pytest.raises(ConfigError) as caught:
            split(bad)
        assert str(caught.value) == f"'{bad}': an override is written key.sub=value"


def test_nested_and_merged() -> None:
    assert nest(["a", "b"], 1) == {"a": {"b": 1}}
    below = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(below, {"a": {"b": 9}, "d": {"e": 4}}) == {"a": {"b": 9, "c": 2}, "d": {"e": 4}}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3}


def test_override_over_option_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("twig: {max_size: 2, name: oak}\nlr: 0.1\n")
    assert load(Tree, None, {}) == Tree()
    assert load(Tree, file, {}) == Tree(leaf=Leaf(size=2, name="oak"), rate=0.1)
    assert load(Tree, file, {"rate": 0.2}, ["leaf.size=3"]) == Tree(leaf=Leaf(size=3, name="oak"), rate=0.2)
    assert load(Tree, file, {"rate": 0.2}, ["lr=0.3", "twig.max_size=4", "leaf.name=null"]) == Tree(
        leaf=Leaf(size=4), rate=0.3
    )
    assert load(Tree, file, {}, ["rate=0.3", "rate=0.4"]).rate == 0.4  # the last one counts
    assert load(Tree, file, {}, ["spare.size=5"]).spare == Leaf(size=5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"laef": {}}, "here: unknown key 'laef'; did you mean 'leaf'?"),
        ({"zzz": 1}, "here: unknown key 'zzz'; known: flag, leaf, lr, rate, spare, twig"),
        ({"leaf": {"siz": 1}}, "here: unknown key 'leaf.siz'; did you mean 'leaf.size'?"),
        ({"twig": {"nmae": 1}}, "here: unknown key 'twig.nmae'; did you mean 'twig.name'?"),
        ({"spare": {"siz": 1}}, "here: unknown key 'spare.siz'; did you mean 'spare.size'?"),
        ({"leaf": 3}, "here: 'leaf' must be a mapping of keys, not 3"),
        ({"lr": 1, "rate": 2}, "here: 'lr' is another name of 'rate', which is given too; keep one"),
        ({"leaf": {}, "twig": {}}, "here: 'twig' is another name of 'leaf', which is given too; keep one"),
        ({"leaf": {"size": 1, "max_size": 1}},
         "here: 'leaf.max_size' is another name of 'leaf.size', which is given too; keep one"),
        ({"rate": "fast"}, "here: 'rate': Input should be a valid number, unable to parse string as a number "
         "(given: 'fast')"),
        ({"leaf": {"size": 1.5}}, "here: 'leaf.size': Input should be a valid integer, got a number with a fractional "
         "part (given: 1.5)"),
        ({"flag": "perhaps"}, "here: 'flag': Input should be a valid boolean, unable to interpret input "
         "(given: 'perhaps')"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Tree, values, "here")
    assert str(caught.value) == message


def test_messages_name_the_place_of_the_value(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("leaf: {size: 2}\n")
    with pytest.raises(ConfigError, match=r"^'leaf\.siz=3': unknown key 'leaf\.siz'; did you mean 'leaf\.size'\?$"):
        load(Tree, file, {}, ["leaf.siz=3"])
    with pytest.raises(ConfigError, match=r"^the command line: unknown key 'rte'; did you mean 'rate'\?$"):
        load(Tree, file, {"rte": 1})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Tree().rate = 1.0  # type: ignore[misc]


def test_yaml_files(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text, message in [
        (None, f"config file '{file}': No such file or directory"),
        ("a: [", f"config file '{file}' is not YAML: "),
        ("just words", f"config file '{file}' must hold a mapping of keys, not 'just words'"),
    ]:
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_yaml(file)
        assert str(caught.value).startswith(message)
    file.write_text("a: {b: 1}\n")
    assert read_yaml(file) == {"a": {"b": 1}}
