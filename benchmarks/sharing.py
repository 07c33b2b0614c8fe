"""Tokens, passes and model loads of one, four and eight methods alone and together, and what shared beginnings save.

``planned`` is what `instdiff plan` says before anything is spent, ``counted`` what the sweep computed. The calibrated
model is the base with an adapter; the proxy is the base itself. Lengths are those of Alpaca's rows.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alpaca, arguments, counting, finish, peak_resident, reference, rows_of, timed, useful_flops
from transformers import AutoModelForCausalLM

from instdiff import Method, ModelRef, Pool, Settings, Store, plan, score
from instdiff.core import Entropy, Nll
from instdiff.engine.models import Resident, matmul_peak
from instdiff.engine.sources import resolve
from instdiff.engine.sweep import Sweep
from instdiff.methods import METHODS
from instdiff.rendering.renderer import Rows

NAMES = ("instructdiff", "ifd", "perplexity", "entropy", "superfiltering", "longest", "random", "full")
SETTINGS = Settings(max_length=512, dtype="float32", device="cpu")
BOUND, LEAST_SAVED = 0.6, 0.2


def base_model() -> Any:
    folder = resolve(ModelRef("builtin:tiny")).folder
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval().requires_grad_(False)


def models(home: Path) -> dict[str, ModelRef]:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(base_model(), lora).save_pretrained(home / "adapter")
    base = ModelRef("builtin:tiny")
    return {"base": base, "proxy": base, "calibrated": ModelRef("builtin:tiny", adapter=str(home / "adapter"))}


def cost(pool: Pool, methods: dict[str, Method], models: dict[str, ModelRef], root: Path) -> dict[str, float]:
    """What a fresh store pays for these methods together, as planned and as counted."""
    total = plan(pool, methods, models, settings=SETTINGS, store=Store(root)).to_dict()["total"]
    assert isinstance(total, dict)
    resident = Resident(torch.device("cpu"), torch.float32)
    with counting() as counted:
        seconds, _ = timed(
            lambda: score(pool, methods, models, settings=SETTINGS, store=Store(root), resident=resident)
        )
    return {
        "passes": total["passes"], "planned_tokens": total["todo_tokens"] - total["shared_tokens"],
        "planned_loads": total["model_loads"], "counted_tokens": counted.tokens, "forwards": counted.forwards,
        "counted_loads": resident.loads, "seconds": seconds,
    }  # fmt: skip


def methods_record(count: int, costs: dict[str, dict[str, float]], together: dict[str, float]) -> dict[str, Any]:
    alone = {key: sum(costs[name][key] for name in NAMES[:count]) for key in together}
    out: dict[str, Any] = {"kind": "methods", "methods": list(NAMES[:count])}
    for key in together:
        out |= {f"alone_{key}": alone[key], f"together_{key}": together[key]}
    for key in ("planned_tokens", "counted_tokens", "seconds"):
        out[f"ratio_{key}"] = together[key] / alone[key]
    return out | {"tokens_per_s": together["counted_tokens"] / together["seconds"]}


def methods_records(rows: int) -> list[dict[str, Any]]:
    pool = alpaca()
    pool = pool.take(np.sort(np.random.default_rng(0).permutation(len(pool))[:rows]))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        bound = models(home)
        costs = {name: cost(pool, {name: METHODS[name]()}, bound, home / name) for name in NAMES}
        records = []
        for count in (1, 4, 8):
            methods = {name: METHODS[name]() for name in NAMES[:count]}
            with peak_resident() as memory:
                together = cost(pool, methods, bound, home / f"together-{count}")
            records.append({"rows": rows} | methods_record(count, costs, together) | {"peak_memory_mb": memory.above})
    return records


def prefix_record(rows: Rows) -> dict[str, Any]:
    """The same sweep with trees of shared beginnings, and with padded batches; the reference computes row by row."""
    model = base_model()
    tree, padded = Sweep(model, print), Sweep(model, print)
    padded.forward.packs = False
    few = rows.take(np.arange(max(4, len(rows) // 4)))
    tokens, seconds = {}, {}
    with peak_resident() as memory:
        for name, sweep in (("tree", tree), ("padded", padded)):
            list(sweep(few, (Nll(), Entropy())))  # warm
            before = sweep.lanes.tokens
            seconds[name], _ = timed(lambda: list(sweep(rows, (Nll(), Entropy()))))  # noqa: B023 - called at once
            tokens[name] = sweep.lanes.tokens - before
    slow, _ = timed(lambda: reference(model, few))
    peak = matmul_peak(torch.device("cpu"), torch.float32, 1.0, 2048)
    own = int(rows.ids.lengths().sum())
    rate = len(rows) / seconds["tree"]
    return {
        "kind": "prefixes", "rows": len(rows), "row_tokens": own, "tree_tokens": tokens["tree"],
        "padded_tokens": tokens["padded"], "tokens_saved": 1 - tokens["tree"] / own,
        "tokens_per_s": own / seconds["tree"], "ratio_padded": seconds["padded"] / seconds["tree"],
        "ratio_reference": rate / (len(few) / slow),
        "share_of_peak": useful_flops(model, rows) / seconds["tree"] / peak, "matmul_gflops": peak / 1e9,
        "peak_memory_mb": memory.above,
    }  # fmt: skip


def main() -> None:
    args = arguments(rows=0)
    count = args.rows or (30 if args.quick else 400)
    records = [*methods_records(count), prefix_record(rows_of(4 * count))]
    finish(args, records)
    eight = records[2]
    if eight["ratio_counted_tokens"] > BOUND or eight["together_counted_loads"] != 1:
        raise SystemExit(f"eight methods together are above {BOUND} of the tokens, or load the base more than once")
    if records[-1]["tokens_saved"] < LEAST_SAVED:
        raise SystemExit(f"shared beginnings save less than {LEAST_SAVED:.0%} of the tokens")


if __name__ == "__main__":
    main()
