"""What ``score`` and ``select`` say of a ranking before somebody goes by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from instdiff.core import Scored
from instdiff.methods import IFD, Longest
from instdiff.scoring.advice import advise

from .shell import cli, ok, read_jsonl, write_jsonl

SIZE = """
from dataclasses import dataclass
from instdiff import Method, Nll, Scores, Signal

@dataclass(frozen=True)
class Size(Method):
    name = "size"

    def signals(self):
        return {"nll": Signal(Nll())}

    def score(self, s):
        return Scores(-s.nll.count())
"""


def rows(count: int, empty: int = 0) -> list[dict[str, str]]:
    return [
        {"instruction": f"say {n}", "output": "" if n < empty else f"answer {n} with " + "words " * (n % 7)}
        for n in range(count)
    ]


def selected(*more: object) -> list[str]:
    return ["select", "--data", "rows.jsonl", "--method", "longest", "--output", "out.jsonl", *map(str, more)]


def test_a_budget_that_is_not_met_is_told_and_recorded() -> None:
    write_jsonl("rows.jsonl", rows(20, empty=2))
    ran = ok(*selected("--budget", "100%"))
    assert ran.err.splitlines()[-2] == (
        "warning: asked for 20 rows, 18 have a score (2 empty_response); give a smaller budget, or a share of the rows "
        "that have a score, as --budget '50% eligible'"
    )
    counts = json.loads(Path("out.selection.json").read_text())["counts"]
    assert (counts["asked_rows"], counts["selected_rows"]) == (20, 18)
    assert "asked for" not in ok(*selected("--budget", "18")).err
    assert "asked for" not in ok(*selected("--budget", "100% eligible")).err
    over = ok(*selected("--budget", "30")).err
    assert "warning: asked for 30 rows, 18 have a score (2 empty_response)" in over


def test_strict_refuses_a_budget_that_is_not_met_after_the_work() -> None:
    write_jsonl("rows.jsonl", rows(20, empty=2))
    ran = cli(*selected("--budget", "100%", "--strict"))
    assert ran.code == 3 and ran.err.splitlines()[-1] == "error: --strict, and the budget was not met"
    assert len(read_jsonl("out.jsonl")) == 18
    ok(*selected("--budget", "18", "--strict"))


def test_a_budget_of_tokens_and_of_groups_is_told_too(model: str) -> None:
    write_jsonl("rows.jsonl", [{**row, "kind": f"k{n % 2}"} for n, row in enumerate(rows(20, empty=2))])
    ok("score", "--data", "rows.jsonl", "--model", model, "--method", "perplexity", "--output", "s.parquet")
    chosen = ["select", "--data", "rows.jsonl", "--scores", "s.parquet", "--output", "out.jsonl", "--budget"]
    ran = ok(*chosen, "90000 tokens")
    counts = json.loads(Path("out.selection.json").read_text())["counts"]
    assert (counts["asked_tokens"], counts["selected_rows"]) == (90000, 18)
    held = counts["selected_tokens"]
    assert f"warning: asked for 90,000 response tokens, the 18 rows that have a score hold {held:,} (2 " in ran.err
    ran = ok(*chosen, "19", "--group-by", "kind")
    assert "warning: asked for 19 rows, 18 have a score" in ran.err
    ran = ok(*chosen, "4", "--group-by", "kind", "quota.k0=10")
    assert "warning: asked for 14 rows, 13 have a score" in ran.err


def scored(value: np.ndarray, tokens: np.ndarray, reason: np.ndarray, method: IFD | Longest) -> Scored:
    ids = [f"{n:032x}" for n in range(len(value))]
    return Scored(method.name, method, value, reason, {}, ids, tokens)


def test_a_ranking_that_is_length_is_called_so() -> None:
    tokens, none = np.arange(1, 41), np.full(40, None, object)
    value = np.sqrt(tokens)
    assert advise(scored(value, tokens, none, IFD())) == [
        "ifd goes mostly by length: its rank correlation with response tokens is 1.00; "
        "compare what --method longest chooses"
    ]
    assert "is -1.00" in advise(scored(-value, tokens, none, IFD()))[0]
    assert not advise(scored(value, tokens, none, Longest()))  # which is meant to
    assert not advise(scored(value, np.full(40, -1), none, IFD()))
    assert not advise(scored(value[:19], tokens[:19], none[:19], IFD()))
    mixed = np.random.default_rng(0).permutation(value)
    assert not advise(scored(mixed, tokens, none, IFD()))


def test_score_and_select_say_so(model: str) -> None:
    write_jsonl("rows.jsonl", rows(40))
    Path("mine.py").write_text(SIZE)
    told = "size goes mostly by length: its rank correlation with response tokens is -1.00"
    method = ("--data", "rows.jsonl", "--method", "./mine.py:Size")
    assert told in ok("score", *method, "--model", model, "--output", "s.parquet").err
    assert told in ok("select", *method, "--scores", "s.parquet", "--budget", "5", "--output", "out.jsonl").err


def test_a_method_that_filters_most_rows_is_told() -> None:
    none = np.full(40, None, object)
    none[:25] = "filtered"
    value = np.where(none == None, 0.5, np.nan)  # noqa: E711 - elementwise
    tokens = np.arange(1, 41)
    assert advise(scored(value, tokens, none, IFD())) == [
        "ifd filtered 25 of 40 rows (IFD >= 1); 15 are left to select from"
    ]
    none[:25] = None
    none[:20] = "filtered"
    value = np.where(none == None, 0.5, np.nan)  # noqa: E711 - elementwise
    assert not advise(scored(value, tokens, none, IFD()))
