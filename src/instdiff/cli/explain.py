"""``explain``, ``diff`` and ``export``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from instdiff.cli.app import command
from instdiff.cli.common import require_output
from instdiff.cli.console import Console, table
from instdiff.core.caps import Per
from instdiff.core.display import in_one_line, visible

if TYPE_CHECKING:
    from instdiff.config.selection import DiffConfig, ExplainConfig, ExportConfig

TEXT = 1200
"""Characters of a turn that are shown."""


@command(
    "explain",
    "selection.ExplainConfig",
    "config data! scores! selection by limit format map targets reasoning system store quiet json",
    "Examples:\n"
    "  instdiff explain 17 --data my.jsonl --scores scores.parquet\n"
    "  instdiff explain 3fa8c1 --data my.jsonl --scores scores.parquet --selection selected.jsonl --by entropy",
    click.Argument(["row"], help="Number of the row, from 0, or its id or the beginning of it."),
)
def explain(settings: ExplainConfig, console: Console, row: str) -> None:
    """Show one row: scores, ranks, tokens. Its tokens are coloured by what the models said."""
    from instdiff.cli.token_view import print_tokens
    from instdiff.scoring.table import read_scores
    from instdiff.selection.explain import as_json
    from instdiff.selection.explain import explain as look
    from instdiff.selection.record import Reading, find

    assert settings.data and settings.scores
    scores = read_scores(settings.scores)
    reading, last = Reading(**settings.reading()), int(scores.rows.max())
    # Rows after the last that was scored are none of its business: it may have been scored with --limit.
    limit = min(last + 1, settings.limit or last + 1)
    pool = reading.load(settings.data, scores.meta.get("settings"), limit=limit)
    chosen = find(settings.selection, reading, console.log) if settings.selection else None
    facts = look(pool, scores, row, selection=chosen, store=settings.store, log=console.log)
    console.result(as_json(facts), explanation_text(facts))
    if not console.as_json:
        print_tokens(facts["tokens"], settings.by)


@command(
    "diff",
    "selection.DiffConfig",
    "config data scores by examples limit format map targets reasoning system quiet json",
    "Examples:\n"
    "  instdiff diff ifd.jsonl random.jsonl --data my.jsonl --by source\n"
    "  instdiff diff runs/a runs/b\n"
    "  instdiff diff mine.jsonl theirs.jsonl --scores scores.parquet",
    click.Argument(["a"], help="A file of selected rows, its record, or a run folder."),
    click.Argument(["b"], help="The other."),
)
def diff(settings: DiffConfig, console: Console, a: str, b: str) -> None:
    """Show what two selections share. Also where they differ: by source, length and score."""
    from instdiff.selection.diff import difference
    from instdiff.selection.record import Reading

    facts = difference(
        a,
        b,
        data=settings.data,
        scores=settings.scores,
        by=settings.by,
        examples=settings.examples,
        reading=Reading(**settings.reading()),
        limit=settings.limit,
        log=console.log,
    )
    console.result(facts, difference_text(facts))


@command(
    "export",
    "selection.ExportConfig",
    "config data! format! output! name layout template responses half set store model license push public source limit "
    "data_format map targets reasoning system quiet json",
    "Examples:\n"
    "  instdiff export --data selected.jsonl --format llamafactory --output LLaMA-Factory/data --name my_tenth\n"
    "  instdiff export --data selected.jsonl --format trl --output trl --model Qwen/Qwen2.5-0.5B\n"
    "  instdiff export --data selected.selection.json --format axolotl --output axolotl\n"
    "  instdiff export --data runs/demo --format hub --output card --license cc-by-4.0 --push hub:owner/name",
)
def export(settings: ExportConfig, console: Console) -> None:
    """Write the subset in a trainer's format. Prints the lines to paste."""
    from instdiff.config.methods import make_methods
    from instdiff.methods import SelectiveDPO
    from instdiff.selection.export.export import export as hand_over
    from instdiff.selection.record import Reading

    assert settings.data and settings.format
    _, pairs = make_methods([SelectiveDPO.name], settings.method, seed=0)[SelectiveDPO.name]
    assert isinstance(pairs, SelectiveDPO)
    done = hand_over(
        settings.data,
        settings.format,
        require_output(settings.output),
        source=settings.source,
        name=settings.name,
        layout=settings.layout,
        template=settings.template,
        model=settings.model,
        license=settings.license,
        push_to=settings.push,
        public=settings.public,
        half=(settings.half, pairs) if settings.half else None,
        responses=settings.responses,
        store=settings.store,
        reading=Reading(**settings.reading()),
        limit=settings.limit,
        log=console.log,
    )
    files = [path.as_posix() for path in done.files]
    facts = {"format": settings.format, "layout": done.layout, "rows": done.rows, "files": files}
    facts |= {"changed": done.changed, "left_out": done.left_out, "command": done.command, **done.extra}
    console.result(facts, f"{done.rows:,} rows, layout {done.layout}, in {', '.join(files)}\n\n{done.say}")


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
    from instdiff.selection.explain import turn_text

    text = turn_text(turn)
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


def difference_text(facts: Mapping[str, Any]) -> str:
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
    per = f", {Per(side['per']['by'], side['per']['most']).text}" if "per" in side else ""
    return f"{side['method']} within {side.get('budget')}{per}" if "method" in side else "-"


def _quantiles(name: str, spread: Mapping[str, Mapping[str, Any]]) -> str:
    header = [name, *next(iter(spread.values()))]
    return table(header, [[part, *values.values()] for part, values in spread.items()])


def _example(row: Mapping[str, Any]) -> str:
    number = f"row {row['row']:,}, " if "row" in row else ""
    scores = "".join(f", {name} {value:.4g}" for name, value in row.get("scores", {}).items())
    text = f": {row['instruction']}  →  {row['response']}" if "instruction" in row else ""
    return f"{number}{row['id'][:12]}{scores}{text}"
