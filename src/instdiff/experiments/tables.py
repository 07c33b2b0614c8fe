"""A comparison's tables: Markdown, CSV, by line and by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instdiff.config.compare import CompareConfig
from instdiff.core.display import html_table
from instdiff.core.files import write_record, writing
from instdiff.experiments.items import read_items, write_items
from instdiff.experiments.run_folder import BASE, CellResult, RunFolder
from instdiff.experiments.summary import (
    BETTER,
    COSTS,
    FEW,
    LEAST_ROOM,
    NOTE,
    SAME,
    WORSE,
    control_of,
    cost_unit,
    overlaps,
    summarize,
)


class ComparisonResult(dict[str, Any]):
    """What a comparison or a search found: the facts of its JSON file, and the ``folder`` of the run."""

    def __init__(self, facts: Mapping[str, Any], folder: Path) -> None:
        super().__init__(facts)
        self.folder = folder

    def __repr__(self) -> str:
        told = self.get("told")
        if told is None:
            names = dict.fromkeys(line["name"] for line in self["lines"] if line["name"] != BASE)
            told = [text for name in names for text in tell_verdicts(self["lines"], name, self["against"])]
        more = f"\n  and {len(told) - MOST_TOLD} more; see its page" if len(told) > MOST_TOLD else ""
        return f"<ComparisonResult in {self.folder}" + "".join(f"\n  {one}" for one in told[:MOST_TOLD]) + more + ">"

    def _repr_html_(self) -> str:
        """What a notebook shows: a table for each task, or the bracket of a search."""
        if "told" in self:
            return "".join(f"<p>{escape(one)}</p>" for one in self["told"]) + html_table(*bracket_rows(self))
        tasks = by_task(self["lines"]).items()
        parts = [f"<p>{escape(title)}</p>{html_table(header(self, lines), rows_of(lines))}" for title, lines in tasks]
        return "".join(parts)


MOST_TOLD = 3
"""Verdicts in the short form of a result."""


def write_comparison(
    folder: Path, results: list[CellResult], lines: list[dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write ``comparison.json``, ``comparison.md`` and ``items.parquet``; returns what the first holds."""
    failed = left_out(results)
    shared = overlaps(folder, [one.cell for one in results if one.cell.line != BASE])
    unit = cost_unit(one.facts for one in results)
    note = " ".join([NOTE, *(text for name, text in COSTS.items() if name in (unit or ""))])
    facts = {**facts, "against": control_of(results), "cost_unit": unit, "note": note}
    whole = {**facts, "lines": lines, "overlaps": shared, "failed": failed}
    path = RunFolder(folder).comparison
    write_items(RunFolder(folder).items, results, facts)
    write_record(path, whole)
    with writing(path.with_suffix(".md")) as aside:
        aside.write_text(markdown(lines, failed, facts), encoding="utf-8")
    return whole


def tell_verdicts(lines: Sequence[dict[str, Any]], name: str, against: str) -> list[str]:
    """A sentence for each task: whether a line is told apart from its control; with too few seeds the facts alone."""
    told = []
    for line in lines:
        if line["name"] == name and "verdict" in line:
            begin = heading(line["verdict"], against) + " for a verdict" * (line["verdict"] == FEW)
            told.append(f"{begin}: {tell(line, lines, against)}.")
    return told


def heading(verdict: str, against: str) -> str:
    """What a verdict comes to, in the words that stand above everything else."""
    words = {BETTER: "Better than", WORSE: "Worse than", SAME: "Not told apart from"}
    return f"{words[verdict]} {against}" if verdict in words else FEW.capitalize()


def measured(line: Mapping[str, Any]) -> str:
    """What a line's value is of, as people call it."""
    words = {"heldout": "held-out", "nll": "NLL"}
    return " ".join(dict.fromkeys(words.get(str(line[key]), str(line[key])) for key in ("task", "metric")))


def tell(line: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], against: str) -> str:
    """A line's value, and its difference to the control; with too few seeds what the control has."""
    begin = f"{line['name']} has a {measured(line)} of {line['value']:.3f}"
    return (
        f"{begin}; {beside(line, lines, against)}"
        if line["verdict"] == FEW
        else (f"{begin}, {difference(line)} against {against}")
    )


def control_for(line: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], against: str) -> Mapping[str, Any]:
    """The control that a line is compared with: at its budget, else the first of the task."""
    same = ("suite", "task")
    mine = [one for one in lines if one["name"] == against and all(one.get(k) == line.get(k) for k in same)]
    return next((one for one in mine if one.get("budget") == line.get("budget")), mine[0] if mine else {})


def beside(line: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], against: str) -> str:
    """Where the seeds of the control lie, as a fact beside a line's value."""
    control = control_for(line, lines, against)
    seeds = control.get("by_seed", [])
    if len(seeds) > 1:
        return f"each of {len(seeds)} {against} selections lies between {min(seeds):.3f} and {max(seeds):.3f}"
    return f"{'that' if against == BASE else 'one'} of {against} is {control['value']:.3f}" if control else ""


def bracket_rows(told: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The bracket as a table: each recipe's gain over random rows in each rung, the longest-lived first."""
    rungs, final = told["rungs"], told["final"]
    header = [
        "recipe",
        *(f"rung {n} ({rung['seeds']} seed{'s' * (rung['seeds'] > 1)})" for n, rung in enumerate(rungs, 1)),
    ]
    gains: dict[str, list[float | None]] = {}
    for number, rung in enumerate(rungs):
        for one in rung["recipes"]:
            gains.setdefault(one["name"], [None] * len(rungs))[number] = one["gain"]
    lasting = [one["name"] for rung in reversed(rungs) for one in rung["recipes"]]
    rows = [[name, *gains[name]] for name in dict.fromkeys(lasting)]
    if final is None:
        return header, rows
    header += ["untouched half", "95 % interval"]
    interval = None if final["diff_low"] is None else f"{final['diff_low']:+.3f} to {final['diff_high']:+.3f}"
    ends = {told["best"]: [told["gain_untouched"], interval]}
    return header, [[*row, *ends.get(str(row[0]), [None, None])] for row in rows]


LEAKS = "Overlap with the evaluation"


def leak_rows(leaks: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The lines whose rows, or the control's, overlap items of a task: results with and without these items."""
    against = leaks["against"]
    heads = ["method", "budget", "task", "rows that overlap", "items", "value", "without these items"]
    heads += [f"against {against}", "of it on these items", "without these items", "verdict without"]
    return heads, [
        [
            line["name"],
            line["budget"] or "",
            measured(line),
            f"{line['rows']:,.0f}",
            f"{line['items_hit']:,} of {line['items']:,}",
            f"{line['value']:.3f}",
            "" if line["value_without"] is None else f"{line['value_without']:.3f}",
            *(_gap(line, suffix) for suffix in ("", "_on", "_without")),
            line.get("verdict_without", ""),
        ]
        for line in leaks["lines"]
        if line["items_hit"]
    ]


def _gap(line: Mapping[str, Any], suffix: str) -> str:
    return difference({f"diff{end}": line.get(f"diff{suffix}{end}") for end in ("", "_low", "_high")})


def tell_leaks(leaks: Mapping[str, Any]) -> list[str]:
    """What counts as an overlap, and that there is none where that is so."""
    rule = leaks["rule"]
    what = f"runs of {rule['n']} words, or word triples with a Jaccard similarity of {rule['near_duplicates']:g}"
    short = f"; {leaks['too_short']:,} of {leaks['items']:,} items are too short to look for" * bool(leaks["too_short"])
    if not any(line["items_hit"] for line in leaks["lines"]):
        return [f"No selected row overlaps an item of the evaluation ({what}){short}."]
    return [
        f"Selected rows overlap items of the evaluation ({what}){short}. A gain on such items says nothing of others: "
        "look at the difference without them. Leave the rows out with instdiff decontaminate."
    ]


def left_out(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """The cells that failed, and why."""
    return [{"cell": str(one.cell), "error": one.error} for one in results if one.error is not None]


def remake(path: Path) -> str:
    """The Markdown of a comparison, made again from its ``items.parquet``."""
    results, facts = read_items(path)
    return markdown(summarize(results, oracles=facts.get("oracles", ())), left_out(results), facts)


def footer(facts: Mapping[str, Any]) -> list[str]:
    """What stands below the tables: the verdicts, on what terms lines were compared, and how to read them."""
    return [*facts.get("verdicts", []), *(str(facts[key]) for key in ("terms", "note") if facts.get(key))]


def rows_of(lines: list[dict[str, Any]]) -> list[list[str]]:
    """The cells of a table, as texts: without the task, which all have in common."""
    out, shared = [], has_shares(lines)
    for line in lines:
        out.append(
            [
                line["name"],
                line["budget"] or "",
                str(line["seeds"]),
                _count(line["rows"]),
                _count(line["tokens"]),
                f"{line['value']:.3f}",
                interval(line),
                difference(line),
                line.get("verdict", ""),
                *([share(line)] if shared else []),
                _cost(line),
            ]
        )
    return out


HEADER = ["method", "budget", "seeds", "rows", "tokens", "value", "95 % interval", "against random", "verdict", "cost"]


def header(facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The heads of a table of lines, which say what these are compared with."""
    heads = [f"against {facts['against']}" if "against" in name and "against" in facts else name for name in HEADER]
    return [*heads[:-1], "share of headroom", heads[-1]] if has_shares(lines) else heads


def has_shares(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether lines say which share of the headroom they have."""
    return any("share" in line for line in lines)


def share(line: Mapping[str, Any]) -> str:
    """Of the headroom, with its interval where it is bounded."""
    if line.get("share") is None:
        return ""
    ends = "" if line["share_low"] is None else f" [{100 * line['share_low']:.0f}, {100 * line['share_high']:.0f}]"
    return f"{100 * line['share']:.0f} %{ends}"


def tell_headroom(lines: Sequence[Mapping[str, Any]], against: str) -> list[str]:
    """A sentence for each budget at which a task has an oracle: what there is to gain, or that nothing can be told."""
    told = []
    for line in lines:
        if "room" not in line:
            continue
        found = f"{line['name']} is {difference(line)} against {against} at {line['budget']}"
        if line["room"] is None:
            told.append(f"Nothing can be told of the headroom: {found}, with too few seeds for an interval.")
        elif line["room"] < LEAST_ROOM:
            told.append(
                f"Nothing can be told here: {found}, {line['room']:.1f} standard errors of headroom, "
                f"and a share needs at least {LEAST_ROOM:g}."
            )
        else:
            told.append(f"Headroom: {found}, {line['room']:.1f} standard errors.")
    return told


def interval(line: Mapping[str, Any]) -> str:
    """Of a line's value; nothing where its seeds are too few for one."""
    return "" if line["low"] is None else f"{line['low']:z.3f} to {line['high']:z.3f}"


def difference(line: Mapping[str, Any]) -> str:
    """To the control, with its interval where there is one; nothing in the line of the control itself."""
    if line.get("diff") is None:
        return ""
    gap = f"{line['diff']:+.3f}"
    return gap if line.get("diff_low") is None else f"{gap} [{line['diff_low']:+.3f}, {line['diff_high']:+.3f}]"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _cost(line: dict[str, Any]) -> str:
    """The time of each part; of scoring also the tokens that went through models."""
    second = "GPU s" if line.get("cost_unit") == "GPU seconds" else "s"
    tokens = f" of {line['score_tokens']:,} tokens" if line.get("score_tokens") else ""
    named = {"warmup_s": "warm-up", "score_s": f"scoring{tokens}", "train_s": "training"}
    return ", ".join(f"{line[key]:.0f} {second} {word}" for key, word in named.items() if line.get(key))


def sorted_lines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first."""
    return sorted(lines, key=lambda line: -line["value"] if line["higher_is_better"] else line["value"])


def by_task(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Lines by suite and task, best first."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        arrow = "higher is better" if line["higher_is_better"] else "lower is better"
        title = line["suite"] if line["suite"] == line["task"] else f"{line['suite']}: {line['task']}"
        tasks.setdefault(f"{title}, {line['metric']} ({arrow}), {line['items']} items", []).append(line)
    return {title: sorted_lines(some) for title, some in tasks.items()}


def terms(config: CompareConfig) -> str:
    """On what terms the lines are compared, in a sentence."""
    steps = {
        "epochs": f"{config.train.num_train_epochs:g} epoch{'s' * (config.train.num_train_epochs != 1)} each",
        "equal": "as many optimizer steps each as the first random subset of the budget takes",
    }[config.steps]
    return (
        f"Budgets {', '.join(map(str, config.budgets))}; {len(config.seeds)} seeds of draws, warm-up and training; "
        f"the same training for all: {steps}, learning rate {config.train.learning_rate:g}, "
        f"{config.train.global_batch_size} rows a step."
    )


def markdown(lines: list[dict[str, Any]], failed: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The tables as Markdown."""
    parts = [f"# Comparison on {facts.get('data', 'data')}", ""]
    for title, some in by_task(lines).items():
        heads = header(facts, some)
        parts += [f"## {title}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        parts += ["| " + " | ".join(row) + " |" for row in rows_of(some)] + [""]
        parts += [f"{text}\n" for text in tell_headroom(some, facts.get("against", "random"))]
    if facts.get("leaks"):
        heads, rows = leak_rows(facts["leaks"])
        parts += [f"## {LEAKS}", ""]
        if rows:
            parts += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
            parts += ["| " + " | ".join(row) + " |" for row in rows] + [""]
        parts += [f"{text}\n" for text in tell_leaks(facts["leaks"])]
    for text in footer({"note": NOTE, **facts}):
        parts += [text, ""]
    if failed:
        parts += ["Left out:", "", *(f"- {one['cell']}: {one['error']}" for one in failed), ""]
    return "\n".join(parts)
