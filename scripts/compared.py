"""Tables of committed comparisons, for docs/results.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instdiff.experiments.tables import by_task

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "records"
DOMAINS = ("math", "code", "medical", "general")

Line = dict[str, Any]


def comparison(name: str) -> Line:
    """What ``comparison.json`` of a run holds, as it was committed."""
    found: Line = json.loads((RESULTS / f"compare-{name}.json").read_text(encoding="utf-8"))
    return found


def verdict(line: Line) -> str:
    """In a word, against random."""
    if line.get("diff") is None:
        return ""
    return ("**better**" if line["better"] else "worse") if line["real"] else "not told apart"


def gap(line: Line) -> str:
    """The difference to random with its interval."""
    if line.get("diff") is None:
        return ""
    return f"{line['diff']:+.3f} [{line['diff_low']:+.3f}, {line['diff_high']:+.3f}]"


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
                f"{line['low']:.3f} to {line['high']:.3f}",
                gap(line),
                verdict(line),
            ]
            for line in lines
        ]
        heads = ["method", "seeds", "rows", "tokens", "value", "95 % interval", "against random", "verdict"]
        parts += [f"{title[0].upper()}{title[1:]}:", "", table(heads, rows), ""]
    return "\n".join(parts).rstrip()


SHOWN = {
    "oracle": "oracle (reads the labels)", "full": "all rows (ten times the tokens)",
    "perplexity_mid": "perplexity, middle", "tshirt": "tshirt", "entropy_max": "entropy, highest", "ifd": "ifd",
    "instructdiff": "instructdiff", "random": "random", "miwv": "miwv", "longest": "longest",
}  # fmt: skip
"""Lines of the README's table."""


def few(name: str, task: str) -> str:
    """Some lines of one task of a comparison, best first."""
    lines = [line for line in comparison(name)["lines"] if line["task"] == task and line["name"] in SHOWN]
    rows = [
        [SHOWN[line["name"]], f"{line['value']:.2f}", f"{line['low']:.2f} to {line['high']:.2f}",
         verdict(line).replace("*", "")]
        for line in sorted(lines, key=lambda line: -line["value"])
    ]  # fmt: skip
    return table(["method", "new skills", "95 % interval", "against random"], rows)


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
        mark = "" if not line["real"] else " **better**" if line["better"] else " worse"
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
