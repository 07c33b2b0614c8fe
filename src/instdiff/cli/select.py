"""``sample`` and ``select``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instdiff.cli import options as o
from instdiff.cli.app import command
from instdiff.cli.common import load_pool, require_output, run_score
from instdiff.cli.console import Console

if TYPE_CHECKING:
    from instdiff.config.commands import SelectConfig
    from instdiff.data import Pool
    from instdiff.scoring.table import ScoreTable


@command("sample", "Example:  instdiff sample --data my.jsonl --max-samples 1000 --seed 42 --output warmup.jsonl")
def sample(
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    data: o.Data = None,
    output: o.Output = None,
    max_samples: Annotated[int | None, typer.Option("--max-samples", help="Rows to draw.")] = None,
    limit: o.Limit = None,
    seed: o.Seed = None,
    format: o.Format = None,
    map: o.Map = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Draw a seeded random subset, the published way."""
    from instdiff.config.base import load as load_config
    from instdiff.config.commands import SampleConfig
    from instdiff.errors import ConfigError
    from instdiff.selection.selector import sample_rows

    console = Console(quiet=quiet, as_json=json)
    given = o.options_given(
        data=data, output=output, max_samples=max_samples, limit=limit, seed=seed, format=format, map=map
    )
    settings = load_config(SampleConfig, config, given, overrides or [])
    out = require_output(settings.output)
    if settings.max_samples is None:
        raise ConfigError("no size is named; give --max-samples N")
    pool = load_pool(settings, console, out)
    rows = sample_rows(len(pool), settings.max_samples, settings.seed)
    pool.write(out, rows)
    facts = {"rows": len(rows), "of": len(pool), "seed": settings.seed, "output": out}
    console.result(facts, f"{len(rows):,} of {len(pool):,} rows (seed {settings.seed}) in {out}")


@command(
    "select",
    'Example:  instdiff select --data my.jsonl --scores scores.parquet --method ifd --budget "10% tokens" '
    "--output selected.jsonl",
)
def select(
    overrides: o.Overrides = None,
    config: o.ConfigFile = None,
    data: o.Data = None,
    scores: Annotated[
        str | None, typer.Option("--scores", help="What `score` wrote; without it methods that need no model run here.")
    ] = None,
    method: o.Methods = None,
    set: o.Set = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="500, 10%, '25% eligible', '200000 tokens', '10% tokens' (default 10%)."),
    ] = None,
    order: Annotated[str | None, typer.Option("--order", help="rank (default) or input.")] = None,
    group_by: Annotated[
        str | None, typer.Option("--group-by", help="Column of the input; the same share of each of its values.")
    ] = None,
    with_scores: Annotated[bool, typer.Option("--with-scores", help="Add the method's columns to the rows.")] = False,
    output: o.Output = None,
    record: Annotated[
        str | None,
        typer.Option("--record", help="Where the record goes (default: beside the output)."),
    ] = None,
    model: o.Models = None,
    limit: o.Limit = None,
    format: o.Format = None,
    map: o.Map = None,
    targets: o.Targets = None,
    store: o.Store = None,
    seed: o.Seed = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Rank by a method's scores and cut to a budget."""
    from instdiff.config.base import load as load_config
    from instdiff.config.commands import SelectConfig
    from instdiff.core.budget import configured_budget
    from instdiff.selection.record import record_path
    from instdiff.selection.selector import select as choose

    console = Console(quiet=quiet, as_json=json)
    given = o.options_given(
        data=data,
        scores=scores,
        method=method,
        budget=budget,
        order=order,
        group_by=group_by,
        with_scores=with_scores,
        output=output,
        record=record,
        model=model,
        limit=limit,
        format=format,
        map=map,
        targets=targets,
        store=store,
        seed=seed,
    )
    settings = load_config(SelectConfig, config, given, [*o.method_sets(set), *(overrides or [])])
    out = require_output(settings.output)
    pool = load_pool(settings, console, out)
    table = _scores(settings, pool, console)
    name = _one_method(settings, table)
    chosen = choose(
        pool,
        table[name],
        configured_budget(settings.budget, settings.select_ratio),
        order=settings.order,
        group_by=settings.group_by,
        quota=settings.quota,
        meta=table.meta,
    )
    chosen.write(out, with_scores=settings.with_scores)
    chosen.write_record(place := settings.record or record_path(out))
    counts = chosen.record()["counts"]
    tokens = "" if counts["selected_tokens"] is None else f", {counts['selected_tokens']:,} response tokens"
    console.result(
        {**chosen.record(), "output": out},
        f"{len(chosen):,} of {len(pool):,} rows{tokens} by {name} within {chosen.budget} in {out}; "
        f"the record is {place}",
    )


def _scores(settings: SelectConfig, pool: Pool, console: Console) -> ScoreTable:
    from instdiff.config.methods import files_in, make_method, short_name
    from instdiff.errors import ConfigError
    from instdiff.scoring.scorer import recalling
    from instdiff.scoring.table import NotRun, read_scores

    if not settings.scores:
        if not settings.method:
            raise ConfigError("no scores are named; give --scores FILE, or --method random, longest or full")
        return run_score(settings, pool, console)
    table = read_scores(settings.scores, run=files_in(settings.method))
    for spec, params in settings.method.items():
        name = short_name(spec)
        used = table[name].method.params()
        seeded = "seed" in used and "seed" in settings.model_fields_set
        given = ({"seed": settings.seed} if seeded else {}) | params
        # As it was stored: a method inside another may be written in several ways.
        known = used.keys() >= given.keys() and not isinstance(table[name].method, NotRun)
        same = make_method(spec, used | given, settings.seed).params() if known else given
        for key, value in given.items():
            if key not in used or used[key] != same[key]:
                raise ConfigError(
                    f"'{settings.scores}' was scored with {name}.{key}={used.get(key)!r}, not {value!r}; "
                    "run `instdiff score` again with it (what the store has is not computed again)"
                )
    for name, scored in table.scored.items():
        table.scored[name] = recalling(scored, table.meta, pool, store=settings.store, log=console.log)
    return table


def _one_method(settings: SelectConfig, table: ScoreTable) -> str:
    from instdiff.config.methods import short_name
    from instdiff.errors import ConfigError

    asked = [short_name(name) for name in settings.method] or list(table)
    if len(asked) != 1:
        raise ConfigError(f"a selection goes by one method; give --method, one of {', '.join(table)}")
    return asked[0]
