"""``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instdiff.cli import options as o
from instdiff.cli.app import command
from instdiff.cli.common import build_methods, load_pool
from instdiff.cli.console import Console
from instdiff.cli.score import TABLES, TABLES_SAID, inputs, write_scores

if TYPE_CHECKING:
    from instdiff.config.commands import ScoreConfig


@command("merge", "Example:  instdiff merge runs/shards --output scores.parquet")
def merge(
    folder: Annotated[str, typer.Argument(help="Where `score --shards` wrote its files.", metavar="DIR")],
    output: o.Output = None,
    data: o.Data = None,
    model: o.Models = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="A ./mine.py:Margin that was scored and may be run here.")
    ] = None,
    warmup: o.Warmup = None,
    target: o.Target = None,
    store: o.Store = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 when a row could not be scored.")] = False,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Join the shards of `score --shards` and score all rows; runs no model.

    Data and models are those of the shards; the options say where they are by now, if elsewhere.
    """
    from instdiff.errors import ConfigError
    from instdiff.scoring.models import bind
    from instdiff.scoring.sharding.shard_file import complete
    from instdiff.scoring.sharding.shards import merge as merged

    console = Console(quiet=quiet, as_json=json)
    out = output or str(Path(folder) / "scores.parquet")
    if Path(out).suffix not in TABLES:
        raise ConfigError(f"scores go to {TABLES_SAID}, not to '{out}'")
    first = complete(folder)
    given = o.options_given(data=data, warmup=warmup, target=target, store=store)
    settings = _again(first, given, model, method or [], folder)
    named, specs = build_methods(settings)
    pool, how = load_pool(settings, console, out), inputs(settings, console.log)
    scores = merged(folder, pool, named, bind(settings.model), specs=specs, **how)
    console.log(f"{first['about']['shards']} shards of {folder} are joined")
    write_scores(scores, out, console, strict=strict)


def _again(
    first: dict[str, Any], given: dict[str, Any], model: list[str] | None, run: list[str], folder: str
) -> ScoreConfig:
    """The shards' configuration, with what lies elsewhere now.

    Raises:
        ConfigError: a user's method is among them that nobody named: a folder of shards may come from anywhere.
    """
    from instdiff.config.base import build
    from instdiff.config.commands import ScoreConfig, parse_models
    from instdiff.config.methods import files_in, is_file, short_name
    from instdiff.errors import ConfigError

    config = dict(first["config"])
    asked = config.get("method", {})
    named = {short_name(spec): spec for spec in run if is_file(spec)}
    methods = {named.get(short_name(spec), spec) if is_file(spec) else spec: params for spec, params in asked.items()}
    for spec in files_in(methods):
        if spec not in run:
            raise ConfigError(
                f"'{folder}' was scored by '{spec}', a file that is not run unless you name it; give --method {spec}"
            )
    models = {**config.get("model", {}), **(parse_models(model) if model else {})}
    known = {"method": methods, "model": models, "dtype": first["about"]["settings"]["dtype"], "device": "cpu"}
    return build(ScoreConfig, {**config, **given, **known}, folder)
