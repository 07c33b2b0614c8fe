"""What scoring will cost, before anything is spent: the passes, their rows and tokens, what the store already has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from instdiff.core import Anchored, Demonstrated, Method, ModelRef, Prompted, Settings
from instdiff.core.signals import Anchors
from instdiff.data import Pool
from instdiff.engine.models import Source
from instdiff.engine.peak import matmul_peak
from instdiff.engine.prefix_tree import Some, trees
from instdiff.engine.sweep import BLOCK, default_batch_tokens
from instdiff.rendering.rows import Rows as RowsOfTokens
from instdiff.scoring.planner import Pass, view_name
from instdiff.scoring.planner import plan as waves_of
from instdiff.scoring.scorer import by_name, workbench
from instdiff.scoring.workbench import Workbench
from instdiff.store import ColumnId, Store
from instdiff.store.keys import Keys, among

Indices = npt.NDArray[np.int64]

ASSUMED_SHARE_OF_PEAK = 0.35
"""Share of the matrix-product peak that a sweep is assumed to reach."""


@dataclass(frozen=True)
class PassCost:
    """One pass: all its rows, and what is left to do.

    ``todo_tokens`` count every row's own; of them ``shared_tokens`` are beginnings that rows have in common, and are
    computed once. ``estimated`` passes show rows to each other by what an earlier pass has yet to find out. Tokens of
    texts are estimated from their length.
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


@dataclass(frozen=True)
class CostEstimate:
    """All passes, and what the methods would cost one by one."""

    passes: list[PassCost]
    methods: dict[str, dict[str, int]]
    model_loads: int
    seconds: float
    flops_per_second: float

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
                "model_loads": self.model_loads,
                "seconds": self.seconds,
            },
            "alone": {"methods": self.methods, **alone},
            "assumed": {"share_of_peak": ASSUMED_SHARE_OF_PEAK, "flops_per_second": self.flops_per_second},
        }


Bill = CostEstimate
"""The public name of it."""


def plan(
    pool: Pool,
    methods: Sequence[Method] | Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None = None,
    *,
    settings: Settings | None = None,
    target: Pool | None = None,
    store: Store | None = None,
) -> CostEstimate:
    """What ``score`` with the same arguments would do and cost; spends nothing.

    Raises:
        PlanError: a role that a method needs is not bound.
    """
    named = by_name(methods)
    return estimate_cost(workbench(pool, named, models, settings, store, target=target), named)


def estimate_cost(bench: Workbench, methods: Mapping[str, Method]) -> CostEstimate:
    """Count what scoring would do. Nothing is loaded but tokenizers, nothing computed."""
    waves = waves_of(signal for method in methods.values() for signal in method.signals().values())
    planned: dict[ColumnId, list[Keys]] = {}
    steps = [(number, step) for number, wave in enumerate(waves) for step in bench.order(wave)]
    passes = [_cost(bench, step, number, planned) for number, step in steps]
    alone = {}
    for name, method in methods.items():
        own = [step for wave in waves_of(method.signals().values()) for step in wave]
        alone[name] = {"passes": len(own), "tokens": sum(int(_lengths(bench, step).sum()) for step in own)}
    flops = sum(p.flops for p in passes)
    speed = matmul_peak(bench.device, bench.dtype) * ASSUMED_SHARE_OF_PEAK if flops else 0.0
    todo = [step for (_, step), cost in zip(steps, passes, strict=True) if cost.todo_rows]
    bases = [bench.home(step) for step in todo if not step.measures[0].of_text]
    loads = sum(a != b for a, b in zip([None, *bases], bases, strict=False))
    loads += len({bench.home(step) for step in todo if step.measures[0].of_text})
    return CostEstimate(passes, alone, loads, flops / speed if flops else 0.0, speed)


def _lengths(bench: Workbench, step: Pass) -> Indices:
    """Tokens of each row of a pass, as far as they are known before earlier passes have run."""
    if bench.ready(step):
        return bench.render_for(step).lengths
    plain = bench.render(step.model, Prompted(), step.of).lengths
    match step.view:
        case Demonstrated(shots=shots):
            return plain * (1 + shots)
        case Anchored(count=count, limit=limit):
            return np.repeat(plain, count) + min(limit, int(plain.mean()))
        case Anchors(count=count, limit=limit):
            return np.full(count, min(limit, int(plain.mean())))
    return plain


def _cost(bench: Workbench, step: Pass, wave: int, planned: dict[ColumnId, list[Keys]]) -> PassCost:
    lengths = _lengths(bench, step)
    body, head = _work_per_token(bench, step)
    ready, shared = bench.ready(step), 0
    if ready:
        rendered = bench.render_for(step)
        todo = _not_planned(bench, step, bench.lacking(step), planned)
        rows = len(rendered.scorable)
        cached = rows - len(_with_copies(rendered.keys, rendered.scorable, todo))
        targets = 0
        if isinstance(rendered.rows, RowsOfTokens):
            shared = _shared_tokens(bench, rendered.rows, todo)
            targets = int(rendered.rows.n_targets()[todo].sum())
    else:
        todo, rows, cached = np.arange(len(lengths)), len(lengths), 0
        targets = int(lengths.sum() // 2)
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
        todo_tokens=int(lengths[todo].sum()),
        shared_tokens=shared,
        flops=float((lengths[todo].sum() - shared) * body + targets * head),
        estimated=not ready,
    )


def _not_planned(bench: Workbench, step: Pass, todo: Indices, planned: dict[ColumnId, list[Keys]]) -> Indices:
    """Rows that no earlier pass computes: one model may stand in several roles."""
    keys = bench.render_for(step).keys[todo]
    new = np.zeros(len(todo), bool)
    for measure in step.measures:
        column = bench.column(step.model, measure)
        earlier = planned.setdefault(column, [])
        new |= bench.store.missing(column, keys) & ~np.isin(keys, np.concatenate([keys[:0], *earlier]))
        earlier.append(keys)
    return todo[new]


def _shared_tokens(bench: Workbench, rows: RowsOfTokens, todo: Indices) -> int:
    """Tokens that packing rows as trees will save."""
    if rows.noise is not None:
        return 0
    ids = rows.ids
    budget = bench.settings.batch_tokens or default_batch_tokens(bench.device.type)
    saved = 0
    for start in range(0, len(todo), BLOCK):
        block = Some(ids, todo[start : start + BLOCK])
        saved += sum(tree.tokens - len(tree.ids) for tree in trees(block, budget))
    return saved


def _with_copies(keys: Keys, scorable: Indices, todo: Indices) -> Indices:
    return scorable[among(keys[scorable], keys[todo])]


def _work_per_token(bench: Workbench, step: Pass) -> tuple[float, float]:
    """Floating-point operations per token of the body, and per target of the head."""
    if not step.measures[0].of_text:
        return _work(bench.source(step.model))
    source = getattr(bench.text_model(step.model, step.measures[0]), "source", None)
    return (_work(source)[0], 0.0) if source is not None else (0.0, 0.0)


def _work(source: Source) -> tuple[float, float]:
    from safetensors import safe_open

    total = 0
    for file in source.folder.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                total += int(np.prod(tensors.get_slice(name).get_shape()))
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    width = config.get("hidden_size") or config.get("n_embd") or 0
    embedding = width * config.get("vocab_size", 0)
    tied = config.get("tie_word_embeddings", True)
    return 2.0 * max(total - embedding * (1 if tied else 2), 0), 2.0 * embedding
