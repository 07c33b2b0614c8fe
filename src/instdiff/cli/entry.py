"""Where the program starts."""

from __future__ import annotations

import os

from instdiff.cli import compare, evaluate, explain, merge, plan, render, report, score, search, select, store, train
from instdiff.cli.app import app

VERBS = (select, plan, score, merge, store, train, evaluate, compare, search, report, explain, render)
"""The modules that register commands."""
ORDER = (
    *("render", "plan", "sample", "score", "select", "train", "eval", "report", "export"),
    *("pipeline", "compare", "search", "explain", "diff", "merge", "methods", "store"),
)
"""The order of the work, in which ``--help`` lists the commands."""
app.commands = {name: app.commands[name] for name in ORDER}


def main() -> None:
    """Entry point."""
    # Two busy cores must not spin on each other while they wait, but some 20 microseconds of it are cheaper than sleep
    # (a fifth of a small model's time). Both have to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    app()
