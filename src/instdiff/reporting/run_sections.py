"""Where the rows lie, what models learnt, what it cost and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from instdiff.core.display import visible
from instdiff.core.files import environment
from instdiff.errors import InstDiffError
from instdiff.experiments.summary import lower_is_better, selections
from instdiff.experiments.tables import LEAKS, bracket_rows, control_for, leak_rows, measured, tell_headroom, tell_leaks
from instdiff.reporting import plots, projection, statistics, stored_values
from instdiff.reporting.context import ReportContext, Section, Table
from instdiff.reporting.sources import ReportSources
from instdiff.reporting.verdict import about_line, cost_of
from instdiff.selection.record import origins

CURVES, STEPS = 32, 2000
SPENT = {"warmup_s": "warm-up", "score_s": "scoring", "train_s": "training"}


# ── where the rows lie ────────────────────────────────────────────────────────────────────────────────────────────────


def coverage(scene: ReportContext) -> tuple[Section | None, dict[str, Any]]:
    """Rows in two dimensions; and per row the shown rows that are most like it."""
    part, pool = scene.part, scene.material.pool
    if part is None or pool is None or scene.count < 3:
        return None, {}
    section = Section("coverage", "Where the rows lie")
    at = scene.at
    try:
        how, factors = _factors(scene, section)
        name, xy = projection.flat(factors)
    except InstDiffError as error:
        section.notes.append(f"There is no picture of the rows: {error}")
        return section, {}
    mask = part.mask[at]
    section.figures.append(("chosen", plots.coverage(xy, mask, at=at)))
    if scene.groups is not None:
        labels = [scene.groups[1][row] for row in at.tolist()]
        section.figures.append((f"by {scene.groups[0]}", plots.coverage(xy, mask, labels, at=at)))
    mine = projection.reach(factors, np.flatnonzero(mask))
    drawn = np.random.default_rng(0).choice(len(at), int(mask.sum()), replace=False)
    theirs = projection.reach(factors, drawn)
    section.text = [f"{name} in two dimensions of {how}. Point at a row to read it and the rows most like it."]
    if mine is not None and theirs is not None:
        section.text.append(
            f"A row that is not chosen has a median cosine of {mine:.3f} to the chosen row most like it; for a random "
            f"selection of as many rows it is {theirs:.3f}. Higher covers more."
        )
    section.facts = {"projection": name, "of": how, "nearest_chosen": mine, "nearest_random": theirs}
    section.notes += scene.sampled
    place = {int(row): i for i, row in enumerate(at)}
    shown = scene.shown
    assert shown is not None
    here = np.array([place[int(row)] for row in shown.at if int(row) in place], np.int64)
    number = {int(row): i for i, row in enumerate(shown.at)}
    back = np.array([number[int(at[i])] for i in here], np.int32)
    near = projection.near(factors, here)
    near = np.where(near >= 0, back[near], -1) if len(back) else near
    if len(shown.at) < scene.count:
        section.notes.append(f"The rows most like a point are looked for among the {len(shown.at):,} rows with texts.")
    places = np.full(scene.count, -1, np.int32)
    places[at] = projection.clusters(factors)
    whole = np.full((scene.count, 2), np.nan)
    whole[at] = xy.astype(np.float64)
    return section, {"at": at, "near": near.ravel(), "x": whole[:, 0], "y": whole[:, 1], "clusters": places}


def _factors(scene: ReportContext, section: Section) -> tuple[str, projection.Matrix]:
    """Vectors of the store where there are any, else the words of the texts."""
    part, pool = scene.part, scene.material.pool
    assert part is not None and pool is not None
    try:
        found = stored_values.find_embeddings(part.table, pool, scene.material.store)
    except (InstDiffError, OSError) as error:
        found = None
        section.notes.append(f"Vectors of the store could not be read: {stored_values.why_not(error)}.")
    if found is not None:
        return f"vectors ({found[0]})", projection.of_vectors(found[1][scene.at])
    rows = pool.take(scene.at) if len(scene.at) < len(pool) else pool
    return "the words of instruction and response (TF-IDF, 32 factors)", projection.of_texts(projection.words(rows))


def tags(scene: ReportContext) -> Section | None:
    """How frequent a method's tags are, which of them tell categories apart, and how many these share."""
    part, pool = scene.part, scene.material.pool
    scored = next((s for s in part.table.scored.values() if s.method.tag), None) if part else None
    if part is None or scored is None or pool is None:
        return None
    by, labels = scene.groups or ("", None)
    word = scored.method.tag
    section = Section("tags", f"{word.capitalize()} tags by {by}" if by else f"{word.capitalize()} tags")
    try:
        found = stored_values.tags(part.table, pool, scene.material.store, labels)
    except (InstDiffError, OSError) as error:
        section.notes.append(f"Which tags a row has is not known: {stored_values.why_not(error)}.")
        return section
    assert found is not None
    _tags_of(section, found, by, word)
    if labels is not None:
        counted = replace(scored, details={f"{word}s": found.per_row})
        section.figures.append(("tags per row", plots.domains(counted, labels, detail=f"{word}s")))
        section.facts |= {"column": by, "n_tags": statistics.by_group(found.per_row, labels)}
    return section


def _tags_of(section: Section, found: stored_values.Tags, by: str, word: str) -> None:
    """Pictures of tags: by category where there are several, and their frequency."""
    kinds, shared = found.categories, [[statistics.finite(value) for value in row] for row in found.shared.tolist()]
    if by:
        top = max(1.0, float(np.nan_to_num(found.shared).max()))
        common = plots.matrix(kinds, shared, signed=False, label="tags", top=top)
        share = plots.matrix(found.names, found.share.tolist(), kinds, signed=False, label="share")
        section.figures += [("tags", share), ("shared tags", common)]
        section.text = [
            f"Tags: share of a {by}'s rows that show a {word}; those that differ most. Shared tags: how many a row has "
            "in common with another of its own or of another kind, on average."
        ]
    section.figures.append(("frequency", plots.tail(found.frequency.tolist(), word)))
    once = int((found.frequency == 1).sum())
    section.text.append(
        f"Frequency: {len(found.frequency):,} {word}s are shown by a row or more, {once:,} of them by one row alone."
    )
    section.facts |= {"tags": found.names, "categories": kinds, "share": found.share.tolist()}
    section.facts |= {"shared": shared, "frequency": found.frequency.tolist()}


# ── what models learnt ────────────────────────────────────────────────────────────────────────────────────────────────


def training(scene: ReportContext) -> Section | None:
    """Loss curves of every model in the folder; of a comparison one for each line."""
    found = scene.material.training
    if not found:
        return None
    section = Section("training", "Training")
    names = scene.material.leading or list(found)
    drawn = names[:CURVES]
    if scene.material.leading and len(found) > len(names):
        section.notes.append(
            f"Of {len(found)} trainings the first budget and seed of each line is here; the JSON beside this has all."
        )
    if len(names) > CURVES:
        section.notes.append(f"The curves of {CURVES} of {len(names)} models are drawn.")
    section.figures = [("loss", plots.training({name: _thin(found[name]["losses"]) for name in drawn}))]
    keys = ("rows", "steps", "target_tokens", "wall_s")
    rows = [[name, *(found[name].get(k) for k in keys), found[name]["losses"][-1]] for name in names]
    section.tables = [Table(["model", "rows", "steps", "target tokens", "seconds", "last loss"], rows)]
    section.facts = {
        name: {**{k: record.get(k) for k in keys}, "losses": [statistics.finite(v) for v in record["losses"]]}
        for name, record in found.items()
    }
    section.text = ["Thin is the loss of each step, thick its running mean."]
    return section


def _thin(losses: list[float | None]) -> list[float]:
    values = [float("nan") if value is None else float(value) for value in losses]
    return values[:: max(1, -(-len(values) // STEPS))]


def search(scene: ReportContext) -> Section | None:
    """The bracket of a search: what each recipe gained over random rows in each rung."""
    found = scene.material.search
    if not found:
        return None
    header, rows = bracket_rows(found)
    caption = "gain over random rows, above 0 where the recipe is better"
    return Section("search", "Search", list(found["told"]), tables=[Table(header, rows, caption)], facts=found)


def comparison(scene: ReportContext) -> Section | None:
    """Models against each other, with intervals."""
    section = Section("comparison", "Models against each other")
    lines, cells = scene.material.lines, scene.material.comparison
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in cells:
        kinds.setdefault(_task(line), []).append(line)
    for kind, some in kinds.items():
        _draw_task(section, kind, some, scene.material)
        of = f"{kind}: " if len(kinds) > 1 else ""
        section.text += [f"{of}{room}" for room in tell_headroom(some, scene.material.against)]
    if lines:
        _heldout(section, lines, scene.material.against)
    section.notes += scene.material.terms
    section.facts = {**section.facts, "heldout": lines, "lines": cells, "terms": scene.material.terms}
    return section if section.figures else None


def leaks(scene: ReportContext) -> Section | None:
    """Which selected rows overlap items of the evaluation, and the results without these items."""
    found = scene.material.leaks
    if not found:
        return None
    heads, rows = leak_rows(found)
    tables = [Table(heads, [list(row) for row in rows])] if rows else []
    return Section("leaks", LEAKS, tell_leaks(found), tables=tables, facts=found)


def _task(line: Mapping[str, Any]) -> str:
    """What a line's value is of, with the suite where that is more than the task."""
    if not line.get("task"):
        return str(line.get("suite") or "")
    suite = "" if line.get("suite") in (None, line["task"]) else f"{line['suite']}: "
    return suite + measured({"metric": line["task"], **line})


def _draw_task(section: Section, kind: str, lines: list[dict[str, Any]], material: ReportSources) -> None:
    """The lines of a task: one picture for each budget, the curve over budgets, and the table, best first."""
    against = material.against
    told = [line for line in lines if isinstance(line.get("value"), int | float)]
    told.sort(key=lambda line: line["value"] if lower_is_better(line) else -line["value"])
    every = dict.fromkeys(str(line["budget"]) for line in lines if line.get("budget"))
    shared = [budget for budget in every if sum(str(line.get("budget")) == budget for line in told) > 1]
    if len(shared) < 2:
        section.figures += [(kind, _forest(told, kind, material))] if told else []
    else:
        if curves := statistics.curves(told):  # lines may each have a budget of their own
            section.figures.append((f"{kind} by budget", plots.budgets(told, kind, against)))
            section.facts.setdefault("curves", {})[kind] = {
                name: {key: [point[key] for point in points] for key in ("budget", "value", "low", "high")}
                for name, points in curves.items()
            }
        for budget in shared:
            aside = [
                line for line in told if str(line.get("budget")) == budget or str(line.get("budget")) not in shared
            ]
            section.figures.append((f"{kind} at {budget}", _forest(aside, f"{kind} at {budget}", material)))
    place = {budget: number for number, budget in enumerate(every)}
    told.sort(key=lambda line: place.get(str(line.get("budget")), -1) if len(shared) > 1 else 0)
    rest = [line for line in lines if line not in told]
    spent = {key: word for key, word in SPENT.items() if any(line.get(key) is not None for line in lines)}
    second = "GPU s" if any(line.get("cost_unit") == "GPU seconds" for line in lines) else "s"
    header = ["line", "budget", "seeds", "rows", "tokens", "value", "95 % interval", f"against {against}", "interval"]
    shares = any("share" in line for line in lines)
    header += ["verdict", *(["share of headroom", "interval"] if shares else [])]
    header += [f"{word} ({second})" for word in spent.values()]
    section.tables.append(Table(header, [_cells(line, list(spent), shares) for line in [*told, *rest]], kind))


def _forest(lines: list[dict[str, Any]], kind: str, material: ReportSources) -> Any:
    """Differences to the control, with the seeds of the control as a band; values where nothing is compared."""
    best = selections(lines, material.oracles)
    against, about = material.against, about_line(material) or (best[0]["name"] if best else None)
    better = "lower" if lower_is_better(lines[0]) else "higher"
    if not any(line.get("diff") is not None for line in lines):
        return plots.comparison([{**line, "name": _name(line)} for line in lines], f"{kind} ({better} is better)")
    gaps = [
        {"name": _name(line), "verdict": line.get("verdict")}
        | {key: line.get(old) for key, old in (("value", "diff"), ("low", "diff_low"), ("high", "diff_high"))}
        for line in lines
        if line.get("diff") is not None
    ]
    control = control_for(lines[0], lines, against)
    band = [one - control["value"] for one in control.get("by_seed", [])]
    marked = next((_name(line) for line in lines if line["name"] == about), None)
    return plots.comparison(gaps, f"{kind}: difference to {against} ({better} is better)", band, against, marked)


def _heldout(section: Section, lines: list[dict[str, Any]], against: str) -> None:
    named = [{"name": r["model"], "value": r["nll"], "low": r["nll_low"], "high": r["nll_high"]} for r in lines]
    band = [one["value"] for one in named if str(one["name"]).startswith(f"{against} ")]
    label = "held-out NLL (nats per token, lower is better)"
    section.figures.append(("held-out NLL of each model", plots.comparison(named, label, band, against)))
    flawed = "flawed" in lines[0]
    header = ["model", "rows", "response tokens", "NLL", "95 % interval", "against base", "interval"]
    rows = []
    for line in lines:
        row = [line["model"], line["rows"], line["tokens"], _three(line["nll"]), _interval(line, "nll_")]
        row += [_three(line["gain"]), _interval(line, "gain_")]
        rows.append([*row, None if line.get("flawed") is None else 100 * line["flawed"]] if flawed else row)
    section.tables.append(Table([*header, *(["planted flaws (%)"] if flawed else [])], rows, "held-out rows"))
    section.notes.append(
        "Intervals of held-out rows are of single models, and say nothing of other seeds: percentiles of 1,000 "
        "bootstrap draws over held-out rows; differences to the base are paired by row."
    )


def _name(line: Mapping[str, Any]) -> str:
    return " ".join(str(line[key]) for key in ("name", "budget") if line.get(key))


def _cells(line: Mapping[str, Any], spent: list[str], shares: bool) -> list[Any]:
    first = [line.get(key) for key in ("name", "budget", "seeds", "rows", "tokens")]
    first[2] = len(first[2]) if isinstance(first[2], list) else first[2]
    value, gap = (_three(line.get(key)) for key in ("value", "diff"))
    took = [None if line.get(key) is None else float(line[key]) for key in spent]
    share = [line.get("share"), _interval(line, "share_")] if shares else []
    return [*first, value, _interval(line, ""), gap, _interval(line, "diff_"), line.get("verdict"), *share, *took]


def _three(value: float | None) -> str | None:
    """A value as its interval has it."""
    return None if value is None else f"{value:.3f}"


def _interval(line: Mapping[str, Any], prefix: str) -> str | None:
    low, high = line.get(f"{prefix}low"), line.get(f"{prefix}high")
    return None if low is None or high is None else f"{low:.3f} to {high:.3f}"


# ── what it cost, where it comes from ─────────────────────────────────────────────────────────────────────────────────


def cost(scene: ReportContext) -> Section | None:
    """What the run took in all; signals, who uses them, what the store holds; and what the log says of each pass."""
    if scene.part is None:
        return None
    section, material = Section("cost", "What it cost"), scene.material
    spent, device = cost_of(material), material.unit.removesuffix(" seconds")
    if spent:
        parts = ", ".join(f"{word} {seconds:,.0f} s" for word, seconds in spent.items())
        where = f" on the {device}" if device else ""
        section.text.append(f"In all {sum(spent.values()):,.0f} s{where}: {parts}.")
    found = stored_values.costs(scene.part.table, material.store)
    section.facts = {**found, "total": sum(spent.values()), "stages": spent, "device": device}
    rows = [
        [line["signal"], ", ".join(line["methods"]), line["rows"], line["values"], line["megabytes"]]
        for line in found["signals"]
    ]
    if rows:
        header = ["signal", "used by", "rows in the store", "values", "MB"]
        section.tables.append(Table(header, rows, "signals"))
        section.notes.append(
            "A column of the store may hold rows of other data and views too; a signal without numbers is not in it."
        )
    else:
        section.text.append("These methods need no model.")
    if found["passes_alone"] > found["passes"]:
        section.text.append(
            f"All methods together need {found['passes']} model pass{'es' * (found['passes'] != 1)}; one by one they "
            f"would need {found['passes_alone']}."
        )
    paid = material.paid
    if paid.get("methods"):
        alone = [[name, one.get("passes"), one.get("tokens")] for name, one in paid["methods"].items()]
        section.tables.append(Table(["method", "passes", "tokens"], alone, "methods one by one"))
        section.text.append(f"Scoring computed {paid.get('tokens', 0):,} tokens in {paid.get('seconds', 0):,.0f} s.")
        section.facts |= {"paid": paid}
    if steps := [line for line in material.log if {"cached", "tokens_per_s"} & line.keys()]:
        section.tables.append(_steps(steps))
        section.text.append(_cost_text(steps))
        section.facts |= {"steps": steps}
    return section


def _cost_text(steps: list[dict[str, Any]]) -> str:
    """All passes of a run together."""
    passes = [line for stage in steps for line in stage.get("passes", [])]
    done, cached, tokens = (sum(line[key] for line in passes) for key in ("rows", "cached", "tokens"))
    share = 100 * cached / max(done + cached, 1)
    return f"Passes computed {done:,} rows with {tokens:,} tokens; {cached:,} rows ({share:.0f} %) were in the store."


def _steps(steps: list[dict[str, Any]]) -> Table:
    """Each pass of each stage; a stage without passes, such as a training, is one line."""
    rows = []
    for stage in steps:
        name = str(stage.get("event") or stage.get("step") or stage.get("message") or "step")
        name = name.replace("judged ", "evaluated ", 1)
        for line in stage.get("passes") or [stage]:
            done, cached = line.get("rows"), line.get("cached")
            share = (
                100 * cached / (done + cached) if done is not None and cached is not None and done + cached else None
            )
            speed = [line.get(key) for key in ("tokens_per_s", "seconds")]
            rows.append([name, line.get("label"), done, line.get("tokens"), *speed, cached, share])
    header = ["stage", "pass", "rows", "tokens", "tokens/s", "seconds", "cached rows", "cached %"]
    return Table(header, rows, "stages and their passes")


def provenance(scene: ReportContext) -> tuple[Section, list[tuple[str, str]]]:
    """Fingerprints and versions; and texts to unfold."""
    material, part = scene.material, scene.part
    section = Section("provenance", "Where it comes from")
    meta = dict(part.table.meta) if part else {}
    record = dict(part.record) if part and part.record else {}
    rows = [["data", " + ".join(origins(meta)) or None, meta.get("data", {}).get("fingerprint")]]
    for role, facts in meta.get("models", {}).items():
        rows.append([f"model {role}", facts.get("where"), facts.get("fingerprint")])
        if facts.get("template"):
            rows.append([f"template of {role}", facts["template"], facts.get("template_fingerprint")])
            rows.append([f"tokenizer of {role}", None, facts.get("tokenizer")])
    rows += [[f"run: {name}", None, mark] for name, mark in material.environment.get("inputs", {}).items()]
    rows.append(["instdiff", meta.get("instdiff"), None])
    if part is not None:
        section.tables.append(Table(["what", "which", "fingerprint"], rows))
    methods = meta.get("methods", {})
    versions = material.environment or {**environment(), "packages": meta.get("packages", environment()["packages"])}
    section.facts = {
        "scores": meta,
        "selection": {k: v for k, v in record.items() if k not in ("rows", "ids")},
        "environment": versions,
        "config": material.config,
    }
    blocks = [("Methods and their parameters", methods), ("Settings", meta.get("settings", {})), ("Versions", versions)]
    folded = [(name, visible(json.dumps(value, indent=2, ensure_ascii=False))) for name, value in blocks if value]
    return section, ([("Configuration", visible(material.config))] if material.config else []) + folded
