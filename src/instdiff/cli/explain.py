"""``explain``, ``diff`` and ``export``."""

from __future__ import annotations

from typing import Annotated

import typer

from instdiff.cli import options as o
from instdiff.cli.app import command
from instdiff.cli.common import require_output
from instdiff.cli.console import Console

Scores = Annotated[str | None, typer.Option("--scores", help="What `score` wrote.", metavar="FILE")]


@command(
    "explain",
    "Examples:\n"
    "  instdiff explain 17 --data my.jsonl --scores scores.parquet\n"
    "  instdiff explain 3fa8c1 --data my.jsonl --scores scores.parquet --selection selected.jsonl --by entropy",
)
def explain(
    row: Annotated[str, typer.Argument(help="Number of the row, from 0, or its id or the beginning of it.")],
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    data: o.Data = None,
    scores: Scores = None,
    selection: Annotated[
        str | None,
        typer.Option("--selection", help="selected.jsonl, its record or a run folder.", metavar="PATH"),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="What colours the tokens: nll, entropy, top1, 'delta nll' (default: all there is)."),
    ] = None,
    format: o.Format = None,
    map: o.Map = None,
    targets: o.Targets = None,
    store: o.Store = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Show one row: scores, ranks, reasons, and its tokens coloured by what the models said."""
    from instdiff.cli.explain_view import explanation_text
    from instdiff.cli.token_view import print_tokens
    from instdiff.config.base import load as load_config
    from instdiff.config.selection import ExplainConfig
    from instdiff.errors import ConfigError
    from instdiff.scoring.table import read_scores
    from instdiff.selection.explain import as_json
    from instdiff.selection.explain import explain as look
    from instdiff.selection.record import Reading, find

    console = Console(quiet=quiet, as_json=json)
    given = o.options_given(
        data=data, scores=scores, selection=selection, by=by, format=format, map=map, targets=targets, store=store
    )
    settings = load_config(ExplainConfig, config, given, overrides or [])
    if not settings.data or not settings.scores:
        raise ConfigError(f"no {'scores are' if settings.data else 'data is'} named; give --data FILE --scores FILE")
    table = read_scores(settings.scores)
    reading = Reading(settings.format, settings.map, settings.targets)
    known = table.meta.get("settings", {}).get("targets")
    # Rows after the last that was scored are none of its business: it may have been scored with --limit.
    pool = reading.load(settings.data, known, limit=int(table.rows.max()) + 1)
    chosen = find(settings.selection, reading) if settings.selection else None
    facts = look(pool, table, row, selection=chosen, store=settings.store, log=console.log)
    console.result(as_json(facts), explanation_text(facts))
    if not json:
        print_tokens(facts["tokens"], settings.by)


@command(
    "diff",
    "Examples:\n"
    "  instdiff diff ifd.jsonl random.jsonl --data my.jsonl --by source\n"
    "  instdiff diff runs/a runs/b\n"
    "  instdiff diff mine.jsonl theirs.jsonl --scores scores.parquet",
)
def diff(
    a: Annotated[str, typer.Argument(help="A file of selected rows, its record, or a run folder.")],
    b: Annotated[str, typer.Argument(help="The other.")],
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    data: Annotated[
        str | None, typer.Option("--data", help="The input of both, where their rows are not beside them.")
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option("--scores", help="What `score` wrote; may repeat (default: beside A and B).", metavar="FILE"),
    ] = None,
    by: Annotated[str | None, typer.Option("--by", help="Column of the rows (default: source or the like).")] = None,
    examples: Annotated[int | None, typer.Option("--examples", help="Rows shown of each side (default 3).")] = None,
    format: o.Format = None,
    map: o.Map = None,
    targets: o.Targets = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Show what two selections share, and where they differ: by source, length and score."""
    from instdiff.cli.explain_view import differing
    from instdiff.config.base import load as load_config
    from instdiff.config.selection import DiffConfig
    from instdiff.selection.diff import difference
    from instdiff.selection.record import Reading

    console = Console(quiet=quiet, as_json=json)
    given = o.options_given(data=data, scores=scores, by=by, examples=examples, format=format, map=map, targets=targets)
    settings = load_config(DiffConfig, config, given, overrides or [])
    facts = difference(
        a,
        b,
        data=settings.data,
        scores=settings.scores,
        by=settings.by,
        examples=settings.examples,
        reading=Reading(settings.format, settings.map, settings.targets),
        log=console.log,
    )
    console.result(facts, differing(facts))


@command(
    "export",
    "Examples:\n"
    "  instdiff export --data selected.jsonl --format llamafactory --output LLaMA-Factory/data --name my_tenth\n"
    "  instdiff export --data selected.jsonl --format trl --output trl --model Qwen/Qwen2.5-0.5B\n"
    "  instdiff export --data selected.selection.json --format axolotl --output axolotl\n"
    "  instdiff export --data runs/demo --format hub --output card --license cc-by-4.0 --push hub:owner/name",
)
def export(
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    data: Annotated[
        str | None, typer.Option("--data", help="selected.jsonl, its record or a run folder.", metavar="PATH")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="llamafactory, axolotl, trl, jsonl, parquet or hub.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder for the files.", metavar="DIR")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the data set (default: by the input).")] = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="auto (default), alpaca, sharegpt, messages, prompt_completion."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", help="For TRL: chat, or a text template for models without a chat template."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model to be trained (default: the base of the selection).")
    ] = None,
    license: Annotated[str | None, typer.Option("--license", help="Of the source, as the hub spells it.")] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="hub:owner/name; private unless --public.", metavar="HUB")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository on the hub public.")] = False,
    source: Annotated[
        str | None, typer.Option("--source", help="The input, where only its record is given and it has moved.")
    ] = None,
    data_format: Annotated[
        str | None, typer.Option("--data-format", help="Format of the rows, where it is not recognised.")
    ] = None,
    map: o.Map = None,
    targets: o.Targets = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Write the subset in a trainer's format, with the lines to paste."""
    from instdiff.config.base import load as load_config
    from instdiff.config.selection import ExportConfig
    from instdiff.errors import ConfigError
    from instdiff.selection.export.export import FORMATS
    from instdiff.selection.export.export import export as hand_over
    from instdiff.selection.record import Reading

    console = Console(quiet=quiet, as_json=json)
    given = o.options_given(
        data=data,
        format=format,
        output=output,
        name=name,
        layout=layout,
        template=template,
        model=model,
        license=license,
        push=push,
        public=public,
        source=source,
        data_format=data_format,
        map=map,
        targets=targets,
    )
    settings = load_config(ExportConfig, config, given, overrides or [])
    if not settings.data:
        raise ConfigError("no data is named; give --data selected.jsonl, its record or a run folder")
    if not settings.format:
        raise ConfigError(f"no trainer is named; give --format, one of {', '.join(FORMATS)}")
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
        reading=Reading(settings.data_format, settings.map, settings.targets),
        log=console.log,
    )
    files = [path.as_posix() for path in done.files]
    facts = {"format": settings.format, "layout": done.layout, "rows": done.rows, "files": files}
    facts |= {"changed": done.changed, "left_out": done.left_out, "command": done.command, **done.extra}
    console.result(facts, f"{done.rows:,} rows, layout {done.layout}, in {', '.join(files)}\n\n{done.say}")
