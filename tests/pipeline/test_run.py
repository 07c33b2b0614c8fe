"""What a run of two rounds leaves, and that every number of it is what it says."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers import by_hand, causal, reference
from instdiff.cli.preflight import REQUIRED

from .conftest import Done
from .kit import (
    CONFIG,
    HELD_OUT,
    LIMIT,
    POOL,
    Work,
    by_instruction,
    configure,
    files,
    inside,
    ok,
    pipeline,
    read_json,
    read_jsonl,
    refused,
    scores,
    weights,
    write_jsonl,
)

MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
         "trained_rows.tsv", "training.json"}  # fmt: skip
CHOSEN = {"selected.jsonl", "selection.json", "model.json", "results.json", "results"}
TOGETHER = {"comparison.json", "comparison.md", "items.parquet"}
CONTROLS = ["random_seed_0", "random_seed_1", "longest", "full"]


def tokens(rows: list[dict[str, Any]], base: Path) -> list[int]:
    """Response tokens of each row, counted without any code of the package."""
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(base)
    return [sum(by_hand(hf, row, LIMIT)["given"][1]) for row in rows]  # type: ignore[index]


# ── what is there ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_run_folder(done: Done) -> None:
    rounds = {
        "iter_1": {"warmup_subset.jsonl", "calibration_model", "scores.parquet", "selected_train_model"} | CHOSEN,
        "iter_2": {"scores.parquet", "selected_train_model"} | CHOSEN,
    }
    top = {path.name for path in done.run.iterdir()}
    assert top == {
        "config.yaml", "environment.json", "log.jsonl", "report.html", "report.json", "base", "baselines", *rounds,
        *TOGETHER,
    }  # fmt: skip
    for name, expected in rounds.items():
        assert {path.name for path in (done.run / name).iterdir()} == expected
    assert sorted(path.name for path in (done.run / "baselines").iterdir()) == sorted(CONTROLS)
    for name in CONTROLS:
        assert {path.name for path in (done.run / "baselines" / name).iterdir()} == {"model"} | CHOSEN
    models = [done.run / "iter_1/calibration_model", *done.run.glob("iter_*/selected_train_model"),
              *done.run.glob("baselines/*/model")]  # fmt: skip
    assert len(models) == 7
    for model in models:
        assert files(model) == MODEL
        named = {"model": str(model.relative_to(done.run))}  # beside the selection that it was trained on
        assert model.name == "calibration_model" or read_json(model.parent / "model.json") == named
    assert files(done.home) - {f"run/{name}" for name in files(done.run)} - {
        f"store/{name}" for name in files(done.home / "store")
    } - {f"base/{name}" for name in files(done.home / "base")} == {"my.yaml", "pool.jsonl", "heldout.jsonl"}


def test_configuration_and_environment(done: Done) -> None:
    config = yaml.safe_load((done.run / "config.yaml").read_text())
    assert (config["seed"], config["iterations"], config["data"], config["model"]) == (7, 2, "pool.jsonl", "base")
    assert config["train"]["global_batch_size"] == 4 and config["train"]["lr_scheduler_type"] == "cosine"
    assert config["select"]["params"] == {"nll_reject_ratio": 0.1} and config["warmup"]["limit"] == 30
    environment = read_json(done.run / "environment.json")
    assert environment["packages"]["torch"] and environment["python"]
    assert set(environment["inputs"]) == {"base model", "data", "warmup data", "eval data"}


def test_the_log(done: Done) -> None:
    every = read_jsonl(done.run / "log.jsonl")
    events, passes = ([e for e in every if ("passes" in e) is some] for some in (False, True))
    assert {f"scored round {n}" for n in (1, 2)} < {e["event"] for e in passes}
    assert all(e["rows"] == sum(one["rows"] for one in e["passes"]) for e in passes)
    places = ["iter_1/calibration_model", "iter_1/selected_train_model", *(f"baselines/{c}/model" for c in CONTROLS),
              "iter_2/selected_train_model"]  # fmt: skip
    names = [f"trained {place}" for place in places]
    assert [e["event"] for e in events] == ["warm-up", names[0], "round 1", *names[1:6], "round 2", names[6]]
    assert events[0] == {"event": "warm-up", "rows": 10, "of": 30}
    assert all(event["last_loss"] > 0 for event in events if "trained" in event["event"])
    for number in (1, 2):
        record = read_json(done.run / f"iter_{number}" / "selection.json")
        (event,) = (e for e in events if e["event"] == f"round {number}")
        assert event == {"event": f"round {number}", **record["counts"], "excluded": {"filtered": 8}}


# ── the story ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_warm_up_is_the_published_draw(done: Done) -> None:
    drawn = random.Random(7).sample(POOL[:30], 10)
    assert read_jsonl(done.run / "iter_1/warmup_subset.jsonl") == drawn
    record = read_json(done.run / "iter_1/calibration_model/training.json")
    assert (record["rows"], record["steps"], record["base"], record["seed"]) == (10, 3, "base", 7)


def test_the_second_round_is_calibrated_by_the_first_selection(done: Done) -> None:
    models = [read_json(done.run / f"iter_{n}/selection.json")["models"] for n in (1, 2)]
    assert [m["calibrated"]["where"] for m in models] == [
        "run/iter_1/calibration_model", "run/iter_1/selected_train_model"
    ]  # fmt: skip
    assert models[0]["base"] == models[1]["base"] and models[0]["base"]["where"] == "base"
    for number, record in enumerate(models, 1):
        with inside(done.home):
            ok("score", "--data", "pool.jsonl", "--model", "base=base", "--model",
               f"calibrated={record['calibrated']['where']}", "--method", "instructdiff", "--dtype", "float32",
               "--max-length", LIMIT, "--store", f"../store_{number}",
               "--output", f"../again_{number}.parquet")  # fmt: skip
        assert scores(done.home.parent / f"again_{number}.parquet") == scores(
            done.run / f"iter_{number}/scores.parquet"
        )


def test_every_model_is_trained_from_the_base(done: Done) -> None:
    for number in (1, 2):
        record = read_json(done.run / f"iter_{number}/selected_train_model/training.json")
        selected = read_jsonl(done.run / f"iter_{number}/selected.jsonl")
        assert record["base"] == "base" and record["rows"] == len(selected)
        assert record["target_tokens"] == sum(tokens(selected, done.home / "base")) + len(selected)  # end tokens
        # Alone, from the base, on the selected rows: the same weights.
        train = [
            f"train.{key}={value}"
            for key, value in yaml.safe_load((done.home / "my.yaml").read_text())["train"].items()
        ]
        with inside(done.home):
            ok("train", "--data", f"run/iter_{number}/selected.jsonl", "--model", "base", "--seed", "7", "--output",
               f"../alone_{number}", *train)  # fmt: skip
        assert weights(done.home.parent / f"alone_{number}") == weights(
            done.run / f"iter_{number}/selected_train_model"
        )


def test_selection_and_controls_fill_the_budget(done: Done) -> None:
    size = dict(zip(by_instruction(POOL), tokens(POOL, done.home / "base"), strict=True))
    budget = int(sum(size.values()) * 0.2)
    for folder in (*done.run.glob("iter_*"), *(done.run / "baselines" / name for name in CONTROLS[:3])):
        rows = read_jsonl(folder / "selected.jsonl")
        spent = [size[name] for name in by_instruction(rows)]
        assert sum(spent[:-1]) < budget <= sum(spent), folder.name
        record = read_json(folder / "selection.json")
        assert record["counts"]["selected_tokens"] == sum(spent) and record["counts"]["selected_rows"] == len(rows)
        assert [POOL[row] for row in record["rows"]] == rows
        assert record["budget"] == ("20% tokens" if folder.name.startswith("iter") else f"{budget} tokens")
    assert sorted(by_instruction(read_jsonl(done.run / "baselines/full/selected.jsonl"))) == sorted(size)
    longest = read_jsonl(done.run / "baselines/longest/selected.jsonl")
    assert [size[n] for n in by_instruction(longest)] == sorted(size.values(), reverse=True)[: len(longest)]
    drawn = [read_jsonl(done.run / f"baselines/random_seed_{seed}/selected.jsonl") for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    methods = [read_json(done.run / f"baselines/{name}/selection.json")["method"] for name in CONTROLS]
    assert methods == ["random", "random", "longest", "full"]


@pytest.mark.parametrize("budget", ["95% tokens", "95% answer tokens"])
def test_controls_have_what_the_filters_have_left(home: Path, budget: str) -> None:
    rows = [{**row, "output": "<think>\nhm\n</think>\n\n" * (n % 2) + row["output"]} for n, row in enumerate(POOL)]
    write_jsonl(home / "pool.jsonl", rows)
    select = {"method": "instructdiff", "nll_reject_ratio": 0.3, "budget": budget}
    configure(home, iterations=1, select=select, eval={**CONFIG["eval"], "baselines": ["random"], "seeds": [0]})
    pipeline(home)
    key = budget.removeprefix("95% ").replace(" ", "_")
    own, control = (read_json(home / f"run/{name}/selection.json") for name in ("iter_1", f"baselines/{CONTROLS[0]}"))
    asked, spent = own["counts"][f"asked_{key}"], own["counts"][f"selected_{key}"]
    assert own["excluded"]["filtered"] == 24 and 0 < spent < 0.6 * asked
    assert control["budget"] == f"{spent} {key.replace('_', ' ')}"


def test_the_selection_follows_from_the_scores(done: Done) -> None:
    for number in (1, 2):
        table = scores(done.run / f"iter_{number}/scores.parquet")
        difference = sorted(range(40), key=lambda row: table[row]["instructdiff.diff_nll"])
        kept = difference[4:-4]
        ranked = sorted(kept, key=lambda row: (table[row]["instructdiff.diff_entropy"], table[row]["id"]))
        record = read_json(done.run / f"iter_{number}/selection.json")
        assert record["rows"] == ranked[: len(record["rows"])]
        assert record["params"]["nll_reject_ratio"] == 0.1


# ── held-out ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def held_out_nll(model: Path) -> float:
    """Nats per response token: row by row, full logits, no code of the package."""
    from transformers import AutoTokenizer

    hf, module = AutoTokenizer.from_pretrained(model), causal(model)
    parts = [reference(module, *given)[0] for row in HELD_OUT if (given := by_hand(hf, row, LIMIT)["given"])]
    assert len(parts) == 12
    return float(np.concatenate(parts).astype(np.float64).mean())


def test_held_out_nll(done: Done) -> None:
    base = held_out_nll(done.home / "base")
    places = {"iter_1": "selected_train_model", "iter_2": "selected_train_model"}
    places |= {f"baselines/{name}": "model" for name in CONTROLS}
    results = {}
    for folder, model in places.items():
        results[folder] = read_json(done.run / folder / "results.json")
        nll = held_out_nll(done.run / folder / model)
        mine = results[folder]["selection"]
        assert results[folder]["suite"] == "heldout"
        assert results[folder]["base"]["nll"] == pytest.approx(base, abs=1e-4)
        assert mine["nll"] == pytest.approx(nll, abs=1e-4)
        assert mine["gain"] == pytest.approx(nll - base, abs=1e-4)
        assert mine["nll_low"] <= mine["nll"] <= mine["nll_high"] and mine["gain_low"] <= mine["gain_high"]
        record = read_json(done.run / folder / "selection.json")
        assert (mine["rows"], mine["tokens"]) == (
            record["counts"]["selected_rows"],
            record["counts"]["selected_tokens"],
        )
    draws = [results[f"baselines/random_seed_{seed}"]["selection"] for seed in (0, 1)]
    assert [results[f"iter_{n}"]["random"] for n in (1, 2)] == [draws, draws]
    assert [line["model"] for line in draws] == ["random seed 0", "random seed 1"]


def test_the_table(done: Done) -> None:
    lines = done.ran.out.splitlines()
    assert lines[0].split() == ["stage", "rows", "scorable", "eligible", "selected", "tokens"]
    assert lines[2].split() == ["warm-up", "30", "-", "-", "10", "-"]
    assert [line.split()[:5] for line in lines[3:5]] == [["round", str(n), "40", "40", "32"] for n in (1, 2)]
    names = [
        "base",
        "random seed 0",
        "random seed 1",
        "longest",
        "full",
        "instructdiff round 1",
        "instructdiff round 2",
    ]
    assert [line[:20].rstrip() for line in lines[8:15]] == names
    for name, line in zip(["iter_1", "iter_2"], lines[13:15], strict=True):
        found = read_json(done.run / name / "results.json")["selection"]
        assert f"  {found['nll']:.3f}  " in line and f"{found['gain']:+.3f} [" in line
    assert lines[-1] == "the run is in run; its page is run/report.html"


# ── again, and otherwise ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_command_again_does_nothing(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    def stamps() -> dict[str, tuple[int, bytes]]:
        paths = [done.run / name for name in files(done.run)]
        rewritten = ("results.json", "report.html", "report.json", *TOGETHER)
        return {str(p): (0 if p.name in rewritten else p.stat().st_mtime_ns, p.read_bytes()) for p in paths}

    before, work = stamps(), Work(monkeypatch)
    again = pipeline(done.home)
    assert (work.trained, work.passes, work.loads) == ([], 0, 0)
    assert again.out == done.ran.out
    assert stamps() == before


def test_another_configuration_is_refused(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    assert refused(done.home, "select.nll_reject_ratio=0.2") == (
        "'run' holds a run with select.params.nll_reject_ratio=0.1, now it is 0.2; "
        "give another output_dir, or the same configuration to go on"
    )
    assert "holds a run with train.learning_rate=0.01, now it is 0.1;" in refused(done.home, "train.learning_rate=0.1")
    assert "with seed=7, now it is 8 (and 1 more: iterations);" in refused(done.home, "iterations=3", "seed=8")
    assert "with eval.seeds=[0, 1], now it is [0];" in refused(done.home, "eval.seeds=[0]")
    assert "warmup.limit=30, now it is None;" in refused(done.home, "warmup.limit=null")
    assert (work.trained, work.passes) == ([], 0)


def test_where_and_how_it_runs_may_change(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (done.run / "config.yaml").read_bytes()
    work = Work(monkeypatch)
    again = pipeline(done.home, "device=cpu", "batch_tokens=500", "workers=2", "output_dir=./run/")
    assert again.out == done.ran.out and (work.trained, work.passes) == ([], 0)
    # In another store the held-out rows are looked at again, but scores and models are there.
    moved = pipeline(done.home, f"store={tmp_path}")
    assert work.trained == [] and moved.out == done.ran.out
    assert (done.run / "config.yaml").read_bytes() == before


def test_other_data_or_another_base_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(home, iterations=1, eval={"data_path": "heldout.jsonl", "baselines": []})
    pipeline(home)
    work = Work(monkeypatch)
    for name, what in (("pool.jsonl", "data"), ("heldout.jsonl", "eval data")):
        whole = (home / name).read_text()
        (home / name).write_text(whole.replace('"output": "', '"output": "No: ', 1))
        assert refused(home) == f"the {what} has changed since the run in 'run' began; give another output_dir"
        (home / name).write_text(whole)
    from helpers import make_llama

    (home / "base").unlink()
    make_llama(home / "base", seed=5, chat=None, num_hidden_layers=1)
    assert refused(home) == "the base model has changed since the run in 'run' began; give another output_dir"
    assert (work.trained, work.passes) == ([], 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("base_model=bsae", "no model folder 'bsae'|'bsae'"),
        ("data_path=poll.jsonl", "did you mean pool.jsonl"),
        ("eval.data_path=held.jsonl", "held.jsonl is not there"),
        ("select.nll_reject_ration=0.2", "no parameter 'nll_reject_ration'; did you mean 'nll_reject_ratio'"),
        ("select.method=instructdif", "did you mean 'instructdiff'"),
        ("select.budget=many", "budget 'many'"),
    ],
)
def test_a_mistake_can_be_mended(home: Path, wrong: str, message: str) -> None:
    """What can be checked is checked before anything is trained, and binds no run folder."""
    configure(home, iterations=1, eval={"data_path": "heldout.jsonl", "baselines": []})
    assert re.search(message, refused(home, wrong))
    assert not (home / "run").exists()


def test_a_training_key_can_be_mended(home: Path) -> None:
    """The trainer knows its keys only when it is there, which is after the warm-up rows are drawn."""
    configure(home, iterations=1, eval=None)
    assert "unknown training key 'learning_rat'" in refused(home, "train.learning_rat=0.1", "seed=1")
    assert files(home / "run") == {"config.yaml", "environment.json", "log.jsonl", "iter_1/warmup_subset.jsonl"}
    pipeline(home)
    assert read_jsonl(home / "run/iter_1/warmup_subset.jsonl") == random.Random(7).sample(POOL[:30], 10)
    assert yaml.safe_load((home / "run/config.yaml").read_text())["seed"] == 7
    assert [line["event"] for line in read_jsonl(home / "run/log.jsonl")] == [
        "warm-up", "trained iter_1/calibration_model", "scored round 1", "round 1",
        "trained iter_1/selected_train_model",
    ]  # fmt: skip


def test_what_a_pipeline_needs(home: Path) -> None:
    for key, said in (("data_path", "data"), ("base_model", "model"), ("output_dir", "output")):
        configure(home, **{key: None})
        assert refused(home) == REQUIRED[said]
    configure(home, eval={"suite": "heldout"})
    assert "'eval.data_path' is missing" in refused(home)
