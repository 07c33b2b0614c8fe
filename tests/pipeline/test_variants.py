"""Other budgets, adapters, other warm-up data, a page from hostile rows, and the same without files."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from report.kit import payload as carried

from .conftest import Done
from .kit import (
    CONFIG,
    LIMIT,
    POOL,
    TRAIN,
    Work,
    by_instruction,
    cli,
    configure,
    files,
    inside,
    ok,
    pipeline,
    read_json,
    read_jsonl,
    scores,
    write_jsonl,
)

ONE = {"iterations": 1, "eval": None}


@pytest.mark.parametrize(("start", "models"), [("calibrated", 4), ("base", 2)])
def test_each_round_has_fold_models_of_its_own_start(home: Path, start: str, models: int) -> None:
    folds = {"k": 2, "epochs": 1, "model": start}
    configure(home, iterations=2, eval=None, select={"method": "learnability", "folds": folds, "budget": 8})
    pipeline(home)
    records = [read_json(path) for path in (home / "run/crossfit").glob("held_[01]_*/training.json")]
    bases = Counter(record["base"] for record in records)
    starts = ["calibration_model", "selected_train_model"] if start == "calibrated" else ["base"]
    assert bases == dict.fromkeys(starts, 2) and len(records) == models
    for number in (1, 2):
        assert len(read_json(home / f"run/iter_{number}/selection.json")["rows"]) == 8


# ── budgets and warm-up rows ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("select", "name", "rows"),
    [
        ({"select_ratio": 0.2, "budget": "rows"}, "20%", 8),
        ({"select_ratio": 0.2, "budget": "filtered"}, "20% eligible", 6),
        ({"select_ratio": 0.9, "budget": "10% tokens"}, "10% tokens", None),
        ({"budget": 5}, "5", 5),
        ({}, "10% tokens", None),
    ],
)
def test_budgets(home: Path, done: Done, select: dict[str, object], name: str, rows: int | None) -> None:
    configure(home, **ONE, select=select)
    pipeline(home)
    record = read_json(home / "run/iter_1/selection.json")
    counts = record["counts"]
    assert record["budget"] == name
    # Models and scores are those of the other run: what differs is how much is taken of the same ranking.
    assert scores(home / "run/iter_1/scores.parquet") == scores(done.run / "iter_1/scores.parquet")
    most = max(len(record["rows"]), 7)
    ranking = sorted(
        (row for row in scores(done.run / "iter_1/scores.parquet") if row["instructdiff"] is not None),
        key=lambda row: (-row["instructdiff"], row["id"]),
    )
    assert record["rows"] == [row["row"] for row in ranking[:most]][: len(record["rows"])]
    if rows is not None:
        assert counts["selected_rows"] == rows
    else:
        spent = [row["n_tokens"] for row in ranking[: counts["selected_rows"]]]
        assert sum(spent[:-1]) < counts["scorable_tokens"] // 10 <= sum(spent) == counts["selected_tokens"]


def test_warm_up_rows_stay_out(home: Path) -> None:
    configure(home, **ONE, select={**CONFIG["select"], "exclude_warmup": True, "select_ratio": 1.0})
    pipeline(home)
    warmup = by_instruction(read_jsonl(home / "run/iter_1/warmup_subset.jsonl"))
    selected = by_instruction(read_jsonl(home / "run/iter_1/selected.jsonl"))
    record = read_json(home / "run/iter_1/selection.json")
    assert len(warmup) == 10 and not set(warmup) & set(selected)
    assert record["excluded"]["warmup"] == 10 and record["params"]["exclude_warmup"] is True
    assert len(selected) == record["counts"]["eligible_rows"] == 40 - sum(record["excluded"].values())


def test_warm_up_rows_come_from_all_rows_or_from_a_file(home: Path) -> None:
    """Scoring fewer rows does not narrow the draw, as in the published second stage."""
    configure(home, **ONE, score={"max_samples": 12})
    pipeline(home)
    assert read_jsonl(home / "run/iter_1/warmup_subset.jsonl") == random.Random(7).sample(POOL[:30], 10)
    assert read_json(home / "run/iter_1/selection.json")["counts"]["pool_rows"] == 12
    others = [{"instruction": f"Say {n}.", "response": f"{n} it is"} for n in range(9)]
    write_jsonl(home / "others.jsonl", ["no JSON", *others])
    warmup = {"data_path": "others.jsonl", "sample_size": 4, "limit": 7}
    configure(home, **ONE, output_dir="other", warmup=warmup)
    pipeline(home)
    assert read_jsonl(home / "other/iter_1/warmup_subset.jsonl") == random.Random(7).sample(others[:6], 4)
    write_jsonl(home / "others.jsonl", others[::-1])
    with inside(home):
        assert "the warmup data has changed" in cli("pipeline", "--config", "my.yaml").error


def test_each_stage_may_have_its_own_training(home: Path) -> None:
    configure(
        home,
        **ONE,
        warmup={"sample_size": 4, "train": {**TRAIN, "num_train_epochs": 2}},
        select_train={"train": {**TRAIN, "learning_rate": 0.02}},
    )
    pipeline(home)
    warm, final = (
        read_json(home / f"run/iter_1/{m}/training.json") for m in ("calibration_model", "selected_train_model")
    )
    assert (warm["steps"], warm["settings"]["learning_rate"]) == (2, 0.01)
    assert final["settings"]["learning_rate"] == 0.02


def test_a_method_without_a_calibration_model(home: Path) -> None:
    """A seeded method takes the run's seed."""
    configure(home, **ONE, select={"method": "random", "budget": 5})
    pipeline(home)
    assert read_json(home / "run/iter_1/selection.json")["params"]["seed"] == 7


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_adapters(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(home, eval=None, train={**TRAIN, "use_lora": True, "lora_r": 4, "learning_rate": 0.1})
    work = Work(monkeypatch)
    pipeline(home)
    adapter = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
               "trained_rows.tsv", "training.json"}  # fmt: skip
    for place in ("iter_1/calibration_model", "iter_1/selected_train_model", "iter_2/selected_train_model"):
        assert files(home / "run" / place) == adapter
    assert (len(work.trained), work.passes, work.loads) == (3, 3, 2)  # the base once a round, for both models
    for number, place in enumerate(("calibration_model", "selected_train_model"), 1):
        record = read_json(home / f"run/iter_{number}/selection.json")
        calibrated = f"base+run/iter_1/{place}"
        assert record["models"]["calibrated"]["where"] == calibrated
        with inside(home):
            ok("score", "--data", "pool.jsonl", "--model", "base", "--model", f"calibrated={calibrated}", "--method",
               "instructdiff", "--dtype", "float32", "--max-length", LIMIT, "--store", "../store",
               "--output", "../again.parquet")  # fmt: skip
        mine = scores(home / f"run/iter_{number}/scores.parquet")
        assert scores(home.parent / "again.parquet") == mine
        assert any(row["instructdiff.diff_nll"] for row in mine)
    before = len(work.trained)
    pipeline(home)
    assert len(work.trained) == before and read_json(home / "run/iter_2/selection.json")["rows"] == record["rows"]


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = {
    "instruction": "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202efdp.exe",
    "input": "</td></table><a href='https://example.org'>a</a>",
    "output": '"><style>*{display:none}</style> &amp; \u2066x\u2069 \u0007',
}


def test_hostile_rows_are_shown_as_text(home: Path) -> None:
    write_jsonl(home / "pool.jsonl", [HOSTILE, *POOL[:8]])
    configure(
        home,
        **ONE,
        output_dir="run <b>1",
        template="direct",
        max_length=256,
        warmup={"sample_size": 4},
        select={"nll_reject_ratio": 0, "budget": 9},
    )
    pipeline(home)
    path = home / "run <b>1" / "report.html"
    text = path.read_text(encoding="utf-8")
    assert "<img" not in text and "<b>1" not in text and "run &lt;b&gt;1</bdi>" in text
    assert not any(ord(c) in range(0x202A, 0x202F) or ord(c) in range(0x2066, 0x206A) for c in text)
    assert all(c in "\n\t" or ord(c) >= 32 for c in text)
    found = read_json(path.with_suffix(".json"))
    assert found["title"].startswith("instructdiff on ") and found["title"].endswith(
        f": 9 of {len(found['examples']['row'])} rows"
    )
    assert found["examples"]["status"] == ["chosen"] * 9
    texts = carried(path)["examples"]["texts"]
    shown = next(said for said in texts if said[0].startswith("<script>"))
    assert shown[0] == (
        "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} ⟨U+202E⟩fdp.exe\n" + HOSTILE["input"]
    )
    assert shown[1] == '"><style>*{display:none}</style> &amp; ⟨U+2066⟩x⟨U+2069⟩ ⟨U+0007⟩'


def test_the_page_says_what_the_table_says(done: Done) -> None:
    path = done.run / "report.html"
    found, text = read_json(done.run / "report.json")["sections"], path.read_text(encoding="utf-8")
    told = {line["model"]: line for line in found["comparison"]["facts"]["heldout"]}
    for number in (1, 2):
        line = read_json(done.run / f"iter_{number}/results.json")["selection"]
        assert told[line["model"]] == line and f">{line['nll']:.3f}<" in text
        record = read_json(done.run / f"iter_{number}/selection.json")
        stages = found["funnel"]["facts"][f"round {number}"]["stages"]
        assert [stage["rows"] for stage in stages] == [
            record["counts"][f"{key}_rows"] for key in ("pool", "scorable", "eligible", "selected")
        ]
        assert stages[3]["tokens"] == record["counts"]["selected_tokens"]
    examples = read_json(done.run / "report.json")["examples"]
    chosen = [row for row, status in zip(examples["row"], examples["status"], strict=True) if status == "chosen"]
    assert sorted(chosen) == sorted(record["rows"])
    texts = dict(zip(examples["row"], carried(path)["examples"]["texts"], strict=True))
    for row, record_ in zip(record["rows"], read_jsonl(done.run / "iter_2/selected.jsonl"), strict=True):
        assert texts[row][0].startswith(record_["instruction"]) and texts[row][1] == record_["output"]
    (verdict,) = read_json(done.run / "comparison.json")["verdicts"]
    told = read_json(done.run / "report.json")["verdict"]
    assert (
        verdict == f"{told['word']} for a verdict: {told['sentence']}"
        and "each of 2 random selections lies between" in verdict
    )
    assert "delta entropy" in text and "learning_rate: 0.01" in text
    curves = found["training"]["facts"]
    assert {"round 1, calibration model", "round 2, selected train model", "random seed 0"} <= set(curves)
    assert len(curves["random seed 0"]["losses"]) == curves["random seed 0"]["steps"]
    assert carried(path)["examples"]["tokens"]["deltas"].keys() == {
        "delta NLL: base minus calibrated", "delta entropy: base minus calibrated"
    }  # fmt: skip


# ── without files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_in_python(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import instdiff

    monkeypatch.chdir(tmp_path)
    pool = instdiff.load(POOL)
    found = instdiff.score(
        pool,
        [instdiff.InstructDiff(), instdiff.Random(seed=0)],
        models={"base": str(done.home / "base"), "calibrated": str(done.run / "iter_1/calibration_model")},
        settings=instdiff.Settings(dtype="float32", max_length=LIMIT),
        store=instdiff.Store(tmp_path / "store"),
    )
    chosen = instdiff.select(pool, found["instructdiff"], budget="20% tokens")
    record = read_json(done.run / "iter_1/selection.json")
    assert chosen.rows.tolist() == record["rows"] and chosen.ids == record["ids"]
    assert chosen.record()["counts"] == record["counts"]
    budget = instdiff.Budget(chosen.budget.target(chosen.scored), "tokens")
    drawn = instdiff.select(pool, found["random"], budget=budget)
    assert drawn.rows.tolist() == read_json(done.run / "baselines/random_seed_0/selection.json")["rows"]
    assert {path.name for path in tmp_path.iterdir()} == {"store"}
