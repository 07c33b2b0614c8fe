"""What scoring would cost on a cluster: a row's cost, counted and measured here, times rows, sizes and machines.

An estimate, made of few numbers that can be checked one by one: the tokens that the plan counts on the rows at hand, 2
operations for each parameter and token, a share of the peak, and what every job does beside: reading all rows,
rendering its own, loading weights, writing columns.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.core import (
    Anchored,
    Choice,
    Demonstrated,
    Embedding,
    Entropy,
    Measure,
    Method,
    ModelRef,
    Neurons,
    Nll,
    Pooled,
    Prompted,
    Settings,
    Top1,
)
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, did_you_mean
from instdiff.scoring.cost import ASSUMED_SHARE_OF_PEAK, PassCost, estimate_cost
from instdiff.scoring.planner import Pass
from instdiff.scoring.planner import plan as waves_of
from instdiff.scoring.scorer import by_name, workbench
from instdiff.scoring.workbench import Workbench
from instdiff.store import Store

SAMPLE_ROWS = 2000
"""Rows, spread over the data, on which a row's cost is counted."""
ROWS = (10**6, 10**7, 10**8)
PARAMS = (0.5e9, 1.5e9, 7e9, 14e9, 32e9, 70e9)
BYTES_PER_PARAM = 2
ROOM = 1.2
"""Memory that a model takes, over its weights."""
KEY_BYTES = 24
"""Of a row in a column, beside 4 for each value."""
APPENDED_PER_S, VALUES_PER_S = 40_000, 6_600_000
"""Rows and values that a store takes in; see docs/performance.md."""


@dataclass(frozen=True)
class Cluster:
    """Machines, as ``gpus=64,flops=990e12,price=2.5`` says them.

    Args:
        gpus: in all.
        flops: peak of one GPU in the precision of the weights, operations a second.
        price: of one GPU for an hour, in whatever currency.
        share: of the peak that a sweep reaches; assumed, unless a run there has told.
        rows: of the data; by default a table over sizes.
        params: of the model; by default a table over sizes.
        memory: bytes of one GPU.
        disk: bytes of weights that a job reads in a second.
        start: seconds until a job's process can begin.
        shards: jobs; by default one for each GPU, or for as many as a model needs.
    """

    gpus: int
    flops: float
    price: float | None = None
    share: float = ASSUMED_SHARE_OF_PEAK
    rows: float | None = None
    params: float | None = None
    memory: float = 80e9
    disk: float = 1e9
    start: float = 30.0
    shards: int | None = None

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Cluster:
        """From ``key=value,key=value``, or the same as a mapping.

        Raises:
            ConfigError: an unknown key, no number, or no ``gpus`` and ``flops``.
        """
        pairs = dict(given) if isinstance(given, Mapping) else dict(_pair(item) for item in given.split(","))
        known = [field.name for field in fields(cls)]
        numbers: dict[str, Any] = {}
        for key, value in pairs.items():
            if key not in known:
                raise ConfigError(f"--cluster: unknown key '{key}'{did_you_mean(key, known)}")
            try:
                numbers[key] = float(value)
            except (TypeError, ValueError):
                raise ConfigError(f"--cluster: '{key}={value}' is no number") from None
            if not (math.isfinite(numbers[key]) and numbers[key] > 0) and not (key == "start" and numbers[key] == 0):
                raise ConfigError(f"--cluster: {key} is {value}, it must be above 0")
            if key in ("gpus", "shards"):
                if numbers[key] != int(numbers[key]):
                    raise ConfigError(f"--cluster: {key} is {value}, it must be a whole number")
                numbers[key] = int(numbers[key])
        if lacking := [key for key in ("gpus", "flops") if key not in numbers]:
            raise ConfigError(f"--cluster lacks {' and '.join(lacking)}; write --cluster gpus=64,flops=990e12")
        if numbers.get("share", 0) > 1:
            raise ConfigError(f"--cluster: share is {pairs['share']}, it is a part of the peak: at most 1")
        return cls(**numbers)


def _pair(item: str) -> tuple[str, str]:
    key, sign, value = item.partition("=")
    if not (key.strip() and sign and value.strip()):
        raise ConfigError(f"--cluster: '{item}' is not key=number; write --cluster gpus=64,flops=990e12,price=2.5")
    return key.strip(), value.strip()


@dataclass(frozen=True)
class Rates:
    """What a row costs, counted on ``sample`` rows here; ``params`` are those of the largest model that is bound.

    ``sized_tokens`` are computed by the largest model, whose size an estimate may change, ``other_flops`` are of all
    smaller ones. ``entries`` are rows of columns, ``values`` what stands in them, ``vector_values`` those of them that
    are as many as the model is wide. ``whole`` says that rows are shown to each other, so that each job renders all.
    """

    sample: int
    params: float
    passes: int
    model_loads: int
    tokens: float
    sized_tokens: float
    own_flops: float
    other_flops: float
    entries: float
    values: float
    vector_values: float
    load_s: float
    render_s: float
    whole: bool


@dataclass(frozen=True)
class Estimate:
    """What a number of rows costs with a model of a size; ``seconds`` is None where the model does not fit."""

    rows: int
    params: float
    gpus_per_worker: int
    workers: int
    shards: int
    tokens: float
    flops: float
    seconds: float | None
    compute_s: float
    beside_s: float
    merge_s: float
    gpu_hours: float | None
    price: float | None
    store_bytes: float
    file_bytes: float


# ── a row's cost ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Blank(Store):
    """A store that has no columns, and knows the hashes that another one remembers."""

    def __init__(self, root: Path, memo: Path) -> None:
        super().__init__(root)
        self._memo = memo

    @property
    def memo(self) -> Path:
        """Where hashes of model files are remembered."""
        return self._memo


def measure(
    pool: Pool,
    methods: Sequence[Method] | Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None,
    *,
    settings: Settings | None = None,
    target: Pool | None = None,
    store: Store | None = None,
) -> Rates:
    """Count and measure what a row of this data costs; loads tokenizers, runs no model. What is cached does not count.

    Raises:
        PlanError: a role that a method needs is not bound.
    """
    named, count = by_name(methods), min(SAMPLE_ROWS, len(pool))
    sample = pool.take(np.linspace(0, len(pool) - 1, count).astype(np.int64))
    with tempfile.TemporaryDirectory() as folder:
        blank = _Blank(Path(folder) / "store", (store or Store()).memo)
        bench = workbench(sample, named, models, settings, blank, target=target)
        waves = waves_of(signal for method in named.values() for signal in method.signals().values())
        steps = [step for wave in waves for step in bench.order(wave)]
        render_s = _render_seconds(bench, steps) / count
        costs = estimate_cost(bench, named)
        load_s = _load_seconds(sample, Path(folder)) / count
        return _rates(bench, list(zip(steps, costs.passes, strict=True)), costs.model_loads, load_s, render_s)


def _render_seconds(bench: Workbench, steps: Sequence[Pass]) -> float:
    """To tokenise and key all rows, tokenizers being there already."""
    for step in steps:
        if not step.measures[0].of_text:
            bench.tokenizer(step.model)
    start = time.perf_counter()
    for step in steps:
        if bench.ready(step):
            bench.render_for(step)
    return time.perf_counter() - start


def _load_seconds(sample: Pool, folder: Path) -> float:
    file = folder / "sample.jsonl"
    sample.to_jsonl(file)
    load(str(file))  # what it imports is not paid by each row
    start = time.perf_counter()
    load(str(file))
    return time.perf_counter() - start


def _rates(
    bench: Workbench, passes: Sequence[tuple[Pass, PassCost]], loads: int, load_s: float, render_s: float
) -> Rates:
    own = [(step, cost) for step, cost in passes if step.of == "pool"]
    sizes = {step.model: _params(bench, step.model) for step, _ in own if not step.measures[0].of_text}
    params = max(sizes.values(), default=0.0)
    count = len(bench.pool)
    found = dict.fromkeys(("sized_tokens", "own_flops", "other_flops", "entries", "values", "vector_values"), 0.0)
    for step, cost in own:
        sized = params > 0 and sizes.get(step.model) == params
        found["own_flops" if sized else "other_flops"] += cost.flops / count
        found["sized_tokens"] += (cost.todo_tokens - cost.shared_tokens) / count if sized else 0.0
        for m in step.measures:
            entries, values, vectors = _stored(bench, step, m, cost)
            found["entries"] += entries / count
            found["values"] += values / count
            found["vector_values"] += values / count if vectors and sized else 0.0
    whole = any(isinstance(step.view, (Demonstrated, Anchored)) for step, _ in own)
    tokens = sum(cost.tokens for _, cost in own) / count
    loads -= len({step.model for step, cost in passes if step.measures[0].of_text and cost.todo_rows})
    return Rates(count, params, len(passes), loads, tokens, **found, load_s=load_s, render_s=render_s, whole=whole)


def _stored(bench: Workbench, step: Pass, measure: Measure, cost: PassCost) -> tuple[int, float, bool]:
    """Rows and values that a measure adds to the store, and whether these are vectors."""
    rows = cost.todo_rows
    match measure:
        case Nll() | Entropy() | Top1():
            # A row has the same targets whatever other rows stand before it.
            rendered = bench.render_for(step) if bench.ready(step) else bench.render(step.model, Prompted())
            return rows, float(rendered.tokens.n_targets()[rendered.scorable].sum()), False
        case Choice(options=options):
            return rows, rows * len(options), False
        case Pooled() | Embedding() | Neurons():
            return rows, rows * _width(bench, step, measure), True
    return rows, rows, False


def _config(bench: Workbench, step: Pass, measure: Measure) -> dict[str, Any]:
    source = getattr(bench.text_model(step.model, measure), "source", None) if measure.of_text else None
    folder = source.folder if source is not None else None if measure.of_text else bench.source(step.model).folder
    if folder is None or not (folder / "config.json").is_file():
        return {}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return dict(config.get("text_config", config))


def _width(bench: Workbench, step: Pass, measure: Measure) -> int:
    config = _config(bench, step, measure)
    width = int(config.get("hidden_size") or config.get("n_embd") or 384)
    return int(config.get("intermediate_size") or 4 * width) if isinstance(measure, Neurons) else width


def _params(bench: Workbench, role: str) -> float:
    """Parameters, by the headers of the files."""
    from safetensors import safe_open

    total = 0
    for file in bench.source(role).folder.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return float(total)


# ── times rows, sizes and machines ────────────────────────────────────────────────────────────────────────────────────


def estimates(rates: Rates, cluster: Cluster) -> list[Estimate]:
    """For the sizes that the cluster names, or for a table of sizes, the model that is bound first."""
    sizes: list[float | None] = [cluster.params] if cluster.params else [None, *PARAMS] if rates.params else [None]
    rows = [int(cluster.rows)] if cluster.rows else list(ROWS)
    return [estimate(rates, cluster, count, params) for params in sizes for count in rows]


def estimate(rates: Rates, cluster: Cluster, rows: int, params: float | None = None) -> Estimate:
    """Time, tokens, storage and price of so many rows, with the largest model in another size where one is given.

    A model that does not fit into one GPU is laid over several, layer after layer, of which one works at a time.
    """
    size = params or rates.params
    own = rates.own_flops if params is None else 2.0 * params * rates.sized_tokens
    flops = rows * (own + rates.other_flops)
    gpus = max(1, math.ceil(ROOM * size * BYTES_PER_PARAM / cluster.memory))
    workers = cluster.gpus // gpus
    shards = cluster.shards or max(workers, 1)
    wider = (size / rates.params) ** (1 / 3) - 1 if rates.params else 0.0
    values = rates.values + rates.vector_values * wider
    written_s = max(rates.entries / APPENDED_PER_S, values / VALUES_PER_S)
    rendered = rows if rates.whole else rows / shards
    job_s = cluster.start + rates.model_loads * size * BYTES_PER_PARAM / cluster.disk
    job_s += rows * rates.load_s + rendered * rates.render_s + rows / shards * written_s
    compute_s = flops / (max(workers, 1) * cluster.flops * cluster.share)
    beside_s = math.ceil(shards / max(workers, 1)) * job_s
    seconds = compute_s + beside_s if workers else None
    hours = cluster.gpus * seconds / 3600 if seconds is not None else None
    return Estimate(
        rows=rows,
        params=size,
        gpus_per_worker=gpus,
        workers=workers,
        shards=shards,
        tokens=rows * rates.tokens,
        flops=flops,
        seconds=seconds,
        compute_s=compute_s,
        beside_s=beside_s,
        merge_s=rows * (rates.load_s + rates.render_s + written_s),
        gpu_hours=hours,
        price=hours * cluster.price if hours is not None and cluster.price else None,
        store_bytes=rows * (KEY_BYTES * rates.entries + 4 * values),
        file_bytes=rows * ((KEY_BYTES + 4) * rates.entries + 4 * values),
    )


def to_dict(cluster: Cluster, rates: Rates, found: Sequence[Estimate]) -> dict[str, Any]:
    """For ``--json``."""
    return {"given": asdict(cluster), "per_row": asdict(rates), "estimates": [asdict(one) for one in found]}
