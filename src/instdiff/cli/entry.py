"""Where the program starts."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from instdiff.cli.app import Verb, app, of_the_world, render_error, say

VERBS = "demo select plan score merge store train evaluate compare search report explain render doctor verdict"
VERBS += " decontaminate"
"""The modules that register commands."""
for name in VERBS.split():
    import_module(f"instdiff.cli.{name}")
SECTIONS = {
    "One step at a time": (
        *("demo", "doctor", "decontaminate", "render", "plan", "sample", "score", "select"),
        *("report", "verdict", "export"),
    ),
    "Whole runs": ("pipeline", "compare", "search", "train", "eval"),
    "Look closer": ("explain", "diff", "store", "merge", "methods"),
}
"""The order of the work, in which ``--help`` lists the commands."""
app.sections = {title: [name for name in names if name in app.commands] for title, names in SECTIONS.items()}
app.commands = {name: app.commands[name] for names in app.sections.values() for name in names}


def main() -> None:
    """Entry point."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the end
    if sys.stdout is None:
        print("error: standard output is closed; send the result to a file or to /dev/null", file=sys.stderr)
        sys.exit(2)
    # Two busy cores must not spin on each other while they wait, but some 20 microseconds of it are cheaper than sleep
    # (a fifth of a small model's time). Both have to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    Verb.watched = True
    app.context_settings["color"] = False if os.environ.get("NO_COLOR") else None
    try:
        app()
    except OSError as error:  # of texts that no verb writes, such as --help
        say(render_error(of_the_world(error), as_json=False))
        sys.exit(2)
