"""What a comparison found: a line per method, budget and task, with intervals and which differences are real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.core import Floats, Log, Settings
from instdiff.core.files import read_whole, write_record
from instdiff.data import Pool
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.statistics import Estimate, estimate, holm, ratio
from instdiff.experiments.run_folder import BASE, Cell, CellResult, ComparisonFolder, RunFolder
from instdiff.methods import METHODS
from instdiff.selection.record import read_selection

LEVEL = 0.05
BETTER, WORSE, SAME, FEW = "better", "worse", "not told apart", "too few seeds"
"""The words of a verdict."""
NOTE = (
    "Intervals are 95 % t intervals; their variance has a part for evaluation items (the same for all lines, paired) "
    "and a part for the seeds of each line. A line is better or worse when its two-sided test holds at 5 % after "
    "Holm's correction over the lines of the task and budget that have a verdict. With fewer than three seeds on "
    "either side there is no interval and no verdict. The untrained base is no sample of seeds; the other side still "
    "needs three."
)
LEAST_ROOM = 4.0
"""Standard errors that the headroom must have, so that a share of it can be told."""
COSTS = {
    "GPU seconds": "Cost is in GPU seconds: seconds by the clock, times the GPUs that were held.",
    "CPU seconds": "Cost is in seconds by the clock of a machine that computed on its CPU.",
}
"""What cost is counted in."""


@dataclass(frozen=True)
class TaskScores:
    """A task's scores of one line: [seeds, items], in the order of ``ids``; items that one seed lacks are left out."""

    task: TaskResult
    ids: list[str]
    score: Floats
    weight: Floats

    @property
    def value(self) -> float:
        """The mean over seeds of the weighted mean over items."""
        return float((self.score @ self.weight).mean() / self.weight.sum())

    @property
    def by_seed(self) -> list[float]:
        """Of each seed the weighted mean over items."""
        values: list[float] = (self.score @ self.weight / self.weight.sum()).tolist()
        return values

    def only(self, ids: Sequence[str]) -> TaskScores:
        """The same for some of the items."""
        at = {name: place for place, name in enumerate(self.ids)}
        places = [at[name] for name in ids]
        return TaskScores(self.task, list(ids), self.score[:, places], self.weight[places])

    def estimate(self, line: str, control: TaskScores | None = None, against: str = "") -> Estimate:
        """The value of a line, or its difference to a control with the same items."""
        other = None if control is None else control.score
        return estimate(self.score, self.weight, other, fixed=line == BASE, fixed_against=against == BASE)


def sample(results: Sequence[TaskResult]) -> TaskScores:
    """One task's results of several seeds."""
    items = [
        dict(zip(result.ids, zip(result.score.tolist(), result.weights.tolist(), strict=True), strict=True))
        for result in results
    ]
    ids = [name for name in items[0] if all(np.isfinite(one.get(name, (np.nan, 0))[0]) for one in items)]
    score = np.array([[one[name][0] for name in ids] for one in items], np.float64).reshape(len(items), len(ids))
    weight = np.array([items[0][name][1] for name in ids], np.float64)
    return TaskScores(results[0], ids, score, weight)


def control_of(outcomes: Iterable[CellResult]) -> str:
    """What lines are compared with: random rows where there are any, else the base."""
    return "random" if any(one.cell.line == "random" for one in outcomes if one.error is None) else BASE


def summarize(
    outcomes: Sequence[CellResult], against: str | None = None, oracles: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The lines of a comparison: the values of every method at every budget in every task.

    Differences are to ``against`` (by default ``control_of`` the outcomes) at the same budget (for the base and lines
    with a budget of their own: at the first), in the task's own unit; ``verdict`` is what they come to, in a word.
    The first of the ``oracles`` that is there says what there is to gain: see ``add_shares``.
    """
    good = [one for one in outcomes if one.error is None]
    against = against or control_of(good)
    lines = list[dict[str, Any]]()
    for suite, name, samples, groups in task_samples(good):
        found = _task_lines(suite, name, samples, groups, against)
        if oracle := next((line for line in oracles if line in {key[0] for key in samples}), None):
            add_shares(found, samples, against, oracle)
        lines += found
    return lines


Groups = dict[tuple[str, str], list[CellResult]]
"""Cells by line and budget."""


def task_samples(good: Sequence[CellResult]) -> Iterator[tuple[str, str, dict[tuple[str, str], TaskScores], Groups]]:
    """Suite and task, the scores of each line and budget that has any, and the cells of all."""
    groups: Groups = {}
    for one in good:
        groups.setdefault((one.cell.line, one.cell.budget), []).append(one)
    for suite, name in dict.fromkeys((r.suite, t.name) for one in good for r in one.results for t in r.tasks):
        samples = {}
        for key, members in groups.items():
            some = [t for one in members for r in one.results if r.suite == suite for t in r.tasks if t.name == name]
            if some and (scores := sample(some)).ids:
                samples[key] = scores
        yield suite, name, samples, groups


def _task_lines(
    suite: str,
    task: str,
    samples: dict[tuple[str, str], TaskScores],
    groups: dict[tuple[str, str], list[CellResult]],
    against: str,
) -> list[dict[str, Any]]:
    controls = {budget: one for (line, budget), one in samples.items() if line == against}
    lines, families = list[dict[str, Any]](), dict[str, list[dict[str, Any]]]()
    for (line, budget), one in samples.items():
        own = one.estimate(line)
        facts = {
            "name": line,
            "budget": budget or None,
            "suite": suite,
            "task": task,
            "metric": one.task.metric,
            "higher_is_better": one.task.higher_is_better,
            "seeds": len(one.score),
            "items": len(one.ids),
            **_facts(groups[line, budget]),
            "value": one.value,
            "low": _known(own.low),
            "high": _known(own.high),
            "by_seed": one.by_seed,
        }
        control = controls.get(budget) or next(iter(controls.values()), None)
        gap = difference_of(line, one, against, control) if control is not None and line != against else None
        if gap is not None:
            facts |= gap
            families.setdefault(budget if budget in controls else next(iter(controls)), []).append(facts)
        lines.append(facts)
    for family in families.values():
        add_verdicts(family)
    return lines


def is_control(name: str) -> bool:
    """Whether a line is there to be compared with: the base model, all rows, random ones, the oracle."""
    return name == BASE or (name in METHODS and METHODS[name].paper == "control")


def lower_is_better(line: Mapping[str, Any]) -> bool:
    """Whether a line's metric is a loss; by its name where nothing is said."""
    said = line.get("higher_is_better")
    metric = str(line.get("metric", "value")).lower()
    return any(word in metric for word in ("nll", "loss", "perplexity")) if said is None else not said


def selections(lines: Sequence[dict[str, Any]], oracles: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The lines of the first task that have a verdict on a selection, the one that did best first."""
    order = (BETTER, SAME, FEW, WORSE)
    task = [(line.get("suite"), line.get("task"), line.get("metric")) for line in lines]
    mine = [line for line, of in zip(lines, task, strict=True) if of == task[0]]
    aside = {line["name"] for line in mine if is_control(str(line["name"]))} | {*oracles}
    found = [line for line in mine if line.get("verdict") in order and line["name"] not in aside]
    return sorted(found, key=lambda one: (order.index(one["verdict"]), -gain(one)))


def gain(line: Mapping[str, Any]) -> float:
    """By how much a line is better than its control, in the unit of its task."""
    difference = float(line.get("diff") or 0.0)
    return -difference if lower_is_better(line) else difference


def add_verdicts(family: Sequence[dict[str, Any]]) -> None:
    """Add to lines that are compared with one control the word that their difference comes to.

    A line without ``p`` has too few seeds, and stays out of Holm's family.
    """
    tested = [line for line in family if line["p"] is not None]
    for line in family:
        line["verdict"] = FEW
    for line, real in zip(tested, holm([line["p"] for line in tested], LEVEL), strict=True):
        up = (line["diff"] > 0) == line["higher_is_better"]
        line["verdict"] = (BETTER if up else WORSE) if real else SAME


def add_shares(
    lines: Sequence[dict[str, Any]], samples: Mapping[tuple[str, str], TaskScores], against: str, oracle: str
) -> None:
    """Add to the lines of a task which share of the headroom each has, with an interval where it is bounded.

    The headroom is the difference of the oracle to the control at the line's budget; for lines with a budget of their
    own, at the oracle's first. The oracle's line gets ``room``, this difference in standard errors, above zero where
    the oracle is better; None with too few seeds. Below ``LEAST_ROOM`` no line has a share.
    """
    first = next(budget for line, budget in samples if line == oracle)
    for line in lines:
        name, own = line["name"], line["budget"] or ""
        budget = own if {(oracle, own), (against, own)} <= samples.keys() else first
        if line.get("diff") is None or (against, budget) not in samples:
            continue
        best, control = samples[oracle, budget], samples[against, budget]
        common = {*control.ids} & {*samples[name, own].ids}
        if not (ids := [one for one in best.ids if one in common]):
            continue
        mine, best, control = (one.only(ids) for one in (samples[name, own], best, control))
        whole = best.estimate(oracle, control, against)
        room = _known((1 if line["higher_is_better"] else -1) * whole.value / whole.error)
        if name == oracle:
            line["room"] = room
        elif room is None or room < LEAST_ROOM:
            line["share"] = None
        else:
            part, between = mine.estimate(name, control, against), mine.estimate(name, best, oracle)
            found = ratio(part, whole, between)
            line |= {"share": found.value, "share_low": _known(found.low), "share_high": _known(found.high)}


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def difference_of(line: str, one: TaskScores, against: str, control: TaskScores) -> dict[str, Any] | None:
    """Over the items that both have; None where there are none, which is no difference of zero."""
    known = set(control.ids)
    both = [name for name in one.ids if name in known]
    if not both:
        return None
    gap = one.only(both).estimate(line, control.only(both), against)
    return {
        "diff": float(gap.value),
        "diff_low": _known(gap.low),
        "diff_high": _known(gap.high),
        "p": _known(gap.p),
        "unpaired": len(one.ids) + len(control.ids) - 2 * len(both),
    }


def _facts(members: list[CellResult]) -> dict[str, Any]:
    """What a line's cells have in common, as means over seeds."""
    means = {}
    for key in ("rows", "tokens", "steps", "score_tokens", "warmup_s", "score_s", "train_tokens", "train_s"):
        values = [one.facts[key] for one in members if one.facts.get(key) is not None]
        means[key] = float(np.mean(values)) if values else None
    known = {key: round(value) if value is not None and key[-2:] != "_s" else value for key, value in means.items()}
    return {**known, "cost_unit": cost_unit(one.facts for one in members)}


def cost_unit(facts: Iterable[Mapping[str, Any]]) -> str | None:
    """What the cost of cells is counted in; both units where a run went on with another device."""
    return " and ".join(sorted({str(one["cost_unit"]) for one in facts if one.get("cost_unit")})) or None


def record_cost(folder: Path, costs: Mapping[str, Any], seconds: float, warmups: Mapping[str, float], log: Log) -> None:
    """Keep what the methods of a scoring cost alone, how fast it went, and what their warm-up cost."""
    run = RunFolder(folder)
    known = {"methods": {}, "tokens": 0, "seconds": 0.0, **(read_whole(run.cost, log) or {})}
    known["methods"] |= costs["alone"]["methods"]
    known["warmup_s"] = {**known.get("warmup_s", {}), **warmups}
    done = costs["total"]["todo_tokens"]
    if done:
        known["tokens"] += done
        known["seconds"] = round(known["seconds"] + seconds, 2)
    write_record(run.cost, known)


def cost(folder: Path, line: str, rounds: int, settings: Settings, log: Log) -> dict[str, Any]:
    """What choosing by a line's method costs, and in what that is counted."""
    unit, held = devices(settings)
    known = read_whole(RunFolder(folder).cost, log) or {}
    if line not in known.get("methods", {}):
        return {"cost_unit": unit}
    speed = known["tokens"] / (known["seconds"] * held) if known["seconds"] else None
    tokens = known["methods"][line]["tokens"] * rounds
    spent = round(tokens / speed, 2) if speed else None
    return {
        "cost_unit": unit,
        "score_tokens": tokens,
        "score_s": spent,
        "warmup_s": known.get("warmup_s", {}).get(line),
    }


def devices(settings: Settings) -> tuple[str, int]:
    """What cost is counted in, and how many devices a scoring holds."""
    import torch

    from instdiff.engine.models import pick_device

    device = pick_device(settings.device)
    if device.type == "cpu":
        return "CPU seconds", 1
    if settings.gpus_per_worker is not None:  # of a cluster
        return "GPU seconds", settings.gpus_per_worker * (settings.workers or 1)
    there = torch.cuda.device_count() if device.type == "cuda" and settings.device in ("auto", "cuda") else 1
    return "GPU seconds", min(settings.workers or there, there)


def overlaps(folder: Path, cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """How much the selections of two lines at one budget share: Jaccard, and recall of the second by the first.

    Means over the seeds that both have.
    """
    chosen: dict[tuple[str, int | None], dict[str, set[str]]] = {}
    for cell in cells:
        record = read_selection(ComparisonFolder(folder).cell(cell))
        if record is not None:
            chosen.setdefault((cell.budget, cell.seed), {})[cell.line] = set(record["ids"])
    pairs: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for (budget, _), sets in chosen.items():
        names = list(sets)
        for place, a in enumerate(names):
            for b in names[place + 1 :]:
                both = len(sets[a] & sets[b])
                pairs.setdefault((budget, a, b), []).append((both / len(sets[a] | sets[b]), both / len(sets[b])))
    return [
        {
            "budget": budget,
            "a": a,
            "b": b,
            "jaccard": float(np.mean(shared, 0)[0]),
            "recall": float(np.mean(shared, 0)[1]),
        }
        for (budget, a, b), shared in pairs.items()
    ]


def shares(folder: Path, cells: Iterable[Cell], pool: Pool, column: str) -> list[dict[str, Any]]:
    """Of which groups the selections are: of each line the share of its rows by a column's value, and of the pool.

    Means over seeds. Raises a DataError where there is no such column.
    """
    values = ["null" if value is None else str(value) for value in pool.column(column)]
    by_row = dict(zip(pool.rows.tolist(), values, strict=True))
    counters: dict[tuple[str, str], list[Counter[str]]] = {("", ""): [Counter(values)]}
    for cell in cells:
        record = read_selection(ComparisonFolder(folder).cell(cell))
        if record is not None:
            counters.setdefault((cell.line, cell.budget), []).append(Counter(by_row[row] for row in record["rows"]))
    names = sorted(set(values))
    return [
        {
            "name": line or "all rows",
            "budget": budget or None,
            "shares": {name: float(np.mean([c[name] / c.total() for c in counts])) for name in names},
        }
        for (line, budget), counts in counters.items()
    ]
