"""What ships with the package: the model `tiny`, the data set `demo`, and `skills`, which is both.

A user names them `builtin:tiny`, `builtin:demo` and `builtin:skills`; with them every command runs without a download.
"""

from __future__ import annotations

from pathlib import Path

from instdiff.errors import ConfigError, did_you_mean

NAMES = ("demo", "skills", "tiny")
FOLDERS = {"skills": "skills/model"}  # its data is made when it is asked for


def path(name: str) -> Path:
    """The folder of what ships under a name, without the ``builtin:`` prefix; a ConfigError where nothing does."""
    if name not in NAMES:
        raise ConfigError(f"no built-in named '{name}'{did_you_mean(name, NAMES)}")
    return Path(__file__).parent / FOLDERS.get(name, name)
