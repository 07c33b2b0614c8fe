"""``sample`` and ``select``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instdiff.cli.app import command
from instdiff.cli.common import load_pool, require_output, run_score
from instdiff.cli.console import Console

if TYPE_CHECKING:
    from instdiff.config.commands import SampleConfig, SelectConfig
    from instdiff.data import Pool
    from instdiff.scoring.table import ScoreTable


@command(
    "sample",
    "commands.SampleConfig",
    "config data! output! max_samples! limit seed format map quiet json",
    "Example:  instdiff sample --data my.jsonl --max-samples 1000 --seed 42 --output warmup.jsonl",
)
def sample(settings: SampleConfig, console: Console) -> None:
    """Draw a seeded random subset. It is the published one."""
    from instdiff.selection.selector import sample_rows

    out = require_output(settings.output)
    assert settings.max_samples
    pool = load_pool(settings, console, out)
    rows = sample_rows(len(pool), settings.max_samples, settings.seed)
    pool.write(out, rows)
    facts = {"rows": len(rows), "of": len(pool), "seed": settings.seed, "output": out}
    console.result(facts, f"Drew {len(rows):,} of {len(pool):,} rows (seed {settings.seed}) -> {out}")


@command(
    "select",
    "commands.SelectConfig",
    "config data! scores method set budget per rows order group_by near_duplicates with_scores weights output! record "
    "model limit format map targets reasoning system store seed strict quiet json",
    'Example:  instdiff select --data my.jsonl --scores scores.parquet --method ifd --budget "10% tokens" '
    "--output selected.jsonl",
)
def select(settings: SelectConfig, console: Console) -> None:
    """Rank rows by their scores, cut to a budget."""
    from instdiff.core.budget import configured_budget
    from instdiff.scoring.advice import advise
    from instdiff.selection.record import record_path
    from instdiff.selection.selector import select as choose
    from instdiff.selection.selector import select_listed

    out = require_output(settings.output)
    settings = _listed(settings)
    told = list[str]()
    pool = load_pool(settings, console, out, told.append)
    for line in told[1 if settings.scores else 0 :]:  # `score` has told the format
        console.log(line)
    table = _scores(settings, pool, console)
    name = _one_method(settings, table)
    how: dict[str, Any] = {"order": settings.order, "meta": table.meta}
    if settings.rows:
        chosen = select_listed(pool, table[name], settings.rows, **how)
    else:
        free = settings.budget is None and settings.select_ratio is None
        budget = None if free else configured_budget(settings.budget, settings.select_ratio)
        how |= {"per": settings.per, "group_by": settings.group_by, "quota": settings.quota}
        how |= {"near_duplicates": settings.near_duplicates}
        chosen = choose(pool, table[name], budget, **how)
    if settings.weights:
        chosen = chosen.with_weights(settings.weights)
    chosen.write(out, with_scores=settings.with_scores)
    place = Path(settings.record or record_path(out))
    earlier = " (instead of an earlier one)" if place.exists() else ""
    record = chosen.write_record(place, out)
    console.result({**record, "output": out}, f"Selected {chosen.told()} -> {out}\nRecord: {place}{earlier}")
    for line in advise(chosen.scored):
        console.log(line)
    if idle := chosen.idle():
        console.log(f"warning: {idle}")
    if short := chosen.shortfall():
        console.log(f"warning: {short}")
        if settings.strict:
            print("error: --strict, and the budget was not met", file=sys.stderr)
            sys.exit(3)
    if Path(out).suffix == ".jsonl":
        folder = Path(out).with_name(f"{Path(out).stem}_trl")
        console.next("export", "--data", out, "--format", "trl", "--output", folder)


def _listed(settings: SelectConfig) -> SelectConfig:
    """Where rows are listed, no budget says how many; without scores, all rows are equally good."""
    from instdiff.errors import ConfigError

    if not settings.rows:
        return settings
    keys = ("budget", "per", "select_ratio", "group_by", "near_duplicates")
    if more := [key for key in keys if getattr(settings, key) is not None]:
        raise ConfigError(f"'rows' lists what is taken, and '{more[0]}' says how much; give one of them")
    return settings if settings.scores or settings.method else settings.model_copy(update={"method": {"full": {}}})


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
