"""The page and the JSON beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from instdiff.core import Log
from instdiff.core.arrays.ragged import Ragged
from instdiff.core.display import visible
from instdiff.core.files import write_json, writing
from instdiff.errors import ConfigError, InstDiffError
from instdiff.reporting import run_sections, score_sections, stored_values
from instdiff.reporting.context import ReportContext, Section
from instdiff.reporting.examples import texts
from instdiff.reporting.packing import Packer, pack, pack_json
from instdiff.reporting.plots import plotly_script
from instdiff.reporting.sources import gather
from instdiff.reporting.statistics import plain
from instdiff.reporting.verdict import Verdict, judge
from instdiff.selection.record import Reading
from instdiff.version import __version__

TEXT, TEXT_BYTES = 2000, 3_000_000
"""Characters of an instruction or response; compressed bytes of all texts."""
TOKENS, TOKENS_PER_ROW = 200_000, 400


def report(
    where: Any,
    *,
    data: str | list[str] | None = None,
    output: str | Path | None = None,
    store: str | None = None,
    lines: list[dict[str, Any]] | None = None,
    log: Log = lambda line: None,
    selection: str | None = None,
    method: str | None = None,
    reading: Reading | None = None,
    limit: int | None = None,
) -> Path:
    """Write a page about a run folder or a score file, and the same facts as JSON beside it.

    Args:
        where: the run folder or score file, or what ``compare``, ``search`` or ``pipeline`` gave back.
        data: the rows that were scored; by default where they were then.
        output: the page; by default ``report.html`` in the folder or beside the scores.
        store: the store; by default the one that the scores name.
        lines: held-out lines, one for each model; by default those of the folder.
        log: is told what happens.
        selection: the one that is shown, where there are several: its rows, record or folder; by default the newest.
        method: that of the selection that is shown.
        reading: how the rows are read, where the run does not say it.
        limit: how many of them are read; by default all that were scored.

    Raises:
        DataError: it is no such place, ``data`` are other rows, or the scores have no such selection or method.
        PlanError: plotly is missing.
        ConfigError: it is of a type that is not taken.
    """
    place = _place(where)
    page = Path(output) if output else (place if place.is_dir() else place.parent) / "report.html"
    drawing = plotly_script()  # where it is missing, nothing is read
    how: dict[str, Any] = {"selection": selection, "method": method, "reading": reading, "limit": limit}
    scene = ReportContext(gather(place, data, store, lines, log, **how))
    sections, points, verdict = _sections(scene)
    about, folded = run_sections.provenance(scene)
    sections.append(about)
    payload, facts, notes = _payload(scene, sections, points, drawing)
    told = dict[str, Any](verdict=verdict, basis=score_sections.basis(scene, verdict), name=place.resolve().name)
    text = _page(scene, sections, drawing, payload, example_notes=notes, folded=folded, examples=bool(facts), **told)
    with writing(page) as aside:
        aside.write_text(text, encoding="utf-8")
    write_json(page.with_suffix(".json"), plain({**_facts(scene, sections, facts), "verdict": asdict(verdict)}))
    return page


def _payload(
    scene: ReportContext, sections: list[Section], points: dict[str, Any], drawing: str
) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """What the page carries, packed; the facts of its rows, and what is to say about them."""
    packer = Packer([*_columns(scene), *(points.pop(axis) for axis in "xy" if axis in points)])
    figures = {s.id: [[label, packer.figure(figure)] for label, figure in s.figures] for s in sections}
    facts, table, notes = _examples(scene, packer)
    points = {name: packer.array(values) for name, values in points.items()}
    cuts = score_sections.cuts(scene, packer) if "recut" in figures else None
    body = {"figures": figures, "examples": table, "points": points, "cuts": cuts, "arrays": packer.index}
    payload = {"figures": pack_json(body), "arrays": packer.pack(), "plotly": pack(drawing)}
    return payload, facts, notes


def _place(where: Any) -> Path:
    where = getattr(where, "folder", where)
    if not isinstance(where, str | Path):
        said = f"a report is of a run folder or a score file; not of {type(where).__name__}"
        raise ConfigError(f"{said} (scores.write('scores.parquet') makes such a file)")
    return Path(where)


def _sections(scene: ReportContext) -> tuple[list[Section], dict[str, Any], Verdict]:
    covered, points = run_sections.coverage(scene)
    verdict = judge(scene, covered.facts if covered else None)
    sections = [
        score_sections.best_rows(scene),
        score_sections.summary(scene),
        score_sections.funnel(scene),
        score_sections.recut(scene),
        run_sections.comparison(scene),
        run_sections.leaks(scene),
        run_sections.search(scene),
        score_sections.distributions(scene),
        *score_sections.details(scene),
        score_sections.domains(scene),
        score_sections.informative(scene),
        score_sections.correlation(scene),
        score_sections.length(scene),
        score_sections.overlap(scene),
        covered,
        run_sections.tags(scene),
        run_sections.training(scene),
        run_sections.cost(scene),
    ]
    there = [section for section in sections if section is not None]
    ids = {section.id for section in there}
    alerts = [one if one.section in ids else replace(one, section="summary") for one in verdict.alerts]
    first = [Section("attention", "Attention", alerts=alerts, facts={"alerts": [asdict(one) for one in alerts]})]
    return (first if alerts else []) + there, points, verdict


def _columns(scene: ReportContext) -> Iterator[Any]:
    """What the points of pictures are made of."""
    for part in scene.material.parts:
        for scored in part.table.scored.values():
            yield scored.value
            wanted = [name for plot in scored.method.plots for name in (plot.x, plot.y)]
            yield from (scored.details[name] for name in wanted if name in scored.details)
    if scene.part is not None:
        yield from (np.where(length > 0, length, np.nan) for length in scene.lengths.values())


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _examples(scene: ReportContext, packer: Packer) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The shown rows as facts and as the page has them, and what is to say about them."""
    part, shown, pool = scene.part, scene.shown, scene.material.pool
    if part is None or shown is None:
        return {}, {}, []
    at, table = shown.at, part.table
    facts: dict[str, Any] = {
        "row": table.rows[at].tolist(),
        "kind": shown.kinds,
        "status": shown.status,
        "reason": shown.reason,
        "order": shown.order,
        "n_tokens": [n if n >= 0 else None for n in table.n_tokens[at].tolist()],
        "scores": {name: table.scored[name].value[at].tolist() for name in table},
    }
    if scene.groups is not None:
        facts["group"] = [scene.groups[1][row] for row in at.tolist()]
    own = {f"{part.method}.{name}": column[at] for name, column in part.scored.details.items()}
    body = {
        **facts,
        "reason": [visible(reason) for reason in shown.reason],
        "group": [visible(value) for value in facts.get("group", [])],
        "group_name": scene.groups[0] if scene.groups else "",
        "scores": {name: packer.array(table.scored[name].value[at]) for name in table},
        "details": {name: packer.array(values) for name, values in own.items()},
        "at": packer.array(at.astype(np.int32)),
        "method": part.method,
    }
    notes = []
    if len(at) < len(table):
        notes.append(
            f"Of {len(table):,} rows {len(at):,} are here: chosen ones, those around the cut, the ends of every score, "
            "and random ones."
        )
    if pool is not None:
        said, most = _fitting(pool, at)
        body["texts"] = said
        notes.append(f"Texts are cut after {most:,} characters.")
        body["tokens"] = _tokens(scene, packer, notes)
    return facts, plain(body), notes


def _fitting(pool: Any, at: Any) -> tuple[list[tuple[str, str]], int]:
    """Texts that do not make the page too large, and where they are cut."""
    most = TEXT
    said = texts(pool, at, most)
    while len(pack_json(said)) > TEXT_BYTES and most > 100:
        most //= 2
        said = texts(pool, at, most)
    return said, most


def _tokens(scene: ReportContext, packer: Packer, notes: list[str]) -> dict[str, Any]:
    """Values of the shown rows' tokens, chosen rows first, as many as there is room for."""
    part, shown, pool = scene.part, scene.shown, scene.material.pool
    assert part is not None and shown is not None and pool is not None
    order = np.argsort([status != "chosen" for status in shown.status], kind="stable")
    try:
        found = stored_values.tokens(part.table, pool.take(shown.at[order]), scene.material.store)
    except (InstDiffError, OSError) as error:
        notes.append(f"Values of single tokens could not be read: {stored_values.why_not(error)}.")
        return {}
    if found is None:
        notes.append("The store has no values of single tokens of these rows.")
        return {}
    sizes = np.array([min(len(pieces), TOKENS_PER_ROW) for pieces in found.pieces])
    room = int((np.cumsum(sizes) <= TOKENS).sum())
    words: dict[str, int] = {}
    rows, ids = [], []
    for place in range(room):
        pieces = found.pieces[place][:TOKENS_PER_ROW]
        rows.append([int(order[place]), len(pieces)])
        ids += [words.setdefault(visible(piece), len(words)) for piece in pieces]
    columns = {name: _values(column, sizes[:room]) for name, column in found.columns.items()}
    notes.append(f"Tokens are coloured for {room:,} of these rows, up to {TOKENS_PER_ROW} of each.")
    return {
        "words": list(words),
        "rows": rows,
        "ids": packer.array(np.array(ids, np.int32)),
        "columns": {name: packer.array(values) for name, values in columns.items()},
        "deltas": found.deltas,
    }


def _values(column: Ragged, sizes: Any) -> Any:
    """The first values of each row; NaN where a row has none."""
    out = [
        column[row][:size] if len(column[row]) >= size else np.full(size, np.nan, np.float32)
        for row, size in enumerate(sizes.tolist())
    ]
    return np.concatenate([np.zeros(0, np.float32), *out]).astype(np.float16).astype(np.float32)


# ── page and facts ────────────────────────────────────────────────────────────────────────────────────────────────────


def _page(
    scene: ReportContext,
    sections: list[Section],
    drawing: str,
    payload: dict[str, str],
    *,
    examples: bool,
    **parts: Any,
) -> str:
    here = files("instdiff.reporting") / "assets"
    script, style = ((here / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"visible": lambda value: visible(str(value)), "cell": cell}
    template = environment.from_string((here / "report.html").read_text(encoding="utf-8"))
    # Two scripts may run, each by its hash: what data bring into the page never can. The drawing library makes code for
    # the graphics card from text of its own, for which a policy has no finer word than 'unsafe-eval'.
    hashes = [f"sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}" for s in (script, drawing)]
    after = ("training", "cost", "provenance")
    before = next(s.id for s in sections if s.id in after) if examples else None
    return template.render(
        title=scene.material.title,
        kind=scene.material.kind,
        sections=sections,
        notes=scene.material.notes,
        before=before,
        payload=payload,
        script=script,
        style=style,
        hashes=" ".join(f"'{one}'" for one in hashes),
        library=hashes[1],
        version=__version__,
        **parts,
    )


def cell(value: Any) -> str:
    """A value as a person reads it: whole numbers whole, others to three significant digits."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{float(f'{value:.3g}'):g}"
    return visible(str(value))


def _facts(scene: ReportContext, sections: list[Section], examples: dict[str, Any]) -> dict[str, Any]:
    return {
        "instdiff": __version__,
        "title": scene.material.title,
        "kind": scene.material.kind,
        "notes": scene.material.notes,
        "sections": {s.id: {"title": s.title, "text": s.text, "notes": s.notes, "facts": s.facts} for s in sections},
        "examples": examples,
    }
