"""How much of a line's gain lies on items that its own selection says nearly word for word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from instdiff.core import Log
from instdiff.data import Pool
from instdiff.errors import InstDiffError
from instdiff.evaluation.leakage import LeakRule, find_overlaps
from instdiff.evaluation.subject import BenchmarkItem, Suite
from instdiff.experiments.run_folder import CellResult
from instdiff.experiments.summary import TaskScores, add_verdicts, control_of, difference_of, task_samples
from instdiff.rendering.texts import words
from instdiff.selection.record import places

Chosen = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""By line and budget the records of its selections, one for each seed."""
Task = tuple[str, str]
"""Suite and task."""
Hit = dict[Task, tuple[set[str], float]]
"""By task the items that a line's rows overlap, and how many rows do, as a mean over seeds."""

_NOTHING: tuple[set[str], float] = (set(), 0.0)


def find_leaks(
    pool: Pool, suites: Sequence[Suite], chosen: Chosen, outcomes: Sequence[CellResult], log: Log
) -> dict[str, Any] | None:
    """What the selections of each line have in common with the items, and its results with and without these.

    None where the items cannot be read, of which the log is told. ``lines`` has a part for each line, budget and task;
    ``diff_on`` is the part of the difference to the control that lies on items which the line's rows or the control's
    overlap, and ``diff_without`` the difference on all others, with intervals and verdicts as of the comparison.
    """
    try:
        items = [(suite.name, item) for suite in suites for item in suite.items(lambda line: None)]
    except InstDiffError as error:
        log(f"warning: whether rows overlap the items of the suites is not known: {error}")
        return None
    rule = LeakRule()
    hit, too_short = _overlaps(pool, items, chosen, rule)
    good = [one for one in outcomes if one.error is None]
    against, lines = control_of(good), list[dict[str, Any]]()
    for suite, task, samples, _ in task_samples(good):
        lines += _task_lines(suite, task, samples, hit, against)
    counts = {"items": len(items), "too_short": too_short}
    return {"rule": asdict(rule), **counts, "against": against, "lines": lines}


def _overlaps(
    pool: Pool, items: Sequence[tuple[str, BenchmarkItem]], chosen: Chosen, rule: LeakRule
) -> tuple[dict[tuple[str, str], Hit], int]:
    """What the rows of each line and budget overlap; and how many items are too short."""
    selected = {key: [places(pool, one["ids"], one["rows"]) for one in records] for key, records in chosen.items()}
    every = np.unique(np.concatenate([at for some in selected.values() for at in some] or [np.zeros(0, np.int64)]))
    texts = (words(one, "instruction", pool.turns) for one in pool.take(every).samples())
    # The same task in two suites is two tasks.
    named = [replace(item, task=f"{suite} {item.task}") for suite, item in items]
    found = find_overlaps(texts, named, rule)
    of_row: dict[int, list[tuple[Task, str]]] = {}
    for one in found.pairs:
        suite, item = items[one.item]
        of_row.setdefault(int(every[one.row]), []).append(((suite, item.task), item.id))
    hit: dict[tuple[str, str], Hit] = {}
    for key, some in selected.items():
        ids, rows = dict[Task, set[str]](), Counter[Task]()
        for row in (row for at in some for row in at.tolist() if row in of_row):
            rows.update({task for task, _ in of_row[row]})
            for task, name in of_row[row]:
                ids.setdefault(task, set()).add(name)
        hit[key] = {task: (names, rows[task] / len(some)) for task, names in ids.items()}
    return hit, int(found.too_short.sum())


def _task_lines(
    suite: str,
    task: str,
    samples: Mapping[tuple[str, str], TaskScores],
    hit: Mapping[tuple[str, str], Hit],
    against: str,
) -> list[dict[str, Any]]:
    """The lines of a task; the verdicts without items that overlap are corrected over those of a budget."""
    controls = {budget: one for (line, budget), one in samples.items() if line == against}
    lines, families = list[dict[str, Any]](), dict[str, list[dict[str, Any]]]()
    for (line, budget), one in samples.items():
        if (line, budget) not in hit:
            continue
        own = budget if budget in controls else next(iter(controls), "")
        mine, rows = hit[line, budget].get((suite, task), _NOTHING)
        known = mine | hit.get((against, own), {}).get((suite, task), _NOTHING)[0]
        facts: dict[str, Any] = {
            **{"name": line, "budget": budget or None, "suite": suite, "task": task, "metric": one.task.metric},
            "higher_is_better": one.task.higher_is_better,
            "rows": rows,
            "items": len(one.ids),
            "items_hit": len(known & {*one.ids}),
            **_values(one, known),
        }
        if line != against and own in controls:
            facts |= _differences(line, one, against, controls[own], known)
            if "p" in facts:
                families.setdefault(own, []).append(facts)
        lines.append(facts)
    for family in families.values():
        judged = [{"diff": one["diff_without"], **{k: one[k] for k in ("p", "higher_is_better")}} for one in family]
        add_verdicts(judged)
        for facts, told in zip(family, judged, strict=True):
            facts["verdict_without"] = told["verdict"]
    return lines


def _values(one: TaskScores, known: set[str]) -> dict[str, float | None]:
    """The value of a line, on the items that overlap, and on all others."""
    hit, rest = [name for name in one.ids if name in known], [name for name in one.ids if name not in known]
    parts = {"value_on": hit, "value_without": rest}
    return {"value": one.value, **{key: one.only(ids).value if ids else None for key, ids in parts.items()}}


def _differences(
    line: str, one: TaskScores, against: str, control: TaskScores, known: set[str]
) -> dict[str, float | None]:
    """The difference to the control, its part on items that overlap, and the difference on all others.

    The part is that of the mean over all items: the difference is its sum with the part of the others.
    """
    rest = [name for name in one.ids if name not in known]
    sides = [_masked(side, known) for side in (one, control)]
    found: dict[str, float | None] = {}
    for suffix, gap in (
        ("", difference_of(line, one, against, control)),
        ("_on", difference_of(line, sides[0], against, sides[1])),
        ("_without", difference_of(line, one.only(rest), against, control) if rest else None),
    ):
        if gap is not None:
            found |= {f"diff{suffix}{end}": gap[f"diff{end}"] for end in ("", "_low", "_high")}
            found |= {"p": gap["p"]} if suffix == "_without" else {}
    return found


def _masked(one: TaskScores, known: set[str]) -> TaskScores:
    """With a score of 0 on items that do not overlap."""
    return replace(one, score=one.score * np.array([name in known for name in one.ids], np.float64))
