"""Chat templates that come to an end: they are programs of strangers, so each rendering has an allowance.

What is counted is steps and characters: a row that renders on one machine renders on every other. The limit of time is
for what takes long between two steps.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from instdiff.errors import ConfigError

STEPS = 2_000_000
"""Rounds of loops and calls. A thousand turns with a loop over all of them for each take half of it."""
WRITTEN, MADE = 1 << 26, 1 << 30
"""Characters of a rendering and of any one text within it; of all texts that are made on the way."""
SHORT = 4096
"""A text of so many characters need not be counted: steps bound how many there are."""
SECONDS = 30.0
DIGITS = 10_000
"""Bits of a number."""
ENDLESS_ROWS = 3
"""So many rows without an end are a fault of the template, not of the rows."""


class EndlessTemplateError(ConfigError):
    """A chat template that took more steps, characters or seconds than a conversation may."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the chat template comes to no end: for one conversation it {why}; "
            "give another with --template FILE.jinja, or take another model"
        )


class _Allowance(threading.local):
    """What is left of the rendering that runs in this thread; of what runs outside, nothing is counted."""

    def __init__(self) -> None:
        self.running = False
        self.start()

    def start(self) -> None:
        """All of it."""
        self.steps, self.written, self.made = STEPS, WRITTEN, MADE
        self.until = time.monotonic() + SECONDS

    def step(self, characters: int = 0) -> None:
        """A round or a call, which writes so many characters that stand in the template."""
        self.steps -= 1
        if self.running and self.steps < 0:
            raise EndlessTemplateError(f"takes more than {STEPS:,} steps")
        if self.running and time.monotonic() > self.until:
            raise EndlessTemplateError(f"takes more than {SECONDS:.0f} seconds")
        self.write(characters)

    def write(self, characters: int) -> None:
        """Something is written."""
        self.written -= characters
        if self.running and self.written < 0:
            raise EndlessTemplateError(f"writes more than {WRITTEN:,} characters")

    def make(self, value: Any) -> Any:
        """Something is made, which is given back."""
        if type(value) is str and len(value) <= SHORT:
            return value
        if isinstance(value, int):
            _refuse(value.bit_length() > DIGITS)
        elif (size := _size(value)) > 1:
            self.made -= size
            _refuse(size > WRITTEN or (self.running and self.made < 0))
        return value


_left = _Allowance()


def _refuse(large: bool) -> None:
    if large:
        raise EndlessTemplateError(f"makes a text of more than {WRITTEN:,} characters, or as large a number")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 1


def _check(name: str, value: Any, arguments: tuple[Any, ...]) -> None:
    """Raises before a filter or method would make something too large of a value."""
    numbers = [abs(a) for a in arguments if isinstance(a, int)]
    _refuse(max(numbers, default=0) > WRITTEN)
    if name == "replace" and isinstance(value, str) and len(arguments) > 1:
        old, new = map(str, arguments[:2])
        _refuse(len(value) + value.count(old) * len(new) > WRITTEN)
    elif name == "join":
        # A method has its list as the argument, a filter as the value.
        texts, glue = (arguments[0], value) if isinstance(value, str) and arguments else (value, arguments[:1])
        sizes = list(map(_size, texts)) if isinstance(texts, list | tuple) else []
        _refuse(sum(sizes) + len(sizes) * sum(map(_size, glue if isinstance(glue, tuple) else (glue,))) > WRITTEN)
    elif name in ("indent", "wordwrap", "expandtabs", "tojson"):
        _refuse(_size(value) * max([1, *numbers, *map(_size, arguments)]) > MADE)
    elif name in ("format", "format_map") and isinstance(value, str):
        _refuse(re.search(r"\d{7}", value) is not None)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    at = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _left.step()
        _check(name, args[at], (*args[at + 1 :], *kwargs.values()))
        return _left.make(function(*args, **kwargs))

    return call


class _Environment(ImmutableSandboxedEnvironment):
    """The library's environment for chat templates, with every round, call and text counted."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def step(self, characters: int) -> None:
        """See ``_Allowance.step``."""
        _left.step(characters)

    def joined(self, *parts: Any) -> Any:
        """What ``~`` of Jinja gives."""
        texts = list(map(str, parts))
        _refuse(sum(map(len, texts)) > WRITTEN)
        return _left.make("".join(texts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator that can make more of two things than they are."""
        if operator == "+":
            return _left.make(left + right if type(left) is str else super().call_binop(context, operator, left, right))
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                _refuse(
                    isinstance(times, int) and isinstance(value, str | list | tuple) and len(value) * times > WRITTEN
                )
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _refuse(left.bit_length() * right > DIGITS)
        elif operator == "%" and isinstance(left, str):
            _check("format", left, right if isinstance(right, tuple) else (right,))
        return _left.make(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a function or method."""
        _left.step()
        name = getattr(__obj, "__name__", "")
        # The sandbox wraps `format`.
        own = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        _check(name, own, (*args, *kwargs.values()))
        return _left.make(super().call(__context, __obj, *args, **kwargs))


def _written(value: Any) -> Any:
    if isinstance(value, str):
        _left.write(len(value))
    return value


class _Counting(NodeTransformer):
    """Puts a step at the start of each round of a loop and each macro."""

    def visit_For(self, node: nodes.For) -> Any:
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> Any:
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> Any:
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        joined = nodes.EnvironmentAttribute("joined", lineno=node.lineno)
        return nodes.Call(joined, node.nodes, [], None, None, lineno=node.lineno)

    def _counted(self, node: Any) -> Any:
        self.generic_visit(node)
        own = sum(len(text.data) for part in node.body for text in _texts(part))
        # Written as Python: a call of Jinja's own costs ten times as much, in every round.
        step = nodes.EnvironmentAttribute(f"step({own})", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node


def _texts(node: nodes.Node) -> list[nodes.TemplateData]:
    return [node] if isinstance(node, nodes.TemplateData) else list(node.find_all(nodes.TemplateData))


def bounded_template(environment: Any, jinja: str) -> Any:
    """A template compiled in an environment of its own, whose rounds, calls and texts are counted from now on.

    Jinja's errors go on.
    """
    environment.__class__ = _Environment
    environment.finalize = _written
    environment.filters = {name: _bounded_filter(name, one) for name, one in environment.filters.items()}
    code = environment.compile(_Counting().visit(environment.parse(jinja)))
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def render_template(compiled: Any, values: Mapping[str, Any]) -> str:
    """The text of a compiled chat template; an EndlessTemplateError where that has no end."""
    with counting():
        text: str = compiled.render(**values)
    return text


class counting:
    """Within it, what a template does is counted."""

    def __enter__(self) -> None:
        _left.start()
        _left.running = True

    def __exit__(self, *error: object) -> None:
        _left.running = False
