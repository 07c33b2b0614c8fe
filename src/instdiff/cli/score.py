"""``methods`` and ``score``."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from instdiff.cli.app import command
from instdiff.cli.common import (
    build_methods,
    data_options,
    listed_rows,
    load_pool,
    read_shards,
    require_output,
    rows_to,
    run_score,
)
from instdiff.cli.console import Console, table
from instdiff.cli.help import first_sentence

if TYPE_CHECKING:
    from instdiff.config.commands import ScoreConfig
    from instdiff.core import Log
    from instdiff.data import Pool
    from instdiff.scoring.sharding.shard import Shard
    from instdiff.scoring.sharding.shards import Progressed
    from instdiff.scoring.table import ScoreTable


@command(
    "methods",
    "",
    "json",
    "Example:  instdiff methods ifd",
    click.Argument(["name"], required=False, help="One method, with all that is to say about it."),
)
def methods(console: Console, name: str | None) -> None:
    """List the methods: what they do and cost. NAME shows one, with its defaults."""
    from instdiff.methods.describe import describe, describe_all

    if name is not None:
        facts = describe(name)
        facts["cost"] = _cost(name)
        told = [" ".join(part.split()).replace("``", "") for part in str(facts["doc"]).split("\n\n")]
        lines = [f"{facts['name']}  ({facts['paper']})", "", *(line for part in told for line in (part, ""))]
        lines += ["signals:", *(_signals(facts["signals"]) or ["  none"])]
        lines += ["", f"cost: {facts['cost']}", "", "defaults:"]
        lines += [f"  {key}={value!r}" for key, value in facts["defaults"].items()] or ["  none"]
        console.result(facts, "\n".join(lines))
        return
    every = [{**facts, "cost": _cost(str(facts["name"]))} for facts in describe_all()]
    rows = [[m["name"], first_sentence(str(m["doc"])).replace("``", ""), m["cost"]] for m in every]
    text = table(["method", "what it does", "cost"], rows)
    console.result({"methods": every}, f"{text}\n\nOne with its paper, parameters and defaults: instdiff methods NAME")


def _signals(signals: dict[str, str]) -> list[str]:
    """A line for each signal; of those that differ in the draw alone the first, and how many follow."""
    alike: dict[str, list[str]] = {}
    for key, value in signals.items():
        alike.setdefault(key.rstrip("0123456789") + re.sub(r"draw=\d+, ", "", value), []).append(key)
    more = {keys[0]: f" (and {len(keys) - 1} more draws)" if len(keys) > 1 else "" for keys in alike.values()}
    return [f"  {key}: {signals[key]}{told}" for key, told in more.items()]


def _cost(name: str) -> str:
    """The passes of a method by role, in words."""
    from instdiff.methods import resolve
    from instdiff.scoring.planner import plan

    method = resolve(name)()
    if name in ("then", "blend"):
        return "that of its methods"
    steps = [step for wave in plan(method.signals().values()) for step in wave]
    counts = Counter(step.model.partition("/")[0] for step in steps if any(m.needs_model for m in step.measures))
    passes = [
        f"{n} {'calls a row' if n > 1 else 'call a row'} of {role}"
        if role == "judge"
        else f"{n} pass{'es' * (n > 1)} of {role}"
        for role, n in counts.items()
    ]
    trained = [f"training of {role}" for role in ("calibrated", "holdout", "held", "path") if role in counts]
    return ", ".join(passes + trained) or "no model"


@command(
    "score",
    "commands.ScoreConfig",
    "config data! model method! set output! limit format map targets reasoning system template "
    "template_date max_length dtype device batch_tokens workers executor judge_concurrency judge_timeout judge_tries "
    "judge_max_tokens judge_batch store warmup target holdout trust_held shards shard_index seed strict quiet json",
    "Example:  instdiff score --data my.jsonl --model base=Qwen/Qwen2.5-0.5B --method ifd --output scores.parquet",
)
def score(settings: ScoreConfig, console: Console) -> None:
    """Score rows with one or more methods. Each row in is one row out."""
    from instdiff.errors import ConfigError

    out = require_output(settings.output)
    if settings.shards is not None or settings.shard_index is not None:
        _one_shard(settings, out, console)
        return
    if Path(out).suffix not in TABLES:  # before hours are spent
        raise ConfigError(f"scores go to {TABLES_SAID}, not to '{out}'")
    pool = load_pool(settings, console, out)
    scores = (_score_on_ray if settings.shared else run_score)(settings, pool, console)
    write_scores(scores, out, console, settings)


SHARDS_EACH = 4
"""Shards for each worker of a Ray cluster: those that come later take their part, and what is lost is little."""
TABLES = (".parquet", ".jsonl", ".csv")
TABLES_SAID = ".parquet, .jsonl or .csv"


def write_scores(scores: ScoreTable, out: str, console: Console, config: ScoreConfig) -> None:
    """Write a score table, say what is in it and what comes next; exit 3 where ``strict`` and a row has no score."""
    from instdiff.config.methods import files_in
    from instdiff.scoring.advice import advise

    scores.write(out)
    reasons = scores.reasons()
    rows = [
        [name, int(scores[name].eligible.sum()), ", ".join(f"{n} {word}" for word, n in reasons[name].items()) or "-"]
        for name in scores
    ]
    facts = {
        "output": out,
        "rows": len(scores),
        "truncated": int(scores.truncated.sum()),
        "methods": {
            name: {"eligible": row[1], "excluded": reasons[name]} for name, row in zip(scores, rows, strict=True)
        },
    }
    text = table(["method", "eligible", "excluded"], rows)
    console.result(facts, f"{text}\n\nScored {len(scores):,} rows ({facts['truncated']} truncated) -> {out}")
    for name in scores:
        for line in advise(scores[name]):
            console.log(line)
    if config.strict and any(not scores[name].scorable.all() for name in scores):
        print("error: --strict, and some rows could not be scored (see above)", file=sys.stderr)
        sys.exit(3)
    spec, name = next(iter(config.method)), next(iter(scores))
    inner = [file for params in config.method.values() for file in files_in(params)]  # each wants its own --set
    if (rows_of := data_options(config)) and scores[name].eligible.any() and not inner:
        chosen = Path(out).with_name("selected.jsonl")
        console.next("select", *rows_of, "--scores", out, "--method", spec, "--budget", "10%", "--output", chosen)


ASIDE = {
    *("output", "store", "device", "batch_tokens", "workers", "executor", "strict"),
    *(
        "shards",
        "shard_index",
        "cluster",
        "judge_price",
        "judge_concurrency",
        "judge_timeout",
        "judge_tries",
        "judge_batch",
    ),
    *("ray_address", "gpus_per_worker", "shared"),
}
"""What a shard's file need not say of its configuration: it changes no number."""


def _one_shard(settings: ScoreConfig, out: str, console: Console) -> None:
    """Compute the columns of a shard of the rows; ``merge`` makes scores of them."""
    from instdiff.config.base import has_stdin
    from instdiff.errors import ConfigError
    from instdiff.scoring.sharding.shard import shard_of_this_job
    from instdiff.scoring.sharding.shard_file import ranges

    if settings.shards is None:
        raise ConfigError("--shard-index says which, not of how many; give --shards N too")
    if Path(out).suffix in TABLES:
        raise ConfigError(f"with --shards the output is a folder that all shards share, not '{out}'")
    if has_stdin(settings.data):
        raise ConfigError("standard input cannot be read again by every shard and by merge; give a file with --data")
    if settings.strict:
        raise ConfigError("a shard computes columns, not scores; give --strict to `instdiff merge`")
    mine = shard_of_this_job(settings.shards, settings.shard_index)
    console.log(f"{mine} ({mine.by})")
    done = _run_shard(settings, mine, out, log=console.log, progress=console)
    facts: dict[str, Any] = {
        "output": out,
        "shard": mine.index,
        "shards": mine.count,
        "rows": done.rows,
        "waves": done.waves,
        "done": done.done,
        "waits_for": done.waits_for,
    }
    text = f"{mine}: {done.rows:,} rows in {out}"
    if done.waits_for:
        text += (
            f"; wave {done.done + 1} of {done.waves} shows rows to each other and needs shards "
            f"{ranges(done.waits_for)} first: give the same command again when they are there"
        )
    console.result(facts, text)


def _run_shard(settings: ScoreConfig, mine: Shard, folder: str, *, log: Log, **how: Any) -> Progressed:
    """A shard's columns, as far as other shards allow."""
    from instdiff.scoring.models import bind
    from instdiff.scoring.sharding.shards import score_shard

    named, specs = build_methods(settings)
    how |= {**inputs(settings, log), "specs": specs, "config": settings.model_dump(mode="json", exclude=ASIDE)}
    return score_shard(read_shards(settings, log), named, bind(settings.model), mine, folder, **how)


def inputs(settings: ScoreConfig, log: Log) -> dict[str, Any]:
    """What scoring takes beside rows, methods and models."""
    from instdiff.scoring.models import settings_of
    from instdiff.store import Store

    return {
        "settings": settings_of(settings),
        "store": Store(settings.store),
        "listed": listed_rows(settings),
        "target": rows_to(settings, "target"),
        "log": log,
    }


def _score_on_ray(settings: ScoreConfig, pool: Pool, console: Console) -> ScoreTable:
    """Shards as Ray tasks that read their own rows and leave their files in the shared folder, where they are joined.

    Embedders and judges run here. A wave begins when all shards of the one before are there.
    """
    from instdiff.engine.distributed.ray_host import RayHost
    from instdiff.errors import ConfigError
    from instdiff.scoring.models import bind
    from instdiff.scoring.scorer import workbench
    from instdiff.scoring.sharding.shard import Shard
    from instdiff.scoring.sharding.shard_file import shard_files
    from instdiff.scoring.sharding.shards import merge, score_texts

    if "://" in str(settings.shared):
        raise ConfigError(f"'shared' is a folder that all nodes see, not the address '{settings.shared}'; mount it")
    named, specs = build_methods(settings)
    how = inputs(settings, console.log)
    folder = Path(str(settings.shared)).absolute()
    bench = workbench(pool, named, bind(settings.model), **how)
    with closing(RayHost(how["settings"], bench.device, bench.dtype)) as host:
        terms = host.join(console.log)
        count = next((count for _, count, _ in shard_files(folder)), SHARDS_EACH * terms.count)
        score_texts(bench, named, specs, folder, count, console)
        dtype = str(bench.dtype).removeprefix("torch.")
        own = {"executor": "local", "workers": 1, "device": "cuda" if terms.gpus else "cpu", "dtype": dtype}
        asked = settings.model_copy(update=own)
        left = [Shard(index, count) for index in range(count)]
        while left:
            done = host.in_tasks(_ray_shard, iter(left), lambda shard: (asked, shard, str(folder), os.getcwd()))
            left = [shard for shard, progressed in done if progressed.waits_for]
    return merge(folder, pool, named, bind(settings.model), specs=specs, **how)


def _ray_shard(settings: ScoreConfig, shard: Shard, folder: str, where: str) -> tuple[Progressed, str, list[str]]:
    """The task: paths are those of the driver, and must mean the same here."""
    says: list[str] = []
    with suppress(OSError):
        os.chdir(where)
    return _run_shard(settings, shard, folder, log=says.append, texts=False), socket.gethostname(), says
