"""What was chosen, and how its scores look."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from instdiff.core import DetailPlot, Scored
from instdiff.errors import InstDiffError
from instdiff.experiments.run_folder import first_seed
from instdiff.experiments.summary import BETTER, FEW, SAME, WORSE, is_control, lower_is_better
from instdiff.reporting import plots, statistics, stored_values
from instdiff.reporting.context import ReportContext, Section, Table
from instdiff.reporting.sources import Part, ReportSources
from instdiff.selection.tokens import least_of, prompt_effects, selected

ROUNDS, SEVERAL = 3, 12
"""Earlier rounds whose points are drawn; methods whose points are all drawn."""
MATRIX = 32
"""Selections in a picture of their overlap."""
NEAR_ZERO = 0.01
"""Nats up to which T-SHIRT's paper calls a change of a token next to nothing."""


# ── in three sentences ────────────────────────────────────────────────────────────────────────────────────────────────


def summary(scene: ReportContext) -> Section:
    """What was chosen and why."""
    section = Section("summary", "What was chosen, and why")
    part, material = scene.part, scene.material
    if part is None:
        section.text = [_comparison_text(material) or "This folder holds trained models, and no scores."]
        return section
    picked, of = len(part.chosen), len(part.table)
    of_lines = "" if material.verdicts else _comparison_text(material)
    told = [_what(part, material), _why(part)]
    section.text = [of_lines, *told] if of_lines else [*told, " ".join(material.verdicts) or _bias(scene)]
    tokens = part.scored.n_tokens
    known = bool(np.all(tokens >= 0))
    section.facts = {
        "rows": of,
        "chosen_rows": picked,
        "scorable_tokens": int(tokens[part.scored.scorable].sum()) if known else None,
        "chosen_tokens": int(tokens[part.chosen].sum()) if known else None,
        "method": part.method,
        "params": part.scored.method.params(),
        "budget": str(part.budget),
        "selected": part.record is not None,
        "rounds": len(material.parts),
        "methods": list(part.table),
    }
    return section


def _what(part: Part, material: ReportSources) -> str:
    tokens = part.scored.n_tokens
    of_tokens = ""
    if np.all(tokens >= 0):
        every, mine = int(tokens[part.scored.scorable].sum()), int(tokens[part.chosen].sum())
        of_tokens = f", with {mine:,} of {every:,} response tokens ({100 * mine / max(every, 1):.1f} %),"
    rounds = len(material.parts) if material.kind == "pipeline" else 1
    verb = "chose" if part.record is not None else "would choose"
    return (
        f"{part.method} {verb} {len(part.chosen):,} of {len(part.table):,} rows"
        f"{of_tokens or ''} within a budget of {part.budget}{f' in the last of {rounds} rounds' if rounds > 1 else ''}."
    )


def _why(part: Part) -> str:
    doc = inspect.cleandoc(type(part.scored.method).__doc__ or "").split("\n\n")[0].replace("\n", " ")
    idea = re.sub(r" \([^)]*\)", "", doc).split(". ")[0].rstrip(".")
    cut = statistics.threshold(part.scored, part.mask)
    at = "" if cut is None else f" the lowest score taken is {cut:.4g} (higher is better), and"
    reason = statistics.count_excluded(part.scored)
    left = ", ".join(f"{count:,} {word.replace('_', ' ')}" for word, count in reason.items())
    without = f"{sum(reason.values()):,} rows have no score ({left})" if reason else "every row has a score"
    return f"The idea of {part.method}: {idea[:1].lower()}{idea[1:]};{at} {without}."


def _comparison_text(material: ReportSources) -> str:
    if not material.comparison:
        return ""
    first = material.comparison[0]
    same = ("suite", "task", "metric")
    some = [
        line
        for line in material.comparison
        if all(line.get(k) == first.get(k) for k in same) and isinstance(line.get("value"), int | float)
    ]
    if not some:
        return ""
    metric = str(first.get("metric", "value"))
    best = (min if lower_is_better(first) else max)(some, key=lambda line: line["value"])
    interval = f" ({best['low']:.4g} to {best['high']:.4g})" if best.get("low") is not None else ""
    return (
        f"Of {len(some)} lines of {first.get('task') or first.get('suite')}, {best['name']} has the best {metric}: "
        f"{best['value']:.4g}{interval}.{_against_random(some)}"
    )


def _against_random(lines: list[dict[str, Any]]) -> str:
    """Which selections are told apart from random rows."""
    some = [line for line in lines if line.get("verdict") and not is_control(line["name"])]
    if not some:
        return ""
    count = Counter(str(line["verdict"]) for line in some)
    better = [str(line["name"]) for line in some if line["verdict"] == BETTER]
    names = f"{', '.join(better) or 'none'} {'are' if len(better) > 1 else 'is'}"
    few = f", and {count[FEW]} {'has' if count[FEW] == 1 else 'have'} too few seeds for a verdict" if count[FEW] else ""
    return (
        f" Of {len(some)} selection{'s' * (len(some) > 1)} {names} better than random rows, {count[WORSE]} "
        f"{'is' if count[WORSE] == 1 else 'are'} worse, {'' if few else 'and '}{count[SAME]} "
        f"{'is' if count[SAME] == 1 else 'are'} not told apart{few}."
    )


def _bias(scene: ReportContext) -> str:
    assert scene.part is not None
    known = statistics.response_length(scene.lengths)
    if known is None:
        return "How long the responses are is not known."
    unit, length = known
    mask = scene.part.mask
    if not mask.any():
        return "No row is chosen."
    rho = statistics.spearman({"score": scene.part.scored.value, "length": length})[0][1]
    rest = f", of the others {np.median(length[~mask]):,.0f}" if (~mask).any() else ""
    related = "" if rho is None else f"; the rank correlation of score and length is {rho:+.2f}"
    return f"The median of the chosen rows is {np.median(length[mask]):,.0f} {unit}{rest}{related}."


# ── stages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def funnel(scene: ReportContext) -> Section | None:
    """Rows and tokens per stage with the reasons."""
    section = Section("funnel", "From the input to the selection")
    parts = scene.material.parts
    for part in reversed(parts) if scene.material.kind == "compare" else parts:
        stages = statistics.funnel(part.scored, part.chosen)
        reason = statistics.count_excluded(part.scored)
        section.facts[part.name] = {"stages": stages, "excluded": reason}
        shares = statistics.shares(stages)
        told = [
            {**stage, "share": {unit: share[at] for unit, share in shares.items()}} for at, stage in enumerate(stages)
        ]
        section.bars.append((part.name, told))
        rows = [[stage["stage"], stage["rows"], stage["tokens"]] for stage in stages]
        rows += [[f"left out: {word.replace('_', ' ')}", count, None] for word, count in reason.items()]
        several = len(parts) > 1
        section.tables.append(Table(["stage", "rows", "response tokens"], rows, part.name if several else ""))
    section.text = ["Scorable rows could be scored; eligible ones may be taken; tokens are those of the responses."]
    return section if section.bars else None


def distributions(scene: ReportContext) -> Section | None:
    """Each score with the cut, and the details of the method that decided."""
    section = Section("distributions", "How the scores are distributed")
    section.text = ["Blue: chosen rows; the dashed line is the lowest score among them."]
    section.notes = ["The outermost half percent of each column stands in its first and last bar."]
    rows = []
    for part, scored, prefix in _scored_methods(scene.material):
        top = part.top(scored.name)
        mask = np.zeros(len(part.table), bool)
        mask[top] = True
        columns = {scored.name: scored.value} | {f"{scored.name}.{k}": v for k, v in scored.details.items()}
        for name, values in columns.items():
            found = statistics.histogram(values, mask)
            if found is None:
                continue
            own = name == scored.name
            if own or scored.name == part.method:
                figure = plots.distribution(scored, top, values=None if own else values, label=name)
                section.figures.append((prefix + name, figure))
            cut = statistics.threshold(scored, mask) if own else None
            spread = statistics.spread(values)
            rows.append([prefix + name, *(spread[k] for k in _SPREAD), cut])
            section.facts[prefix + name] = {**spread, "cut": statistics.finite(cut), "histogram": found}
    section.tables = [Table(["score", *_SPREAD, "cut"], rows)]
    return section if section.figures else None


_SPREAD = ("rows", "mean", "median", "deviation", "min", "max")


def _scored_methods(material: ReportSources) -> Iterator[tuple[Part, Scored, str]]:
    """Every method of every part; the newest part first."""
    several = len(material.parts) > 1 and material.kind != "compare"  # whose lines have names of their own
    for part in reversed(material.parts):
        for name in sorted(part.table, key=lambda name: name != part.method):
            yield part, part.table.scored[name], f"{part.name}: " if several else ""


# ── details ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def details(scene: ReportContext) -> list[Section]:
    """The pairs of details that methods want drawn, with the kept band; and one of them per domain."""
    found = list(_scored_methods(scene.material))
    wanted = dict.fromkeys(plot for _, scored, _ in found for plot in scored.method.plots)
    return [section for plot in wanted if (section := _details(scene, plot, found)).figures]


def _details(scene: ReportContext, plot: DetailPlot, found: list[tuple[Part, Scored, str]]) -> Section:
    section = Section(plot.id, plot.title, [plot.text])
    by, labels = scene.groups or ("", None)
    word = plot.words[1]
    mine = [one for one in found if plot in one[1].method.plots and {plot.x, plot.y} <= one[1].details.keys()]
    if len(mine) > ROUNDS:
        section.notes.append(f"Points of the newest {ROUNDS} are drawn.")
    for part, scored, prefix in mine[:ROUNDS]:
        top, name, values = part.top(scored.name), prefix + scored.name, scored.details[plot.y]
        section.figures.append((name, plots.details(scored, top, plot=plot, at=scene.at)))
        edges = statistics.band(scored, plot.x) if plot.band else None
        facts: dict[str, Any] = {"band": edges, plot.y: statistics.spread(values)}
        if labels is not None and len(labels) == len(part.table):
            figure = plots.details(scored, top, plot=plot, labels=labels, at=scene.at)
            section.figures.append((f"{name} by {by}", figure))
            section.figures.append((f"{name}: {word} per {by}", plots.domains(scored, labels, detail=plot.y)))
            facts["domains"] = statistics.by_group(values, labels)
            section.tables.append(_domains(f"{name}: {word} per {by}", by, facts["domains"], part, labels))
        section.facts[name] = facts
    if labels is None:
        section.notes.append("No column of the input says what kind of row each is, so nothing is shown per domain.")
    section.notes += scene.sampled
    return section


def _domains(caption: str, by: str, found: Mapping[str, Any], part: Part, labels: list[str]) -> Table:
    names = np.array(labels, object)
    rows = [
        [kind, int((names == kind).sum()), int(part.mask[names == kind].sum()), *(s.get(k) for k in _SPREAD[1:])]
        for kind, s in found.items()
    ]
    return Table([by, "rows", "chosen", *_SPREAD[1:]], rows, caption)


def domains(scene: ReportContext) -> Section | None:
    """What each domain has of the selection and of the score."""
    part = scene.part
    if part is None or scene.groups is None:
        return None
    by, labels = scene.groups
    section = Section("domains", f"By {by}")
    for name in sorted(part.table, key=lambda name: name != part.method):
        scored = part.table.scored[name]
        if scored.eligible.any():
            section.figures.append((name, plots.domains(scored, labels, detail=None)))
    found = statistics.by_group(part.scored.value, labels)
    section.tables = [_domains(f"{part.method} per {by}", by, found, part, labels)]
    section.facts = {"column": by, "scores": found}
    section.text = [f"The input's column '{by}' says what kind of row each is."]
    return section


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def informative(scene: ReportContext) -> Section | None:
    """By how much the prompt changes single tokens, and which of them T-SHIRT calls informative."""
    part, pool = scene.part, scene.material.pool
    mine = [s for s in part.table.scored.values() if "informative" in s.details] if part else []
    if part is None or pool is None or not mine:
        return None
    section = Section("informative", "Which tokens are informative")
    rows: list[list[Any]] = []
    for scored in mine:
        least = least_of(scored)
        try:
            at, effects = prompt_effects(scored, part.table.meta, pool, scene.material.store)
        except (InstDiffError, OSError) as error:
            section.notes.append(f"{scored.name}: tokens are not known: {stored_values.why_not(error)}.")
            continue
        if least is not None and len(effects.values):
            chosen = np.repeat(np.isin(at, part.top(scored.name)), effects.lengths())
            _draw_tokens(section, rows, scored, np.abs(effects.values), chosen, least)
    section.tables = [Table(["method", "rows", "tokens", "at most 0.01 nats", "informative"], rows)] if rows else []
    section.text = [
        "Delta NLL is what the prompt changes of a token's NLL. From the dashed line on tokens are informative; the "
        "score is of these alone. The rows to read show which they are."
    ]
    return section


def _draw_tokens(section: Section, rows: list[list[Any]], scored: Scored, size: Any, chosen: Any, least: float) -> None:
    """The distribution of tokens by size, and shares of all, of those in chosen rows, and of the others."""
    found = statistics.log_histogram(size, chosen)
    section.figures.append((scored.name, plots.token_sizes(found, least)))
    facts: dict[str, Any] = {"least": least, "histogram": found}
    for name, mask in {"all": chosen | True, "chosen": chosen, "not chosen": ~chosen}.items():
        near, told = (
            float(one[mask].mean()) if mask.any() else None for one in (size <= NEAR_ZERO, selected(scored, size))
        )
        facts[name] = {"tokens": int(mask.sum()), "near_zero": near, "informative": told}
        rows.append([scored.name, name, *facts[name].values()])
    section.facts[scored.name] = facts


# ── columns against each other ────────────────────────────────────────────────────────────────────────────────────────


def correlation(scene: ReportContext) -> Section | None:
    """Every score with the lengths and every other score."""
    if scene.part is None:
        return None
    columns = statistics.score_columns(scene.part.table) | scene.lengths
    columns = {name: v for name, v in columns.items() if np.isfinite(v).sum() > 2}
    if len(columns) < 2:
        return None
    found = statistics.pearson(columns)
    section = Section("correlation", "Scores and lengths against each other")
    section.text = ["Pearson correlation over the rows that have both; an empty cell is a column that does not vary."]
    section.figures = [("Pearson", plots.matrix(list(columns), found, label="r"))]
    section.facts = {"columns": list(columns), "pearson": found}
    return section


def length(scene: ReportContext) -> Section | None:
    """Whether a score goes by the length of the response."""
    part = scene.part
    known = statistics.response_length(scene.lengths) if part is not None else None
    if part is None or known is None:
        return None
    unit, size = known
    section = Section("length", "Is the score mostly length?")
    rows = []
    few = scene.at
    if len(part.table.scored) > SEVERAL and len(few) > 10_000:
        few = statistics.sample(scene.count, 10_000)
        section.notes.append(f"Of methods after the {SEVERAL}th a seeded sample of {len(few):,} rows is drawn.")
    for number, name in enumerate(sorted(part.table, key=lambda name: name != part.method)):
        scored, top = part.table.scored[name], part.top(name)
        if not scored.eligible.any():
            continue
        at = scene.at if number < SEVERAL else few
        section.figures.append((name, plots.length_bias(scored, size, top, unit=unit, at=at)))
        rho = statistics.spearman({"score": scored.value, "length": size})[0][1]
        rest = np.setdiff1d(np.arange(len(size)), top)
        medians = [float(np.median(size[rows_])) if len(rows_) else None for rows_ in (top, rest)]
        rows.append([name, rho, *medians])
        section.facts[name] = {"rank_correlation": rho, "median_chosen": medians[0], "median_rest": medians[1]}
    section.tables = [Table(["score", "rank correlation", f"median {unit}, chosen", "not chosen"], rows)]
    section.text = [f"A point is a row: its {unit} (on a logarithmic scale) and its score."]
    section.notes += scene.sampled
    return section


def overlap(scene: ReportContext) -> Section | None:
    """What methods, rounds and controls have in common."""
    material, part = scene.material, scene.part
    section = Section("overlap", "What methods and rounds have in common")
    sets = dict(material.selections)
    if part is not None and material.kind != "compare":
        for name in part.table:
            if name != part.method:
                sets[f"{name}, best {part.budget}"] = part.table.rows[part.top(name)]
    if len(sets) > 1:
        found = statistics.jaccard(sets)
        section.facts |= {"selections": {name: len(rows) for name, rows in sets.items()}, "jaccard": found}
        _draw_overlaps(section, material, sets, found)
    columns = _columns(material)
    if len(columns) > 1:
        ranked = statistics.spearman(columns)
        section.figures.append(("rank correlation", plots.matrix(list(columns), ranked, label="rho")))
        section.facts |= {"methods": list(columns), "spearman": ranked}
    section.text = [
        "Jaccard is the rows that two selections share over the rows in either; rank correlation is "
        "Spearman's, over the rows to which both give a score."
    ]
    return section if section.figures else None


def _draw_overlaps(
    section: Section, material: ReportSources, sets: Mapping[str, Any], found: list[list[float | None]]
) -> None:
    """Pictures of an overlap: of a comparison one for each budget, with the first seed of each line."""
    number = {name: place for place, name in enumerate(sets)}
    shown = {"Jaccard": {name: name for name in sets}}
    if material.cells:
        by = first_seed(material.cells)
        several = {f"Jaccard, {budget}": {line: str(one) for line, one in mine.items()} for budget, mine in by.items()}
        shown = several if len(by) > 1 else {"Jaccard": next(iter(several.values()))}
        if len(sets) > max(map(len, shown.values())):
            section.notes.append(
                f"Of {len(sets)} selections the first seed of each line is drawn; the JSON beside this page has all."
            )
    for label, names in shown.items():
        if len(names) > MATRIX:
            section.notes.append(f"{label}: the first {MATRIX} of {len(names)} selections are drawn.")
        at = {line: number[name] for line, name in list(names.items())[:MATRIX]}
        values = [[found[a][b] for b in at.values()] for a in at.values()]
        section.figures.append((label, plots.matrix(list(at), values, signed=False, label="Jaccard")))


def _columns(material: ReportSources) -> dict[str, Any]:
    """The scores of methods and rounds that are of the same rows."""
    out: dict[str, Any] = {}
    for part, scored, prefix in _scored_methods(material):
        if material.last is not None and part.table.ids == material.last.table.ids and len(out) < 24:
            out[prefix + scored.name] = scored.value
    return out
