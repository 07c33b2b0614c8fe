"""The drawing library as it stands in a page: plotly's own script, of which only what the page draws is run."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

from instdiff.errors import PlanError

HANDED, END = ', () => {\n"use strict";', "}));"
"""How the bundle begins and ends: a function that is handed to a loader of modules."""
REGISTER = re.compile(r"(?<=\.register\(\[)(?:[\w$]+\(\),?)+(?=\]\))")
"""Where the bundle runs the module of every kind of trace."""


def plotly_script() -> str:
    """The drawing library as it is installed.

    Raises:
        PlanError: it is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise PlanError('a report needs plotly, which is missing; run: pip install "instdiff[report]"') from None
    return str(get_plotlyjs())


@cache
def library(kinds: frozenset[str]) -> str:
    """The drawing library for traces of these kinds, to stand in a page.

    Raises:
        PlanError: it is missing.
    """
    return eager(without(plotly_script(), kinds))


def without(script: str, kinds: Collection[str]) -> str:
    """The script that does not run the modules of other kinds of trace: maps and surfaces take most of its time.

    plotly's own smaller bundles leave out the same modules. One whose kind is not found stays, and so do all of them
    where the script is not made as expected.
    """
    found = list(REGISTER.finditer(script))
    if len(found) != 1:
        return script
    (place,) = found
    modules = place[0].rstrip(",").split(",")
    named = {module: _kind(script, module[:-2]) for module in modules}
    if not set(kinds) <= {*named.values(), "scatter"}:  # that one is a part of the core
        return script
    kept = [module for module in modules if named[module] is None or named[module] in kinds]
    return script[: place.start()] + ",".join(kept) + script[place.end() :]


def _kind(script: str, module: str) -> str | None:
    """The kind of trace that a module is, where it says so."""
    for _ in range(4):
        start = script.find(f"var {module}=")
        text = script[start : script.find("});var ", start)] if start >= 0 else ""
        said = re.search(r'moduleType:"trace",name:"(\w+)"', text)
        if said:
            return said[1]
        other = re.search(r"\.exports=([\w$]+)\(\)$", text) or _extended(text)
        if other is None:
            return None
        module = other[1]
    return None


def _extended(text: str) -> re.Match[str] | None:
    """The module which this one adds something to."""
    own = re.search(r"\.exports=([\w$]+)$", text)
    return own and re.search(rf"[ ,]{re.escape(own[1])}=([\w$]+)\(\)", text)


def eager(script: str) -> str:
    """The script as a browser compiles it at once, beside the page's own thread.

    A function in parentheses is taken for one that is called; the bundle, which is handed over, would be read once, and
    compiled by the page when it is called.
    """
    head, _, body = script.partition(HANDED)
    body, end, rest = body.rpartition(END)
    if script.count(HANDED) != 1 or "factory" not in head or not end or rest.strip():
        return script
    return f"{head}{HANDED.replace('()', '(()', 1)}{body}{END[0]}){END[1:]}{rest}"
