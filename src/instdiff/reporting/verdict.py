"""What a run, a comparison or scores come to: a word, what it rests on, and what to look at first."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from instdiff.core import Log
from instdiff.evaluation.statistics import MIN_SEEDS
from instdiff.experiments.run_folder import read_facts
from instdiff.experiments.summary import BETTER, FEW, LEAST_ROOM, SAME, WORSE, lower_is_better, selections
from instdiff.experiments.tables import beside, control_for, heading, measured, tell, tell_headroom
from instdiff.reporting import statistics
from instdiff.reporting.context import ReportContext
from instdiff.reporting.sources import Part, ReportSources, gather, name_alone
from instdiff.selection.record import Reading, origins

NO_OUTCOME = "no outcome yet"
MOST = 6
"""Alerts that are told."""
FAR, CLOSE = 1.5, 0.5
"""How far medians of length may lie apart, as a ratio; from which rank correlation on a score goes by length."""
WEAK = 0.75
"""Share of filtered rows from which on the model may be too weak."""
UNCOVERED = 0.02
"""By how much the cosine to the nearest chosen row may lie below that of random rows."""
GONE, EXPECTED = 0.25, 5
"""Share of what random rows would bring below which a source is nearly gone, where they would bring so many."""


@dataclass(frozen=True)
class Alert:
    """A fact that deserves a look, and the id of the page's section that shows it."""

    text: str
    section: str


@dataclass(frozen=True)
class Verdict:
    """Whether a selection is better than random rows, what it rests on, and what to look at first.

    ``kind`` is the verdict of ``experiments.summary`` or ``NO_OUTCOME``, ``word`` the same in words. ``value``,
    ``difference`` and its corrected 95 % interval from ``low`` to ``high`` are of ``line`` and in ``unit``. With too
    few seeds there is no interval, and ``beside`` says where the seeds of ``against`` lie. ``seconds`` are those of
    choosing and of one training on the ``device``. ``asked`` and ``got`` are in the budget's ``counted``: rows or
    tokens. ``family`` counts the lines of a comparison; ``others`` are sentences on further tasks. None stands for what
    nothing was written of.
    """

    kind: str
    word: str
    sentence: str
    family: str = ""
    line: str | None = None
    against: str = ""
    measured: str = ""
    unit: str = ""
    lower_is_better: bool = False
    value: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    beside: str = ""
    seeds: int | None = None
    seeds_against: int | None = None
    method: str | None = None
    rows: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    device: str = ""
    budget: str | None = None
    counted: str = "rows"
    asked: int | None = None
    got: int | None = None
    others: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()


def read_verdict(
    where: str | Path,
    *,
    data: str | list[str] | None = None,
    store: str | None = None,
    reading: Reading | None = None,
    limit: int | None = None,
    log: Log = lambda line: None,
) -> Verdict:
    """The verdict on a run folder, a comparison or a score file, from the records that are in it.

    Args:
        where: the run folder or score file.
        data: the rows that were scored; by default where they were then. Without them no source is looked at.
        store: the store; by default the one that the scores name.
        reading: how the rows are read, where the run does not say it.
        limit: how many of them are read; by default all that were scored.
        log: is told what happens.

    Raises:
        DataError: it is no such place, or ``data`` are other rows.
    """
    place = Path(where)
    page = read_facts((place if place.is_dir() else place.parent) / "report.json")
    covered = page.get("sections", {}).get("coverage", {}).get("facts", {})
    return judge(ReportContext(gather(place, data, store, log=log, reading=reading, limit=limit)), covered)


def judge(scene: ReportContext, covered: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on what is gathered; ``covered`` are the facts of the section on coverage."""
    material, part = scene.material, scene.part
    final = material.search.get("final") or {}  # a search is decided by one of its tasks
    lines = [line for line in material.comparison if line.get("task") == final.get("task", line.get("task"))]
    found, about = selections(lines, material.oracles), about_line(material)
    found = [line for line in found if about in (None, line["name"])]
    verdict = _outcome(material, found) if found else _no_outcome(material, part)
    # Of a comparison the scores may be those of another line alone.
    other = material.kind == "compare" and part is not None and verdict.line not in (None, part.method)
    verdict = replace(verdict, **_spent(material, verdict, found), **({} if other else _taken(part, verdict)))
    alerts = [one for one in _alerts(scene, verdict, covered or {}) if one is not None]
    return replace(verdict, alerts=tuple(alerts[:MOST]))


def about_line(material: ReportSources) -> str | None:
    """The line that the page is about, where it is about one: the newest round, the best recipe, or the one wanted."""
    if material.kind == "pipeline" and material.last is not None:
        return f"{material.last.method} {material.last.name}"
    return material.search.get("best") or (material.wanted if material.kind == "compare" else None)


# ── the outcome ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _outcome(material: ReportSources, found: Sequence[dict[str, Any]]) -> Verdict:
    """The verdict on the best of some lines of one task."""
    line, lines, against = found[0], material.comparison, material.against
    control, kind, told = control_for(line, lines, against), str(line["verdict"]), tell(line, lines, against)
    family = _counted(found, against) if len(found) > 1 else ""
    others = [one for one in lines if one is not line and one.get("verdict") and _alike(one, line)]
    return Verdict(
        kind,
        heading(kind, against),
        " ".join(material.search["told"])
        if material.search
        else f"{family} The best: {told}."
        if family
        else f"{told}.",
        family=family,
        line=line["name"],
        against=against,
        measured=measured(line),
        unit="nats per token" if line.get("metric") == "nll" else "",
        lower_is_better=lower_is_better(line),
        value=line["value"],
        difference=line.get("diff"),
        low=line.get("diff_low"),
        high=line.get("diff_high"),
        beside=beside(line, lines, against) if kind == FEW else "",
        seeds=_seeds(line),
        seeds_against=_seeds(control),
        rows=line.get("rows"),
        tokens=line.get("tokens"),
        budget=line.get("budget"),
        others=tuple(f"{heading(one['verdict'], against)}: {tell(one, lines, against)}." for one in others),
    )


def _alike(one: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    """Whether two lines are of one selection."""
    return all(one.get(key) == line.get(key) for key in ("name", "budget"))


def _seeds(line: Mapping[str, Any]) -> int:
    seeds = line.get("seeds") or 0
    return len(seeds) if isinstance(seeds, list) else int(seeds)


def _counted(found: Sequence[dict[str, Any]], against: str) -> str:
    """How many lines have which verdict."""
    count = Counter(str(line["verdict"]) for line in found)
    names = [" at ".join(str(line[k]) for k in ("name", "budget") if line.get(k)) for line in found]
    better = f": {', '.join(names[: count[BETTER]])}" if 0 < count[BETTER] <= 4 else ""
    rest = {WORSE: "worse", SAME: "not told apart", FEW: "with too few seeds"}
    told = [f"{count[kind]} {words}" for kind, words in rest.items() if count[kind]]
    first = f"{count[BETTER] or 'none'} better than {against}{better}"
    return f"Of {len(found)} selections: {', '.join([first, *told])}."


def _no_outcome(material: ReportSources, part: Part | None) -> Verdict:
    """What there is to gain where only an oracle was trained; what to run where nothing was evaluated."""
    if rooms := tell_headroom(lines := [line for line in material.comparison if "room" in line], material.against):
        word, _, said = rooms[0].partition(": ")
        others = tuple(f"{measured(line)}: {room}" for line, room in zip(lines[1:], rooms[1:], strict=True))
        return Verdict(NO_OUTCOME, word, f"{measured(lines[0])}: {said}", against=material.against, others=others)
    again = "Give its command again to go on."
    if material.made is not None:
        said = f"This comparison is not finished: {material.made:,} of its trainings are judged. {again}"
    elif material.kind == "pipeline":
        known = yaml.safe_load(material.config) if material.config else None
        judged = isinstance(known, dict) and known.get("eval")
        said = f"This run is not finished. {again}" if judged else "This run judges no model: its `eval` is empty."
    elif material.comparison:
        said = "No line of this comparison has a verdict."
    elif part is None:
        said = "There are trained models here, and nothing that judges them."
    else:
        said = _untried(part, material.limit)
    return Verdict(NO_OUTCOME, NO_OUTCOME.capitalize(), said, against=material.against)


def _untried(part: Part, limit: int | None) -> str:
    """What compares a selection that nobody has trained on; folders of this machine are nobody's business."""
    data = " ".join(f"--data {shlex.quote(name_alone(one))}" for one in origins(part.table.meta)) or "--data DATA"
    data += f" --limit {limit}" if limit else ""
    model = str(part.table.meta.get("models", {}).get("base", {}).get("where", "MODEL"))
    model = name_alone(model) if Path(model).is_absolute() else model
    control = part.method == "random"
    unknown = "whether a method is better than these" if control else f"whether {part.method} is better than"
    return (
        f"Nothing was trained yet, so it is unknown {unknown} random rows. Run: instdiff compare {data} "
        f"--model {shlex.quote(model)} --method {'METHOD' if control else part.method} --budget '{part.budget}' "
        "--output runs/compare"
    )


# ── what it took ──────────────────────────────────────────────────────────────────────────────────────────────────────


def cost_of(material: ReportSources) -> dict[str, float]:
    """Seconds of all stages of a run, by what was done in them."""
    out = defaultdict[str, float](float)
    for event in material.log:
        if isinstance(seconds := event.get("seconds"), int | float):
            out[_stage(str(event.get("event")))] += seconds
    if material.kind == "compare":
        out["scoring"] += material.paid.get("seconds", 0.0)
        models = {id(record): record.get("wall_s") or 0.0 for record in material.training.values()}
        out["training"] += sum(models.values())
    return {word: round(seconds, 2) for word, seconds in out.items() if seconds}


def _stage(event: str) -> str:
    """What a stage of a pipeline's log did."""
    if event.startswith("judged "):
        return "evaluation"
    if event.startswith("scored round"):
        return "scoring"
    if event.startswith("trained iter_") and "calibration" not in event:
        return "other seeds" if "/seed_" in event else "training"
    return "controls" if "baselines/" in event or event.startswith("scored ") else "warm-up"


def _spent(material: ReportSources, verdict: Verdict, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of choosing and of one training, without those of other seeds, and where they passed."""
    unit = found[0].get("cost_unit") if found else material.unit
    if material.kind == "pipeline":
        known = cost_of(material)
        parts = [known.get(key) for key in ("warm-up", "scoring", "training")]
    else:
        parts = [found[0].get(key) for key in ("warmup_s", "score_s", "train_s")] if found else []
    some = [one for one in parts if one is not None]
    return {"seconds": sum(some) if some else None, "device": str(unit or "").removesuffix(" seconds")}


def _taken(part: Part | None, verdict: Verdict) -> dict[str, Any]:
    """The method, what it took, and what the budget asked for."""
    if part is None:
        return {}
    counts = dict(part.record["counts"]) if part.record and "counts" in part.record else {}
    unit = part.budget.key
    tokens = part.scored.n_tokens[part.chosen]
    return {
        "method": part.method,
        "rows": len(part.chosen) if verdict.rows is None else verdict.rows,
        "tokens": verdict.tokens if verdict.tokens is not None else int(tokens.sum()) if np.all(tokens >= 0) else None,
        "budget": verdict.budget or str(part.budget),
        "counted": unit.replace("_", " "),
        "asked": counts.get(f"asked_{unit}"),
        "got": counts.get(f"selected_{unit}"),
    }


# ── what to look at first ─────────────────────────────────────────────────────────────────────────────────────────────


def _alerts(scene: ReportContext, verdict: Verdict, covered: Mapping[str, Any]) -> Iterator[Alert | None]:
    """The gravest first."""
    yield _few_seeds(scene.material, verdict)
    yield _without_headroom(scene.material, verdict)
    yield _leaked(scene.material, verdict)
    yield _flawed(scene.material)
    if scene.part is not None:
        yield _filtered(scene.part)
        yield _unmet(verdict)
        yield _uncovered(covered)
        yield _by_length(scene, scene.part)
        yield _gone(scene, scene.part)


def _few_seeds(material: ReportSources, verdict: Verdict) -> Alert | None:
    if verdict.kind != FEW:
        return None
    key = "eval.train_seeds" if material.kind == "pipeline" else "seeds"
    mine = f"{verdict.seeds} seed{'s' * (verdict.seeds != 1)} of {verdict.line}"
    many = f"{mine}, {verdict.seeds_against} of {verdict.against}"
    return Alert(f"{many}: a verdict needs {MIN_SEEDS} on either side; add some with {key}", "comparison")


def _without_headroom(material: ReportSources, verdict: Verdict) -> Alert | None:
    """Of the oracle at the task and budget of the line that the verdict is on."""
    of = next((line for line in material.comparison if line.get("name") == verdict.line), {})
    rooms = [line for line in material.comparison if "room" in line]
    rooms = [line for line in rooms if all(line.get(key) == of.get(key) for key in ("suite", "task"))]
    one = min(rooms, key=lambda line: line.get("budget") != verdict.budget, default=None)  # else the first
    if one is None or (one["room"] or 0) >= LEAST_ROOM:
        return None
    return Alert(tell_headroom([one], material.against)[0].rstrip("."), "comparison")


def _leaked(material: ReportSources, verdict: Verdict) -> Alert | None:
    """Of the task with most items that the line's rows overlap."""
    lines = [one for one in material.leaks.get("lines", []) if one["name"] == verdict.line and one["rows"]]
    if not lines:
        return None
    one = max(lines, key=lambda line: line["items_hit"] / line["items"])
    hit = f"{one['items_hit']:,} of {one['items']:,} are hit"
    said = f"{one['rows']:,.0f} of its rows overlap items of {one['task']}; {hit}"
    known = one.get("verdict_without") not in (None, FEW)
    rest = f", and without these it is {one['verdict_without']}" if known else ""
    return Alert(f"{said}{rest}", "leaks")


def _flawed(material: ReportSources) -> Alert | None:
    """Of a pipeline's held-out lines, the last of which is the newest round's."""
    known = {str(one["model"]): one["flawed"] for one in material.lines if one.get("flawed") is not None}
    control = [share for name, share in known.items() if name.startswith(f"{material.against} ")]
    mine = known.get(str(material.lines[-1]["model"])) if material.lines else None
    if mine is None or not control or mine <= max(control):
        return None
    ends = sorted({f"{100 * one:.0f}" for one in (min(control), max(control))})
    said = f"{100 * mine:.0f} % of the chosen rows are flawed, of {material.against} ones {' to '.join(ends)} %"
    return Alert(said, "comparison")


def _filtered(part: Part) -> Alert | None:
    gone, of = int((part.scored.reason == "filtered").sum()), int(part.scored.scorable.sum())
    if not of or gone < WEAK * of:
        return None
    return Alert(f"{part.method} filtered {gone:,} of {of:,} rows; the model may be too weak for this method", "funnel")


def _unmet(verdict: Verdict) -> Alert | None:
    if verdict.asked is None or verdict.got is None or verdict.got >= verdict.asked:
        return None
    return Alert(f"The budget asks for {verdict.asked:,} {verdict.counted}; there are {verdict.got:,}", "funnel")


def _uncovered(covered: Mapping[str, Any]) -> Alert | None:
    mine, theirs = covered.get("nearest_chosen"), covered.get("nearest_random")
    if mine is None or theirs is None or mine > theirs - UNCOVERED:
        return None
    said = f"The chosen rows cover less than random ones: {mine:.3f} against {theirs:.3f}"
    return Alert(f"{said} (median cosine of a row to the chosen row most like it)", "coverage")


def _by_length(scene: ReportContext, part: Part) -> Alert | None:
    known = statistics.response_length(scene.lengths)
    if known is None or not len(part.chosen):
        return None
    unit, length = known
    rho = statistics.spearman({"score": part.scored.value, "length": length})[0][1]
    mine, usual = (float(np.median(length[rows])) for rows in (part.chosen, part.scored.scorable))
    apart = max(mine, 1) / max(usual, 1)
    if abs(rho or 0) < CLOSE and 1 / FAR < apart < FAR:
        return None
    related = "" if rho is None else f"; rank correlation of score and length {rho:+.2f}"
    return Alert(f"Length: the median chosen row has {mine:,.0f} {unit}, of all rows {usual:,.0f}{related}", "length")


def _gone(scene: ReportContext, part: Part) -> Alert | None:
    """The source that lost the most."""
    if scene.groups is None:
        return None
    by, labels = scene.groups
    names, chosen = np.array(labels, object), part.mask
    lost = []
    for kind in sorted(set(labels)):
        rows = names == kind
        usual, mine = float(rows.mean() * chosen.sum()), int(chosen[rows].sum())
        if usual >= EXPECTED and mine < GONE * usual:
            lost.append((usual - mine, f"{by} '{kind}': {mine:,} rows; as many random rows have about {usual:,.0f}"))
    return Alert(f"Nearly gone: {max(lost)[1]}", "domains") if lost else None
