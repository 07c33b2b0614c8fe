"""What scoring will cost, before anything is spent: the passes, their rows and tokens, what the store already has."""

from __future__ import annotations

import html
import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Anchored, Demonstrated, Method, Prompted, Settings
from instdiff.core.display import html_table
from instdiff.core.signals import Anchors, Contested, Folded, Solved
from instdiff.data.load import as_pool
from instdiff.engine.generation.pricing import writing_seconds
from instdiff.engine.lanes import lanes_of
from instdiff.engine.prefix_tree import Some, trees
from instdiff.engine.sources import Source
from instdiff.engine.speed import SHARE_OF_PEAK as ASSUMED_SHARE_OF_PEAK
from instdiff.engine.speed import Machine, Speed, load_seconds
from instdiff.engine.sweep import ABREAST, BLOCK, default_batch_tokens
from instdiff.engine.text.models import JudgeModel
from instdiff.errors import ConfigError, did_you_mean
from instdiff.rendering.rows import Rows as RowsOfTokens
from instdiff.scoring.given import Methods, given_models, given_settings, given_store, named_methods
from instdiff.scoring.planner import Pass, view_name
from instdiff.scoring.planner import plan as waves_of
from instdiff.scoring.scorer import workbench
from instdiff.scoring.workbench import Workbench
from instdiff.store import ColumnId, Store
from instdiff.store.keys import Keys, among

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PassCost:
    """One pass: all its rows, and what is left to do.

    ``todo_tokens`` count every row's own; of them ``shared_tokens`` are beginnings that rows have in common, and are
    computed once. ``estimated`` passes show rows to each other by what an earlier pass has yet to find out. Tokens of
    texts are estimated from their length. ``calls`` go to a judge's server, one for each row to do; an answer without a
    number is asked for again. ``most_tokens_out`` is what judges may write to these rows. ``most_price`` is what a
    server takes for all this, where the price of its tokens is known.
    """

    wave: int
    role: str
    model: str
    view: str
    measures: list[str]
    rows: int
    tokens: int
    cached_rows: int
    todo_rows: int
    todo_tokens: int
    shared_tokens: int
    flops: float
    estimated: bool = False
    calls: int = 0
    most_tokens_out: int = 0
    most_price: float | None = None


@dataclass(frozen=True)
class CostEstimate:
    """All passes, and what the methods would cost one by one; ``seconds`` include loading, and no calls to servers."""

    passes: list[PassCost]
    methods: dict[str, dict[str, int]]
    model_loads: int
    seconds: float
    flops_per_second: float

    def __repr__(self) -> str:
        todo, tokens = sum(p.todo_rows > 0 for p in self.passes), sum(p.todo_tokens for p in self.passes)
        calls = sum(p.calls for p in self.passes)
        asked = f", {calls:,} calls to judges" if calls else ""
        return (
            f"<Bill: {todo} of {len(self.passes)} passes to do, {tokens:,} tokens, about {self.seconds:,.0f} s{asked}>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: a line for each pass."""
        header = ["view", "role", "model", "rows", "to do", "tokens to do"]
        lines = [[p.view, p.role, p.model, p.rows, p.todo_rows, p.todo_tokens] for p in fold_passes(self.passes)]
        return f"<p>{html.escape(repr(self))}</p>{html_table(header, lines)}"

    def to_dict(self) -> dict[str, object]:
        """For ``--json``."""
        alone = {key: sum(m[key] for m in self.methods.values()) for key in ("passes", "tokens")}
        return {
            "passes": [asdict(p) for p in self.passes],
            "total": {
                "passes": len(self.passes),
                "tokens": sum(p.tokens for p in self.passes),
                "todo_passes": sum(p.todo_rows > 0 for p in self.passes),
                "todo_rows": sum(p.todo_rows for p in self.passes),
                "todo_tokens": sum(p.todo_tokens for p in self.passes),
                "shared_tokens": sum(p.shared_tokens for p in self.passes),
                "flops": sum(p.flops for p in self.passes),
                "calls": sum(p.calls for p in self.passes),
                "most_tokens_out": sum(p.most_tokens_out for p in self.passes),
                "most_price": sum(prices) if (prices := self._prices()) else None,
                "model_loads": self.model_loads,
                "seconds": self.seconds,
            },
            "alone": {"methods": self.methods, **alone},
            "assumed": {"share_of_peak": ASSUMED_SHARE_OF_PEAK, "flops_per_second": self.flops_per_second},
        }

    def _prices(self) -> list[float]:
        return [p.most_price for p in self.passes if p.most_price is not None]


def fold_passes(passes: Iterable[PassCost]) -> list[PassCost]:
    """One line for passes that differ in a number alone, as noisy copies do: a view of all, and their counts in all."""
    found: dict[tuple[Any, ...], list[PassCost]] = {}
    for p in passes:
        same = p.wave, p.role, re.sub(r"\d+", "#", p.view), *p.measures, p.rows, p.tokens, p.todo_rows, p.todo_tokens
        found.setdefault(same, []).append(p)
    return [many[0] if len(many) == 1 else _folded(many) for many in found.values()]


def _folded(passes: Sequence[PassCost]) -> PassCost:
    numbers = [
        sorted({*map(int, column)}) for column in zip(*(re.findall(r"\d+", p.view) for p in passes), strict=True)
    ]
    spans = iter(f"{few[0]} to {few[-1]}" if len(few) > 1 else f"{few[0]}" for few in numbers)
    view = re.sub(r"\d+", lambda _: next(spans), passes[0].view)
    sums = {key: sum(getattr(p, key) for p in passes) for key in SUMMED_OF_PASSES}
    return replace(passes[0], view=f"{view} ({len(passes)} passes)", **sums)


SUMMED_OF_PASSES = ("rows", "tokens", "cached_rows", "todo_rows", "todo_tokens", "shared_tokens", "flops")

Bill = CostEstimate
"""The public name of it."""


def plan(
    pool: Any,
    methods: Methods,
    models: Any = None,
    *,
    model: Any = None,
    settings: Settings | None = None,
    target: Any = None,
    store: Store | str | Path | None = None,
    seed: int = 42,
    judge_price: tuple[float, float] | None = None,
    **over: Any,
) -> CostEstimate:
    """What ``score`` with the same arguments would do and cost; spends nothing.

    ``judge_price`` is what a judge's server takes for a million tokens that it reads, and that it writes.

    Raises:
        PlanError: a role that a method needs is not bound.
        ConfigError: a value has a type that is not taken.
    """
    named, store = named_methods(methods, seed), given_store(store)
    bound = given_models(models if model is None else model, store)
    how = given_settings(settings, **over)
    matched = None if target is None else as_pool(target)
    return estimate_cost(workbench(as_pool(pool), named, bound, how, store, target=matched), named, judge_price)


def estimate_cost(
    bench: Workbench, methods: Mapping[str, Method], judge_price: tuple[float, float] | None = None
) -> CostEstimate:
    """Count what scoring would do. Nothing is loaded but tokenizers, nothing computed."""
    counted = count_passes(bench, methods, judge_price)
    passes = [cost for _, cost in counted]
    alone = {}
    for name, method in methods.items():
        own = [step for wave in waves_of(method.signals().values()) for step in wave]
        alone[name] = {"passes": len(own), "tokens": sum(int(_lengths(bench, step).sum()) for step in own)}
    machine, flops = Machine(bench.device), sum(p.flops for step, p in counted if not draws_of(step))
    speed = machine.peak(bench.dtype) * ASSUMED_SHARE_OF_PEAK if flops else 0.0
    drawing = sum(_drawing_seconds(bench, step, cost, machine) for step, cost in counted if draws_of(step))
    todo = [step for step, cost in counted if cost.todo_rows and not cost.calls]
    read = [step for step in todo if not step.measures[0].of_text]
    homes = [bench.home(step) for step in read]
    loaded = [step for step, a, b in zip(read, [None, *homes], homes, strict=False) if a != b]
    loads = len(loaded) + len({bench.home(step) for step in todo if step.measures[0].of_text})
    seconds = sum(load_seconds(bench.source(step.model)) for step in loaded if not draws_of(step)) + drawing
    return CostEstimate(passes, alone, loads, seconds + (flops / speed if flops else 0.0), speed)


@dataclass
class Planned:
    """What earlier passes of a plan compute: rows by column, and views whose rows are not known yet."""

    keys: dict[ColumnId, list[Keys]] = field(default_factory=dict)
    views: set[tuple[ColumnId, str, str]] = field(default_factory=set)


def count_passes(
    bench: Workbench,
    methods: Mapping[str, Method],
    judge_price: tuple[float, float] | None = None,
    planned: Planned | None = None,
) -> list[tuple[Pass, PassCost]]:
    """All passes in the order in which they run, less what the store has or an earlier pass, also of ``planned``."""
    known = Planned() if planned is None else planned
    passes = [(step, cost_of_pass(bench, step, number, known)) for number, step in _steps(bench, methods)]
    if judge_price is None:
        return passes
    return [(step, replace(p, most_price=price_of(p, judge_price)) if p.calls else p) for step, p in passes]


def price_of(cost: PassCost | StageCost, of_a_million: tuple[float, float]) -> float:
    """What a server takes for it at most, by its price of a million tokens in and out."""
    tokens = cost.todo_tokens if isinstance(cost, PassCost) else cost.tokens
    return (tokens * of_a_million[0] + cost.most_tokens_out * of_a_million[1]) / 1e6


def _steps(bench: Workbench, methods: Mapping[str, Method]) -> list[tuple[int, Pass]]:
    """All passes in the order in which they run, each with the number of its wave."""
    waves = waves_of(signal for method in methods.values() for signal in method.signals().values())
    return [(number, step) for number, wave in enumerate(waves) for step in bench.order(wave)]


def _lengths(bench: Workbench, step: Pass) -> Indices:
    """Tokens of each row of a pass, as far as they are known before earlier passes have run."""
    if isinstance(step.view, Folded):
        mine, whole = (
            bench.folds(step.view.split) == step.view.fold,
            _lengths(bench, replace(step, view=step.view.view)),
        )
        return np.where(np.repeat(mine, len(whole) // len(mine)), whole, 0)
    if bench.ready(step):
        return bench.render_for(step).lengths
    if isinstance(step.view, Contested):  # as if all rows went on
        return _lengths(bench, replace(step, view=step.view.view))
    plain = bench.render(step.model, Prompted(), step.of).lengths
    match step.view:
        case Demonstrated(shots=shots):
            return plain * (1 + shots)
        case Anchored(count=count, limit=limit, start=start, stop=stop):
            return np.repeat(plain, len(range(count)[start:stop])) + min(limit, int(plain.mean()))
        case Anchors(count=count, limit=limit):
            return np.full(count, min(limit, int(plain.mean())))
    return plain


def cost_of_pass(bench: Workbench, step: Pass, wave: int, planned: Planned) -> PassCost:
    """Count one pass, less what earlier ones compute."""
    lengths = _lengths(bench, step)
    body, head = _work_per_token(bench, step)
    ready, shared = bench.ready(step), 0
    if ready:
        rendered = bench.render_for(step)
        todo = _not_planned(bench, step, bench.lacking(step), planned)
        rows = len(rendered.scorable)
        cached = rows - len(_with_copies(rendered.keys, rendered.scorable, todo))
        targets = 0
        if isinstance(rendered.rows, RowsOfTokens) and rendered.checks is None:
            shared = _shared_tokens(bench, rendered.rows, todo)
            targets = int(rendered.rows.n_targets()[todo].sum())
    else:
        marks = {(bench.column(step.model, m), repr(step.view), step.of) for m in step.measures}
        every = _may_go_on(bench, step, len(lengths))
        todo = every[: 0 if marks <= planned.views else None]
        planned.views |= marks
        rows, cached = len(every), len(every) - len(todo)
        targets = int(lengths[todo].sum() // 2)
    calls, out = _judge_work(bench, step, len(todo))
    times = draws_of(step) or 1
    return PassCost(
        wave=wave,
        role=step.model,
        model=str(bench.models[step.model]),
        view=view_name(step.view),
        measures=[type(m).__name__.lower() for m in step.measures],
        rows=rows,
        tokens=int(lengths.sum()),
        cached_rows=cached,
        todo_rows=len(todo),
        todo_tokens=times * int(lengths[todo].sum()),
        shared_tokens=shared,
        flops=float((times * lengths[todo].sum() - shared + out) * body + targets * head),
        estimated=not ready,
        calls=calls,
        most_tokens_out=out,
    )


def draws_of(step: Pass) -> int:
    """Answers that a pass draws to each prompt; 0 of one that draws none."""
    return sum(measure.draws for measure in step.measures if isinstance(measure, Solved))


def _may_go_on(bench: Workbench, step: Pass, rows: int) -> Indices:
    """The rows of a view whose own are not known yet."""
    if draws_of(step) and isinstance(step.view, Contested):
        return bench.render(step.model, step.view.view, step.of).scorable
    return np.arange(rows)


def _judge_work(bench: Workbench, step: Pass, rows: int) -> tuple[int, int]:
    """Calls to a server, and tokens that a judge, or whoever answers a prompt, may write."""
    if draws := draws_of(step):
        most = sum(m.draws * m.max_tokens for m in step.measures if isinstance(m, Solved))
        served = bench.solver(step.model, step.measures[0]).endpoint is not None
        return rows * draws if served else 0, rows * most
    judge = bench.text_model(step.model, step.measures[0]) if step.measures[0].of_text else None
    if not isinstance(judge, JudgeModel):
        return 0, 0
    return rows if judge.endpoint is not None else 0, rows * judge.max_tokens


def _not_planned(bench: Workbench, step: Pass, todo: Indices, planned: Planned) -> Indices:
    """Rows that no earlier pass computes: one model may stand in several roles."""
    keys = bench.render_for(step).keys[todo]
    new = np.zeros(len(todo), bool)
    for measure in step.measures:
        column = bench.column(step.model, measure)
        earlier = planned.keys.setdefault(column, [])
        new |= bench.store.missing(column, keys) & ~np.isin(keys, np.concatenate([keys[:0], *earlier]))
        earlier.append(keys)
    return todo[new]


def _shared_tokens(bench: Workbench, rows: RowsOfTokens, todo: Indices) -> int:
    """Tokens that packing rows as trees will save."""
    if rows.noise is not None:
        return 0
    ids = rows.ids
    budget = bench.settings.batch_tokens or default_batch_tokens(bench.device.type)
    saved, lanes = 0, lanes_of(bench.device) if bench.device.type in ABREAST else 1
    for start in range(0, len(todo), BLOCK):
        some = Some(ids, todo[start : start + BLOCK])
        saved += sum(tree.tokens - len(tree.ids) for tree in trees(some, budget, lanes=lanes))
    return saved


def _with_copies(keys: Keys, scorable: Indices, todo: Indices) -> Indices:
    return scorable[among(keys[scorable], keys[todo])]


def _work_per_token(bench: Workbench, step: Pass) -> tuple[float, float]:
    """Floating-point operations per token of the body, and per target of the head."""
    if draws_of(step):
        writer = bench.solver(step.model, step.measures[0]).source
        return (2.0 * writer.parameters, 0.0) if writer is not None else (0.0, 0.0)
    of_text = step.measures[0].of_text
    source = (
        getattr(bench.text_model(step.model, step.measures[0]), "source", None) if of_text else bench.source(step.model)
    )
    body, head = work_of(source) if source is not None else (0.0, 0.0)
    return body, 0.0 if of_text else head


def work_of(source: Source) -> tuple[float, float]:
    """Of a language model: operations per token of the body, and per target of the head."""
    config = source.config
    embedding = (config.get("hidden_size") or config.get("n_embd") or 0) * config.get("vocab_size", 0)
    tied = config.get("tie_word_embeddings", True)
    return 2.0 * max(source.parameters - embedding * (1 if tied else 2), 0), 2.0 * embedding


# ── everything else that costs ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class StageCost:
    """A line of a plan: ``count`` pieces of work of a ``kind`` in a stage of the run.

    ``tokens`` are read or trained on, in all epochs; ``most_tokens_out`` may be written. ``calls`` go to a server,
    whose time is not in ``seconds``. ``estimated`` lines depend on what earlier ones find out.
    """

    stage: str
    kind: str
    count: int = 1
    rows: int = 0
    tokens: int = 0
    steps: int = 0
    most_tokens_out: int = 0
    calls: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    most_price: float | None = None
    estimated: bool = False

    def __add__(self, other: StageCost) -> StageCost:
        sums = {key: getattr(self, key) + getattr(other, key) for key in SUMMED}
        prices = [p for p in (self.most_price, other.most_price) if p is not None]
        return replace(
            self,
            **sums,
            most_price=sum(prices) if prices else None,
            estimated=self.estimated or other.estimated,
        )


SUMMED = ("count", "rows", "tokens", "steps", "most_tokens_out", "calls", "flops", "seconds")


def merge_stages(lines: Iterable[StageCost]) -> list[StageCost]:
    """One line for each stage and kind."""
    found: dict[tuple[str, str], StageCost] = {}
    for line in lines:
        place = line.stage, line.kind
        found[place] = found[place] + line if place in found else line
    return list(found.values())


def stage_of_passes(
    stage: str,
    bench: Workbench,
    passes: Sequence[tuple[Pass, PassCost]],
    machine: Machine,
    kind: str = "score",
    times: float = 1.0,
) -> list[StageCost]:
    """The passes as lines of a plan, those of servers apart; none where all is done.

    The rows of the bench may stand for ``times`` as many.
    """
    lines, home = [], ""
    for step, cost in passes:
        if not cost.todo_rows:
            continue
        counts = {key: round(times * getattr(cost, key)) for key in ("most_tokens_out", "calls")}
        flops, price = times * cost.flops, None if cost.most_price is None else times * cost.most_price
        seconds = 0.0
        if draws_of(step):
            seconds, home = times * _drawing_seconds(bench, step, cost, machine), bench.home(step)
        elif not cost.calls:
            speed = _speed(bench, step, machine)
            seconds = flops / speed.flops_per_s + (speed.load_s if bench.home(step) != home else 0.0)
            home = bench.home(step)
        counts |= {"rows": round(times * cost.todo_rows), "tokens": round(times * cost.todo_tokens)}
        more: dict[str, Any] = {"most_price": price, "estimated": cost.estimated, **counts}
        lines.append(StageCost(stage, _kind(step, cost, kind), flops=flops, seconds=seconds, **more))
    return lines


def _kind(step: Pass, cost: PassCost, kind: str) -> str:
    return "generate" if draws_of(step) else "judge" if cost.calls else kind


def _drawing_seconds(bench: Workbench, step: Pass, cost: PassCost, machine: Machine) -> float:
    """Seconds in which this machine writes the answers of a pass, if each is as long as it may be."""
    solver = bench.solver(step.model, step.measures[0])
    if solver.source is None or not cost.todo_rows:
        return 0.0
    view = step.view.view if isinstance(step.view, Contested) else step.view
    shown = bench.render(step.model, view, step.of)
    ids = [shown.tokens.ids[int(row)] for row in shown.scorable[: cost.todo_rows]]
    asked = [(row.tolist(), m.max_tokens) for m in step.measures if isinstance(m, Solved) for row in ids * m.draws]
    hf = bench.tokenizer(step.model).hf
    return writing_seconds(machine, solver.source, hf, asked, bench.dtype)


def _speed(bench: Workbench, step: Pass, machine: Machine) -> Speed:
    if step.measures[0].of_text:
        return Speed(0.0, machine.peak(bench.dtype) * ASSUMED_SHARE_OF_PEAK)
    rendered, (body, head) = bench.render(step.model, Prompted(), step.of), _work_per_token(bench, step)
    rows = rendered.tokens.take(rendered.scorable)
    per_token = body + head * int(rows.n_targets().sum()) / max(1, int(rows.ids.lengths().sum()))
    return machine.speed(bench.source(step.model), rows, bench.dtype, per_token)


# ── the same for more rows, other sizes and many GPUs ─────────────────────────────────────────────────────────────────

SAMPLE_ROWS = 2000
"""Rows, spread over the data, on which a row's cost is counted."""
ROWS, PARAMS = (10**6, 10**7, 10**8), (0.5e9, 1.5e9, 7e9, 14e9, 32e9, 70e9)
BYTES_PER_PARAM = 2 * 1.2
"""In memory: two of the weight, and a fifth more for what is computed with it."""


@dataclass(frozen=True)
class Cluster:
    """GPUs in all, the peak of one in operations a second, its price for an hour, and the share of the peak reached.

    ``rows`` and ``params`` ask for one size in place of a table; ``memory`` is bytes of one GPU.
    """

    gpus: int
    flops: float
    price: float | None = None
    share: float = ASSUMED_SHARE_OF_PEAK
    rows: float | None = None
    params: float | None = None
    memory: float = 80e9

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Cluster:
        """From ``gpus=64,flops=990e12,price=2.5`` or a mapping; a ConfigError for a wrong or missing key or number."""
        known, numbers = [field.name for field in fields(cls)], dict[str, Any]()
        pairs = given.items() if isinstance(given, Mapping) else [item.partition("=")[::2] for item in given.split(",")]
        for key, value in pairs:
            if value == "":
                raise ConfigError(
                    f"--cluster: '{key}' is not key=number; write --cluster gpus=64,flops=990e12,price=2.5"
                )
            if key not in known:
                raise ConfigError(f"--cluster: unknown key '{key}'{did_you_mean(key, known)}")
            try:
                numbers[key] = float(value)
            except (TypeError, ValueError):
                raise ConfigError(f"--cluster: '{key}={value}' is no number") from None
            if not 0 < numbers[key] < math.inf:
                raise ConfigError(f"--cluster: {key} is {value}, it must be above 0")
        if lacking := [key for key in ("gpus", "flops") if key not in numbers]:
            raise ConfigError(f"--cluster lacks {' and '.join(lacking)}; write --cluster gpus=64,flops=990e12")
        if numbers["gpus"] % 1:
            raise ConfigError(f"--cluster: gpus is {numbers['gpus']:g}, it must be a whole number")
        if numbers.get("share", 0) > 1:
            raise ConfigError(f"--cluster: share is {numbers['share']:g}, it is a part of the peak: at most 1")
        return cls(**numbers | {"gpus": int(numbers["gpus"])})


@dataclass(frozen=True)
class Rates:
    """What a row costs, counted on ``sample`` rows; ``params`` are those of the largest model that is bound.

    That model computes ``sized_tokens``, which are ``flops`` at its own size; all others together ``other_flops``.
    """

    sample: int
    params: float
    tokens: float
    sized_tokens: float
    flops: float
    other_flops: float

    @classmethod
    def count(cls, bench: Workbench, methods: Mapping[str, Method]) -> Rates:
        """What a row of the pool costs where nothing is cached; runs no model."""
        pool, count = bench.pool, min(SAMPLE_ROWS, len(bench.pool))
        sample = pool.take(np.linspace(0, len(pool) - 1, count).astype(np.int64))
        with tempfile.TemporaryDirectory() as folder:
            blank = Store(folder, memo=bench.store.memo)
            few = Workbench(sample, bench.models, bench.settings, blank, target=bench.target, log=bench.log)
            few.sources |= bench.sources
            own = [(step, cost) for step, cost in count_passes(few, methods) if step.of == "pool"]
        size = {step.model: bench.source(step.model).parameters for step, _ in own if not step.measures[0].of_text}
        params = max(size.values(), default=0)
        large = [c for step, c in own if not step.measures[0].of_text and size[step.model] == params]
        flops, tokens = sum(c.flops for c in large), sum(c.todo_tokens - c.shared_tokens for c in large)
        every, other = sum(c.tokens for _, c in own), sum(c.flops for _, c in own) - flops
        return cls(count, params, every / count, tokens / count, flops / count, other / count)

    def on(self, cluster: Cluster, rows: float, params: float | None = None) -> dict[str, Any]:
        """What so many rows cost there, with the largest model in another size where one is given.

        A model that does not fit into one GPU is laid over several, of which one works at a time. Time and price are
        None where it does not fit at all.
        """
        size = params or self.params
        flops = rows * (self.other_flops + (2.0 * params * self.sized_tokens if params else self.flops))
        gpus = max(1, math.ceil(size * BYTES_PER_PARAM / cluster.memory))
        workers = cluster.gpus // gpus
        facts: dict[str, Any] = {"rows": int(rows), "params": size, "gpus_per_worker": gpus, "workers": workers}
        facts |= {"tokens": rows * self.tokens, "flops": flops, "seconds": None, "gpu_hours": None, "price": None}
        if workers:
            facts["seconds"] = seconds = flops / (workers * cluster.flops * cluster.share)
            facts["gpu_hours"] = hours = cluster.gpus * seconds / 3600
            facts["price"] = None if cluster.price is None else hours * cluster.price
        return facts

    def table(self, cluster: Cluster) -> list[dict[str, Any]]:
        """For the sizes that the cluster names, or for several, the model that is bound first."""
        sizes: list[float | None] = [cluster.params] if cluster.params else [None, *PARAMS] if self.params else [None]
        return [self.on(cluster, rows, size) for size in sizes for rows in ((cluster.rows,) if cluster.rows else ROWS)]
