"""The command line. Heavy imports happen inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from instdiff.errors import InstDiffError

F = TypeVar("F", bound=Callable[..., Any])

app = typer.Typer(
    help="Choose the tenth of your instruction data that teaches your model.",
    # "\b" keeps the lines as they are: an example that is wrapped cannot be copied.
    epilog=(
        "\b\nThe shortest way:\n"
        "  instdiff score  --data my.jsonl --model base=Qwen/Qwen2.5-0.5B --method ifd --output scores.parquet\n"
        "  instdiff select --data my.jsonl --scores scores.parquet --method ifd --budget 10% --output selected.jsonl"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(name: str, examples: str = "", on: typer.Typer = app) -> Callable[[F], F]:
    """A command whose user errors are one message and exit 2, interruptions 130, bugs a traceback and 1."""

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
                sys.stdout.flush()
                return result
            except typer.Exit:
                raise
            except BrokenPipeError:
                # The reader, such as `head`, has what it wanted. Python's own flush at exit must not fail again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(0)
            except InstDiffError as error:
                print(render_error(error, as_json=bool(kwargs.get("json"))), file=sys.stderr)
                sys.exit(2)
            except KeyboardInterrupt:
                print("interrupted; what was computed is kept: give the same command again to go on", file=sys.stderr)
                sys.exit(130)
            except Exception:  # noqa: BLE001 - the last place where a bug can be shown
                traceback.print_exc()
                print("this is a bug of instdiff; please report it with the lines above", file=sys.stderr)
                sys.exit(1)

        return on.command(name, epilog=f"\b\n{examples}" if examples else None)(run)  # type: ignore[return-value]

    return wrap


def render_error(error: InstDiffError, *, as_json: bool) -> str:
    """An error as the user reads it, or as JSON."""
    text = str(error)
    return json.dumps({"error": text, "kind": type(error).__name__}) if as_json else f"error: {text}"


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    """Choose the tenth of your instruction data that teaches your model."""
    if version:
        from instdiff.version import __version__

        print(__version__)
        raise typer.Exit
