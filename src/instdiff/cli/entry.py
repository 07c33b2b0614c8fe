"""Where the program starts."""

from __future__ import annotations

import os

from instdiff.allocator import restart
from instdiff.cli import (
    compare_verbs,
    data_verbs,
    eval_verbs,
    report_verbs,
    scale_verbs,
    score_verbs,
    show_verbs,
    store_verbs,
    train_verbs,
)
from instdiff.cli.app import app

VERBS = (
    *(data_verbs, score_verbs, scale_verbs, store_verbs),
    *(train_verbs, eval_verbs, compare_verbs, report_verbs, show_verbs),
)
"""The modules that register commands."""


def main() -> None:
    """Entry point."""
    restart()
    # Two busy cores must not spin on each other while they wait, but some 20 microseconds of it are cheaper than sleep
    # (a fifth of a small model's time). Both have to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    app()
