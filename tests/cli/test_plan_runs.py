"""What `plan --config` says of runs: rows, tokens, steps and calls by hand, nothing of what is done, and sums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import instdiff
from helpers import make_llama, some_rows
from instdiff.config.kinds import kind_of
from instdiff.core import ModelRef
from instdiff.engine.sources import find_tokenizer
from instdiff.engine.speed import Machine, Speed
from instdiff.experiments import cost
from instdiff.rendering.renderer import training_rows
from instdiff.rendering.templates import template
from instdiff.training.cost import TrainingSpeed, training_speed

from .shell import cli, files, ok, write_jsonl

POOL = some_rows(20, seed=3)
HELD_OUT = [{**row, "instruction": f"{row['instruction']} of the others"} for row in some_rows(8, seed=4)]
TRAIN = {"model_max_length": 200, "num_train_epochs": 2, "global_batch_size": 4, "dtype": "float32"}
RUN = {"model": "base", "data": "pool.jsonl", "output": "run", "dtype": "float32", "max_length": 200, "train": TRAIN}
NUMBERS = ("count", "rows", "tokens", "steps", "most_tokens_out", "calls", "flops", "seconds")


@pytest.fixture(autouse=True)
def set_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a run, and a machine whose speed is known."""
    torch.set_num_threads(1)
    write_jsonl("pool.jsonl", POOL)
    write_jsonl("heldout.jsonl", HELD_OUT)
    make_llama(folder / "base", chat=None, num_hidden_layers=1)
    monkeypatch.setattr(cost, "training_speed", lambda *_: TrainingSpeed(2.0, 0.001, 0.5))
    monkeypatch.setattr(Machine, "speed", lambda *_: Speed(1.0, 1e9))
    monkeypatch.setattr(Machine, "writing", lambda *_: 0.25)


def kept() -> set[str]:
    """All files but those of hashes that are remembered."""
    return {path for path in files(Path()) if path != "plan.yaml" and not path.startswith("store/models/")}


def plan(config: dict[str, Any], *more: str) -> dict[str, Any]:
    """The plan of a configuration, whose total must be the sum of its stages."""
    Path("plan.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    before = kept()
    found: dict[str, Any] = ok("plan", "--config", "plan.yaml", "--json", *more).json
    assert before == kept()
    for key in NUMBERS:
        assert found["total"][key] == pytest.approx(sum(one[key] for one in found["stages"])), key
    return found


def stages(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["stage"], one["kind"]): one for one in found["stages"]}


def lengths(path: str = "pool.jsonl") -> list[int]:
    """Tokens of each row as it is trained on."""
    rows = training_rows(instdiff.load(path), find_tokenizer(ModelRef("base")), template("alpaca"), 200)
    return [int(count) for count in rows.ids.lengths()]


def test_a_training_by_hand_and_done() -> None:
    line = stages(plan(RUN))["train", "train"]
    tokens = 2 * sum(lengths())  # two epochs
    assert (line["count"], line["rows"], line["steps"], line["tokens"]) == (1, 20, 10, tokens)
    assert line["seconds"] == pytest.approx(2.0 + 0.001 * tokens + 0.5 * 10) and not line["estimated"]
    more = stages(plan({**RUN, "train": {**TRAIN, "num_train_epochs": 1, "max_steps": 7}}))["train", "train"]
    assert more["steps"] == 7
    half = stages(plan({**RUN, "limit": 9}))["train", "train"]
    assert (half["rows"], half["steps"], half["tokens"]) == (9, 6, 2 * sum(lengths()[:9]))

    used = {key: RUN[key] for key in ("model", "data", "output", "train")}
    Path("train.yaml").write_text(json.dumps({**used, "limit": 9}))
    ok("train", "--config", "train.yaml")
    record = json.loads(Path("run/training.json").read_text(encoding="utf-8"))
    assert (record["rows"], record["steps"]) == (9, 6)
    done = plan({**RUN, "limit": 9})
    assert done["stages"] == [] and done["total"]["seconds"] == 0
    assert "nothing is left to do" in ok("plan", "--config", "plan.yaml").out


def test_the_arithmetic_of_lora_is_less() -> None:
    full = stages(plan(RUN))["train", "train"]
    lora = stages(plan({**RUN, "train": {**TRAIN, "use_lora": True}}))["train", "train"]
    kept = stages(plan({**RUN, "train": {**TRAIN, "mode": "sft+kl"}}))["train", "train"]
    assert 2 / 3 <= lora["flops"] / full["flops"] < 0.75 and 1.25 < kept["flops"] / full["flops"] <= 4 / 3


def compared(**changes: Any) -> dict[str, Any]:
    return {
        **{**RUN, "store": "store", "budgets": ["25% tokens"], "seeds": [0, 1], "baselines": ["longest", "full"]},
        **{"methods": {"ifd": {}, "instructdiff": {}}, "warmup": {"sample_size": 6}},
        **{"eval": {"suite": ["heldout"], "data": "heldout.jsonl"}, **changes},
    }


def test_a_comparison_and_what_is_left_of_it() -> None:
    found = stages(plan(compared()))
    assert found["full 100%", "train"]["rows"] == 40 and found["full 100%", "train"]["steps"] == 20
    assert found["full 100%", "train"]["tokens"] == 2 * 2 * sum(lengths())
    assert not found["full 100%", "train"]["estimated"] and found["ifd 25% tokens", "train"]["estimated"]
    warm = found["warm-up", "train"]
    assert (warm["count"], warm["rows"], warm["steps"]) == (2, 12, 8)  # six rows for each seed, two epochs
    # Passes of the base are made once for both seeds, those of the two calibrated models for each.
    assert found["all lines", "score"]["rows"] == 4 * 20
    for line in ("longest 25% tokens", "full 100%", "ifd 25% tokens", "instructdiff 25% tokens"):
        assert found[line, "evaluate"]["count"] == 2 and found[line, "evaluate"]["rows"] == 2 * len(HELD_OUT)
    assert found["base", "evaluate"]["rows"] == len(HELD_OUT)

    few = compared(methods={}, baselines=["longest"])
    before = stages(plan(few))
    ok("compare", "--config", "plan.yaml")
    records = [json.loads(path.read_text()) for path in Path("run/models").glob("*/training.json")]
    assert sum(one["steps"] for one in records) == before["longest 25% tokens", "train"]["steps"]
    assert sum(one["rows"] for one in records) == before["longest 25% tokens", "train"]["rows"]
    assert plan(few)["stages"] == []
    more = stages(plan({**few, "methods": {"ifd": {}}}))
    assert {stage for stage, _ in more} == {"start", "page", "all lines", "ifd 25% tokens"}


def test_equal_steps_are_those_of_the_first_random_rows() -> None:
    found = stages(plan(compared(methods={}, baselines=["random", "full"], steps="equal")))
    assert found["random 25% tokens", "train"]["count"] == 3
    assert found["full 100%", "train"]["steps"] < 10


def test_a_pipeline_and_what_is_left_of_it() -> None:
    config = {
        **{**RUN, "store": "store", "iterations": 2, "warmup": {"sample_size": 6}},
        **{"select": {"method": "instructdiff", "select_ratio": 0.25, "budget": "tokens"}},
        "eval": {"suite": "heldout", "data": "heldout.jsonl", "baselines": ["random", "full"], "train_seeds": [1]},
    }
    found = stages(plan(config))
    assert (found["warm-up", "train"]["rows"], found["warm-up", "train"]["steps"]) == (6, 4)
    # The base once; the model of the warm-up in the first round, that of the first round in the second.
    assert (found["round 1", "score"]["rows"], found["round 2", "score"]["rows"]) == (40, 20)
    assert found["full", "train"]["tokens"] == 2 * sum(lengths())
    names = ("round 1", "round 2", "random seed 0", "full", "seed 1", "base")
    assert all(found[name, "evaluate"]["rows"] == len(HELD_OUT) for name in names)
    assert {stage for stage, _ in found} == {"start", "page", "warm-up", *names}
    ok("pipeline", "--config", "plan.yaml")
    assert plan(config)["stages"] == []


def test_fold_models_of_a_comparison_and_of_a_pipeline() -> None:
    learn = {"learnability": {"folds": {"epochs": 3}}}
    config = compared(methods=learn, baselines=["random"], seeds=[0, 1])
    found = stages(plan(config))
    folds = found["crossfit", "train"]
    assert (folds["count"], folds["rows"]) == (4, 2 * 20) and not folds["estimated"]  # two folds for each seed
    assert folds["tokens"] == 2 * 3 * sum(lengths())
    # The base once, and of each seed every row by the model of its fold.
    assert found["all lines", "score"]["rows"] == 3 * 20
    ok("compare", "--config", "plan.yaml")
    assert plan(config)["stages"] == []

    config = {
        **{**RUN, "output": "other", "store": "store", "warmup": {"sample_size": 6}, "holdout": "heldout.jsonl"},
        **{"select": {"method": "blend", "of": [{"learnability": {"folds": {"epochs": 1}}}, "rho"], "budget": 5}},
        "keep_models": False,
    }
    found = stages(plan(config))
    assert found["crossfit", "train"]["count"] == 3
    assert found["crossfit", "train"]["tokens"] == sum(lengths()) + 2 * sum(lengths("heldout.jsonl"))
    assert found["round 1", "score"]["rows"] == 2 * 20  # the base is scored already
    ok("pipeline", "--config", "plan.yaml")
    assert plan(config)["stages"] == []
    names = sorted(path.name.rpartition("_")[0] for path in Path("other/crossfit").iterdir())
    assert names == ["held_0", "held_1", "holdout"]
    assert {path.name for path in Path("other/crossfit").glob("*/*")} == {"training.json"}
    record = json.loads(Path("other/iter_1/selection.json").read_text())
    assert set(record["models"]) == {"base", "held/0", "held/1", "holdout"}


def test_saves_of_a_proxy_in_a_comparison_and_in_a_pipeline() -> None:
    """One training brings them all, and each has a pass of its own."""
    how = {"saves": 2, "epochs": 2, "clusters": 4, "model": "base"}
    config = compared(methods={"s2l": how}, baselines=["random"], seeds=[0])
    found = stages(plan(config))
    proxy = found["crossfit", "train"]
    assert (proxy["count"], proxy["rows"], proxy["tokens"]) == (1, 20, 2 * sum(lengths()))
    assert found["all lines", "score"]["rows"] == 2 * 20
    ok("compare", "--config", "plan.yaml")
    assert plan(config)["stages"] == []

    config = {**RUN, "output": "other", "store": "store", "warmup": {"sample_size": 6}, "keep_models": False}
    config |= {"select": {"method": "s2l", **how, "budget": 5}}
    found = stages(plan(config))
    assert found["crossfit", "train"]["count"] == 1 and found["round 1", "score"]["rows"] == 2 * 20
    ok("pipeline", "--config", "plan.yaml")
    assert plan(config)["stages"] == []
    record = json.loads(Path("other/iter_1/selection.json").read_text())
    assert {"proxy/1", "proxy/2"} <= set(record["models"]) and len(record["ids"]) == 5
    config = compared(methods={"s2l": {}}, baselines=["random"], seeds=[0], output="third")
    Path("plan.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert "is trained from the model of role 'proxy', which is not bound" in cli("plan", "--config", "plan.yaml").error


def test_a_second_round_of_fold_models() -> None:
    """Which rows it trains on is not known yet, but how many."""
    learn = {"learnability": {"folds": {"epochs": 1, "rounds": 2}}}
    config = compared(methods=learn, baselines=["random"], seeds=[0])
    found = stages(plan(config))
    folds = found["crossfit", "train"]
    assert (folds["count"], folds["rows"]) == (4, 20 + 10) and folds["estimated"]
    assert found["crossfit", "score"]["rows"] == 2 * 20 and found["all lines", "score"]["rows"] == 20
    ok("compare", "--config", "plan.yaml", "keep_models=true")
    rows = [json.loads(path.read_text())["rows"] for path in Path(config["output"]).glob("models/*/training.json")]
    assert rows.count(10) == 2 and rows.count(5) >= 2
    assert [one["name"] for one in plan(config)["known"]] == []


def test_fold_models_of_scores() -> None:
    asked = ["--data", "pool.jsonl", "--model", "base", "--method", "learnability", "--store", "store",
             "--set", "learnability.folds.epochs=1", "--max-length", "200", "crossfit.global_batch_size=4"]  # fmt: skip
    said = ok("plan", *asked, "--json").json
    (line,) = said["crossfit"]["stages"]
    assert (line["stage"], line["count"], line["rows"], line["tokens"]) == ("crossfit", 2, 20, sum(lengths()))
    assert [one["role"] for one in said["passes"]] == ["base", "held/0", "held/1"]
    assert sum(one["todo_rows"] for one in said["passes"]) == 2 * 20
    assert "crossfit" in ok("plan", *asked).out
    assert said["known"] == [{"name": "learnability", "floor": 0.1, "rows": 20, "known": None}]
    assert "below the floor of 0.1 nats, and so known, is told after scoring" in ok("plan", *asked).out
    told = "learnability: 0 of 20 rows (0%) are below the floor of 0.1 nats, and so known"
    assert told in ok("score", *asked, "--output", "scores.parquet").err
    assert told in ok("plan", *asked).out
    assert len(list(Path("store/trained").glob("*/training.json"))) == 2
    done = ok("plan", *asked, "--json").json
    assert done["crossfit"]["stages"] == [] and done["total"]["todo_rows"] == 0
    held = ok("store", "info", "--store", "store")
    columns, trained = held.out.split("trained for scores")
    assert columns.count("store/trained/") == trained.count("store/trained/") == 2  # each has one column
    (one, _) = ok("store", "info", "--store", "store", "--json").json["trained"]
    gone = ok("store", "gc", "--keep", one["folder"], "--dry-run", "--store", "store", "--json").json
    assert one not in gone["trained"] and len(gone["trained"]) == 1
    kept = {column["model"] for column in ok("store", "info", "--store", "store", "--json").json["columns"]}
    assert len(kept) == 3 and len({column["model"] for column in gone["dropped"]}) == 2
    assert "and 2 trained models would be dropped" in ok(
        "store", "gc", "--older-than", "0h", "--dry-run", "--store", "store").out  # fmt: skip
    ok("select", "--data", "pool.jsonl", "--scores", "scores.parquet", "--budget", "3", "--output", "three.jsonl")


def test_the_share_that_is_known_is_told_where_the_base_is_scored() -> None:
    """Also of a method inside another one, and of a run."""
    inner = {"learnability": {"floor": 0.0, "folds": {"epochs": 1}}}
    config = compared(methods={"filter": {"method": "then", "first": inner, "second": "random"}}, baselines=["random"])
    (before,) = plan(config)["known"]
    assert before == {"name": "filter first", "floor": 0.0, "rows": 20, "known": None}
    ok("score", "--data", "pool.jsonl", "--model", "base", "--method", "perplexity", "--output", "s.parquet",
       "--dtype", "float32", "--max-length", "200", "--store", "store")  # fmt: skip
    nll = np.sort(instdiff.read_scores("s.parquet")["perplexity"].details["nll"])
    inner["learnability"]["floor"] = floor = float(nll[6] + nll[7]) / 2
    (found,) = plan(config)["known"]
    assert found == {"name": "filter first", "floor": floor, "rows": 20, "known": 7}
    assert "filter first: 7 of 20 rows (35%) are below the floor" in ok("plan", "--config", "plan.yaml").out


def evaluated(**changes: Any) -> dict[str, Any]:
    write_jsonl("amc.jsonl", [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(3)])
    write_jsonl("koala.jsonl", [{"id": n, "instruction": f"Say {n}.", "output": "no" * 20} for n in range(5)])
    given = {"model": "base", "dtype": "float32", "data": {"amc23": "amc.jsonl", "koala": "koala.jsonl"}}
    return {**given, "template": "plain", "max_new_tokens": 8, "store": "store", **changes}


def test_answers_by_hand_and_written() -> None:
    config = evaluated(suite="math", task="amc23", n=24, temperature=1.0, output="results.json")
    line = stages(plan(config))["math", "generate"]
    assert (line["rows"], line["most_tokens_out"], line["calls"]) == (72, 72 * 8, 0)
    assert line["seconds"] >= 1.0 + 0.25 * 8 * 2  # two batches, of 64 and of 8
    greedy = stages(plan({**config, "temperature": 0}))["math", "generate"]
    assert (greedy["rows"], greedy["tokens"]) == (3, line["tokens"] // 24)
    plan(config)
    ok("eval", "--config", "plan.yaml")
    assert plan(config)["stages"] == []


def test_calls_to_a_judge_and_their_price() -> None:
    judge = "openai:m@http://127.0.0.1:9/v1"
    config = evaluated(suite="general", task="koala", judge=judge)
    found = stages(plan(config, "--judge-price", "2000,500"))
    assert (found["general", "generate"]["rows"], found["general", "generate"]["most_tokens_out"]) == (5, 40)
    asked = found["general", "judge"]
    assert (asked["calls"], asked["most_tokens_out"], asked["seconds"]) == (10, 10 * 1024, 0)
    assert asked["most_price"] == (2000 * asked["tokens"] + 500 * 10 * 1024) / 1e6
    assert stages(plan({**config, "judge_price": [2000, 500]}))["general", "judge"] == asked
    assert stages(plan(config))["general", "judge"]["most_price"] is None
    short = stages(plan({**config, "judge_max_tokens": 9}))["general", "judge"]
    assert short["most_tokens_out"] == 90
    served = stages(plan({**config, "generator": judge, "reference": "openai:r@http://127.0.0.1:9/v1"}))
    assert served["general", "generate"]["calls"] == served["general, reference", "generate"]["calls"] == 5


def test_the_trial_of_a_training_is_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "training_speed", training_speed)
    before = set(Path().iterdir())
    line = stages(plan(RUN))["train", "train"]
    assert 0 < line["seconds"] < 600
    assert set(Path().iterdir()) == before | {Path("plan.yaml")}


def test_a_file_of_no_such_command_is_told() -> None:
    Path("plan.yaml").write_text("scores: a.parquet\nbudget: 10%\noutput: b.jsonl\n", encoding="utf-8")
    said = cli("plan", "--config", "plan.yaml").error
    assert said.startswith("plan.yaml is a configuration of none of score, train, eval, pipeline, compare")
    assert "has no key 'scores'" in said


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("demo", "pipeline"),
        ("med/pipeline_med_iter", "pipeline"),
        ("med/score_med", "score"),
        ("med/train_med_100", "train"),
        ("compare/tiny", "compare"),
        ("studies/tshirt", "compare"),
        ("search/tiny", "search"),
    ],
)
def test_the_kind_of_a_configuration(name: str, kind: str) -> None:
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert kind_of(values, name).__name__ == f"{kind.title()}Config"


def test_a_run_on_a_cluster() -> None:
    found = plan(compared(), "--cluster", "gpus=4,flops=1e12,share=0.5,price=36")
    hours = found["total"]["flops"] / 0.5e12 / 3600
    assert found["cluster"]["estimate"] == pytest.approx(
        {"flops": found["total"]["flops"], "gpu_hours": hours, "seconds": 900 * hours, "price": 36 * hours}
    )
    said = ok("plan", "--config", "plan.yaml", "--cluster", "gpus=4,flops=1e12,share=0.5").out
    assert "on 4 GPUs of 1 TFLOP/s at 50% of it" in said
    assert cli("plan", "--config", "plan.yaml", "--cluster", "gpus=0,flops=1").code == 2
