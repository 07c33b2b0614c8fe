"""What ``explain`` and ``diff`` found, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instdiff.cli.console import table
from instdiff.core.display import in_one_line, visible

TEXT = 1200
"""Characters of a turn that are shown."""


def explanation_text(facts: Mapping[str, Any]) -> str:
    """One row."""
    tokens = "" if facts["n_tokens"] is None else f", {facts['n_tokens']:,} response tokens"
    cut = ", cut at the length limit" if facts["truncated"] else ""
    parts = [f"row {facts['row']:,}, id {facts['id']}{tokens}{cut}"]
    if facts["copies"]:
        copies = ", ".join(map(str, facts["copies"][:10]))
        parts.append(f"rows {copies}{' …' if len(facts['copies']) > 10 else ''} say exactly the same")
    parts += ["", *(_turn(turn) for turn in facts["turns"])]
    if "selection" in facts:
        parts += ["", f"selection: {facts['selection']['reason']}"]
    for name, method in facts["methods"].items():
        parts += ["", f"{name}: {_place(method)}", *(f"  - {sentence}" for sentence in method["reasons"])]
        rows = [[key, d["value"], d["rank"], d["of"], _share(d["above"])] for key, d in method["details"].items()]
        if rows:
            header = ["detail", "value", "rank from the highest", "of", "higher than"]
            parts += [f"  {line}" for line in table(header, rows).splitlines()]
    if facts["lacking"]:
        parts += ["", *(f"tokens: {reason}" for reason in facts["lacking"])]
    if "to_see_tokens" in facts:
        parts.append(f"to see tokens with their values: give --store DIR, or run\n  {facts['to_see_tokens']}")
    return "\n".join(parts)


def _turn(turn: Mapping[str, str]) -> str:
    text = turn["content"] + (f"\n{turn['input']}" if turn.get("input") else "")
    shown = visible(text[:TEXT]) + (f" … ({len(text) - TEXT:,} more characters)" if len(text) > TEXT else "")
    return f"[{turn['role']}] {shown}"


def _place(method: Mapping[str, Any]) -> str:
    if method["value"] is None:
        return f"no score, {method['why']}; {method['of']:,} rows have one"
    return (
        f"{method['value']:.6g}, rank {method['rank']:,} of {method['of']:,}, "
        f"higher than {_share(method['above'])} of the rows that have a score"
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def differing(facts: Mapping[str, Any]) -> str:
    """Two selections."""
    about = [[side.upper(), facts[side]["name"], facts[side]["rows"], _by(facts[side])] for side in ("a", "b")]
    parts = [table(["", "selection", "rows", "by"], about), ""]
    chance = ""
    if "shared_by_chance" in facts:
        chance = f"; two random selections of these sizes would share {facts['shared_by_chance']:,.1f}"
    parts.append(f"shared {facts['shared']:,}, only in A {facts['only_a']:,}, only in B {facts['only_b']:,}{chance}")
    parts.append(f"Jaccard {facts['jaccard']:.3f}, overlap coefficient {facts['overlap']:.3f}")
    if facts.get("other_data"):
        parts.append("they are selections of different data")
    for name, spread in {**facts["lengths"], **facts["scores"]}.items():
        parts += ["", _quantiles(name, spread)]
    if "groups" in facts:
        groups = facts["groups"]
        names = ["A", "B", "shared", "only A", "only B"]
        rows = [[in_one_line(row["value"], 60), *(row[part] for part in names)] for row in groups["rows"]]
        parts += ["", table([groups["by"], *names], rows)]
        parts += [f"and {groups['more']:,} more values"] if groups["more"] else []
    for name, rows in facts["examples"].items():
        parts += ["", f"{name}:", *(f"  {_example(row)}" for row in rows)] if rows else []
    return "\n".join(parts)


def _by(side: Mapping[str, Any]) -> str:
    return f"{side['method']} within {side.get('budget')}" if "method" in side else "-"


def _quantiles(name: str, spread: Mapping[str, Mapping[str, Any]]) -> str:
    header = [name, *next(iter(spread.values()))]
    return table(header, [[part, *values.values()] for part, values in spread.items()])


def _example(row: Mapping[str, Any]) -> str:
    number = f"row {row['row']:,}, " if "row" in row else ""
    scores = "".join(f", {name} {value:.4g}" for name, value in row.get("scores", {}).items())
    text = f": {row['instruction']}  →  {row['response']}" if "instruction" in row else ""
    return f"{number}{row['id'][:12]}{scores}{text}"
