"""What can go wrong for a user, and nothing else.

Every message says what happened, which value where, and what to do. The command line prints it without a traceback and
exits with 2; any other exception is a bug and keeps its traceback.

```
InstDiffError
├── ConfigError    a key, option, template or method that does not exist or does not fit
├── DataError      a data file, row or column that cannot be used
├── PlanError      a method asks for a model role, an extra or a setting that is not there
├── StoreError     the store or an output cannot be read or written, or lacks what is asked for
└── EngineError    a model cannot be loaded, run or trained
```
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InstDiffError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(InstDiffError):
    """A key, option, template or method that does not exist or does not fit."""


class DataError(InstDiffError):
    """A data file, row or column that cannot be used."""


class PlanError(InstDiffError):
    """A method asks for a model role, an extra or a setting that is not there."""


class StoreError(InstDiffError):
    """The store or an output cannot be read or written, or lacks what is asked for."""


class EngineError(InstDiffError):
    """A model cannot be loaded, run or trained."""


def all_of(faults: Sequence[InstDiffError]) -> InstDiffError:
    """One error that says all of several, of the first one's kind."""
    if len(faults) == 1:
        return faults[0]
    lines = "\n".join(f"- {fault}" for fault in faults)
    return type(faults[0])(f"{len(faults)} things are to be mended:\n{lines}")


def lacking(what: str, package: str, extra: str) -> str:
    """What is said of a package that is not installed: who needs it, and the extra that brings it."""
    return f'{what} needs {package}, which is missing; run: pip install "instdiff[{extra}]"'


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the list of what is known where nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


def kind_of(value: object) -> str:
    """A value of a wrong type, for a message: a short one itself, any other by its type."""
    return (
        f"{type(value).__name__} {str(value)[:40]!r}" if isinstance(value, str | int | float) else type(value).__name__
    )
