"""What a terminal shows: nothing wider than it is, what was asked and got, and a next command that runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from instdiff.cli import console
from instdiff.cli.console import fit, table

from .shell import Ran, cli, ok, score


def follow(ran: Ran) -> Ran:
    """Run the command that the last line names, as it stands."""
    last = ran.err.splitlines()[-1]
    assert last.startswith("next: instdiff "), ran.err
    return ok(*shlex.split(last)[2:])


@pytest.mark.parametrize("width", [60, 80, 140])
def test_nothing_is_wider_than_the_terminal(model: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    score(model, "ifd,tshirt", "s.parquet", "--set", "tshirt.model=base", "--set", "tshirt.draws=2")
    for name, budget in (("a.jsonl", "3"), ("b.jsonl", "5")):
        ok("select", "--data", "my.jsonl", "--scores", "s.parquet", "--method", "ifd", "--budget", budget,
           "--output", name)  # fmt: skip
    monkeypatch.setattr(console, "columns", lambda: width)
    data = ("--data", "my.jsonl")
    raters = [word for role in ("quality_rater", "complexity_rater") for word in ("--model", f"{role}=builtin:tiny")]
    for words in (
        ["methods"],
        ["methods", "tshirt"],
        ["plan", *data, "--model", "builtin:tiny", *raters, "--method", "ifd,deita,longest"],
        ["explain", "3", *data, "--scores", "s.parquet"],
        ["diff", "a.jsonl", "b.jsonl", *data, "--by", "source"],
        ["store", "info"],
    ):  # fmt: skip
        told = ok(*words).out.partition("base nll, ")[0]  # tokens are laid out by rich
        long = [line for line in told.splitlines() if len(line) > width and " " in line.strip()]
        assert not long, (words, long)
    assert ok("methods").out.count("\n") > 30
    told = " ".join(ok("methods", "ifd").out.split())
    assert "Response loss with the prompt over loss without it. Higher = harder to follow. Rows at 1 or above" in told


def test_a_table_wraps_cells_and_becomes_lists_where_even_that_is_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["ifd", "what the prompt takes off the loss", 1200], ["longest", "length", 7]]
    whole = table(["method", "what it does", "rows"], rows)
    assert whole.splitlines()[2] == "ifd      what the prompt takes off the loss  1,200"
    monkeypatch.setattr(console, "columns", lambda: 34)
    assert table(["method", "what it does", "rows"], rows).splitlines() == [
        "method   what it does         rows",
        "-------  ------------------  -----",
        "ifd      what the prompt     1,200",
        "         takes off the loss",
        "longest  length                  7",
    ]
    monkeypatch.setattr(console, "columns", lambda: 20)
    assert table(["method", "rows"], [["ifd", 1], ["zip", 2]]).count("\n") == 3
    assert table(["method", "what", "many rows", "rows"], [["a long name", "long words", 1234567, 7654321]]) == (
        "method: a long name\nwhat: long words\nmany rows: 1,234,567\nrows: 7,654,321"
    )


def test_lines_are_wrapped_below_their_beginning_and_commands_stay_commands() -> None:
    assert fit("  - one two three", 12) == "  - one two\n  three"
    assert (
        fit("  instdiff select --data my.jsonl --output a", 34)
        == "  instdiff select \\\n    --data my.jsonl --output a"
    )
    assert fit("one two three", None) == "one two three"


def test_score_and_select_end_with_what_was_asked_and_got_and_a_next_command_that_runs(model: str) -> None:
    scored = score(model, "ifd,longest", "out/s.parquet", "--limit", "11")
    assert scored.out.splitlines()[-1] == "Scored 11 rows (0 truncated) -> out/s.parquet"
    selected = follow(scored)
    assert Path("out/selected.jsonl").is_file()
    first, second = selected.out.splitlines()
    assert first.startswith("Selected 1 of 11 rows (9.09 %), ")
    assert first.endswith(" response tokens, by ifd (asked for 10%: 1 rows) -> out/selected.jsonl")
    assert second == "Record: out/selected.selection.json"
    assert "format alpaca" in scored.err and "format alpaca" not in selected.err  # told once
    follow(selected)
    assert Path("out/selected_trl/selected.jsonl").is_file()


def test_the_next_command_reads_the_rows_in_the_same_way(model: str) -> None:
    Path("odd name.jsonl").write_text('{"frage": "a b", "antwort": "c d e"}\n' * 3 + '{"frage": "x", "antwort": "y"}\n')
    ran = score(model, "perplexity", "s.parquet", "--map", "instruction=frage,response=antwort", data="odd name.jsonl")
    last = ran.err.splitlines()[-1]
    assert "--data 'odd name.jsonl' --map instruction=frage,response=antwort --scores s.parquet" in last
    ok(*shlex.split(last.replace("10%", "50%"))[2:])


def test_a_method_of_a_proxy_offers_the_base(model: str) -> None:
    ran = cli("score", "--data", "my.jsonl", "--model", model, "--method", "tshirt", "--output", "s.parquet")
    assert ran.error == ("tshirt needs a model for role 'proxy'; give --model proxy=WHERE, or --set tshirt.model=base")


def test_passes_are_numbered(model: str) -> None:
    told = score(model, "ifd", "s.parquet").err
    assert "[1/2] base · prompted: 11 rows, " in told and "[2/2] base · response only: " in told
