"""Help is read at any width, in the order of the work, and the usual doors are open."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

from instdiff.cli.entry import app
from instdiff.cli.help import PANEL_OF, first_sentence, fold_command
from instdiff.version import __version__

from .shell import cli, ok

VERBS = [(name,) for name in app.commands if name != "store"] + [("store", sub) for sub in ("info", "gc", "check")]
WORK = ("doctor", "render", "plan", "score", "select", "report", "verdict", "export", "pipeline", "compare", "search")
WORK += ("train", "eval", "explain", "diff", "store", "merge", "methods")


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("verb", [(), ("store",), *VERBS], ids=" ".join)
def test_no_line_is_cut_or_wider_than_the_terminal(verb: tuple[str, ...], width: int) -> None:
    told = CliRunner().invoke(app, [*verb, "--help"], prog_name="instdiff", terminal_width=width - 2).stdout
    assert "Usage: " in told and max(map(len, told.splitlines())) <= width
    assert not re.search(r"(?<!\])\.\.\.$", told, re.MULTILINE) and "<list[" not in told


def test_commands_stand_in_the_order_of_the_work_each_with_a_short_sentence() -> None:
    told = ok("--help").out
    listed = [line.split()[0] for line in told.splitlines() if re.match(r"  [a-z]+  ", line)]
    assert [name for name in listed if name in WORK] == list(WORK)
    for name, command in app.commands.items():
        assert len(first_sentence(command.help or "")) < 48, name
    assert sorted(listed) == sorted(app.commands)


def test_every_option_stands_in_a_panel_and_required_ones_are_marked() -> None:
    commands: list[Any] = [one for name, one in app.commands.items() if name != "store"]
    commands += [*app.commands["store"].commands.values()]  # type: ignore[attr-defined]
    for command in commands:
        for param in command.make_params():
            assert isinstance(param, click.Argument) or param.name in PANEL_OF, f"{command.name} {param.name}"
    told = " ".join(ok("score", "--help").out.split())
    assert told.index(" Data: ") < told.index(" Model: ") < told.index(" Method: ") < told.index(" Output: ")
    assert "Where the result goes (required)." in told and "(required)" not in told[told.index("Speed: ") :]
    told = ok("pipeline", "--help").out
    assert "--method" in told and "--budget" in told


def test_colour_is_for_terminals() -> None:
    assert "\x1b" not in ok("score", "--help").out
    assert "\x1b[1mData" in CliRunner().invoke(app, ["score", "--help"], color=True).stdout


def test_a_folded_command_is_the_same_command() -> None:
    line = 'instdiff select --data my.jsonl --budget "10% tokens" --output a.jsonl eval.suite=math eval.data=h.jsonl'
    for width in (40, 60, 80):
        parts = list(fold_command(line, width))
        assert max(map(len, parts)) <= width
        assert " ".join(" ".join(parts).replace("\\", "").split()) == line


def python(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )


def test_the_usual_doors() -> None:
    assert ok("-V").out == ok("--version").out == f"{__version__}\n"
    assert python("-m", "instdiff", "-V").stdout == f"{__version__}\n"
    assert cli().code == 2 and "Usage: " in cli().err
    start = "import sys; sys.argv = ['instdiff']; from instdiff.cli.entry import main; main()"
    done = python("-c", start, _INSTDIFF_COMPLETE="zsh_source")
    assert "compdef _instdiff_completion instdiff" in done.stdout
    words = {"COMP_WORDS": "instdiff score --me", "COMP_CWORD": "2", "_INSTDIFF_COMPLETE": "bash_complete"}
    assert "--method" in python("-c", start, **words).stdout


def test_max_samples_is_limit_wherever_data_are_read() -> None:
    from instdiff.config.commands import DataConfig, SampleConfig, TrainConfig

    kinds = {verb.kind() for verb in app.commands.values() if getattr(verb, "config", "")}  # type: ignore[attr-defined]
    for kind in kinds:
        if issubclass(kind, DataConfig) and kind is not SampleConfig:
            assert kind.aliases()["max_samples"] == "limit", kind
    assert TrainConfig.aliases()["max_samples"] == "limit"


def test_method_and_budget_of_a_pipeline_are_options() -> None:
    from instdiff.config.base import load
    from instdiff.config.commands import PipelineConfig

    made = load(PipelineConfig, None, {"method": "longest", "budget": "5%", "data": "d"}, ["select.of=prompt"])
    assert (made.select.method, made.select.budget, made.select.params) == ("longest", "5%", {"of": "prompt"})
