"""What was chosen, and how its scores look."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from instdiff.core import DetailPlot, Scored
from instdiff.core.display import visible
from instdiff.errors import InstDiffError
from instdiff.experiments.run_folder import first_seed
from instdiff.reporting import plots, statistics, stored_values
from instdiff.reporting.context import ReportContext, Section, Table
from instdiff.reporting.examples import texts
from instdiff.reporting.packing import Packer
from instdiff.reporting.sources import Part, ReportSources
from instdiff.reporting.verdict import Verdict
from instdiff.selection.explain import number
from instdiff.selection.tokens import least_of, prompt_effects, selected

ROUNDS, SEVERAL = 3, 12
"""Earlier rounds whose points are drawn; methods whose points are all drawn."""
MATRIX = 32
"""Selections in a picture of their overlap."""
FEW_COPIES, SHORT = 4, 160
"""Columns left out that are named; characters of a row in a list of rows."""
CUT = 200_000
"""Rows up to which the page can be cut anew."""
NEAR_ZERO = 0.01
"""Nats up to which T-SHIRT's paper calls a change of a token next to nothing."""


# ── what was chosen ───────────────────────────────────────────────────────────────────────────────────────────────────


def summary(scene: ReportContext) -> Section:
    """What was chosen and why."""
    section = Section("summary", "What was chosen, and why")
    part, material = scene.part, scene.material
    if part is None:
        section.text = ["No scores of rows are in this folder, so nothing is shown of them."]
        return section
    tokens = part.scored.n_tokens
    known = bool(np.all(tokens >= 0))
    section.text = [_what(part, material), _why(part)]
    section.facts = {
        "rows": len(part.table),
        "chosen_rows": len(part.chosen),
        "scorable_tokens": int(tokens[part.scored.scorable].sum()) if known else None,
        "chosen_tokens": int(tokens[part.chosen].sum()) if known else None,
        "method": part.method,
        "params": part.scored.method.params(),
        "budget": str(part.budget),
        "per": str(part.per(part.method) or ""),
        "selected": part.record is not None,
        "rounds": len(material.parts),
        "methods": list(part.table),
    }
    return section


def basis(scene: ReportContext, verdict: Verdict) -> list[tuple[str, str]]:
    """What a verdict rests on, as terms and what is said of them."""
    facts, out = summary(scene).facts, []
    if verdict.seeds is not None:
        out.append(("seeds", f"{verdict.seeds} against {verdict.seeds_against}"))
    for term, mine, of in (
        ("rows", verdict.rows, facts.get("rows")),
        ("response tokens", verdict.tokens, facts.get("scorable_tokens")),
    ):
        out += [(term, f"{mine:,}" + ("" if of is None else f" of {of:,}"))] if mine is not None else []
    if verdict.seconds is not None:
        out.append(("cost", f"{verdict.seconds:,.0f} s" + (f" on the {verdict.device}" if verdict.device else "")))
    if verdict.budget is not None:
        got = "" if verdict.asked is None else f" ({verdict.asked:,} asked, {verdict.got:,} got)"
        out.append(("budget", verdict.budget + got))
    return [*out, ("method", verdict.method)] if verdict.method else out


def best_rows(scene: ReportContext) -> Section | None:
    """The rows that were taken first, and those that the next larger budget takes."""
    part, shown, pool = scene.part, scene.shown, scene.material.pool
    if part is None or shown is None:
        return None
    section = Section("best", "The best rows, and those just missed")
    for title, rows in (("Best", shown.best), ("Nearest misses", shown.missed)):
        said = [" → ".join(text) for text in texts(pool, rows, SHORT)] if pool is not None else [""] * len(rows)
        told = [
            {"row": int(part.table.rows[row]), "about": _about(part, int(row)), "text": text}
            for row, text in zip(rows, said, strict=True)
        ]
        section.reads += [(title, told)] if told else []
        section.facts[title.lower()] = part.table.rows[rows].tolist()
    return section if section.reads else None


def _about(part: Part, row: int) -> str:
    """A row's score and length."""
    tokens = int(part.table.n_tokens[row])
    value = part.scored.value[row]
    told = [f"score {number(value)}"] if np.isfinite(value) else []
    return ", ".join([*told, *([f"{tokens:,} tokens"] if tokens >= 0 else [])])


def _what(part: Part, material: ReportSources) -> str:
    tokens = part.scored.n_tokens
    of_tokens = ""
    if np.all(tokens >= 0):
        every, mine = int(tokens[part.scored.scorable].sum()), int(tokens[part.chosen].sum())
        of_tokens = f", with {mine:,} of {every:,} response tokens ({100 * mine / max(every, 1):.1f} %),"
    rounds = len(material.parts) if material.kind == "pipeline" else 1
    verb = "chose" if part.record is not None else "would choose"
    per = part.per(part.method)
    bound, last = f", {per.text}" if per else "", f" in the last of {rounds} rounds" if rounds > 1 else ""
    return (
        f"{part.method} {verb} {len(part.chosen):,} of {len(part.table):,} rows"
        f"{of_tokens or ''} within a budget of {part.budget}{bound}{last}."
    )


def _why(part: Part) -> str:
    doc = inspect.cleandoc(type(part.scored.method).__doc__ or "").split("\n\n")[0].replace("\n", " ")
    idea = re.sub(r" \([^)]*\)|``", "", doc).split(". ")[0].rstrip(".")
    cut = statistics.threshold(part.scored, part.mask)
    at = "" if cut is None else f" the lowest score taken is {number(cut)} (higher is better), and"
    reason = statistics.count_excluded(part.scored)
    left = ", ".join(f"{count:,} {word.replace('_', ' ')}" for word, count in reason.items())
    without = f"{sum(reason.values()):,} rows have no score ({left})" if reason else "every row has a score"
    return f"The idea of {part.method}: {idea[:1].lower()}{idea[1:]};{at} {without}."


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
        rows = [[word.replace("_", " "), count] for word, count in reason.items()]
        several = f", {part.name}" * (len(parts) > 1)
        section.tables += [Table(["why", "rows"], rows, f"excluded{several}")] if rows else []
    section.text = ["Scorable rows could be scored; eligible ones may be chosen; tokens are those of the responses."]
    return section if section.bars else None


def recut(scene: ReportContext) -> Section | None:
    """A place to try other budgets and methods in, where there are methods that go by the score alone."""
    part = scene.part
    if part is None or scene.count > CUT or not _by_score(part):
        return None
    text = ["What another method or budget takes of these rows. Nothing is trained: this says what would be chosen."]
    bounds = dict.fromkeys(per.text for name in _by_score(part) if (per := part.per(name)))
    text += [f"{one[:1].upper()}{one[1:]} are taken." for one in bounds]
    return Section("recut", "Another cut", text)


def cuts(scene: ReportContext, packer: Packer) -> dict[str, Any]:
    """What the page needs to cut anew: rows by each method from the best on, and what is told of them."""
    part = scene.part
    assert part is not None
    kinds = sorted(set(scene.groups[1])) if scene.groups else []
    number = {kind: at for at, kind in enumerate(kinds)}
    labels = np.array([number[kind] for kind in scene.groups[1]] if scene.groups else [], np.int32)
    best = {name: packer.array(part.best(name).astype(np.int32)) for name in _by_score(part)}
    named = {"rows": part.table.rows, "n_tokens": part.table.n_tokens, "chosen": part.chosen, "labels": labels}
    arrays = {name: packer.array(np.asarray(values, np.int32)) for name, values in named.items()}
    return {"best": best, "kinds": [visible(kind) for kind in kinds], "method": part.method, **arrays}


def _by_score(part: Part) -> dict[str, Scored]:
    """Methods that take rows in the order of their scores, and of which it is known which rows are bounded together."""
    known = {name: s for name, s in part.table.scored.items() if not part.per(name) or name in part.caps}
    return {name: s for name, s in known.items() if s.method.by_score and s.eligible.any()}


def distributions(scene: ReportContext) -> Section | None:
    """Each score with the cut and the band of random selections, and the details of the method that decided."""
    section = Section("distributions", "How the scores are distributed")
    section.text = [
        "Blue: chosen rows; the dashed line is the last of them. Grey band: where as many random rows would lie."
    ]
    section.notes = ["The outermost half percent of each column stands in its first and last bar."]
    rows = []
    for part, scored, prefix in _scored_methods(scene.material):
        top, mask = part.top(scored.name), np.zeros(len(part.table), bool)
        mask[top] = True
        told, own, sign = statistics.natural(scored)
        cut = statistics.threshold(scored, mask)
        drawn = {told: own}
        columns = {scored.name: scored.value} | {f"{scored.name}.{k}": v for k, v in scored.details.items()}
        if scored.name == part.method:
            drawn |= {statistics.spoken(scored.name, k): v for k, v in scored.details.items()}
            drawn, _ = statistics.distinct({**drawn, told: own})
        for name, values in columns.items():
            if found := statistics.histogram(values, mask):
                at = statistics.finite(cut) if name == scored.name else None
                section.facts[prefix + name] = {**statistics.spread(values), "cut": at, "histogram": found}
        for label, values in drawn.items():
            spread = statistics.spread(values)
            if not spread["rows"] or spread["min"] == spread["max"]:
                continue
            at = sign * cut if label == told and cut is not None else None
            figure = plots.distribution(scored, top, values=values, label=label, cut=at)
            section.figures.append((prefix + label, figure))
            rows.append([prefix + label, *(spread[k] for k in _SPREAD), at])
    section.tables = [Table(["score", *_SPREAD, "cut"], rows)]
    return section if section.figures else None


_SPREAD = ("rows", "mean", "median", "sd", "min", "max")


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
    """Every score with the lengths and every other score, each once."""
    if scene.part is None:
        return None
    columns, copies = statistics.distinct({**scene.lengths, **statistics.columns_of(scene.part.table)})
    if len(columns) < 2:
        return None
    found = statistics.spearman(columns)
    section = Section("correlation", "Scores and lengths against each other")
    section.text = [
        "Rank correlation (Spearman) over the rows that have both; an empty cell is a column that does not vary."
    ]
    same = ", ".join(f"{name} (as {first})" for name, first in copies.items())
    same = same if len(copies) <= FEW_COPIES else f"{len(copies)} columns"
    section.notes = [f"Left out, since others here say the same: {same}."] if same else []
    section.figures = [("rank correlation", plots.matrix(list(columns), found, label="rho"))]
    section.facts = {"columns": list(columns), "spearman": found, "copies": copies}
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
    for place, name in enumerate(sorted(part.table, key=lambda name: name != part.method)):
        scored, top = part.table.scored[name], part.top(name)
        if not scored.eligible.any():
            continue
        at = scene.at if place < SEVERAL else few
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
        found, sizes = statistics.jaccard(sets), {name: len(rows) for name, rows in sets.items()}
        usual = statistics.chance(list(sizes.values()), scene.count)
        section.facts |= {"selections": sizes, "jaccard": found, "by_chance": usual}
        _draw_overlaps(section, material, sets, found, usual)
    columns = _columns(material)
    if len(columns) > 1:
        ranked = statistics.spearman(columns)
        section.figures.append(("rank correlation", plots.matrix(list(columns), ranked, label="rho")))
        section.facts |= {"methods": list(columns), "spearman": ranked}
    section.text = [
        "Jaccard is the rows that two selections share over the rows in either; the small number is what random "
        "selections of these sizes share. Rank correlation is Spearman's, over the rows to which both give a score."
    ]
    return section if section.figures else None


def _draw_overlaps(
    section: Section, material: ReportSources, sets: Mapping[str, Any], found: list[Any], usual: list[Any]
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
        values, by_chance = ([[of[a][b] for b in at.values()] for a in at.values()] for of in (found, usual))
        figure = plots.matrix(list(at), values, signed=False, label="Jaccard", usual=by_chance)
        section.figures.append((label, figure))


def _columns(material: ReportSources) -> dict[str, Any]:
    """The scores of methods and rounds that are of the same rows."""
    out: dict[str, Any] = {}
    for part, scored, prefix in _scored_methods(material):
        if material.last is not None and part.table.ids == material.last.table.ids and len(out) < 24:
            out[prefix + scored.name] = scored.value
    return out
