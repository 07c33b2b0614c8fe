"""What scoring will cost, before anything is spent: the passes, their rows and tokens, what the store already has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from instdiff.core import Method, ModelRef, Settings
from instdiff.data import Pool
from instdiff.engine.load import Source
from instdiff.engine.peak import matmul_peak
from instdiff.engine.sweep import DEFAULT_BATCH_TOKENS
from instdiff.engine.tree import trees
from instdiff.planner import Pass
from instdiff.planner import plan as waves_of
from instdiff.scoring import Workbench, by_name, view_name, workbench
from instdiff.segment import Keys
from instdiff.store import Store

Rows = npt.NDArray[np.int64]

ASSUMED_SHARE_OF_PEAK = 0.35
"""Share of the matrix-product peak that a sweep is assumed to reach."""


@dataclass(frozen=True)
class PassCost:
    """One pass: all its rows, and what is left to do.

    ``todo_tokens`` count every row's own; of them ``shared_tokens`` are beginnings that rows have in common, and are
    computed once.
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


@dataclass(frozen=True)
class Bill:
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


def plan(
    pool: Pool,
    methods: Sequence[Method] | Mapping[str, Method],
    models: str | ModelRef | Mapping[str, str | ModelRef] | None = None,
    *,
    settings: Settings | None = None,
    store: Store | None = None,
) -> Bill:
    """What ``score`` with the same arguments would do and cost; spends nothing.

    Raises:
        PlanError: a role that a method needs is not bound.
    """
    named = by_name(methods)
    return bill(workbench(pool, named, models, settings, store), named)


def bill(bench: Workbench, methods: Mapping[str, Method]) -> Bill:
    """Count what scoring would do. Nothing is loaded but tokenizers, nothing computed."""
    waves = waves_of(signal for method in methods.values() for signal in method.signals().values())
    passes = [_cost(bench, step, number) for number, wave in enumerate(waves) for step in bench.ordered(wave)]
    alone = {}
    for name, method in methods.items():
        own = [step for wave in waves_of(method.signals().values()) for step in wave]
        tokens = sum(int(bench.rendered(s.model, s.view).rows.ids.lengths().sum()) for s in own)
        alone[name] = {"passes": len(own), "tokens": tokens}
    flops = sum(p.flops for p in passes)
    speed = matmul_peak(bench.device, bench.dtype) * ASSUMED_SHARE_OF_PEAK if flops else 0.0
    bases = [bench.source(p.role).base_key for p in passes if p.todo_rows]
    loads = sum(a != b for a, b in zip([None, *bases], bases, strict=False))
    return Bill(passes, alone, loads, flops / speed if flops else 0.0, speed)


def _cost(bench: Workbench, step: Pass, wave: int) -> PassCost:
    rendered = bench.rendered(step.model, step.view)
    todo = bench.lacking(step)
    lengths, targets = rendered.rows.ids.lengths(), rendered.rows.n_targets()
    body, head = _work_per_token(bench.source(step.model))
    shared = _shared(bench, [rendered.rows.ids[int(row)] for row in todo])
    return PassCost(
        wave=wave,
        role=step.model,
        model=str(bench.models[step.model]),
        view=view_name(step.view),
        measures=[type(m).__name__.lower() for m in step.measures],
        rows=len(rendered.scorable),
        tokens=int(lengths.sum()),
        cached_rows=len(rendered.scorable) - len(_with_copies(rendered.keys, rendered.scorable, todo)),
        todo_rows=len(todo),
        todo_tokens=int(lengths[todo].sum()),
        shared_tokens=shared,
        flops=float((lengths[todo].sum() - shared) * body + targets[todo].sum() * head),
    )


def _shared(bench: Workbench, rows: list[npt.NDArray[np.int32]]) -> int:
    """Tokens that packing rows as trees will save, where it is done."""
    if bench.device.type != "cpu":
        return 0
    budget = bench.settings.batch_tokens or DEFAULT_BATCH_TOKENS["cpu"]
    return sum(tree.tokens - len(tree.ids) for tree in trees(rows, budget))


def _with_copies(keys: Keys, scorable: Rows, todo: Rows) -> Rows:
    return scorable[np.isin(keys[scorable], keys[todo])]


def _work_per_token(source: Source) -> tuple[float, float]:
    """Floating-point operations per token of the body, and per target of the head."""
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
