"""Suites within a pipeline, and models that leave the disk when nothing needs them any more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.config.pipeline import EvalPart
from instdiff.engine.text.generate import Generator
from instdiff.evaluation.results import read_results

from .conftest import Done
from .kit import Work, configure, files, pipeline, read_json, read_jsonl, refused, weights, write_jsonl

MODELS = ["iter_1/calibration_model", "iter_1/selected_train_model", "iter_2/selected_train_model",
          "baselines/random_seed_0/model"]  # fmt: skip


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Answers of every batch that a model really writes."""
    sizes: list[int] = []
    real = Generator.generate

    def counting(self: Generator, prompts: list[list[int]], room: int, *how: Any) -> Any:
        sizes.append(len(prompts))
        return real(self, prompts, room, *how)

    monkeypatch.setattr(Generator, "generate", counting)
    return sizes


# ── suites ────────────────────────────────────────────────────────────────────────────────────────────────────────────

SUITES = {
    "suite": "heldout,math", "task": "math.gsm8k", "data_path": "heldout.jsonl", "data_dir": "tasks",
    "max_new_tokens": 4, "baselines": ["random"], "seeds": [0, 1],
}  # fmt: skip


def test_suites_within_a_pipeline(home: Path, written: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    (home / "tasks").mkdir()
    write_jsonl(home / "tasks/gsm8k.jsonl", [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(3)])
    configure(home, iterations=1, template="direct", eval=SUITES)
    pipeline(home)
    run = home / "run"
    places = {"base": run / "base", "random": run / "baselines/random_seed_0", "round": run / "iter_1"}
    results = {name: read_results(place / "results/math.json") for name, place in places.items()}
    assert sum(written) == 3 * 4  # the base, two controls and the round, three problems each
    assert all(len(found["gsm8k"].ids) == 3 for found in results.values())
    assert results["round"].settings["max_new_tokens"] == 4 and results["round"].settings["template"] == "direct"
    assert results["round"].settings["fingerprint"] != results["base"].settings["fingerprint"]
    found = read_json(run / "iter_1/results.json")
    assert found["suites"]["math"]["tasks"]["gsm8k"]["value"] == results["round"].value
    assert "items" not in found["suites"]["math"] and found["selection"]["nll"] > 0
    held = read_results(run / "iter_1/results/heldout.json")["heldout"]
    assert np.average(held.score, weights=held.weight) == pytest.approx(found["selection"]["nll"])

    told = read_json(run / "comparison.json")
    assert {(line["suite"], line["task"], line["name"], line["seeds"]) for line in told["lines"]} == {
        (*task, name, seeds)
        for task in (("heldout", "heldout"), ("math", "gsm8k"))
        for name, seeds in (("base", 1), ("random", 2), ("instructdiff round 1", 1))
    }
    assert told["against"] == "random" and told["failed"] == [] and told["cost_unit"] == "CPU seconds"
    assert "against random" in (run / "comparison.md").read_text()

    # What is there is not asked again; what lacks is, and nothing else.
    work, before = Work(monkeypatch), files(run)
    pipeline(home)
    assert (sum(written), work.trained, work.passes, files(run)) == (12, [], 0, before)
    shutil.rmtree(run / "answers")
    (run / "iter_1/results/math.json").unlink()
    pipeline(home)
    assert (sum(written), work.trained) == (15, [])
    assert read_results(run / "iter_1/results/math.json")["gsm8k"].score.tolist() == (
        results["round"]["gsm8k"].score.tolist()
    )


HELD = {"suite": "heldout", "data_path": "heldout.jsonl", "baselines": ["random"]}


def test_the_last_selection_is_trained_under_each_seed_and_has_a_verdict(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(home, eval={**HELD, "seeds": [0, 1, 2]})
    work, run = Work(monkeypatch), home / "run"
    first = pipeline(home)
    assert len(work.trained) == 1 + 2 + 3 + 3  # warm-up, rounds, controls, the last selection three times more
    told = read_json(run / "comparison.json")
    lines = {line["name"]: line for line in told["lines"]}
    assert (lines["instructdiff round 2"]["seeds"], lines["random"]["seeds"]) == (4, 3)
    assert lines["instructdiff round 1"]["verdict"] == "too few seeds"
    verdict = lines["instructdiff round 2"]["verdict"]
    (sentence,) = told["verdicts"]
    assert verdict in ("better", "worse", "not told apart") and sentence in first.out
    assert sentence.lower().startswith(f"{verdict}{' from' if verdict.startswith('not') else ' than'} random: instr")
    values = [read_results(run / "iter_2" / place / "results/heldout.json")["heldout"].value for place in SEEDED]
    assert lines["instructdiff round 2"]["by_seed"] == pytest.approx(values) and len(set(values)) == 4
    rows = {read_json(path)["rows"] for path in (run / "iter_2").rglob("training.json")}
    assert len(rows) == 1

    work.trained.clear()
    assert pipeline(home).out == first.out and work.trained == []


SEEDED = (".", "seed_0", "seed_1", "seed_2")


def test_with_fewer_than_three_seeds_a_pipeline_tells_the_fact_alone(home: Path) -> None:
    configure(home, iterations=1, eval={**HELD, "seeds": [0, 1, 2], "train_seeds": []})
    out = pipeline(home).out
    told = read_json(home / "run/comparison.json")
    lines = {line["name"]: line for line in told["lines"]}
    seeds = lines["random"]["by_seed"]
    assert told["verdicts"] == [
        f"Too few seeds for a verdict: instructdiff round 1 has a held-out NLL of "
        f"{lines['instructdiff round 1']['value']:.3f}; each of 3 random selections lies between {min(seeds):.3f} and "
        f"{max(seeds):.3f}."
    ]
    assert told["verdicts"][0] in out and not list((home / "run/iter_1").glob("seed_*"))


def test_seeds_of_the_last_training() -> None:
    assert EvalPart(seeds=(0, 1, 2)).repeats(1) == [0, 2]
    assert EvalPart(seeds=(0, 1)).repeats(7) == []
    assert EvalPart(seeds=(0,), train_seeds=(3, 4)).repeats(7) == [3, 4]


def test_a_mistake_in_eval_is_found_before_anything_is_trained(home: Path) -> None:
    configure(home, iterations=1, eval={"suite": ["heldout"], "data_path": "heldout.jsonl"})
    assert "unknown suite 'maths'; did you mean 'math'" in refused(home, "eval.suite=maths")
    assert "'temprature'" in refused(home, "eval.temprature=1")
    assert "suite 'general' needs a judge" in refused(home, "eval.suite=general")
    assert not (home / "run").exists()


# ── models that nothing needs ─────────────────────────────────────────────────────────────────────────────────────────


def whole(run: Path) -> set[str]:
    """The models that have weights."""
    return {str(path.parent.relative_to(run)) for path in run.rglob("model.safetensors")}


def test_models_that_nothing_needs_are_dropped(home: Path, done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"suite": "heldout", "data_path": "heldout.jsonl", "baselines": ["random"], "seeds": [0]}
    configure(home, keep_models=False, eval=held)
    work = Work(monkeypatch)
    first, run = pipeline(home), home / "run"
    assert len(work.trained) == 4 and whole(run) == {"iter_2/selected_train_model"}
    for model in MODELS:
        assert (run / model / "training.json").is_file()
    assert files(run / "iter_1/calibration_model") == {"training.json"}
    for number in (1, 2):
        mine, theirs = (read_json(place / f"iter_{number}/selection.json") for place in (run, done.run))
        assert mine["rows"] == theirs["rows"]

    # Nothing of it is made again, although the models are gone.
    work.trained.clear()
    passes = work.passes
    again = pipeline(home)
    assert (again.out, work.trained, work.passes) == (first.out, [], passes)

    # A later stage that has to be done again needs the model of the round before: it is trained once more.
    kept = {"rows": read_jsonl(run / "iter_2/selected.jsonl"), "weights": weights(run / "iter_2/selected_train_model")}
    shutil.rmtree(run / "iter_2")
    said = pipeline(home)
    assert said.err.count("was dropped (keep_models: false) and is needed again; it is trained once more") == 1
    assert "run/iter_1/selected_train_model was dropped" in said.err
    assert [name.strip(".").removesuffix(".partial") for name in work.trained] == ["selected_train_model"] * 2
    assert read_jsonl(run / "iter_2/selected.jsonl") == kept["rows"]
    assert weights(run / "iter_2/selected_train_model") == kept["weights"]
    assert said.out == first.out and whole(run) == {"iter_2/selected_train_model"}


def test_models_may_be_dropped_later(home: Path) -> None:
    """Whether models are kept changes no result: a finished run may be asked to drop them."""
    configure(home, iterations=1, eval=None)
    pipeline(home)
    assert whole(home / "run") == {"iter_1/calibration_model", "iter_1/selected_train_model"}
    pipeline(home, "keep_models=false")
    assert whole(home / "run") == {"iter_1/selected_train_model"}
