"""Tables of committed comparisons, for docs/results.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.evaluation.statistics import MIN_SEEDS, judge
from instdiff.experiments.items import read_items
from instdiff.experiments.run_folder import BASE
from instdiff.experiments.summary import BETTER, SAME, WORSE, add_verdicts, summarize
from instdiff.experiments.tables import by_task, difference, interval

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "records"
DOMAINS = ("math", "code", "medical", "general")

Line = dict[str, Any]


def comparison(name: str) -> Line:
    """What ``comparison.json`` of a run holds, as it was committed.

    Its lines are made again from the scores of every item where these were committed, else from the means by seed.
    """
    found: Line = json.loads((RESULTS / f"compare-{name}.json").read_text(encoding="utf-8"))
    items = RESULTS / f"compare-{name}.items.parquet"
    found["lines"] = summarize(read_items(items)[0]) if items.is_file() else rejudged(found["lines"])
    return found


def rejudged(lines: list[Line], against: str = "random") -> list[Line]:
    """Lines with intervals and verdicts by variance components, of comparisons whose items were not kept.

    What items add is the variance of the recorded bootstrap without that of its seeds. Residuals are not known and not
    taken off, so intervals are a little too wide.
    """
    out = []
    for task in dict.fromkeys((line["suite"], line["task"]) for line in lines):
        some = [line for line in lines if (line["suite"], line["task"]) == task]
        control = next(line for line in some if line["name"] == against)
        again = [_rejudge(line, control) for line in some]
        add_verdicts([line for line in again if "diff" in line])
        out += again
    return out


def _rejudge(line: Line, control: Line) -> Line:
    kept = {key: value for key, value in line.items() if key not in ("real", "better")}
    kept |= _judge(line, "value", ("low", "high"), [line], [line["by_seed"]])
    if "diff" in line:
        mine, theirs = np.array(line["by_seed"]), np.array(control["by_seed"])
        # The bootstrap drew the same seeds on both sides where there were as many.
        drawn = [mine - theirs] if len(mine) == len(theirs) else [mine, theirs]
        found = _judge(line, "diff", ("diff_low", "diff_high"), [line, control], drawn)
        kept |= {**found, "diff": line["diff"]}
    return kept


def _judge(line: Line, key: str, ends: tuple[str, str], sides: list[Line], drawn: list[Any]) -> Line:
    low, high = ends
    trained = [side for side in sides if side["name"] != BASE]
    if any(side["seeds"] < MIN_SEEDS for side in trained):
        return {low: None, high: None, "p": None}
    recorded = ((line[high] - line[low]) / (2 * 1.96)) ** 2
    items = max(recorded - sum(np.var(one) / len(one) for one in drawn), 0.0)
    seeds = [(np.var(side["by_seed"], ddof=1) / side["seeds"], side["seeds"]) for side in trained]
    found = judge(np.float64(line[key]), np.float64(items + sum(part for part, _ in seeds)), seeds, line["items"])
    return {low: float(found.low), high: float(found.high), "p": float(found.p)}


def verdict(line: Line) -> str:
    """In a word, against random."""
    return "**better**" if line.get("verdict") == BETTER else str(line.get("verdict", ""))


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])


def one(name: str, tasks: tuple[str, ...] = ()) -> str:
    """Every line of one comparison, best first, a table for each task."""
    parts = []
    for title, lines in by_task(comparison(name)["lines"]).items():
        if tasks and lines[0]["task"] not in tasks:
            continue
        rows = [
            [
                line["name"],
                str(line["seeds"]),
                "" if line["rows"] is None else f"{line['rows']:,}",
                "" if line["tokens"] is None else f"{line['tokens']:,}",
                f"{line['value']:.3f}",
                interval(line),
                difference(line),
                verdict(line),
            ]
            for line in lines
        ]
        heads = ["method", "seeds", "rows", "tokens", "value", "95 % interval", "against random", "verdict"]
        parts += [f"{title[0].upper()}{title[1:]}:", "", table(heads, rows), ""]
    return "\n".join(parts).rstrip()


def changed() -> str:
    """Lines whose verdict was another one when it came from the recorded bootstrap."""
    rows = []
    for path in sorted(RESULTS.glob("compare-*.json")):
        name = path.stem.removeprefix("compare-")
        recorded = {(one["task"], one["name"]): one for one in json.loads(path.read_text(encoding="utf-8"))["lines"]}
        for line in comparison(name)["lines"]:
            old = recorded[line["task"], line["name"]]
            if "real" not in old:
                continue
            word = (BETTER if old["better"] else WORSE) if old["real"] else SAME
            if word != line["verdict"]:
                task = name if line["task"] == "heldout" else f"{name}, {line['task']}"
                rows.append([task, line["name"], word, line["verdict"], difference(line)])
    return table(["comparison", "line", "was", "is", "against random"], rows)


def repeated() -> str:
    """InstructDiff's lines in the domains whose other lines were not repeated, as they were and as they are."""
    rows = []
    for domain in DOMAINS:
        items = RESULTS / f"instructdiff-{domain}.items.parquet"
        if not items.is_file():
            continue
        before = {line["name"]: line for line in comparison(domain)["lines"]}
        for line in summarize(read_items(items)[0]):
            if line["name"].startswith("instructdiff"):
                old = before[line["name"]]
                rows.append([domain, line["name"], difference(old), verdict(old), difference(line), verdict(line)])
    return table(["rows", "line", "was", "", "is", ""], rows)


def chosen(name: str) -> str:
    """What the selections of a comparison consist of."""
    found = comparison(name)["shares"]
    kinds = sorted(found[0]["shares"], key=lambda kind: -found[0]["shares"][kind])
    rows = [[one["name"], *(f"{100 * one['shares'][kind]:.0f} %" for kind in kinds)] for one in found]
    return table(["", *kinds], rows)


def domains() -> str:
    """All methods in all domains: the difference to random, in the task's own unit."""
    there = [name for name in DOMAINS if (RESULTS / f"compare-{name}.json").is_file()]
    found = {name: {line["name"]: line for line in comparison(name)["lines"]} for name in there}
    names = list(dict.fromkeys(name for lines in found.values() for name in lines))

    def cell(line: Line | None) -> str:
        if line is None:
            return "failed"
        if line.get("diff") is None:
            return f"{line['value']:.3f} ({line['low']:.3f} to {line['high']:.3f})"
        mark = "" if line["verdict"] == SAME else f" {verdict(line)}"
        return f"{line['diff']:+.3f}{mark}"

    def mean(name: str) -> float:
        gaps = [lines[name].get("diff") or 0.0 for lines in found.values() if name in lines]
        return sum(gaps) / len(gaps)

    ordered = sorted(names, key=lambda name: (name != "random", mean(name)))
    rows = [
        [name, *(cell(found[domain].get(name)) for domain in there), "" if name == "random" else f"{mean(name):+.3f}"]
        for name in ordered
    ]
    return table(["method", *there, "mean"], rows)
