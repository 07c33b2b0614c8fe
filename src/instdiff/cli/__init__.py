"""The command line: verbs, options, and how they speak."""

from instdiff.cli.app import main

__all__ = ["main"]
