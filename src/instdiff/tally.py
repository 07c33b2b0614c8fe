"""What a comparison found: a line per method, budget and task, with intervals and which differences are real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.artifact import read_json, write_json, writing
from instdiff.comparison import BASE, Cell, Outcome
from instdiff.core import Floats
from instdiff.data import Pool
from instdiff.results import TaskResult
from instdiff.stats import bootstrap_over_seeds, difference, holm

DRAWS = 4000
LEVEL = 0.05
NOTE = (
    "Intervals are 95 % percentile intervals of a bootstrap over evaluation items (the same for all lines) and seeds. "
    "A difference is real when its two-sided bootstrap test holds at 5 % after Holm's correction over the lines of the "
    "task and budget. Few seeds make intervals too narrow rather than too wide."
)


@dataclass(frozen=True)
class Sample:
    """A task's scores of one line: [seeds, items], in the order of ``ids``; items that one seed lacks are left out."""

    task: TaskResult
    ids: list[str]
    score: Floats
    weight: Floats

    @property
    def value(self) -> float:
        """The mean over seeds of the weighted mean over items."""
        return float((self.score @ self.weight).mean() / self.weight.sum())

    def only(self, ids: Sequence[str]) -> Sample:
        """The same for some of the items."""
        at = {name: place for place, name in enumerate(self.ids)}
        places = [at[name] for name in ids]
        return Sample(self.task, list(ids), self.score[:, places], self.weight[places])

    def draws(self) -> Floats:
        """Bootstrap means."""
        return bootstrap_over_seeds(self.score, self.weight, draws=DRAWS)


def sample(results: Sequence[TaskResult]) -> Sample:
    """One task's results of several seeds."""
    found = [
        dict(zip(result.ids, zip(result.score.tolist(), result.weights.tolist(), strict=True), strict=True))
        for result in results
    ]
    ids = [name for name in found[0] if all(np.isfinite(one.get(name, (np.nan, 0))[0]) for one in found)]
    score = np.array([[one[name][0] for name in ids] for one in found], np.float64).reshape(len(found), len(ids))
    weight = np.array([found[0][name][1] for name in ids], np.float64)
    return Sample(results[0], ids, score, weight)


def tally(outcomes: Iterable[Outcome], against: str = "random") -> list[dict[str, Any]]:
    """The lines of a comparison: the values of every method at every budget in every task.

    Differences are to ``against`` at the same budget (for the base and lines with a budget of their own: at the first),
    in the task's own unit; ``better`` says whether a real one is for the better.
    """
    good = [one for one in outcomes if one.error is None]
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for one in good:
        groups.setdefault((one.cell.line, one.cell.budget), []).append(one)
    lines = list[dict[str, Any]]()
    for suite, name in dict.fromkeys((r.suite, t.name) for one in good for r in one.results for t in r.tasks):
        samples = {}
        for key, members in groups.items():
            found = [t for one in members for r in one.results if r.suite == suite for t in r.tasks if t.name == name]
            if found and (made := sample(found)).ids:
                samples[key] = made
        lines += _task_lines(suite, name, samples, groups, against)
    return lines


def _task_lines(
    suite: str,
    task: str,
    samples: dict[tuple[str, str], Sample],
    groups: dict[tuple[str, str], list[Outcome]],
    against: str,
) -> list[dict[str, Any]]:
    controls = {budget: one for (line, budget), one in samples.items() if line == against}
    lines, tests = list[dict[str, Any]](), dict[str, list[tuple[int, float]]]()
    for (line, budget), one in samples.items():
        low, high = np.quantile(one.draws(), [LEVEL / 2, 1 - LEVEL / 2])
        told = {
            "name": line, "budget": budget or None, "suite": suite, "task": task, "metric": one.task.metric,
            "higher_is_better": one.task.higher_is_better, "seeds": len(one.score), "items": len(one.ids),
            **_facts(groups[line, budget]), "value": one.value, "low": float(low), "high": float(high),
            "by_seed": (one.score @ one.weight / one.weight.sum()).tolist(),
        }  # fmt: skip
        control = controls.get(budget) or next(iter(controls.values()), None)
        gap = _difference(one, control) if control is not None and line != against else None
        if gap is not None:
            told |= gap
            place = budget if budget in controls else next(iter(controls))
            tests.setdefault(place, []).append((len(lines), told["p"]))
        lines.append(told)
    for found in tests.values():
        for (at, _), real in zip(found, holm([p for _, p in found], LEVEL), strict=True):
            up = lines[at]["diff"] > 0
            lines[at] |= {"real": real, "better": real and up == lines[at]["higher_is_better"]}
    return lines


def _difference(one: Sample, control: Sample) -> dict[str, Any] | None:
    """Over the items that both have; None where there are none, which is no difference of zero."""
    known = set(control.ids)
    both = [name for name in one.ids if name in known]
    if not both:
        return None
    mine, theirs = one.only(both), control.only(both)
    # The same items and, where there are as many, the same seeds are drawn on both sides.
    found = difference(mine.value - theirs.value, mine.draws() - theirs.draws(), level=1 - LEVEL)
    return {"diff": found.value, "diff_low": found.low, "diff_high": found.high, "p": found.p}


def _facts(members: list[Outcome]) -> dict[str, Any]:
    """What a line's cells have in common, as means over seeds."""
    told = {}
    for key in ("rows", "tokens", "steps", "score_tokens", "score_s", "train_tokens", "train_s"):
        values = [one.facts[key] for one in members if one.facts.get(key) is not None]
        told[key] = float(np.mean(values)) if values else None
    return {key: round(value) if value is not None and key[-2:] != "_s" else value for key, value in told.items()}


def overlaps(folder: Path, cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """How much the selections of two lines at one budget share: Jaccard, and recall of the second by the first.

    Means over the seeds that both have.
    """
    chosen: dict[tuple[str, int | None], dict[str, set[str]]] = {}
    for cell in cells:
        path = folder / "cells" / cell.place / "selection.json"
        if path.is_file():
            chosen.setdefault((cell.budget, cell.seed), {})[cell.line] = set(read_json(path)["ids"])
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for (budget, _), sets in chosen.items():
        names = list(sets)
        for place, a in enumerate(names):
            for b in names[place + 1 :]:
                both = len(sets[a] & sets[b])
                pair = both / len(sets[a] | sets[b]), both / len(sets[b])
                found.setdefault((budget, a, b), []).append(pair)
    return [
        {
            "budget": budget,
            "a": a,
            "b": b,
            "jaccard": float(np.mean(pairs, 0)[0]),
            "recall": float(np.mean(pairs, 0)[1]),
        }
        for (budget, a, b), pairs in found.items()
    ]


def shares(folder: Path, cells: Iterable[Cell], pool: Pool, column: str) -> list[dict[str, Any]]:
    """Of which groups the selections are: of each line the share of its rows by a column's value, and of the pool.

    Means over seeds.

    Raises:
        DataError: there is no such column.
    """
    values = ["null" if value is None else str(value) for value in pool.column(column)]
    by_row = dict(zip(pool.rows.tolist(), values, strict=True))
    found: dict[tuple[str, str], list[Counter[str]]] = {("", ""): [Counter(values)]}
    for cell in cells:
        path = folder / "cells" / cell.place / "selection.json"
        if path.is_file():
            counted = Counter(by_row[row] for row in read_json(path)["rows"])
            found.setdefault((cell.line, cell.budget), []).append(counted)
    names = sorted(set(values))
    return [
        {
            "name": line or "all rows",
            "budget": budget or None,
            "shares": {name: float(np.mean([c[name] / c.total() for c in counts])) for name in names},
        }
        for (line, budget), counts in found.items()
    ]


def write_tally(
    folder: Path, outcomes: list[Outcome], lines: list[dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write ``comparison.json`` and ``comparison.md``; returns what the former holds."""
    failed = [{"cell": str(one.cell), "error": one.error} for one in outcomes if one.error is not None]
    shared = overlaps(folder, [one.cell for one in outcomes if one.cell.line != BASE])
    found = {**facts, "note": NOTE, "lines": lines, "overlaps": shared, "failed": failed}
    write_json(folder / "comparison.json", found)
    with writing(folder / "comparison.md") as aside:
        aside.write_text(markdown(lines, failed, facts), encoding="utf-8")
    return found


def rows_of(lines: list[dict[str, Any]]) -> list[list[str]]:
    """The cells of a table, as texts: without the task, which all have in common."""
    out = []
    for line in lines:
        gap = [line.get(key) for key in ("diff", "diff_low", "diff_high")]
        verdict = (
            "" if gap[0] is None else ("better" if line["better"] else "worse") if line["real"] else "not told apart"
        )
        out.append(
            [
                line["name"],
                line["budget"] or "",
                str(line["seeds"]),
                _count(line["rows"]),
                _count(line["tokens"]),
                f"{line['value']:.3f}",
                f"{line['low']:.3f} to {line['high']:.3f}",
                "" if gap[0] is None else f"{gap[0]:+.3f} [{gap[1]:+.3f}, {gap[2]:+.3f}]",
                verdict,
                _seconds(line),
            ]
        )
    return out


HEADER = ["method", "budget", "seeds", "rows", "tokens", "value", "95 % interval", "against random", "verdict", "cost"]


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _seconds(line: dict[str, Any]) -> str:
    parts = [
        f"{line[key]:.0f} s {word}" for key, word in (("score_s", "scoring"), ("train_s", "training")) if line[key]
    ]
    return ", ".join(parts)


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
    return {title: sorted_lines(found) for title, found in tasks.items()}


def markdown(lines: list[dict[str, Any]], failed: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The tables as Markdown."""
    parts = [f"# Comparison on {facts.get('data', 'data')}", "", facts.get("terms", ""), ""]
    for title, found in by_task(lines).items():
        parts += [f"## {title}", "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        parts += ["| " + " | ".join(row) + " |" for row in rows_of(found)] + [""]
    parts += [NOTE, ""]
    if failed:
        parts += ["Left out:", "", *(f"- {one['cell']}: {one['error']}" for one in failed), ""]
    return "\n".join(parts)
