"""``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from instdiff.cli.app import command
from instdiff.cli.common import build_methods, load_pool
from instdiff.cli.console import Console
from instdiff.cli.score import TABLES, TABLES_SAID, inputs, write_scores

if TYPE_CHECKING:
    from instdiff.config.commands import MergeConfig, ScoreConfig


@command(
    "merge",
    "commands.MergeConfig",
    "output data model method warmup target store strict quiet json",
    "Example:  instdiff merge runs/shards --output scores.parquet",
    click.Argument(["folder"], metavar="DIR", help="Where `score --shards` wrote its files."),
)
def merge(asked: MergeConfig, console: Console, folder: str) -> None:
    """Join the shards of one scoring. Scores all rows of `score --shards` and runs no model.

    Data and models are those of the shards; the options say where they are by now, if elsewhere.
    """
    from instdiff.errors import ConfigError
    from instdiff.scoring.models import bind
    from instdiff.scoring.sharding.shard_file import complete
    from instdiff.scoring.sharding.shards import merge as merged

    out = asked.output or str(Path(folder) / "scores.parquet")
    if Path(out).suffix not in TABLES:
        raise ConfigError(f"scores go to {TABLES_SAID}, not to '{out}'")
    first = complete(folder)
    settings = _again(first, asked, folder)
    named, specs = build_methods(settings)
    pool, how = load_pool(settings, console, out), inputs(settings, console.log)
    scores = merged(folder, pool, named, bind(settings.model), specs=specs, **how)
    console.log(f"{first['about']['shards']} shards of {folder} are joined")
    write_scores(scores, out, console, settings.model_copy(update={"strict": asked.strict}))


def _again(first: dict[str, Any], asked: MergeConfig, folder: str) -> ScoreConfig:
    """The shards' configuration, with what lies elsewhere now.

    Raises:
        ConfigError: a user's method is among them that nobody named: a folder of shards may come from anywhere.
    """
    from instdiff.config.base import build
    from instdiff.config.commands import ScoreConfig
    from instdiff.config.methods import files_in, is_file, short_name
    from instdiff.errors import ConfigError

    config = dict(first["config"])
    named = {short_name(spec): spec for spec in asked.method if is_file(spec)}
    methods = {
        named.get(short_name(spec), spec) if is_file(spec) else spec: params
        for spec, params in config.get("method", {}).items()
    }
    for spec in files_in(methods):
        if spec not in asked.method:
            raise ConfigError(
                f"'{folder}' was scored by '{spec}', a file that is not run unless you name it; give --method {spec}"
            )
    given = asked.model_dump(include={"data", "warmup", "target", "store"}, exclude_none=True)
    models = {**config.get("model", {}), **asked.model}
    known = {"method": methods, "model": models, "dtype": first["about"]["settings"]["dtype"], "device": "cpu"}
    return build(ScoreConfig, {**config, **given, **known}, folder)
