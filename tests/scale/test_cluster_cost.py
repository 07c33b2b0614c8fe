"""The cost of a cluster: what is counted is right, and sizes, machines and prices do with it what they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import instdiff
from cli.shell import cli, ok
from helpers import Lab, some_rows
from instdiff import IFD, MIWV, Longest, Method, Settings
from instdiff.errors import ConfigError
from instdiff.scoring.cost import ASSUMED_SHARE_OF_PEAK, Cluster, Rates
from instdiff.scoring.scorer import workbench
from instdiff.store import Store

SETTINGS = Settings(max_length=200, dtype="float32", device="cpu")
RATES = Rates(sample=100, params=1e9, tokens=300.0, sized_tokens=250.0, flops=4e11, other_flops=1e9)
HUNDRED = Cluster(gpus=100, flops=1e15, price=2.0, share=0.5)


def count(rows: list[dict[str, Any]], methods: dict[str, Method], model: str | None, store: Store) -> Rates:
    return Rates.count(workbench(instdiff.load(rows), methods, model, SETTINGS, store), methods)


def test_what_a_row_costs_is_what_the_plan_counts(lab: Lab, tmp_path: Path) -> None:
    rows, methods = some_rows(40), {"ifd": IFD(), "miwv": MIWV()}
    base, store = str(lab.models["llama"]), Store(tmp_path / "store")
    bill = instdiff.plan(instdiff.load(rows), methods, base, settings=SETTINGS, store=Store(tmp_path / "empty"))
    rates = count(rows, methods, base, store)
    assert rates.sample == 40 and len(bill.passes) == 4
    assert rates.tokens * 40 == sum(p.tokens for p in bill.passes)
    assert (rates.flops + rates.other_flops) * 40 == pytest.approx(sum(p.flops for p in bill.passes))
    text = [p for p in bill.passes if "embedding" in p.measures]
    assert rates.other_flops * 40 == pytest.approx(sum(p.flops for p in text)) and text
    assert rates.sized_tokens * 40 == sum(p.todo_tokens - p.shared_tokens for p in bill.passes if p not in text)
    model = lab.reference("llama")
    assert rates.params == sum(p.numel() for p in {p.data_ptr(): p for p in model.parameters()}.values())

    instdiff.score(instdiff.load(rows), methods, base, settings=SETTINGS, store=store)
    assert count(rows, methods, base, store) == rates  # what is cached does not count


def test_methods_without_a_model(tmp_path: Path) -> None:
    rates = count(some_rows(5), {"longest": Longest()}, None, Store(tmp_path))
    (one,) = rates.table(Cluster(gpus=1, flops=1e12, rows=1000))
    assert (one["flops"], one["tokens"], one["seconds"], rates.params) == (0, 0, 0, 0)


def test_an_estimate_is_its_parts() -> None:
    one = RATES.on(HUNDRED, 1_000_000, 7e9)
    assert one["flops"] == 1e6 * (2 * 7e9 * 250 + 1e9)
    assert one["seconds"] == pytest.approx(one["flops"] / (100 * 1e15 * 0.5))
    assert (one["gpus_per_worker"], one["workers"]) == (1, 100)
    assert one["gpu_hours"] == pytest.approx(100 * one["seconds"] / 3600)
    assert one["price"] == pytest.approx(2 * one["gpu_hours"])
    assert one["tokens"] == 3e8


def test_the_model_that_is_bound_has_its_own_count() -> None:
    assert RATES.on(HUNDRED, 1000)["flops"] == 1000 * (4e11 + 1e9)


def test_a_model_over_several_gpus() -> None:
    """70 billion parameters take 168 GB: three GPUs a job, of which one works at a time."""
    one = RATES.on(HUNDRED, 1_000_000, 70e9)
    assert (one["gpus_per_worker"], one["workers"]) == (3, 33)
    assert one["seconds"] == pytest.approx(one["flops"] / (33 * 1e15 * 0.5))
    large = RATES.on(Cluster(gpus=2, flops=1e15, price=2.0), 1000, 70e9)
    assert (large["workers"], large["seconds"], large["gpu_hours"], large["price"]) == (0, None, None, None)


@pytest.mark.parametrize(
    ("more", "field", "times"),
    [
        ({"gpus": 200}, "seconds", 0.5),
        ({"gpus": 200}, "price", 1),
        ({"share": 0.25}, "seconds", 2),
        ({"price": 4.0}, "price", 2),
        ({"flops": 2e15}, "seconds", 0.5),
    ],
)
def test_machines(more: dict[str, Any], field: str, times: float) -> None:
    given = {"gpus": 100, "flops": 1e15, "price": 2.0, "share": 0.5}
    before, now = (RATES.on(Cluster(**one), 10**7, 7e9) for one in (given, given | more))
    assert now[field] == pytest.approx(times * before[field])


def test_the_table_of_sizes() -> None:
    found = RATES.table(HUNDRED)
    assert len(found) == 7 * 3 and {e["rows"] for e in found} == {10**6, 10**7, 10**8}
    assert sorted({e["params"] for e in found}) == [0.5e9, 1e9, 1.5e9, 7e9, 14e9, 32e9, 70e9]
    assert [e["params"] for e in RATES.table(Cluster(8, 1e15, params=7e9))] == [7e9] * 3
    assert len(RATES.table(Cluster(8, 1e15, rows=5e6, params=7e9))) == 1


def test_what_is_said() -> None:
    found = Cluster.of("gpus=64,flops=990e12,price=2.5")
    assert found == Cluster(64, 990e12, 2.5) and found.share == ASSUMED_SHARE_OF_PEAK
    assert Cluster.of({"gpus": 8, "flops": "990e12", "share": 0.5, "rows": 1e8}).rows == 1e8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpus=64", "--cluster lacks flops; write --cluster gpus=64,flops=990e12"),
        ("gpus=64,flop=1", "unknown key 'flop'; did you mean 'flops'?"),
        ("gpus=64,flops", "'flops' is not key=number"),
        ("gpus=many,flops=1", "'gpus=many' is no number"),
        ("gpus=0,flops=1", "gpus is 0, it must be above 0"),
        ("gpus=1.5,flops=1", "gpus is 1.5, it must be a whole number"),
        ("gpus=1,flops=1,share=35", "share is 35, it is a part of the peak: at most 1"),
    ],
)
def test_what_is_said_wrong(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Cluster.of(text)
    assert says in str(refused.value)


def test_the_command(lab: Lab, here: Path) -> None:
    words = ["plan", "--data=my.jsonl", f"--model={lab.models['llama']}", "--method=ifd", "--max-length=200"]
    words += ["--dtype=float32", "--device=cpu"]
    told = ok(*words, "--cluster=gpus=64,flops=990e12,price=2.5,rows=1e8,params=70e9", "--json").json
    (one,) = told["cluster"]["estimates"]
    assert (one["rows"], one["params"], one["gpus_per_worker"]) == (10**8, 70e9, 3)
    assert one["price"] == pytest.approx(64 * one["seconds"] / 3600 * 2.5)
    per_row = told["cluster"]["per_row"]
    assert told["total"]["tokens"] == pytest.approx(per_row["tokens"] * per_row["sample"])
    said = ok(*words, "--cluster=gpus=64,flops=990e12").out.splitlines()
    head = next(line for line in said if line.startswith("       rows") or line.lstrip().startswith("rows  params"))
    assert head.split()[:2] == ["rows", "params"] and len([line for line in said if " 70 B " in line]) == 3
    assert "35% of it (assumed" in said[-1] and "without loading weights" in said[-1]
    assert "cluster" not in ok(*words, "--json").json
    assert "--cluster lacks flops" in cli(*words, "--cluster=gpus=3").error
