"""The program, and how it runs a command.

Heavy imports happen inside the commands, and options are made when a command runs or its own help is asked for, so that
``instdiff --help`` is instant.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from instdiff.cli import heartbeat
from instdiff.cli.console import Console
from instdiff.cli.help import write_commands, write_epilog, write_options
from instdiff.cli.options import OVERRIDES, SPECIAL, make_option
from instdiff.core.display import in_one_line, visible, visible_json
from instdiff.errors import ConfigError, EngineError, InstDiffError, StoreError, without_extra
from instdiff.version import __version__

if TYPE_CHECKING:
    from instdiff.config.base import Config

F = TypeVar("F", bound=Callable[..., None])
OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "can't start new thread")
"""What libraries say that have no error of their own for it."""
SHORT = (
    "this machine has too little memory for it; what was computed is kept: give the same command again where there is "
    "more, or with a lower --batch-tokens"
)


class Group(click.Group):
    """Commands in the order in which they were added; an unknown one gets a suggestion.

    ``sections`` are titles with the names below them; without them all stand together.
    """

    sections: Mapping[str, Sequence[str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with one whole sentence."""
        write_commands(self.sections or {"Commands": list(self.commands)}, self.commands, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, at the width of the terminal."""
        if self.epilog:
            write_epilog(self.epilog, formatter)

    def main(self, *args: Any, **more: Any) -> Any:
        """Run the program; what is wrong with the command line is one message, like all errors of the user."""
        try:
            code = super().main(*args, **{**more, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = 2
        except click.UsageError as error:
            print(render_error(_usage(error), as_json="--json" in sys.argv), file=sys.stderr)
            code = 2
        except click.Abort:
            heartbeat.tell_interrupted()
            code = 130
        if more.get("standalone_mode", True):
            sys.exit(code or 0)
        return code

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that is meant, and what follows it."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            close = " or ".join(map(repr, get_close_matches(args[0], self.commands, n=2)))
            ctx.fail(f"No such command '{args[0]}'{f'; did you mean {close}?' if close else ''}")
        return super().resolve_command(ctx, args)


def _give_up(stream: TextIO) -> None:
    """Python's own flush at exit must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """Tell the user what ended the program; where not even this can be written, nothing."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)


def of_the_world(error: InstDiffError | OSError | UnicodeEncodeError) -> InstDiffError:
    """What the system refuses, in a sentence: names that it cannot hold, files that it does not give."""
    if isinstance(error, InstDiffError):
        return error
    if isinstance(error, UnicodeEncodeError):
        return ConfigError(f"'{in_one_line(str(error.object))}' cannot be written as UTF-8; give it another name")
    if error.filename is None and error.errno == errno.ENOSPC:
        _give_up(sys.stdout)
    name = error.filename if error.filename is not None else "standard output or a file"
    return StoreError(
        f"'{in_one_line(os.fsdecode(name) if not isinstance(name, int) else str(name))}': {error.strerror}"
    )


def _of_method(word: str) -> str:
    """The key of a method's parameter that ``--set`` gives; a ConfigError where the method is not named."""
    key, _, value = word.partition("=")
    if "." not in key and not value.lstrip().startswith("{"):
        raise ConfigError(f"'--set {word}' names no method; write --set METHOD.{word}, as --set ifd.ratio=loss")
    return f"method.{word}"


def _usage(error: click.UsageError) -> ConfigError:
    """What is wrong with the command line, in the style of all errors."""
    told = re.sub(r"\. \(Did you mean (?:one of: )?(.*)\?\)$", r"; did you mean \1?", error.format_message())
    told = told.removesuffix(".")
    place = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
    return ConfigError(f"{told[:1].lower()}{told[1:]}{place}")


class Verb(click.Command):
    """A command whose options are keys of its configuration.

    User errors are one message and exit 2, interruptions 130, bugs a traceback and 1. Where the program is a process of
    its own the verb is ``watched``: no stage of it is silent.
    """

    watched = False

    def __init__(
        self,
        name: str,
        function: Callable[..., None],
        config: str,
        keys: str,
        examples: str,
        *arguments: click.Argument,
    ) -> None:
        super().__init__(name, help=inspect.getdoc(function), epilog=examples)
        self.function, self.config, self.arguments = function, config, arguments
        self.keys = keys.replace("!", "").split()
        self.required = [key.removesuffix("!") for key in keys.split() if key.endswith("!")]

    def kind(self) -> type[Config]:
        """The class of its configuration."""
        module, _, name = self.config.rpartition(".")
        kind: type[Config] = getattr(importlib.import_module(f"instdiff.config.{module}"), name)
        return kind

    def make_params(self) -> list[click.Parameter]:
        """Arguments and options."""
        options = [
            SPECIAL[key] if key in SPECIAL else make_option(self.kind(), key, required=key in self.required)
            for key in self.keys
        ]
        return [*self.arguments, *[OVERRIDES] * ("config" in self.keys), *options]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Arguments and options, made when they are first asked for, and ``--help``."""
        self.params = self.params or self.make_params()
        return super().get_params(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Panels of options."""
        write_options(self.get_params(ctx), ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, at the width of the terminal."""
        write_epilog(self.epilog or "", formatter)

    def invoke(self, ctx: click.Context) -> None:
        """Run the command, and turn what goes wrong into a message and an exit code."""
        try:
            self.run(dict(ctx.params))
            sys.stdout.flush()
        except BrokenPipeError:
            _give_up(sys.stdout)  # the reader, such as `head`, has what it wanted
            sys.exit(0)
        except (InstDiffError, OSError, UnicodeEncodeError) as error:
            say(render_error(of_the_world(error), as_json=bool(ctx.params.get("json"))))
            sys.exit(2)
        except KeyboardInterrupt:
            if Verb.watched:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not break the end
            heartbeat.tell_interrupted()
            sys.exit(130)
        except Exception as error:  # noqa: BLE001 - the last place where a bug can be shown
            if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
                say(render_error(EngineError(SHORT), as_json=bool(ctx.params.get("json"))))
                sys.exit(2)
            say(visible(traceback.format_exc()) + "this is a bug of instdiff; please report it with the lines above")
            sys.exit(1)

    def run(self, values: dict[str, Any]) -> None:
        """Build the configuration of what was given, and call the function with it."""
        console = Console(quiet=values.pop("quiet", False), as_json=values.pop("json", False))
        console.stage(str(self.name))
        if Verb.watched:
            heartbeat.start(console)
        try:
            self._call(values, console)
        except ModuleNotFoundError as error:
            raise without_extra(error, f"instdiff {self.name}") from None
        finally:
            console.end()

    def _call(self, values: dict[str, Any], console: Console) -> None:
        arguments = {str(one.name): values.pop(str(one.name)) for one in self.arguments}
        if not self.config:
            return self.function(console, **arguments)
        from instdiff.cli.preflight import check
        from instdiff.config.base import load

        file, words = values.pop("config", None), list(values.pop("overrides", ()))
        sets = [_of_method(value) for value in values.pop("set", ())]
        given = {name: value for name, value in values.items() if not (value is None or value is False or value == ())}
        for option in self.params:  # what follows an option that stands alone may be key=value
            alone = getattr(option, "flag_value", None)
            if isinstance(alone, str) and "=" in given.get(str(option.name), ""):
                words.insert(0, given[str(option.name)])
                given[str(option.name)] = alone
        kind = self.kind().of_file(file)
        if kind is not self.kind():  # whose keys take one value where ours may repeat
            given = {name: v[0] if isinstance(v, tuple) and len(v) == 1 else v for name, v in given.items()}
        settings = load(kind, file, given, [*sets, *words])
        check(str(self.name), settings, self.required if kind is self.kind() else [])
        return self.function(settings, console, **arguments)


app = Group(
    "instdiff",
    help="Choose the tenth of your instruction data that teaches your model.",
    epilog=(
        "The shortest way:\n"
        "  instdiff score  --data my.jsonl --model base=Qwen/Qwen2.5-0.5B --method ifd --output scores.parquet\n"
        "  instdiff select --data my.jsonl --scores scores.parquet --method ifd --budget 10% --output selected.jsonl\n"
        "\nCompletion in this shell (or zsh_source, fish_source):\n"
        '  eval "$(_INSTDIFF_COMPLETE=bash_source instdiff)"'
    ),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
click.version_option(__version__, "-V", "--version", message="%(version)s", help="Print the version.")(app)


def command(
    name: str, config: str, keys: str, examples: str, *arguments: click.Argument, on: Group = app
) -> Callable[[F], F]:
    """Make a command of a function.

    ``config`` is the class of its configuration, as ``module.Class`` within ``instdiff.config``. The function gets the
    configuration, where there is one, then the console, then ``arguments`` by name. ``keys`` are options in the order
    of the help text, or names of ``SPECIAL``; those with ``!`` are required. ``examples`` stand below that text, a
    command in each line. ``on`` is the group of the command.
    """

    def wrap(function: F) -> F:
        on.add_command(Verb(name, function, config, keys, examples, *arguments))
        return function

    return wrap


def render_error(error: InstDiffError, *, as_json: bool) -> str:
    """An error as the user reads it, or as JSON."""
    text = str(error)
    return visible_json({"error": text, "kind": type(error).__name__}) if as_json else f"error: {visible(text)}"
