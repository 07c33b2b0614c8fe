"""``plan``: what a command would cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from instdiff.cli.app import command
from instdiff.cli.common import build_methods, load_pool, rows_to
from instdiff.cli.console import Console, table
from instdiff.core.display import span

if TYPE_CHECKING:
    from instdiff.config.base import Config
    from instdiff.config.commands import ScoreConfig
    from instdiff.core import Method
    from instdiff.experiments.cost import RunCost
    from instdiff.scoring.cost import Cluster, CostEstimate, PassCost
    from instdiff.scoring.crossfit import Best, Training
    from instdiff.scoring.workbench import Workbench


@command(
    "plan",
    "kinds.PlanConfig",
    "config data! model method! set limit format map targets reasoning system template template_date max_length dtype "
    "device store target holdout cluster judge_max_tokens judge_price seed quiet json",
    "Examples:\n"
    "  instdiff plan --data my.jsonl --model base=Qwen/Qwen2.5-0.5B --method ifd,perplexity,longest\n"
    "  instdiff plan --config configs/demo.yaml",
)
def plan(settings: Config, console: Console) -> None:
    """Show what a command would cost. Spends nothing."""
    from instdiff.config.kinds import PlanConfig

    if isinstance(settings, PlanConfig):
        _plan_scores(settings, console)
        return
    from instdiff.experiments.cost import plan_run
    from instdiff.scoring.cost import Cluster

    given = getattr(settings, "cluster", None)
    machines = None if given is None else Cluster.of(given)
    found = plan_run(settings, log=console.log)  # type: ignore[arg-type]
    facts, text = found.to_dict(), _stages_text(found)
    if machines is not None and found.stages:
        facts["cluster"], more = _run_on_a_cluster(machines, found)
        text += f"\n\n{more}"
    console.result(facts, text)


def _stages_text(found: RunCost) -> str:
    """Stages with their sum, and what is to be known of them."""
    from instdiff.scoring.known import tell_known

    header = ["stage", "work", "times", "rows", "steps", "tokens", "tokens out", "calls", "TFLOP", "time", "price"]
    rows: list[list[Any]] = []
    for one in [*found.stages, found.total]:
        counts = [one.count, one.rows, one.steps, one.tokens, one.most_tokens_out, one.calls]
        time = f"{'~' if one.estimated else ''}{span(one.seconds)}"
        price = None if one.most_price is None else f"{one.most_price:,.4g}"
        rows.append([one.stage, one.kind, *(n or "-" for n in counts), round(one.flops / 1e12, 2), time, price])
    if not found.stages:
        return f"nothing is left to do for this {found.kind}"
    said = [
        f"about {span(found.total.seconds)} on this machine with no other work, without calls to servers",
        "tokens out are at most, and so are time and price of what is written; ~ depends on earlier stages",
    ]
    return "\n".join([table(header, rows), "", *said, *tell_known(found.known)])


def _plan_scores(settings: ScoreConfig, console: Console) -> None:
    from dataclasses import asdict

    from instdiff.scoring.cost import estimate_cost
    from instdiff.scoring.known import foresee_known, tell_known

    named, _ = build_methods(settings)
    bench, first = _bench(settings, named, console)
    costs = estimate_cost(bench, named, settings.judge_price)
    known = [one for name, method in named.items() for one in foresee_known(bench, name, method)]
    facts = {**costs.to_dict(), "known": [asdict(one) for one in known]}
    if first is not None:
        facts["crossfit"] = first.to_dict()
    total, alone = facts["total"], facts["alone"]
    assert isinstance(total, dict) and isinstance(alone, dict)
    lines = [
        *([_stages_text(first), ""] if first is not None and first.stages else []),
        _pass_table(costs.passes),
        "",
        f"{total['passes']} pass{'es' * (total['passes'] != 1)} over {total['tokens']:,} tokens"
        + (
            f"; the methods one by one: {alone['passes']} passes over {alone['tokens']:,} tokens"
            if alone["tokens"] > total["tokens"]
            else ""
        ),
        *_work_left(costs, bench),
        *tell_known(known),
    ]
    if settings.cluster is not None:
        facts["cluster"], more = _on_a_cluster(settings.cluster, bench, named)
        lines += ["", more]
    console.result(facts, "\n".join(lines))


def _bench(settings: ScoreConfig, named: dict[str, Method], console: Console) -> tuple[Workbench, RunCost | None]:
    """Rows with models, and what is to be trained before they are scored, where methods want that."""
    from instdiff.scoring.crossfit import lacking, training_of_scores, trainings
    from instdiff.scoring.models import bind, settings_of
    from instdiff.scoring.scorer import workbench
    from instdiff.store import Store

    pool, target, holdout = (
        load_pool(settings, console, None),
        rows_to(settings, "target"),
        rows_to(settings, "holdout"),
    )
    how, store, roles = settings_of(settings), Store(settings.store), bind(settings.model)
    train_as = training_of_scores(settings.crossfit, how)
    if not lacking(named.values(), roles, holdout):
        return workbench(pool, named, roles, how, store, target=target, log=console.log), None
    from instdiff.experiments.cost import plan_training

    def asked(methods: Mapping[str, Method], best: Best) -> Iterator[Training]:
        return trainings(methods.values(), roles, pool, how, train_as, settings.seed, holdout, target, best)

    first, bench = plan_training(asked, named, roles, pool, target, how, store)
    return bench, first


def _work_left(costs: CostEstimate, bench: Workbench) -> list[str]:
    """A line on what this machine has to do, and one for each pass that a server does."""
    here, away = [p for p in costs.passes if not p.calls], [p for p in costs.passes if p.calls]
    lines = []
    if here or not away:
        rows, tokens, shared = (sum(getattr(p, k) for p in here) for k in ("todo_rows", "todo_tokens", "shared_tokens"))
        skipped = f" ({shared:,} shared prefixes skipped)" if shared else ""
        dtype = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}[str(bench.dtype).removeprefix("torch.")]
        device = str(bench.device).upper() if str(bench.device) == "cpu" else bench.device
        loads = f"{costs.model_loads} model load{'s' * (costs.model_loads != 1)}"
        lines.append(
            f"To compute: {rows:,} rows, {tokens - shared:,} tokens{skipped}, {loads}, "
            f"about {span(costs.seconds)} on {device}, {dtype}{_start(costs)}"
        )
    return lines + [
        f"{p.model}: {p.calls:,} calls with about {p.todo_tokens:,} tokens, and at most {p.most_tokens_out:,} tokens "
        f"of answers{_priced(p)}{_again(p)}; the time depends on the server"
        for p in away
    ]


def _start(costs: CostEstimate) -> str:
    """What a command takes until it can begin, as this one did."""
    from instdiff.experiments.cost import start_seconds

    return f", after {span(start_seconds(train=False))} to start" if costs.seconds else ""


def _again(cost: PassCost) -> str:
    return "" if "solved" in cost.measures else "; more where an answer has no number"


def _priced(cost: PassCost) -> str:
    return "" if cost.most_price is None else f", which cost at most about {cost.most_price:,.4g}"


def _pass_table(passes: Sequence[PassCost]) -> str:
    from instdiff.scoring.cost import fold_passes

    header = ["wave", "role", "view", "measures", "rows", "tokens", "cached", "to do", "tokens to do", "GFLOP"]
    rows: list[list[Any]] = []
    for p in fold_passes(passes):
        work = [p.rows, p.tokens, p.cached_rows, p.todo_rows, p.todo_tokens, round(p.flops / 1e9)]
        rows.append([p.wave, p.role, p.view, "+".join(p.measures), *work])
    return table(header, rows) if rows else "no model pass is needed"


def _on_a_cluster(
    given: str | dict[str, Any], bench: Workbench, named: dict[str, Method]
) -> tuple[dict[str, Any], str]:
    """What other sizes cost on many GPUs, for ``--json`` and as a table."""
    from dataclasses import asdict

    from instdiff.scoring.cost import Cluster, Rates

    machines, rates = Cluster.of(given), Rates.count(bench, named)
    found = rates.table(machines)
    header = ["rows", "params", "GPUs a job", "jobs", "tokens", "time", "GPU hours", "price"]
    rows = []
    for e in found:
        time = "does not fit" if e["seconds"] is None else span(e["seconds"])
        size, tokens = short(e["params"]).replace("G", "B"), short(e["tokens"])
        rows.append([e["rows"], size, e["gpus_per_worker"], e["workers"], tokens, time, e["gpu_hours"], e["price"]])
    assumed = "" if machines.share != Cluster.share else " (assumed; share=... is what a run there has told)"
    said = (
        f"on {machines.gpus} GPUs of {short(machines.flops)}FLOP/s at {machines.share:.0%} of it{assumed}; "
        f"a row's cost is of {rates.sample:,} rows here, without loading weights and reading and rendering rows"
    )
    if any(e["gpus_per_worker"] > 1 for e in found):
        said += "; a model over several GPUs is computed layer after layer, one of them at a time"
    facts = {"given": asdict(machines), "per_row": asdict(rates), "estimates": found}
    return facts, f"{table(header, rows)}\n\n{said}"


def _run_on_a_cluster(machines: Cluster, found: RunCost) -> tuple[dict[str, Any], str]:
    """What the work of a run costs on many GPUs, for ``--json`` and in a sentence."""
    from dataclasses import asdict

    hours = found.total.flops / (machines.flops * machines.share) / 3600
    price = None if machines.price is None else hours * machines.price
    estimate = {"flops": found.total.flops, "gpu_hours": hours, "seconds": 3600 * hours / machines.gpus, "price": price}
    said = (
        f"on {machines.gpus} GPUs of {short(machines.flops)}FLOP/s at {machines.share:.0%} of it: {hours:.3g} GPU "
        f"hours, {span(3600 * hours / machines.gpus)} where the work spreads evenly"
    )
    said += "" if price is None else f", price {price:.4g}"
    return {"given": asdict(machines), "estimate": estimate}, f"{said}; models fit into one GPU each"


def short(number: float) -> str:
    """``7 G`` or ``1.2 T``: three digits and what they count."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "
