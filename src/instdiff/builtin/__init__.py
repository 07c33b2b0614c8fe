"""What ships with the package: the model `tiny` and the data set `demo`.

A user names them `builtin:tiny` and `builtin:demo`; with them every command runs without a download.
"""

from __future__ import annotations

from pathlib import Path

from instdiff.errors import ConfigError, did_you_mean

NAMES = ("demo", "tiny")


def path(name: str) -> Path:
    """Return the folder of what ships under `name`.

    Args:
        name: `tiny` (a model folder) or `demo` (a folder of JSON lines files), without the `builtin:` prefix.

    Returns:
        The folder inside the installed package.

    Raises:
        ConfigError: If nothing ships under that name.
    """
    if name not in NAMES:
        raise ConfigError(f"no built-in named '{name}'{did_you_mean(name, NAMES)}")
    return Path(__file__).parent / name
