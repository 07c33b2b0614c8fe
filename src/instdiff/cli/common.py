"""Steps that several commands share: which rows, which methods, one scoring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from instdiff.cli.console import Console

if TYPE_CHECKING:
    from instdiff.config.commands import DataConfig, ScoreConfig, SelectConfig
    from instdiff.core import Log, Method
    from instdiff.data import Pool
    from instdiff.scoring.sharding.shards import Reads
    from instdiff.scoring.table import ScoreTable


def load_pool(config: DataConfig, console: Console, output: str | None, log: Log | None = None) -> Pool:
    """The rows that a command works on; bad lines go to ``NAME.rejected.jsonl`` beside its output ``NAME.…``."""
    from instdiff.data import load

    console.stage(f"reading {config.data}")
    pool = load(rejects_path=rejects_path(output) if output else None, log=log or console.log, **_how(config))
    console.stage("preparing models and rows")
    return pool


def rejects_path(output: str) -> Path:
    """Where the bad lines go of a command with this output."""
    path = Path(output)
    name = path.stem if path.suffix in (".jsonl", ".json", ".parquet", ".csv") else path.name
    return path.with_name(f"{name}.rejected.jsonl")


def read_shards(config: DataConfig, log: Log) -> Reads:
    """What reads one shard, of which alone the log is told, or all of them."""
    from instdiff.data.load import load_shards

    how = _how(config)
    return lambda count, index: load_shards(count=count, index=index, log=log if index is not None else None, **how)


def _how(config: DataConfig) -> dict[str, Any]:
    """Which rows, and how they are read."""
    from instdiff.errors import ConfigError

    if not config.data:
        raise ConfigError("no data is named; give --data FILE")
    return {
        "source": config.data,
        "format": config.format,
        "map": config.mapping(),
        "limit": config.limit,
        "longest_line_mb": config.longest_line_mb,
        **config.turns(),
    }


def data_options(config: DataConfig) -> list[str]:
    """The options that make another command read the same rows; none where they cannot be read again."""
    from instdiff.config.base import has_stdin

    if has_stdin(config.data):
        return []
    given = config.model_dump(include={"limit", "format", "targets", "reasoning", "system"}, exclude_defaults=True)
    given |= {"map": ",".join(f"{name}={column}" for name, column in (config.mapping() or {}).items()) or None}
    sources = [config.data] if isinstance(config.data, str) else config.data or []
    words = [("data", source) for source in sources] + [(key, value) for key, value in given.items() if value]
    return [word for key, value in words for word in (f"--{key}", str(value))]


def require_output(output: str | None) -> str:
    """An output path, which has no sensible default."""
    from instdiff.errors import ConfigError

    if not output:
        raise ConfigError("no output is named; give --output PATH")
    return output


def build_methods(config: ScoreConfig | SelectConfig) -> tuple[dict[str, Method], dict[str, str]]:
    """The configuration's methods, and how each was named."""
    from instdiff.config.methods import make_methods, short_name

    pairs = make_methods(list(config.method), {short_name(k): v for k, v in config.method.items()}, config.seed)
    return {name: method for name, (_, method) in pairs.items()}, {name: spec for name, (spec, _) in pairs.items()}


def rows_to(config: ScoreConfig | SelectConfig, what: str) -> Pool | None:
    """The rows under the key ``target``, which targeted methods match, or ``holdout``, where they are named."""
    from instdiff.data import load

    where = getattr(config, what, None)
    return load(where, map=config.mapping(), **config.turns()) if where else None


def listed_rows(config: ScoreConfig | SelectConfig) -> dict[str, list[str]] | None:
    """The lists of rows that methods may ask for."""
    from instdiff.data import load

    named = {name: getattr(config, name, None) for name in ("warmup", "holdout")}
    how = {"map": config.mapping(), **config.turns()}
    return {name: list(load(where, **how).ids) for name, where in named.items() if where} or None


def run_score(config: ScoreConfig | SelectConfig, pool: Pool, console: Console) -> ScoreTable:
    """Score a pool as configured."""
    from instdiff.scoring.models import bind, settings_of
    from instdiff.scoring.scorer import score
    from instdiff.store import Store

    named, specs = build_methods(config)
    return score(
        pool,
        named,
        bind(config.model),
        settings=settings_of(config),
        store=Store(config.store),
        listed=listed_rows(config),
        target=rows_to(config, "target"),
        holdout=rows_to(config, "holdout"),
        crossfit=getattr(config, "crossfit", None),
        seed=config.seed,
        specs=specs,
        log=console.log,
        progress=console,
    )


def write_page(folder: str | Path, console: Console, lines: list[dict[str, Any]] | None = None) -> None:
    """The page of a run folder, which is whole without it: where it cannot be made, the log says why."""
    from instdiff.errors import PlanError
    from instdiff.reporting import report

    try:
        report(str(folder), lines=lines, log=console.log)
    except PlanError as error:
        console.log(f"warning: there is no page: {error}; then run: instdiff report {folder}")
